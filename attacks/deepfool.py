"""DeepFool (Moosavi-Dezfooli et al., CVPR 2016, https://arxiv.org/abs/1511.04599)."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from robustbench_lite.oracle import WhiteBox
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.retreat import retreated
from robustbench_lite.streams import Streams
from robustbench_lite.tangents import contenders, over, projected, tangent

SLACK = 0.001
"""How much farther than the last plane the search ends, so that rounding does not decide."""


@dataclass(frozen=True)
class Approach(State):
    """On the way to the boundary. classes: (B, M) the ones whose boundaries are compared, the label's first."""

    classes: Tensor


@attack("deepfool")
@dataclass(frozen=True)
class DeepFool:
    """Step to the nearest of the planes that the classes' boundaries look like from here, until one is crossed; then back off.

    A quick estimate of the distance in a few steps, and no more than that: it stops at the first boundary it meets. It trusts the
    length of gradients and fails where they are masked.

    Args:
        steps: an image seldom needs more than ten.
        candidates: wrong classes whose boundaries are compared, the likeliest ones of the clean image.
        overshoot: how much farther than the plane a step goes.
        halvings: of the way back to the clean image, once it is broken.
    """

    access = WhiteBox
    norms = ("linf", "l2", "l1")
    goal = "closest"
    cost = "up to 2 x steps + halvings + 4 forwards, steps x (candidates + 1) + 1 backwards (steps + 1 where K = 2)"

    steps: Annotated[int, Field(ge=1)] = 50
    candidates: Annotated[int, Field(ge=1)] = 9
    overshoot: Annotated[float, Field(ge=0)] = 0.02
    halvings: Annotated[int, Field(ge=0)] = 10

    def start(self, oracle: WhiteBox, draw: Streams) -> Approach:
        return Approach.at(oracle.origin, classes=contenders(oracle, self.candidates))

    def step(self, oracle: WhiteBox, state: Approach, draw: Streams) -> Approach:
        height, normal = tangent(oracle, state.x, state.classes)
        x = over(state.x, normal, height, self.overshoot, oracle.threat.norm)
        broken = (oracle.criterion.margin(oracle.logits(x)) > 0).nonzero()[:, 0]
        if len(broken):
            with oracle.among(broken) as crossed:
                edge = retreated(crossed, x[broken], self.halvings)
                # the steps were cut off at the box, and so were not the shortest
                x[broken] = crossed.origin.lerp(projected(crossed, edge), 1 + SLACK).clamp_(0, 1)
                crossed.logits(x[broken])
        return state.moved(x, done=state.done.index_fill(0, broken, True))
