"""Decoupled direction and norm (Rony et al., CVPR 2019, https://arxiv.org/abs/1811.09600)."""

import math
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


@dataclass(frozen=True)
class Orbit(State):
    """How far out the search is: size (B,) of the sphere about the clean image on which x lies, where the box does not cut it."""

    size: Tensor


@attack("ddn")
@dataclass(frozen=True)
class DDN:
    """Turn on a sphere about the clean image, which shrinks where the image is broken and grows where it is not.

    One gradient a step and hardly anything to choose: the first attack to try in l2, even with 100 steps.

    Args:
        steps: 100 to 1000.
        gamma: the share by which the sphere shrinks or grows.
    """

    access = WhiteBox
    norms = ("l2",)
    goal = "closest"
    cost = "steps + 1 forwards, steps backwards"

    steps: Annotated[int, Field(ge=1)] = 100
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.05

    def start(self, oracle: WhiteBox, draw: Streams) -> Orbit:
        return Orbit.at(oracle.origin, size=torch.ones_like(oracle.origin[:, 0, 0, 0]))

    def step(self, oracle: WhiteBox, state: Orbit, draw: Streams) -> Orbit:
        origin, threat = oracle.origin, oracle.threat
        # the margin where the paper has cross-entropy, with which the median lay up to 4 % farther on two small networks
        logits, gradient = oracle.gradient(state.x, "margin")
        flat = gradient.flatten(1).abs().amax(1) == 0
        if flat.any():  # no way up to be seen: any way
            gradient = torch.where(per_sample(flat, gradient), draw.normal("way", *origin.shape[1:]).to(gradient), gradient)
        # the step's length falls from 1 to 0.01 along a cosine (section 3)
        length = (0.01 + 0.99 * (1 + torch.cos(math.pi * state.t / self.steps)) / 2).to(origin)
        broken = oracle.criterion.margin(logits) > 0
        size = state.size * torch.where(broken, 1 - self.gamma, 1 + self.gamma)
        size = torch.minimum(size, threat.distance((origin < 0.5).to(origin), origin))  # the farthest corner of the box
        delta = state.x - origin + per_sample(length, origin) * threat.steepest(gradient)
        return state.moved((origin + per_sample(size, origin) * threat.steepest(delta)).clamp_(0, 1), size=size)
