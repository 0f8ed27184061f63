"""Pictures put in askew or exposed wrongly (after Engstrom et al., ICML 2019, https://arxiv.org/abs/1712.02779)."""

from dataclasses import dataclass

from robustbench_lite.listed import Handling, all_settings, steps_through
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
    steps = steps_through(Handling.settings, 1)
    exhausts = True
    cost = "45 forwards"

    def start(self, oracle: Labels, draw: Streams) -> State:
        return State.at(oracle.origin)

    def step(self, oracle: Labels, state: State, draw: Streams) -> State:
        assert isinstance(oracle.threat, Handling)
        x = all_settings(oracle.threat, oracle.origin, state.t, 1)[:, 0]
        oracle.predict(x)
        return state.moved(x)
