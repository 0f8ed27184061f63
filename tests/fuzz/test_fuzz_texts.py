"""Fuzzing files of text that a user writes or is given: settings, scenarios, tables, JSON of several kinds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import TEXT_EDITS, TREE_EDITS, fuzz, needs_limits, replaced, spoilt
from hypothesis import strategies as st
from robustbench_lite.defenses.policies import Policies

from robustbench_lite.baselines import read_baseline
from robustbench_lite.cards import Card
from robustbench_lite.gate import baseline
from robustbench_lite.gate.rules import parse
from robustbench_lite.gate.settings import read_settings
from robustbench_lite.imagefolder import class_indices, read_folder
from robustbench_lite.patients import patients_in
from robustbench_lite.radii import radii_of
from robustbench_lite.scenario_files import read_scenario
from robustbench_lite.sequences import read_rates

pytestmark = needs_limits
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"


def settings(file: Path) -> None:
    asked = read_settings(file)
    for rule in asked.settings.rules:
        parse(rule)


def card(file: Path) -> None:
    read = Card.read(file)
    again = file.with_name("again.json")
    again.write_text(read.written(), encoding="utf-8")
    assert Card.read(again).written() == read.written()
    read.words()


def labels(file: Path) -> None:
    for name in ("0/one.png", "1/two.png"):
        (file.parent / name).parent.mkdir(exist_ok=True)
        (file.parent / name).touch()
    read_folder(file.parent, None, None, str(file))


TABLE = "index,patient,split\n0,a,test\n1,b,test\n2,c,train\n"
MAPPING = {"n01440764": 0, "1": ["n01443537", "goldfish"], "2": "n02"}

READERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "gate.toml": (settings, (EXAMPLES / "gate" / "robust-eval.toml").read_text()),
    "pyproject.toml": (settings, '[tool.robust-eval.gate]\nmodel = "digits_cnn"\nrules = ["pgd.accuracy >= 0.45"]\neps = [0.1, "8/255"]\n'),
    "scenario.toml": (read_scenario, (EXAMPLES / "scenarios" / "reading_queue.toml").read_text()),
    "scenario.yaml": (read_scenario, (EXAMPLES / "scenarios" / "late_referral.yaml").read_text()),
    "patients.csv": (lambda file: patients_in(str(file), "index", ["0", "1"], "test"), TABLE),
    "labels.csv": (labels, "file,label,patient\n0/one.png,cat,a\n1/two.png,dog,b\n"),
    "radii.csv": (lambda file: radii_of(file, ["a", "b"]), "sample_id,eps\na,0.1\nb,0.25\n"),
}  # fmt: skip

JSON: dict[str, tuple[Callable[[Path], object], Any]] = {
    "mapping": (lambda file: class_indices(["n01440764"], str(file), file.parent), MAPPING),
    "errors": (read_baseline, {"name": "alexnet", "clean": 0.43, "errors": {"fog": 0.82, "snow": 0.87}}),
    "rates": (read_rates, {"flip_probability": {"translate": 0.11}, "t5d": {"translate": 1.2}}),
    "policies": (Policies.read, json.loads(Policies(torch.zeros(2, 2, 2, 2, dtype=torch.long)).written())),
    "baseline": (
        baseline.read,
        {
            "format": baseline.FORMAT, "model": {"name": "m", "digest": "d"}, "data": {"name": "x", "digest": "y"}, "terms": {"seed": 0},
            "samples": ["a", "b", "c"], "labels": [0, 1, 2],
            "conditions": {"clean": {"right": "e"}, "worst": {"right": "8", "evaluated": "c", "worst_of": ["pgd"]}},
        },
    ),
    "card": (card, json.loads(next((ROOT / "defenses" / "zoo").glob("*.json")).read_text())),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_texts(name: str, tmp_path: Path) -> None:
    read, sample = READERS[name]
    file = tmp_path / name

    def check(made: Any) -> None:
        file.write_bytes(spoilt(sample, made).encode("utf-8", "surrogatepass"))
        read(file)

    check([])  # the sample itself is a good one
    fuzz(TEXT_EDITS, check)


@pytest.mark.parametrize("name", JSON)
def test_json(name: str, tmp_path: Path) -> None:
    read, sample = JSON[name]
    file = tmp_path / f"{name}.json"

    def check(case: tuple[Any, Any]) -> None:
        file.write_text(spoilt(json.dumps(replaced(sample, case[0])), case[1]), encoding="utf-8")
        read(file)

    check(([], []))
    fuzz(st.tuples(TREE_EDITS, TEXT_EDITS | st.just([])), check)
