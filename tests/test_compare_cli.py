"""`robust-eval compare` and `robust-eval history` from end to end, on real runs of two models of digits."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fixture import Ran

from robustbench_lite import evaluate
from robustbench_lite.store import read_run

Inside = Callable[..., Ran]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`standard` and `robust` on the same 40 images, `elsewhere` on images that neither saw."""
    folder = tmp_path_factory.mktemp("made")
    for name, model in (("standard", "digits_standard"), ("robust", "digits_pgd_at")):
        evaluate(model, "pgd:steps=10", "digits", eps=0.15, limit=40, witnesses="none", out=folder / name)
    evaluate("digits_standard", (), "digits:train", limit=40, out=folder / "elsewhere")
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def table(file: Path) -> dict[str, dict[str, str]]:
    with file.open(newline="") as stream:
        return {row["condition"]: row for row in csv.DictReader(stream)}


def test_a_robust_model_beside_a_plain_one(runs: Path, inside: Inside) -> None:
    ran = inside("compare", "standard", "robust", "--out", "both", "--fail-on-difference")
    assert (ran.code, ran.err) == (1, ""), "1: there is a difference, as was asked"
    assert "B  digits_pgd_at on digits, robust" in ran.out
    assert "right only in B under worst[linf,0.15]: " in ran.out
    row = table(runs / "both" / "comparison.csv")["pgd:steps=10[linf,0.15]"]
    assert float(row["difference"]) > 0.3
    assert float(row["difference_low"]) > 0
    assert float(row["p_holm"]) < 0.001
    standing = {name: {v.sample_id for v in read_run(runs / name).of(row["condition"]) if not v.broken} for name in ("standard", "robust")}
    with (runs / "both" / "flips.csv").open(newline="") as stream:
        flips = [flip for flip in csv.DictReader(stream) if flip["condition"] == row["condition"]]
    assert {flip["sample_id"] for flip in flips if flip["direction"] == "gained"} == standing["robust"] - standing["standard"]
    assert {flip["sample_id"] for flip in flips if flip["direction"] == "lost"} == standing["standard"] - standing["robust"]
    assert len(flips) == int(row["lost"]) + int(row["gained"])


def test_the_same_model_twice_does_not_differ(runs: Path, inside: Inside) -> None:
    shutil.copytree(runs / "robust", runs / "again")
    for other, said in (("again", "A and B are the same model."), ("robust", "A and B are the same run.")):
        ran = inside("compare", "robust", other, "--out", "same", "--fail-on-difference")
        assert (ran.code, ran.err) == (0, "")
        assert said in ran.out
        for row in table(runs / "same" / "comparison.csv").values():
            assert (float(row["difference"]), row["lost"], row["gained"], float(row["p_holm"])) == (0.0, "0", "0", 1.0)
        assert (runs / "same" / "flips.csv").read_text().count("\n") == 1, "the header alone"


def test_several_runs_are_held_against_the_first(runs: Path, inside: Inside) -> None:
    shutil.copytree(runs / "robust", runs / "again")
    ran = inside("compare", "standard", "robust", "again", "--out", "three", "--format", "json")
    assert ran.code == 0
    document = json.loads((runs / "three" / "comparison.json").read_text())
    assert [each["run"] for each in document["compared"]] == ["B", "C"]
    assert [path.name for path in (runs / "three").iterdir()] == ["comparison.json"]


def test_an_unfinished_run_is_compared_and_named(runs: Path, inside: Inside) -> None:
    config = json.loads((runs / "robust" / "run.json").read_text())
    (runs / "robust" / "run.json").write_text(json.dumps(config | {"sessions": [{}]}))
    ran = inside("compare", "standard", "robust")
    assert ran.code == 0
    assert "B is unfinished" in ran.out
    assert inside("history", ".").complaint.startswith("no two of the 2 runs below . have a figure for accuracy")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["standard"], "a comparison takes 2 to 26 runs, got 1: name their folders"),
        ([], "a comparison takes 2 to 26 runs, got 0"),
        (["standard", "nowhere"], "nowhere is not a run: it has no run.json"),
        (["standard", "elsewhere"], "A and B share no image (40 of digits in A, 40 of digits:train in B)"),
        (["standard", "robust", "--format", "pdf"], "--format takes html, csv, json, got 'pdf'"),
        (["standard", "robust", "--out", "standard/run.json"], "--out is a folder, and standard/run.json is a file"),
    ],
)
def test_bad_input_is_one_line(runs: Path, inside: Inside, words: list[str], said: str) -> None:
    ran = inside("compare", *words)
    assert ran.code == 2
    assert ran.complaint.startswith(said)


def test_history_writes_beside_the_runs_and_says_what_it_skipped(runs: Path, inside: Inside) -> None:
    shutil.rmtree(runs / "elsewhere")
    (runs / "other").mkdir()
    (runs / "other" / "run.json").write_text("[]")
    ran = inside("history", runs, "--condition", "worst")
    assert (ran.code, ran.err) == (0, "")
    assert "worst[linf,0.15] on 40 of digits: accuracy, %" in ran.out
    assert "skipped" in ran.out
    assert (runs / "history.html").exists()
    assert len(table(runs / "history.csv")) == 1
    assert inside("history", runs, "--metric", "median_distance").code == 2
    assert inside("history", runs, "--metric", "beauty").code == 2
