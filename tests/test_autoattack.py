"""AutoAttack: which attacks it consists of, and that they can be built."""

from __future__ import annotations

import pytest

from robustbench_lite.errors import BadSpec
from robustbench_lite.plan import parts
from robustbench_lite.registry import ATTACKS

STAGES = {
    "standard": ["apgd-ce", "apgd-t", "fab-t", "square"],
    "plus": ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"],
    "rand": ["apgd-ce", "apgd-dlr"],
}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("version", STAGES)
def test_it_is_the_authors_cascade(version: str, norm: str) -> None:
    made = ATTACKS.build(f"autoattack:version={version}")
    stages = parts(made, norm)
    assert list(stages) == STAGES[version]
    assert all(norm in stage.norms for stage in stages.values())
    restarts = 5 if version == "plus" or (version == "standard" and norm == "l1") else 1
    assert stages["apgd-ce"].restarts == restarts
    if "apgd-t" in stages:
        assert stages["apgd-t"].targets == (5 if version == "standard" and norm == "l1" else 9)
        assert (stages["fab-t"].targets, stages["square"].queries) == (9, 5000)
    for name, stage in stages.items():
        if name.startswith("apgd"):
            assert (stage.steps, stage.loss) == (100, "ce" if name == "apgd-ce" else "dlr")


def test_another_version_is_refused() -> None:
    with pytest.raises(BadSpec, match="'standard', 'plus' or 'rand'"):
        ATTACKS.build("autoattack:version=strong")
    assert ATTACKS.spec_of(ATTACKS.build("aa")) == "autoattack"
