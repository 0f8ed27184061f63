"""Augmented Lagrangian attack, ALMA (Rony et al., ICCV 2021, https://arxiv.org/abs/2011.11857)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.oracle import WhiteBox
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.rows import per_sample
from robustbench_lite.streams import Streams

TOLERANCE = 1e-4
"""How far beyond the boundary the search aims, in the loss: at the boundary itself rounding would decide."""

STEEPER, IMPROVED, EVERY = 1.2, 0.95, 10
"""The penalty grows by STEEPER where EVERY steps have not brought the loss down to IMPROVED of what it was (section 3.4)."""


@dataclass(frozen=True)
class Descent(State):
    """Where the descent is.

    square, momentum: like x, the running means of the gradient's square and of the steps. multiplier, penalty: (B,) mu and rho of
    the paper. before: (B,) the loss at the last check. unit: (B,) what the loss is measured in.
    found: (B,) the step at which the row was first broken, `steps` where it was not yet.
    """

    square: Tensor
    momentum: Tensor
    multiplier: Tensor
    penalty: Tensor
    before: Tensor
    unit: Tensor
    found: Tensor


@attack("alma")
@dataclass(frozen=True)
class ALMA:
    """Descend on the distance and a penalty for not being broken, whose weight learns how much of it is needed.

    On two small networks it comes nearest of all, with as many steps as `ddn`; an image next to its boundary may need more.

    Args:
        steps: 100 to 1000.
        rate: of the descent at first; once an image is broken it falls to a hundredth by the last step.
        smoothing: of the multiplier and the gradient's means; the paper has 0.9 for its 1000 steps.
    """

    access = WhiteBox
    norms = ("l2",)
    goal = "closest"
    cost = "steps + 1 forwards, steps backwards"

    steps: Annotated[int, Field(ge=1)] = 300
    rate: Annotated[float, Field(gt=0)] = 0.1
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.5

    def start(self, oracle: WhiteBox, draw: Streams) -> Descent:
        x = oracle.origin
        one = torch.ones_like(x[:, 0, 0, 0])
        steps = torch.full_like(one, self.steps, dtype=torch.long)
        still, far = torch.zeros_like(x), torch.inf * one
        return Descent.at(x, square=torch.ones_like(x), momentum=still, multiplier=one, penalty=one, before=far, unit=one, found=steps)

    def step(self, oracle: WhiteBox, state: Descent, draw: Streams) -> Descent:
        x, first, delta = state.x, state.t == 0, state.x - oracle.origin
        logits, gradient = oracle.gradient(x, "dlr")
        loss, margin = (oracle.loss(logits, name) for name in ("dlr", "margin"))
        # where there is no ratio (few classes, one logit, findings), in the clean image's slope: the loss is then about a distance, and
        # whatever the logits are measured in plays no part
        steepness = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
        unit = torch.where(first & (loss == margin), steepness, state.unit)
        unmet = TOLERANCE - loss.to(x) / unit  # to be brought below 0
        broken = oracle.criterion.margin(logits) > 0
        found = torch.where(broken, torch.minimum(state.found, state.t), state.found)
        check = (state.t + 1) % EVERY == 0
        stuck = check & (found == self.steps) & (unmet >= IMPROVED * state.before)
        penalty = torch.where(stuck, STEEPER * state.penalty, state.penalty)
        learned = state.multiplier.lerp(slope(unmet, penalty, state.multiplier), 1 - self.smoothing).clamp(1e-6, 1e12)
        multiplier = torch.where(first, state.multiplier, learned)
        downhill = (
            delta / per_sample(delta.flatten(1).norm(dim=1).clamp(min=1e-12), delta)
            - per_sample(slope(unmet, penalty, multiplier) / unit, x) * gradient
        )
        square = state.square * self.smoothing + (1 - self.smoothing) * downhill**2
        momentum = state.momentum * self.smoothing + downhill / (square.sqrt() + 1e-8)
        late = (state.t - found).clamp(min=0) / (self.steps - found).clamp(min=1)
        return state.moved(
            (x - per_sample(self.rate * 0.01 ** late.to(x), x) * momentum).clamp_(0, 1),
            square=square,
            momentum=momentum,
            multiplier=multiplier,
            penalty=penalty,
            before=torch.where(check | first, unmet, state.before),
            unit=unit,
            found=found,
        )


def slope(unmet: Tensor, penalty: Tensor, multiplier: Tensor) -> Tensor:
    """(B,) derivative of the penalty-Lagrangian P2 (section 3.2)."""
    over, under = unmet.clamp(min=0), unmet.clamp(max=0)
    met = multiplier / (1 - penalty * under) ** 2
    return torch.where(unmet >= 0, multiplier + 2 * multiplier * penalty * over + penalty**2 * over**2 / 2, met)
