"""Projected gradient descent (Madry et al., ICLR 2018, https://arxiv.org/abs/1706.06083)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.losses import Loss
from robustbench_lite.oracle import WhiteBox
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.rows import per_sample
from robustbench_lite.streams import Streams


@dataclass(frozen=True)
class Moving(State):
    velocity: Tensor  # like x


@attack("pgd")
@dataclass(frozen=True)
class PGD:
    """Climb the loss from a random start, stepping back into the ball each time.

    Not enough to call a model robust that masks its gradients: add attacks of other kinds.

    Args:
        steps: gradient steps of a restart.
        step_size: in multiples of eps; by default 2.5 / steps, with which every point of the ball can be reached from any other
            (l0, pixels: 0.5).
        restarts: random starts.
        momentum: share of the last direction that is kept (Dong et al., CVPR 2018, https://arxiv.org/abs/1710.06081).
        loss: ce, dlr or margin.
    """

    access = WhiteBox
    norms = ("linf", "l2", "l1", "l0", "pixels")
    cost = "steps + 1 forwards, steps backwards, times restarts"

    steps: Annotated[int, Field(ge=1)] = 40
    step_size: Annotated[float, Field(gt=0)] | None = None
    restarts: Annotated[int, Field(ge=1)] = 1
    momentum: Annotated[float, Field(ge=0)] = 0.0
    loss: Loss = "ce"

    def start(self, oracle: WhiteBox, draw: Streams) -> Moving:
        return Moving.at(oracle.threat.random_point(oracle.origin, draw), velocity=torch.zeros_like(oracle.origin))

    def step(self, oracle: WhiteBox, state: Moving, draw: Streams) -> Moving:
        _, gradient = oracle.gradient(state.x, self.loss)
        velocity = gradient
        if self.momentum:
            length = gradient.flatten(1).abs().sum(1).clamp(min=1e-30)
            velocity = self.momentum * state.velocity + gradient / per_sample(length, gradient)
        ascent = oracle.threat.ascent(velocity, self.step_size or oracle.threat.usual_share(self.steps), state.x)
        return state.moved(oracle.threat.project(state.x + ascent, oracle.origin), velocity=velocity)
