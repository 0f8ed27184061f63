"""SurFree (Maho, Furon & Le Merrer, CVPR 2021, https://arxiv.org/abs/2011.12807)."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.oracle import Labels
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.rows import per_sample
from robustbench_lite.starting import MOST_QUERIES, bisected, broken_start
from robustbench_lite.streams import Streams

WIDEST = math.pi / 6  # the first angle that is tried, the paper's
TOLERANCE = 0.01  # of the first point, as a share of its distance


@dataclass(frozen=True)
class Search(State):
    """What a search along circles remembers. A circle has the way from the clean image to `point` as its diameter, so all of it is nearer.

    point: like x, broken. heading: like x, of length 1 and at right angles to that way: where the circle goes. widest: (B,) the angle,
    in radians, at which a heading is tried. stage: (B,) 0: a new heading, 1: its opposite, then 2 and more: the angle is refined.
    side: (B,) 1 or -1, the heading or its opposite. low, high: (B,) angles, the widest that broke (0 without), and what may be reached.
    """

    point: Images
    heading: Images
    widest: Tensor
    stage: Tensor
    side: Tensor
    low: Tensor
    high: Tensor


@attack("surfree")
@dataclass(frozen=True)
class SurFree:
    """Follow the boundary along circles in random directions, half of them smooth: no scores, no gradients, and none that are estimated.

    Made for a budget of hundreds of queries. Where gradients tell the truth, `ddn` and `fmn` are nearer and far cheaper.

    Args:
        queries: of an image, with those for its start.
        frequencies: the share of the lowest frequencies, along each side of the image, that smooth directions consist of.
        halvings: of the angle, where a direction helps.
        rho: by what the angle that is tried first shrinks after a direction that does not help; it grows as much after one that does.
    """

    access = Labels
    norms = ("l2",)
    goal = "closest"
    cost = "queries + 1 forwards"

    queries: Annotated[int, Field(ge=MOST_QUERIES)] = 5000  # the start alone may take as many
    frequencies: Annotated[float, Field(gt=0, le=1)] = 0.5
    # the paper's 7 are too many: after 1,000 queries on two models of the digits, medians of 4.5 and 7.5 with them, 3.7 and 5.9 with one
    halvings: Annotated[int, Field(ge=0)] = 1
    rho: Annotated[float, Field(gt=0, lt=1)] = 0.98

    @property
    def steps(self) -> int:
        return self.queries

    def start(self, oracle: Labels, draw: Streams) -> Search:
        origin = oracle.origin
        far, found = broken_start(oracle, draw)
        left = (self.queries - oracle.ledger.forwards) * found
        point = bisected(oracle, origin, far, TOLERANCE * oracle.threat.distance(far, origin), left)
        zero, stage = torch.zeros_like(origin[:, 0, 0, 0]), torch.zeros_like(found, dtype=torch.long)
        state = Search.at(point, point=point, heading=origin, widest=zero + WIDEST, stage=stage, side=zero, low=zero, high=zero)
        return replace(state, done=~found | (oracle.ledger.forwards >= self.queries))

    def step(self, oracle: Labels, state: Search, draw: Streams) -> Search:
        origin, point, stage, widest = oracle.origin, state.point, state.stage, state.widest
        heading, trying = self._heading(origin, state, draw), stage < 2
        side = torch.where(trying, (1 - 2 * stage).to(origin), state.side)
        angle = torch.where(trying, widest, (state.low + state.high) / 2)
        x = on_circle(origin, point, heading, side * angle)
        broken = oracle.broken(x)
        low = torch.where(broken, angle, torch.where(trying, 0, state.low))
        high = torch.where(trying, (2 * widest).clamp(max=math.pi / 2), torch.where(broken, state.high, angle))
        useless = ~broken & (stage == 1)
        stage = torch.where(trying & broken, 2, stage + 1)
        helped = (low > 0) & (stage - 2 >= self.halvings)
        widest = torch.where(useless, widest * self.rho, torch.where(helped, (widest / self.rho).clamp(max=math.pi / 4), widest))
        return state.moved(
            x,
            point=torch.where(per_sample(helped, x), on_circle(origin, point, heading, side * low), point),
            heading=heading,
            widest=widest,
            stage=torch.where(useless | helped, 0, stage),
            side=side,
            low=low,
            high=high,
            done=oracle.ledger.forwards >= self.queries,
        )

    def _heading(self, origin: Images, state: Search, draw: Streams) -> Images:
        """The headings, with a new one where it is time for it.

        The paper takes low frequencies only, out of which not every boundary is in reach (1.5 of the way to a plane of white noise was
        the end): every other heading has all of them. All of them always came less near (medians as above: 4.2 and 7.4). Nor are a
        hundred earlier headings kept, to be at right angles to: these are a hundred images of memory, and random ones are nearly so.
        """
        rows = (state.stage == 0).nonzero()[:, 0]
        if not len(rows):
            return state.heading
        drawn = replace(draw, rows=[draw.rows[row] for row in rows.tolist()], steps=state.t[rows])
        channels, height, width = origin.shape[1:]
        smooth = drawn.uniform("smooth", 1) < 0.5
        down, across = (~smooth | (torch.arange(side, device=origin.device) < self.frequencies * side) for side in (height, width))
        weights = drawn.normal("heading", channels, height, width) * (down[:, None, :, None] & across[:, None, None, :])
        fresh = cosines(height).to(origin).T @ weights.to(origin) @ cosines(width).to(origin)
        way = unit((state.point - origin)[rows])
        fresh = unit(fresh - per_sample((fresh * way).flatten(1).sum(1), way) * way)
        return state.heading.index_copy(0, rows, fresh)


def unit(x: Images) -> Images:
    """(B, C, H, W) of length 1, where they have any."""
    return x / per_sample(torch.linalg.vector_norm(x.flatten(1), dim=1).clamp(min=1e-12), x)


def on_circle(origin: Images, point: Images, heading: Images, angle: Tensor) -> Images:
    """The image at this angle, seen from the origin, on the circle whose diameter leads from there to the point (equation 10)."""
    way = point - origin
    length = per_sample(torch.linalg.vector_norm(way.flatten(1), dim=1), way)
    angle = per_sample(angle, way)
    return (origin + angle.cos() * (angle.cos() * way + angle.sin() * length * heading)).clamp(0, 1)


@lru_cache(maxsize=16)
def cosines(side: int) -> Tensor:
    """(side, side) the waves of the orthonormal cosine transform, slowest first."""
    place, wave = torch.arange(side), torch.arange(side)[:, None]
    return (math.pi / side * (place + 0.5) * wave).cos() * torch.where(wave == 0, 1.0, 2.0).div(side).sqrt()
