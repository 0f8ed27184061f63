"""Random noise: the floor that every attack must beat (after Fawzi et al., NeurIPS 2016, https://arxiv.org/abs/1608.08967)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from robustbench_lite.oracle import Labels
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.rows import per_sample
from robustbench_lite.streams import Streams


@attack("noise")
@dataclass(frozen=True)
class Noise:
    """Ask about random points: in turn one from anywhere in the ball and one from its edge, where as much changes as may.

    Says nothing about robustness. An attack that breaks less than this does not work, or its gradients are masked.

    Args:
        queries: points that are tried.
    """

    access = Labels
    norms = ("linf", "l2", "l1", "l0", "pixels", "patch", "flow")
    cost = "queries + 1 forwards"

    queries: Annotated[int, Field(ge=1)] = 100

    @property
    def steps(self) -> int:
        return self.queries

    def start(self, oracle: Labels, draw: Streams) -> State:
        return State.at(oracle.origin)

    def step(self, oracle: Labels, state: State, draw: Streams) -> State:
        origin, threat = oracle.origin, oracle.threat
        x = torch.where(per_sample(state.t % 2 == 0, origin), threat.random_point(origin, draw), threat.edge_point(origin, draw))
        oracle.predict(x)
        return state.moved(x)
