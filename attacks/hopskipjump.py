"""HopSkipJump (Chen, Jordan & Wainwright, IEEE S&P 2020, https://arxiv.org/abs/1904.02144)."""

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.oracle import Labels
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.rows import per_sample
from robustbench_lite.starting import bisected, broken_start
from robustbench_lite.streams import Streams

BLOCK = 25  # queries around the image that are asked at once
SEARCH = 20  # queries kept back for the step and the way back to the boundary

FINEST = 2e-5
"""No boundary is looked for more exactly, as a share of the distance.

On images of 224 pixels the paper's share is less than float32 tells: on a linear model a thousand queries had brought nothing. On those of
32, queries for the slope bring more than a finer place on the boundary.
"""


@attack("hopskipjump")
@dataclass(frozen=True)
class HopSkipJump:
    """Feel out the boundary's slope from labels alone, jump along it, and come back to the boundary towards the clean image.

    Labels cannot be masked as gradients can. The more queries, the nearer it comes, and thousands are needed: where gradients tell the
    truth, `ddn` or `fmn` is nearer and cheaper.

    Args:
        queries: of each image at most, from the search for a start to the last answer.
        first: queries of the first slope; of the t-th sqrt(t) times as many.
    """

    access = Labels
    norms = ("l2", "linf")
    goal = "closest"
    cost = "queries forwards at most"

    queries: Annotated[int, Field(ge=100)] = 5000
    first: Annotated[int, Field(ge=BLOCK)] = 100

    @property
    def steps(self) -> int:
        """More than there are queries for: an image is done when it has asked them."""
        return self.queries // BLOCK

    def start(self, oracle: Labels, draw: Streams) -> State:
        far, found = broken_start(oracle, draw)
        x = self._returned(oracle, far, found)
        return replace(State.at(x), done=~found | (self._left(oracle) < SEARCH + BLOCK))

    def step(self, oracle: Labels, state: State, draw: Streams) -> State:
        x, threat, turn = state.x, oracle.threat, (state.t + 1).sqrt()
        distance = threat.distance(x, oracle.origin)
        blocks = torch.minimum(self.first * turn, self._left(oracle) - SEARCH).div(BLOCK).floor().masked_fill(state.done, 0)
        # from the start on, and not at first a tenth of a pixel's range as in other code: the start may be nearer than that. In linf too
        # by the length in l2, which the directions have; by that in linf, the way is so short that rounding decides on the answers
        reach = torch.linalg.vector_norm((x - oracle.origin).flatten(1), dim=1) * theta(x) * x[0].numel() ** 0.5
        uphill = threat.steepest(self._slope(oracle, x, reach, blocks, draw))
        ahead, moved = self._jumped(oracle, x, uphill, distance / turn, blocks > 0)
        x = self._returned(oracle, ahead, moved)
        return state.moved(x, done=state.done | (self._left(oracle) < SEARCH + BLOCK))

    def _left(self, oracle: Labels) -> Tensor:
        """(B,) queries that a row may still ask; the last image will cost one more."""
        return self.queries - 1 - oracle.ledger.forwards

    def _returned(self, oracle: Labels, far: Images, rows: Tensor) -> Images:
        """At the boundary, by the paper's tolerance in l2, theta times the distance; that in linf costs more queries than it brings."""
        return bisected(oracle, oracle.origin, far, theta(far) * oracle.threat.distance(far, oracle.origin), self._left(oracle) * rows)

    def _slope(self, oracle: Labels, x: Images, reach: Tensor, blocks: Tensor, draw: Streams) -> Images:
        """The mean of random directions, each weighted by whether it leads to a broken image less how many do (equation 16).

        It is added up block by block, so that rows may differ in their number of queries, and no sample sees another's.
        """
        weighted, plain, met, asked = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(reach), blocks.clamp(min=1) * BLOCK
        for block in range(int(blocks.max())):
            rows = (blocks > block).nonzero()[:, 0]
            some_draw = replace(
                draw, rows=[draw.rows[row] for row in rows.tolist()], steps=None if draw.steps is None else draw.steps[rows]
            )
            around = self._directions(oracle.threat.norm, some_draw, f"directions {block}", x[rows])
            tried = (x[rows, None] + per_sample(reach[rows], around) * around).clamp(0, 1)
            around = (tried - x[rows, None]) / per_sample(reach[rows].clamp(min=1e-12), around)
            with oracle.among(rows) as some:
                votes = some.broken(tried).to(x.dtype)
            weighted[rows] += (votes[:, :, None, None, None] * around).sum(1)
            plain[rows] += around.sum(1)
            met[rows] += votes.sum(1)
        share = met / asked
        one_sided = (share == 0) | (share == 1)
        return torch.where(per_sample(one_sided, x), plain * per_sample(2 * share - 1, x), weighted - per_sample(share, x) * plain)

    @staticmethod
    def _directions(norm: str, draw: Streams, name: str, x: Images) -> Tensor:
        """(B, BLOCK, C, H, W) of length 1: normal, in linf uniform."""
        shape = (BLOCK, *x.shape[1:])
        around = (draw.uniform(name, *shape, low=-1.0) if norm == "linf" else draw.normal(name, *shape)).to(x)
        length: Tensor = torch.linalg.vector_norm(around, dim=(2, 3, 4), keepdim=True)
        return around / length

    def _jumped(self, oracle: Labels, x: Images, uphill: Images, length: Tensor, rows: Tensor) -> tuple[Images, Tensor]:
        """Along the slope, half as far until it is broken; and (B,) where it is."""
        ahead, moved = x.clone(), torch.zeros_like(rows)
        for halving in range(SEARCH // 2):
            index = (rows & ~moved).nonzero()[:, 0]
            if not len(index):
                break
            tried = (x[index] + per_sample(length[index] / 2**halving, x) * uphill[index]).clamp(0, 1)
            with oracle.among(index) as some:
                met = some.broken(tried)
            ahead[index[met]], moved[index[met]] = tried[met], True
        return ahead, moved


def theta(x: Images) -> float:
    """How exactly the boundary is found, as a share of the distance; the slope is felt out at sqrt(D) times as much."""
    return max(1 / (x[0].numel() * math.sqrt(x[0].numel())), FINEST)
