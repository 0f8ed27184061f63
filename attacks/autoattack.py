"""AutoAttack: several attacks in turn, with nothing to choose (Croce & Hein, ICML 2020, https://arxiv.org/abs/2003.01690)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from robustbench_lite.oracle import WhiteBox
from robustbench_lite.registry import ATTACKS, attack

STAGES = {
    "standard": {"apgd-ce": "apgd", "apgd-t": "apgd-t", "fab-t": "fab:targets=9", "square": "square:queries=5000"},
    # the l1 version of "Mind the box" (Croce & Hein, ICML 2021, https://arxiv.org/abs/2103.01208)
    "standard in l1": {
        "apgd-ce": "apgd:restarts=5",
        "apgd-t": "apgd-t:targets=5",
        "fab-t": "fab:targets=9",
        "square": "square:queries=5000",
    },
    "plus": {
        "apgd-ce": "apgd:restarts=5",
        "apgd-dlr": "apgd-dlr:restarts=5",
        "fab": "fab:restarts=5",
        "square": "square:queries=5000",
        "apgd-t": "apgd-t",
        "fab-t": "fab:targets=9",
    },
    "rand": {"apgd-ce": "apgd", "apgd-dlr": "apgd-dlr"},
}


@attack("autoattack", "aa")
@dataclass(frozen=True)
class AutoAttack:
    """The usual yardstick: each of its attacks sees only the images that those before it left unbroken.

    Its figure is an upper bound: models that mask their gradients have kept ten points and more that an attack made for them took.

    Args:
        version: standard; plus, with more restarts and one attack more on images that survive; rand, for models that draw random numbers.
    """

    access = WhiteBox
    norms = ("linf", "l2", "l1")
    cost = "7,831 forwards, 1,910 backwards with ten classes; plus 9,754 and 7,819; rand 4,042 and 4,040"

    version: Literal["standard", "plus", "rand"] = "standard"

    def parts(self, norm: str) -> Mapping[str, Any]:
        stages = STAGES.get(f"{self.version} in {norm}", STAGES[self.version])
        return {name: ATTACKS.build(spec) for name, spec in stages.items()}
