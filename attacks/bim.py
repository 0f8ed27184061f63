"""Basic iterative method, or I-FGSM (Kurakin et al., ICLR workshop 2017, https://arxiv.org/abs/1607.02533)."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from robustbench_lite.losses import Loss
from robustbench_lite.oracle import WhiteBox
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.streams import Streams


@attack("bim")
@dataclass(frozen=True)
class BIM:
    """Climb the loss from the clean image itself, without any randomness.

    PGD with restarts is stronger; this is here for figures that were published with it.

    Args:
        steps: gradient steps.
        step_size: in multiples of eps.
        loss: ce, dlr or margin.
    """

    access = WhiteBox
    norms = ("linf", "l2", "l1")
    cost = "steps + 1 forwards, steps backwards"

    steps: Annotated[int, Field(ge=1)] = 10
    step_size: Annotated[float, Field(gt=0)] = 0.2
    loss: Loss = "ce"

    def start(self, oracle: WhiteBox, draw: Streams) -> State:
        return State.at(oracle.origin)

    def step(self, oracle: WhiteBox, state: State, draw: Streams) -> State:
        _, gradient = oracle.gradient(state.x, self.loss)
        ascent = oracle.threat.ascent(gradient, self.step_size, state.x)
        return state.moved(oracle.threat.project(state.x + ascent, oracle.origin))
