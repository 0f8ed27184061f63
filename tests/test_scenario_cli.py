"""`robust-eval scenario`: the real command, its exit codes, and bad input."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fixture import CommandLine, Ran

OWN = """
title = "Digits that are read as larger ones"
domain = "handwritten digit"
who = "Somebody who is paid by the digit."
can = "They change the image a little."
happens = "Bills are too high."
goal = "upcoding"
[[rows]]
name = "with the model"
knowledge = "white box"
means = "pgd:steps=5"
norm = "linf"
eps = 0.15
[[rows]]
name = "with a model like it"
knowledge = "same architecture"
means = "pgd:steps=5"
norm = "linf"
eps = 0.15
[[rows]]
name = "with a public network"
knowledge = "public backbone"
means = "pgd:steps=5"
norm = "linf"
eps = 0.15
[[rows]]
name = "fog"
knowledge = "nothing"
means = "fog:severity=3"
"""
ASKED = ("scenario", "run", "own.toml", "--model", "digits_standard", "--data", "digits", "--limit", 20)

Inside = Callable[..., Ran]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    return path


def test_a_scenario_of_ones_own_from_file_to_page_and_on_again(robust_eval: CommandLine, own: Path) -> None:
    ran = robust_eval(*ASKED, "--surrogate", "digits_pgd_at", "--out", "run")
    assert ran.code == 0, ran.err
    assert "not a medical device" in " ".join(ran.out.split())
    assert "give one with --backbone" in " ".join(ran.out.split())
    pages = list((own.parent / "run").glob("*.html"))
    assert pages
    assert str(pages[0].name) in ran.out
    rows = {row["condition"]: row for row in robust_eval.table("run")}
    attacked = [row for row in rows.values() if row["kind"] == "attack"]
    assert [row["n"] for row in attacked] == ["18", "18"]  # a nine cannot be read as more
    assert all(row["goal"] == "full" for row in attacked)
    again = robust_eval(*ASKED, "--surrogate", "digits_pgd_at", "--out", "run")
    assert again.code == 0
    assert len((own.parent / "run" / "run.json").read_text().split('"started"')) == 3


@pytest.mark.slow
def test_an_interrupted_run_ends_with_130_and_goes_on(robust_eval: CommandLine, own: Path, factories: Path) -> None:
    asked = [factories.name + ":sleepy" if word == "digits_standard" else word for word in ASKED]
    process = robust_eval.start(*asked, "--batch-size", 4, "--out", "run", env={"NAP": "0.2"})
    deadline = time.monotonic() + 60
    while not robust_eval.broken("run") and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "goes on where it stopped" in err
    before = robust_eval.broken("run")
    assert robust_eval(*asked, "--batch-size", 4, "--out", "run").code == 0
    after = robust_eval.broken("run")
    assert {key: after[key] for key in before} == before


def test_what_there_is_can_be_listed_and_shown(inside: Inside, own: Path) -> None:
    listed = inside("scenario", "list")
    assert listed.code == 0
    assert all(name in listed.out for name in ("finlayson-cxr", "finlayson-dr", "finlayson-derm", "missed-tumour", "phantom:chest"))
    shown = " ".join(inside("scenario", "show", "finlayson-cxr").out.split())
    assert "own-patch" in shown
    assert "0.5386" in shown
    assert "https://arxiv.org/abs/1804.05296" in shown
    assert "Bills are too high." in inside("scenario", "show", "own.toml").out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["run", "finlayson-crx"], "unknown scenario 'finlayson-crx': did you mean 'finlayson-cxr'"),
        (["show", "upcoded"], "unknown scenario 'upcoded': did you mean 'upcoded-retina'"),
        (["run", "gone.toml", "--model", "digits_standard"], "gone.toml cannot be read"),
        (["run", "own.toml"], "say what is attacked, with --model and --data"),
        (["run", "own.toml", "--data", "digits"], "say which model is attacked, with --model"),
        (["run", "own.toml", "--weights", "x.pt"], "--weights, --num-classes and --defense are of a model: name it with --model"),
        (["run", "own.toml", "--model", "digits_standard", "--surrogate", "digits_standard"], "is the model itself"),
        (["run", "finlayson-dr", "--model", "digits_standard", "--data", "phantom:derm"], "has 10 outputs and phantom:derm 2 classes"),
        (["run", "filled-trial", "--model", "digits_standard", "--limit", 4], "say which of the 10 classes a study takes in"),
        (["run", "own.toml", "--model", "digits_standard", "--limit", 0], "limit must be 1 or more, got 0"),
        (["run", "own.toml", "--model", "digits_standard", "--batch-size", "x"], "--batch-size takes a whole number"),
        (["run", "own.toml", "--model", "digits_standard", "--device", "abacus"], "abacus"),
        (["run", "own.toml", "--model", "digits_standard", "--backbone", "digits_standart"], "unknown model 'digits_standart'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_ends_with_2(inside: Inside, own: Path, asked: list[object], said: str) -> None:
    ran = inside("scenario", *asked)
    assert ran.code == 2, ran.err
    assert said in ran.complaint
    assert not (own.parent / "robust-eval-runs").exists()


def test_a_wrong_goal_in_a_file_is_found_before_anything_is_loaded(inside: Inside, own: Path) -> None:
    own.write_text(OWN.replace('"upcoding"', '"up-coding"'))
    ran = inside("scenario", "run", "own.toml", "--model", "nothing_like_it")
    assert ran.code == 2
    assert "goal: unknown target 'up-coding': did you mean 'upcoding'" in ran.complaint
