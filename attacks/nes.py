"""Natural evolution strategies (Ilyas et al., ICML 2018, https://arxiv.org/abs/1804.08598)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.estimates import slope
from robustbench_lite.oracle import Scores
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.streams import Streams


@dataclass(frozen=True)
class Drifting(State):
    velocity: Tensor  # like x


@attack("nes")
@dataclass(frozen=True)
class NES:
    """Signed gradient steps, with gradients estimated from pairs of Gaussian queries in opposite directions.

    By default as many queries as the paper allows. `square` needs fewer for the same images; this one shows what an attacker
    gets from smooth scores. Unlike the paper it climbs the margin and not the log-probability, and never lowers its step size.

    Args:
        steps: gradient steps.
        samples: queries per step, two for each direction.
        sigma: standard deviation of the queries around the image.
        step_size: in multiples of eps.
        momentum: share of the last gradient that is kept.
    """

    access = Scores
    norms = ("linf", "l2")
    cost = "steps * (samples + 1) + 1 forwards"

    steps: Annotated[int, Field(ge=1)] = 200
    samples: Annotated[int, Field(ge=2, multiple_of=2)] = 50
    sigma: Annotated[float, Field(gt=0)] = 0.001
    step_size: Annotated[float, Field(gt=0)] = 0.2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9

    def start(self, oracle: Scores, draw: Streams) -> Drifting:
        return Drifting.at(oracle.origin, velocity=torch.zeros_like(oracle.origin))

    def step(self, oracle: Scores, state: Drifting, draw: Streams) -> Drifting:
        shape = state.x.shape[1:]
        estimate = slope(oracle, state.x, self.samples // 2, self.sigma, lambda name, count: draw.normal(name, count, *shape))
        velocity = self.momentum * state.velocity + (1 - self.momentum) * estimate
        ascent = oracle.threat.ascent(velocity, self.step_size, state.x)
        x = oracle.threat.project(state.x + ascent, oracle.origin)
        oracle.logits(x)  # the queries around it lie outside the ball as a rule
        return state.moved(x, velocity=velocity)
