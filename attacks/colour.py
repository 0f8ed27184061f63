"""Semantic adversarial examples (Hosseini & Poovendran, CVPR workshops 2018, https://arxiv.org/abs/1804.00499)."""

from dataclasses import dataclass

from robustbench_lite.listed import Colour, all_settings, steps_through
from robustbench_lite.oracle import Labels
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.streams import Streams

AT_ONCE = 8
"""Settings that are asked about in one step, of 152."""


@attack("colour")
@dataclass(frozen=True)
class Tint:
    """Turn all hues of the picture and change its saturation, in all of 153 ways, the weakest first; shapes and light stay as they are.

    The paper draws such changes at random, ever larger ones. All of a list make the row a worst case, and say when nothing is left.
    """

    access = Labels
    norms = ("colour",)
    usual_eps = {"colour": 1.0}
    steps = steps_through(Colour.settings, AT_ONCE)
    exhausts = True
    cost = "153 forwards"

    def start(self, oracle: Labels, draw: Streams) -> State:
        return State.at(oracle.origin)

    def step(self, oracle: Labels, state: State, draw: Streams) -> State:
        assert isinstance(oracle.threat, Colour)
        x = all_settings(oracle.threat, oracle.origin, state.t, AT_ONCE)
        oracle.predict(x)
        return state.moved(x[:, -1])
