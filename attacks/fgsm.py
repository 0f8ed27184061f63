"""Fast gradient sign method (Goodfellow et al., ICLR 2015, https://arxiv.org/abs/1412.6572); in other norms the fast gradient method."""

from dataclasses import dataclass

from robustbench_lite.losses import Loss
from robustbench_lite.oracle import WhiteBox
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.streams import Streams


@attack("fgsm")
@dataclass(frozen=True)
class FGSM:
    """One gradient step to the edge of the ball.

    A weak attack: a model that stands it may fall to ten steps of `pgd`.

    Args:
        loss: ce, dlr or margin.
    """

    access = WhiteBox
    norms = ("linf", "l2", "l1", "l0")
    steps = 1
    cost = "2 forwards, 1 backward"

    loss: Loss = "ce"

    def start(self, oracle: WhiteBox, draw: Streams) -> State:
        return State.at(oracle.origin)

    def step(self, oracle: WhiteBox, state: State, draw: Streams) -> State:
        _, gradient = oracle.gradient(state.x, self.loss)
        ascent = oracle.threat.ascent(gradient, 1.0, state.x)
        return state.moved(oracle.threat.project(state.x + ascent, oracle.origin))
