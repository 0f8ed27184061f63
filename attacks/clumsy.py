"""Pictures put in askew or exposed wrongly (after Engstrom et al., ICML 2019, https://arxiv.org/abs/1712.02779)."""

from dataclasses import dataclass

from robustbench_lite.handling import SETTINGS
from robustbench_lite.oracle import Labels
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.streams import Streams


@attack("clumsy")
@dataclass(frozen=True)
class Clumsy:
    """Turn the picture and change its brightness, in all ways of a short list, the weakest first. It takes no knowledge of any model.

    All ways, so that its row is the worst case of careless handling and not its average; a corruption says what happens on average.
    """

    access = Labels
    norms = ("handling",)
    usual_eps = {"handling": 1.0}
    steps = len(SETTINGS) - 1  # all but the picture as it is
    cost = "45 forwards"

    def start(self, oracle: Labels, draw: Streams) -> State:
        return State.at(oracle.origin)

    def step(self, oracle: Labels, state: State, draw: Streams) -> State:
        x = oracle.threat.handled(oracle.origin, state.t + 1)  # type: ignore[attr-defined]  # of this norm alone
        oracle.predict(x)
        return state.moved(x)
