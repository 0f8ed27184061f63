"""Rotations and translations (Engstrom et al., ICML 2019, https://arxiv.org/abs/1712.02779)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from robustbench_lite.listed import Spatial, all_settings, steps_through
from robustbench_lite.oracle import Labels
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.streams import Streams

AT_ONCE = 6
"""Settings that are asked about in one step, of 774."""


@attack("spatial")
@dataclass(frozen=True)
class RotationTranslation:
    """Turn the picture and move it, in all of 775 ways, the weakest first, or in some drawn at random. It takes no knowledge of the model.

    Args:
        method: `grid` tries all, so that no image that stands it is moved by any of them; `random` tries some (the paper's worst of 10).
        tries: of `random`.
    """

    access = Labels
    norms = ("spatial",)
    usual_eps = {"spatial": 1.0}
    cost = "775 forwards; random: tries + 1"

    method: Literal["grid", "random"] = "grid"
    tries: Annotated[int, Field(ge=1)] = 10

    @property
    def steps(self) -> int:
        return steps_through(Spatial.settings, AT_ONCE) if self.method == "grid" else self.tries

    @property
    def exhausts(self) -> bool:
        """Whether all members of the threat are asked about."""
        return self.method == "grid"

    def start(self, oracle: Labels, draw: Streams) -> State:
        return State.at(oracle.origin)

    def step(self, oracle: Labels, state: State, draw: Streams) -> State:
        assert isinstance(oracle.threat, Spatial)
        if self.method == "random":
            x = oracle.threat.random_point(oracle.origin, draw)[:, None]
        else:
            x = all_settings(oracle.threat, oracle.origin, state.t, AT_ONCE)
        oracle.predict(x)
        return state.moved(x[:, -1])
