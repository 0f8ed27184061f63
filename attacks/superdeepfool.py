"""SuperDeepFool (Abdollahpoor et al., ICLR 2024, https://arxiv.org/abs/2303.12481)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.oracle import WhiteBox
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.retreat import retreated
from robustbench_lite.streams import Streams
from robustbench_lite.tangents import beyond, contenders, projected, tangent


@dataclass(frozen=True)
class Alternation(State):
    """classes: (B, M) the ones whose boundaries are compared, the label's first. nearest: (B,) how far the nearest broken image lies."""

    classes: Tensor
    nearest: Tensor


@attack("superdeepfool")
@dataclass(frozen=True)
class SuperDeepFool:
    """Go to the boundary as DeepFool does; there, to the point of the boundary's tangent plane that is nearest to the clean image.

    As exact as DDN with a good deal fewer steps. It trusts the length of gradients and fails where they are masked.

    Args:
        steps: to a plane or back, together.
        candidates: wrong classes whose boundaries are compared, the likeliest ones of the clean image.
        overshoot: how much farther than the plane a step goes.
        halvings: of the way back to the clean image, whenever the boundary is crossed.
        settled: the search ends where a round comes nearer by no more than this share.
    """

    access = WhiteBox
    norms = ("l2", "linf", "l1")
    goal = "closest"
    cost = "up to steps x (3 + halvings) + 2 forwards, steps x (candidates + 2) backwards (2 x steps where K = 2)"

    steps: Annotated[int, Field(ge=1)] = 50
    candidates: Annotated[int, Field(ge=1)] = 9
    overshoot: Annotated[float, Field(ge=0)] = 0.02
    halvings: Annotated[int, Field(ge=0)] = 10
    settled: Annotated[float, Field(ge=0)] = 0.001

    def start(self, oracle: WhiteBox, draw: Streams) -> Alternation:
        far = torch.full_like(oracle.origin[:, 0, 0, 0], torch.inf)
        return Alternation.at(oracle.origin, classes=contenders(oracle, self.candidates), nearest=far)

    def step(self, oracle: WhiteBox, state: Alternation, draw: Streams) -> Alternation:
        height, normal = tangent(oracle, state.x, state.classes)
        x = beyond(state.x, normal, height, self.overshoot, oracle.threat.norm)
        broken = (oracle.criterion.margin(oracle.logits(x)) > 0).nonzero()[:, 0]
        nearest, done = state.nearest.clone(), state.done.clone()
        if len(broken):
            with oracle.among(broken) as crossed:
                edge = retreated(crossed, x[broken], self.halvings)
                distance = crossed.threat.distance(edge, crossed.origin)
                # the paper ends at the first projection that is broken; going on comes nearer
                done[broken] = distance >= (1 - self.settled) * nearest[broken]
                nearest[broken] = torch.minimum(distance, nearest[broken])
                x[broken] = projected(crossed, edge)
        return state.moved(x, nearest=nearest, done=done)
