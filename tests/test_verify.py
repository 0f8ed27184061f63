"""A run's evidence can be checked by anyone, and tampering shows."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_fixture import CommandLine, Ran
from safetensors.torch import load_file, save_file

CONDITION = "pgd:steps=5[linf,0.1]"


@pytest.fixture
def run(robust_eval: CommandLine, inside: Callable[..., Ran]) -> Path:
    assert inside("--model", "digits_cnn", "--limit", "12", "--attack", "pgd:steps=5", "--eps", "0.1", "--out", "run").code == 0
    return robust_eval.folder / "run"


def change(run: Path, sample: str, **values: object) -> None:
    database = sqlite3.connect(run / "results.sqlite")
    with database:
        for name, value in values.items():
            database.execute(f"UPDATE verdicts SET {name} = ? WHERE condition = ? AND sample_id = ?", (value, CONDITION, sample))
    database.close()


def witness(robust_eval: CommandLine, run: Path) -> tuple[str, Path]:
    """A sample and its witness's file."""
    sample = next(s for s in robust_eval.samples("run", CONDITION) if s["witness"])
    for file in (run / "witnesses").iterdir():
        if hashlib.sha256(file.read_bytes()).hexdigest() == sample["witness"]:
            return sample["sample_id"], file
    raise AssertionError("the verdict's witness is missing")


def rewrite(run: Path, sample: str, file: Path, change_to: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Forge a witness: another adversarial image, and its digest in the verdict."""
    tensors = load_file(file)
    save_file({**tensors, "adversarial": change_to(tensors["adversarial"]).contiguous()}, file)
    change(run, sample, witness=hashlib.sha256(file.read_bytes()).hexdigest())


def test_one_changed_byte(robust_eval: CommandLine, inside: Callable[..., Ran], run: Path) -> None:
    holds = robust_eval("verify", "run")
    assert (holds.code, holds.err) == (0, "")
    assert "witnesses hold" in holds.out
    sample, file = witness(robust_eval, run)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    refuted = robust_eval("verify", "run")
    assert refuted.code == 1
    assert refuted.out.startswith(f"does not hold: {CONDITION}, {sample}: {file.name} was changed after it was written")
    assert refuted.out.count("\n") == 1
    assert "1 of " in refuted.complaint
    file.unlink()
    assert f"{sample}: {file.name}: No such file" in inside("verify", "run").out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distance": "distance * 2"}, "and is said to lie at"),
        ({"distance": "distance * 0.5"}, "and is said to lie at"),
        ({"broken": "0"}, "does not count it as broken"),
        ({"approach": "'[[1, 9.0]]'"}, "its search is said to have ended at 9"),
        ({"approach": "replace(approach, '[[', '[[100000, 9.0], [')"}, "or there are more than were spent"),
    ],
)
def test_changed_distances(robust_eval: CommandLine, inside: Callable[..., Ran], changes: dict[str, str], words: str) -> None:
    asked = ("--model", "digits_cnn", "--limit", "6", "--attack", "fmn:steps=30", "--eps", "1", "--eps", "4", "--norm", "l2")
    assert inside(*asked, "--out", "near").code == 0
    assert "witnesses hold" in inside("verify", "near").out
    with sqlite3.connect(robust_eval.folder / "near" / "results.sqlite") as database:
        for name, value in changes.items():
            database.execute(f"UPDATE verdicts SET {name} = {value} WHERE condition = 'fmn:steps=30[l2,4]' AND broken_by != 'clean'")
    database.close()
    ran = inside("verify", "near")
    assert ran.code == 1
    assert words in ran.out


def test_changed_radii(robust_eval: CommandLine, inside: Callable[..., Ran]) -> None:
    asked = ("--model", "digits_cnn", "--limit", "6", "--attack", "fmn:steps=30", "--norm", "l2")
    assert inside(*asked, "--eps", "1", "--out", "first").code == 0
    lines = [f"{sample['sample_id']},4" for sample in robust_eval.samples("first", "clean")]
    (robust_eval.folder / "radii.csv").write_text("\n".join(["sample_id,eps", *lines]), encoding="utf-8")
    assert inside(*asked, "--radii", "radii.csv", "--out", "own").code == 0
    assert "witnesses hold" in inside("verify", "own").out
    with sqlite3.connect(robust_eval.folder / "own" / "results.sqlite") as database:
        database.execute("UPDATE verdicts SET radius = radius / 100, broken = 0 WHERE broken_by != 'clean'")
    database.close()
    assert "its ball is said to be of 0.04, and is of 4" in inside("verify", "own").out


@pytest.mark.parametrize(
    ("forge", "words"),
    [
        (lambda x: (x + 0.2 * torch.sign(x - 0.5)).clamp(0, 1), "lies outside the linf ball of 0.1"),
        (lambda x: x + 2, "or outside [0, 1]"),
        (lambda x: x * torch.nan, "lies outside"),
        (lambda x: x[:, :5, :5], "not of one shape"),
        (lambda x: x.double(), "in float32"),
        (torch.zeros_like, "lies outside the linf ball"),
    ],
)
def test_forged_images(
    robust_eval: CommandLine, inside: Callable[..., Ran], run: Path, forge: Callable[[torch.Tensor], torch.Tensor], words: str
) -> None:
    sample, file = witness(robust_eval, run)
    rewrite(run, sample, file, forge)
    refuted = inside("verify", "run")
    assert refuted.code == 1
    assert refuted.out.startswith(f"does not hold: {CONDITION}, {sample}: ")
    assert words in refuted.out


def test_a_clean_image_is_no_witness(robust_eval: CommandLine, inside: Callable[..., Ran], run: Path) -> None:
    sample, file = witness(robust_eval, run)
    clean = load_file(file)["clean"]
    rewrite(run, sample, file, lambda x: clean.float() / 255 if clean.dtype == torch.uint8 else clean)
    assert "which is not broken" in inside("verify", "run").out


def test_a_changed_verdict(robust_eval: CommandLine, inside: Callable[..., Ran], run: Path) -> None:
    sample, _ = witness(robust_eval, run)
    found = next(s for s in robust_eval.samples("run", CONDITION) if s["sample_id"] == sample)
    other = next(c for c in range(10) if c not in (int(found["label"]), int(found["prediction"])))
    change(run, sample, prediction=json.dumps(other))
    refuted = inside("verify", "run")
    assert refuted.code == 1
    assert f"{sample}: the model says {found['prediction']}, the verdict {other}" in refuted.out


def test_another_model_is_not_the_one(inside: Callable[..., Ran], run: Path) -> None:
    recorded = json.loads((run / "run.json").read_text())
    recorded["model"]["recipe"]["std"] = [0.5, 0.5, 0.5]
    (run / "run.json").write_text(json.dumps(recorded))
    refused = inside("verify", "run")
    assert refused.code == 2
    assert "is not the model that run evaluated" in refused.complaint
