"""Simultaneous perturbation stochastic approximation (Uesato et al., ICML 2018, https://arxiv.org/abs/1802.05666)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.estimates import slope
from robustbench_lite.oracle import Scores
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.rows import per_sample
from robustbench_lite.streams import Streams

DECAY, DECAY_OF_SQUARES = 0.9, 0.999  # Adam's


@dataclass(frozen=True)
class Adapting(State):
    mean: Tensor  # like x: of the gradients
    square: Tensor  # like x: of their squares


@attack("spsa")
@dataclass(frozen=True)
class SPSA:
    """Adam on gradients estimated from queries along random corners of a cube; projected after every step.

    256 forwards a step by default. Made to get past masked gradients; on smooth scores `square` breaks as much with far fewer.

    Args:
        steps: of Adam.
        samples: directions per step, two queries each; the paper goes up to 8192.
        delta: half the distance between the two queries, in units of a pixel's range.
        learning_rate: of Adam, in units of a pixel's range.
    """

    access = Scores
    norms = ("linf", "l2")
    cost = "steps * (2 * samples + 1) + 1 forwards"

    steps: Annotated[int, Field(ge=1)] = 100
    samples: Annotated[int, Field(ge=1)] = 128
    delta: Annotated[float, Field(gt=0)] = 0.01
    learning_rate: Annotated[float, Field(gt=0)] = 0.01

    def start(self, oracle: Scores, draw: Streams) -> Adapting:
        return Adapting.at(oracle.origin, mean=torch.zeros_like(oracle.origin), square=torch.zeros_like(oracle.origin))

    def step(self, oracle: Scores, state: Adapting, draw: Streams) -> Adapting:
        def corners(name: str, count: int) -> Tensor:
            return torch.where(draw.uniform(name, count, *state.x.shape[1:]) < 0.5, -1.0, 1.0)

        estimate = slope(oracle, state.x, self.samples, self.delta, corners)
        mean = DECAY * state.mean + (1 - DECAY) * estimate
        square = DECAY_OF_SQUARES * state.square + (1 - DECAY_OF_SQUARES) * estimate.square()
        done = per_sample(state.t + 1, state.x).to(state.x)
        spread = (square / (1 - DECAY_OF_SQUARES**done)).sqrt() + 1e-8
        x = oracle.threat.project(state.x + self.learning_rate * mean / (1 - DECAY**done) / spread, oracle.origin)
        oracle.logits(x)  # the queries around it lie outside the ball as a rule
        return state.moved(x, mean=mean, square=square)
