"""A gate in somebody's test suite: what `assert_robust` decides, and what the plug-in adds to their pytest."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from robustbench_lite import testing
from robustbench_lite.diagnostics import Finding
from robustbench_lite.errors import UsageError
from robustbench_lite.results import Result
from robustbench_lite.testing import RobustnessNotShown, assert_robust

PLUGIN = "robustbench_lite.pytest_plugin"
ASKED: dict[str, Any] = {"attack": "fgsm", "data": "digits", "eps": 0.1, "limit": 60}


@pytest.fixture(autouse=True)
def nothing_doubted(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the checks find, which is nothing unless a test puts something in: they have tests of their own."""
    found: list[Finding] = []
    monkeypatch.setattr("robustbench_lite.diagnostics.findings", lambda result: list(found))
    return found


def test_it_returns_the_result_where_the_lower_bound_reaches_the_floor(tmp_path: Path) -> None:
    result = assert_robust("digits_pgd_at", **ASKED, at_least=0.6, out=tmp_path / "run")
    assert isinstance(result, Result)
    assert len(result.of("fgsm[linf,0.1]")) == 60
    assert (tmp_path / "run" / "run.json").exists()


def test_it_fails_with_the_figures_and_the_judgement() -> None:
    with pytest.raises(RobustnessNotShown, match=r"^fail: digits_standard on digits: worst\.accuracy >= 0\.9: .*60") as caught:
        assert_robust("digits_standard", **ASKED, at_least=0.9)
    assert isinstance(caught.value, AssertionError)
    (ruling,) = caught.value.judgement.rulings
    assert (ruling.outcome, ruling.n, ruling.threshold) == ("fail", 60, 0.9)


def test_an_estimate_above_the_floor_is_no_pass() -> None:
    estimate = assert_robust("digits_pgd_at", **ASKED, at_least=0.1).table.set_index("condition").accuracy["worst[linf,0.1]"]
    with pytest.raises(RobustnessNotShown, match=r"^inconclusive: ") as caught:
        assert_robust("digits_pgd_at", **ASKED, at_least=round(estimate - 0.01, 3))
    assert caught.value.judgement.exit_code == 3
    with pytest.raises(pytest.skip.Exception, match=r"^inconclusive: "):
        assert_robust("digits_pgd_at", **ASKED, at_least=round(estimate - 0.01, 3), on_inconclusive="skip")


def test_a_figure_that_cannot_be_believed_is_no_pass_and_not_skipped(nothing_doubted: list[Finding]) -> None:
    nothing_doubted.append(Finding("gradients", "doubts", ("worst[linf,0.1]",), "all gradients are zero", "the attack was blind"))
    with pytest.raises((RobustnessNotShown, pytest.skip.Exception), match=r"^invalid: .*all gradients are zero") as caught:
        assert_robust("digits_pgd_at", **ASKED, at_least=0.6, on_inconclusive="skip")
    assert isinstance(caught.value, RobustnessNotShown)


def test_several_attacks_must_all_be_withstood() -> None:
    result = assert_robust("digits_pgd_at", ["fgsm", "noise"], "digits", eps=0.1, limit=30, at_least=0.3)
    assert [c.name for c in result.conditions] == ["clean", "fgsm[linf,0.1]", "noise[linf,0.1]", "worst[linf,0.1]"]


@pytest.mark.parametrize(
    ("wrong", "said"), [({"at_least": 45}, "45 % is 0.45"), ({"alpha": 5}, "alpha"), ({"on_inconclusive": "ignore"}, "fail or skip")]
)
def test_bad_input_is_refused_before_anything_is_evaluated(wrong: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustbench_lite.evaluation.evaluate", lambda *_, **__: pytest.fail("it was evaluated"))
    with pytest.raises(UsageError, match=said):
        assert_robust("digits_standard", **ASKED | {"at_least": 0.5} | wrong)


def test_it_tells_whoever_listens() -> None:
    said: list[str] = []
    token = testing.told.set(said.append)
    try:
        assert_robust("digits_pgd_at", **ASKED, at_least=0.1)
    finally:
        testing.told.reset(token)
    assert len(said) == 1
    assert said[0].startswith("pass: digits_pgd_at on digits: worst.accuracy >= 0.1: ")


THEIRS = """
import pytest
from robustbench_lite import testing

@pytest.fixture
def prepared():
    testing.told.get()("pass: from a fixture")

@pytest.mark.robustness
def test_measured(prepared):
    testing.told.get()("pass: from a test")

def test_failing():
    testing.told.get()("fail: from a failing one")
    assert False

def test_plain():
    pass
"""


def theirs(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Their suite in a pytest of its own, which knows our plug-in and, besides it, no other than pytest-xdist."""
    (folder / "test_theirs.py").write_text(THEIRS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", PLUGIN, "-W", "error", "--strict-markers", *args]
    alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("workers", [(), ("-p", "xdist", "-n", "1")], ids=["alone", "xdist"])
def test_the_summary_has_every_assertion_under_its_test(tmp_path: Path, workers: tuple[str, ...]) -> None:
    said = theirs(tmp_path, *workers).stdout
    summary = re.split(r"^=+ robustness =+$", said, flags=re.M)[1].splitlines()
    assert summary[1:4] == [
        "test_theirs.py::test_measured: pass: from a fixture",
        "test_theirs.py::test_measured: pass: from a test",
        "test_theirs.py::test_failing: fail: from a failing one",
    ]
    assert "1 failed, 2 passed" in said


def test_the_marker_is_known_and_leaves_tests_out(tmp_path: Path) -> None:
    done = theirs(tmp_path, "-m", "not robustness", "--deselect", "test_theirs.py::test_failing")
    assert (done.returncode, "1 passed, 2 deselected" in done.stdout) == (0, True)
    assert "robustness ==" not in done.stdout
    assert "@pytest.mark.robustness: measures" in theirs(tmp_path, "--markers").stdout


def test_what_was_said_is_in_pytests_own_junit_file(tmp_path: Path) -> None:
    theirs(tmp_path, "--junitxml=theirs.xml", "-k", "measured")
    properties = ElementTree.parse(tmp_path / "theirs.xml").getroot().iter("property")
    assert [(p.get("name"), p.get("value")) for p in properties] == [
        ("robustness", "pass: from a fixture"),
        ("robustness", "pass: from a test"),
    ]


def test_the_plug_in_is_announced_to_pytest_and_starts_fast() -> None:
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["entry-points"]["pytest11"] == {"robustness": PLUGIN}
    assert importlib.import_module(PLUGIN)
    code = (
        "import sys, time, pytest; before, start = set(sys.modules), time.process_time()\n"
        f"import {PLUGIN}\n"
        "print(time.process_time() - start, *sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(done[0]) < 0.02
    assert [name for name in done[1:] if "robustbench" in name] == ["robustbench_lite", PLUGIN, "robustbench_lite.testing"]
    assert not {"torch", "numpy", "pydantic"} & set(done)
