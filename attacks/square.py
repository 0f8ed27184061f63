"""Square attack (Andriushchenko et al., ECCV 2020, https://arxiv.org/abs/1912.00049); in l1 by Croce & Hein (ICML 2021)."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.oracle import Scores
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.rows import per_sample
from robustbench_lite.streams import Streams
from robustbench_lite.windows import MOVES, Sides

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries of 10,000 after which the area is halved again
BLOCK = 250  # queries whose random numbers are drawn at once: a generator for every row and query would cost as much as a small model


@dataclass(frozen=True)
class Searching(State):
    margin: Tensor  # (B,) at x
    numbers: Tensor  # (B, BLOCK, N) uniform, of this block of queries


@attack("square")
@dataclass(frozen=True)
class Square:
    """Change the image in a random square and keep what raises the margin: no gradient is needed, so masking one does not help.

    Thousands of forwards on a model that stands it; where gradients tell the truth, `apgd` is stronger and cheaper.

    Args:
        queries: of a restart, after its start.
        p_init: share of the image that the first squares cover.
        restarts: random starts.
        resc_schedule: shrink the squares over the queries at hand and not over 10,000, as the paper does; AutoAttack does not.
    """

    access = Scores
    norms = ("linf", "l2", "l1")
    cost = "queries + 2 forwards, times restarts"

    queries: Annotated[int, Field(ge=1)] = 5000
    p_init: Annotated[float, Field(gt=0, le=1)] = 0.8
    restarts: Annotated[int, Field(ge=1)] = 1
    resc_schedule: bool = False

    @property
    def steps(self) -> int:
        return self.queries

    def start(self, oracle: Scores, draw: Streams) -> Searching:
        moves, origin = MOVES[oracle.threat.norm], oracle.origin
        x = moves.start(origin, oracle.threat, draw)
        numbers = torch.zeros(len(x), BLOCK, moves.numbers(x.shape[1]), device=x.device)
        return Searching.at(x, margin=oracle.criterion.margin(oracle.logits(x)), numbers=numbers)

    def step(self, oracle: Scores, state: Searching, draw: Streams) -> Searching:
        moves, x, t = MOVES[oracle.threat.norm], state.x, state.t
        numbers = state.numbers
        due = t % BLOCK == 0
        if due.any():
            fresh = draw.uniform("moves", *numbers.shape[1:])  # keyed by the row's own step; the rows that are not due do without
            numbers = torch.where(per_sample(due, fresh), fresh, numbers)
        u, sides = numbers[torch.arange(len(x), device=t.device), t % BLOCK], self._sides(oracle.threat.norm, x, t)
        tried = moves.move(x, oracle.origin, oracle.threat, sides, u)
        logits = oracle.logits(tried)
        margin = oracle.criterion.margin(logits)
        # clear of the noise of rounding: where a square changes nothing, the images in the batch would decide whether it is kept
        better = margin > state.margin + 8 * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
        kept = better.nonzero()[:, 0]  # few, as a rule
        if len(kept):
            x = x.clone().index_copy_(0, kept, tried.index_select(0, kept))
        return state.moved(x, margin=torch.where(better, margin, state.margin), numbers=numbers)

    def _sides(self, norm: str, x: Images, t: Tensor) -> Sides:
        query = t * 10_000 // self.queries if self.resc_schedule else t
        level = torch.bucketize(query, torch.tensor(HALVED_AFTER, device=t.device))
        return Sides(sizes(norm, self.p_init, *x.shape[2:]), level)


@lru_cache(maxsize=16)
def sizes(norm: str, p_init: float, height: int, width: int) -> tuple[int, ...]:
    """Sides of the windows, before the first halving of the area and after each."""
    return tuple(MOVES[norm].side(p_init / 2**halvings, height, width) for halvings in range(len(HALVED_AFTER) + 1))
