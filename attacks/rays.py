"""RayS (Chen & Gu, KDD 2020, https://arxiv.org/abs/2006.12792)."""

from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.oracle import Labels
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.rows import per_sample
from robustbench_lite.starting import corners, first_broken
from robustbench_lite.streams import Streams

FIRST_STRIDE = 0.01
"""How far inwards the first probe goes, as a share of the radius; each one that is still broken doubles it. Most flips help by little."""


@dataclass(frozen=True)
class Search(State):
    """What a search over the corners of a cube remembers. A query tries a new corner, or looks how far inwards from it images still break.

    signs: like x, the corner that breaks at the least radius so far, seen from the clean image. radius: (B,) that radius, 1 before
    there is one. place: (B, D) the order in which values are put into blocks. level, block: (B,) how finely, and which block is
    flipped now. inwards: (B,) bool, whether the flip helped and its radius is looked for. low, high: (B,) between which that lies.
    stride: (B,) how far the next probe goes inwards from high, at most.
    """

    signs: Images
    radius: Tensor
    place: Tensor
    level: Tensor
    block: Tensor
    inwards: Tensor
    low: Tensor
    high: Tensor
    stride: Tensor


@attack("rays")
@dataclass(frozen=True)
class RayS:
    """Of the images x +- radius, look for the signs that break at the least radius: no scores, no gradients, nothing to tune.

    Signs are flipped in blocks that are halved again and again. A flip is tried at the best radius so far: one query, unless it helps.
    Masked gradients do not matter to it; where they tell the truth, `fmn` and `apgd` are stronger and a hundred times cheaper.

    Args:
        queries: of an image.
        tolerance: how exactly radii are found, as a share of the radius.
    """

    access = Labels
    norms = ("linf",)
    goal = "closest"
    cost = "queries + 1 forwards"

    queries: Annotated[int, Field(ge=1)] = 5000
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.001

    @property
    def steps(self) -> int:
        return self.queries

    def start(self, oracle: Labels, draw: Streams) -> Search:
        origin = oracle.origin
        # the paper starts at white; where that is not broken, no flip of a block may be
        tried = islice(chain([torch.ones_like(origin)], corners(origin, draw)), self.queries)
        corner, found = first_broken(oracle, tried)
        one, zero = torch.ones_like(origin[:, 0, 0, 0]), torch.zeros(len(origin), dtype=torch.long, device=origin.device)
        state = Search.at(
            corner,
            signs=torch.where(per_sample(found, origin), 2 * corner - 1, 1),
            radius=one,
            place=torch.arange(origin[0].numel(), device=origin.device).expand(len(origin), -1),
            level=zero,
            block=zero - found.long(),  # none is flipped while the radius of the start is looked for
            inwards=found,
            low=0 * one,
            high=one,
            stride=one,
        )
        return replace(state, done=oracle.ledger.forwards >= self.queries)

    def step(self, oracle: Labels, state: Search, draw: Streams) -> Search:
        origin, inwards, size = oracle.origin, state.inwards, state.place.shape[1]
        blocks = (2**state.level).clamp(max=size)
        flipped = (state.place * blocks[:, None]) // size == state.block[:, None]
        signs = torch.where(flipped.view_as(origin), -state.signs, state.signs)
        radius = torch.where(inwards, torch.maximum((state.low + state.high) / 2, state.high - state.stride), state.radius)
        x = (origin + per_sample(radius, origin) * signs).clamp(0, 1)
        broken = oracle.broken(x)
        # the box may have stopped it before the radius
        high = torch.where(broken, torch.minimum(radius, oracle.threat.distance(x, origin)), torch.where(inwards, state.high, radius))
        low = torch.where(inwards, torch.where(broken, state.low, radius), 0)
        going = torch.where(inwards, high - low > self.tolerance * high, broken)
        ended = inwards & ~going
        return self._next(
            replace(
                state.moved(x, done=oracle.ledger.forwards >= self.queries),
                signs=torch.where(per_sample(ended, signs), signs, state.signs),
                radius=torch.where(ended, high, state.radius),
                inwards=going,
                low=low,
                high=high,
                stride=torch.where(inwards & broken, 2 * state.stride, torch.where(inwards, state.stride, FIRST_STRIDE * high)),
            ),
            blocks,
            draw,
        )

    def _next(self, state: Search, blocks: Tensor, draw: Streams) -> Search:
        """On to the next block, where this one is settled; to blocks half as large after the last; and after single values to new ones.

        The paper goes on with single values. Blocks of values drawn at random flip together what no earlier block held.
        """
        size, block = state.place.shape[1], state.block + ~state.inwards
        full = block >= blocks
        level, anew = state.level + full, (full & (blocks == size)).nonzero()[:, 0]
        place = state.place
        if len(anew):
            drawn = replace(draw, rows=[draw.rows[row] for row in anew.tolist()], steps=state.t[anew])
            place = place.index_copy(0, anew, drawn.uniform("order", size).argsort(1))
            level = level.index_fill(0, anew, 0)
        return replace(state, place=place, level=level, block=torch.where(full, 0, block))
