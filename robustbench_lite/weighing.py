"""The search for the constant that weighs how far an image is broken against how far it is away (Carlini & Wagner, S&P 2017, section VI).

Row by row: whether the others are done, or have found anything, plays no part. Libraries that abort by a sum over the batch do otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from .classifier import Images
from .plan import State

STALLED = 1e-4
"""A search ends where in a tenth of its steps the objective changed by less than a ten-thousandth.

The paper also ends where it rose, which then is the swinging of the optimiser and not its end: on linear models images stayed up to
11 % farther away than the optimum, and not up to 1 % (measured).
"""

LARGEST = 1e15
"""No constant is larger: on a saturated model it would else be infinite, or the squares of what it multiplies would."""


@dataclass(frozen=True)
class Weighing(State):
    """Where a row stands, in several minimisations one after the other, each with a constant of its own.

    constant: (B,) of this minimisation. low, high: (B,) the largest that broke nothing and the smallest that broke something; 0 and inf
    before there is one. turn, count: (B,) steps done in this minimisation, and minimisations done. hit: (B,) bool, something broke in
    this one. checked: (B,) the objective when it was last looked at.
    """

    constant: Tensor
    low: Tensor
    high: Tensor
    turn: Tensor
    count: Tensor
    hit: Tensor
    checked: Tensor

    @classmethod
    def begun(cls, x: Images, constant: Tensor, **more: Tensor) -> Self:
        """The first minimisation, from x."""
        infinite, zero = torch.full_like(constant, torch.inf), torch.zeros_like(constant)
        count = torch.zeros(len(x), dtype=torch.long, device=x.device)
        begin = {"constant": constant.clamp(max=LARGEST), "low": zero, "high": infinite, "checked": infinite, "turn": count, "count": count}
        return cls.at(x, hit=count > 0, **begin, **more)

    def weighed(self, broken: Tensor, objective: Tensor, steps: int, searches: int, growth: float) -> tuple[Self, Tensor]:
        """The state after a step, and (B,) the rows whose minimisation ended with it: these go on from the beginning with another constant.

        Args:
            broken: (B,) whether this step met an image that is broken.
            objective: (B,) what is minimised; where it stalls, the minimisation ends early.
            steps: of a minimisation. searches: how many of them; then the row is done.
            growth: what the constant is multiplied by, or divided, until it has bounds on both sides.
        """
        hit, due = self.hit | broken, self.turn % -(-steps // 10) == 0
        ended = (self.turn + 1 >= steps) | due & ((objective - self.checked).abs() <= STALLED * objective)
        high, low = torch.where(ended & hit, self.constant, self.high), torch.where(ended & ~hit, self.constant, self.low)
        # the paper takes the mean of the bounds; from a start that may be far too large, the geometric one gets there sooner
        between = torch.where(low > 0, low.sqrt() * high.sqrt(), high / growth)
        tried = torch.where(high.isinf(), self.constant * growth, between).clamp(max=LARGEST)
        count = self.count + ended.long()
        fresh: dict[str, Any] = {
            "constant": torch.where(ended, tried, self.constant),
            "turn": (self.turn + 1).masked_fill(ended, 0),
            "hit": hit & ~ended,
            "checked": torch.where(due, objective, self.checked).masked_fill(ended, torch.inf),
        }
        return replace(self, low=low, high=high, count=count, done=self.done | (count >= searches), **fresh), ended
