"""Corruptions by the command line: the table, the files, and every wrong input in one line."""

from __future__ import annotations

import csv
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_fixture import CommandLine, Ran

DIGITS = ("--model", "digits_cnn", "--limit", "20")


def read(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_benchmark_whole(robust_eval: CommandLine) -> None:
    ran = robust_eval(*DIGITS, "--corruption", "cifar-c", "--out", "run")
    assert ran.code == 0, ran.err
    assert "frost(procedural)" in ran.out
    assert "mean error" in ran.out
    assert "There is no mCE" in ran.out
    table = robust_eval.table("run")
    assert len(table) == 76
    assert {row["kind"] for row in table} == {"clean", "corruption"}
    rows = read(robust_eval.folder / "run", "corruptions.csv")
    assert [row["corruption"] for row in rows][:2] == ["gaussian_noise", "shot_noise"]
    for row in rows:
        cells = [float(cell["accuracy"]) for cell in table if cell["condition"].startswith(row["corruption"] + "[")]
        assert [float(row[f"accuracy_{severity}"]) for severity in range(1, 6)] == pytest.approx(cells)
        assert float(row["mean_error"]) == pytest.approx(1 - sum(cells) / 5)
    assert len(read(robust_eval.folder / "run", "calibration.csv")) == 76
    page = (robust_eval.folder / "run" / "report.html").read_text()
    assert "One image under every corruption" in page
    assert page.count("data:image/jpeg") >= 76
    again = robust_eval("report", "run")
    assert again.code == 0
    assert robust_eval.table("run") == table


def test_rows_beside_those_of_an_attack(inside: Callable[..., Ran], tmp_path: Path) -> None:
    ran = inside(*DIGITS, "-c", "fog:severity=1-2", "--attack", "fgsm", "--eps", "0.05", "--out", tmp_path / "run")
    assert ran.code == 0
    assert [row["condition"] for row in read(tmp_path / "run", "table.csv")] == [
        "clean", "fog[1]", "fog[2]", "fgsm[linf,0.05]", "worst[linf,0.05]",
    ]  # fmt: skip


def test_without_attack_and_corruption_it_is_the_clean_accuracy(inside: Callable[..., Ran], tmp_path: Path) -> None:
    ran = inside(*DIGITS, "--out", tmp_path / "run")
    assert ran.code == 0
    assert [row["condition"] for row in read(tmp_path / "run", "table.csv")] == ["clean"]


def test_sequences_and_rates(inside: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "rates.json").write_text(json.dumps({"flip_probability": {"translate": 0.5}}))
    asked = ("--model", "digits_cnn", "--limit", "3", "-c", "p:translate", "--baseline", tmp_path / "rates.json", "--out", tmp_path / "run")
    ran = inside(*asked)
    assert ran.code == 0
    assert "p:translate" in ran.out
    (row,) = read(tmp_path / "run", "sequences.csv")
    assert row["n"] == "3"
    assert 0 <= float(row["flip_probability"]) <= 1


def test_overlap_is_noted(inside: Callable[..., Ran], tmp_path: Path) -> None:
    ran = inside(*DIGITS, "-c", "contrast:severity=1", "--trained-on", "contrast", "--out", tmp_path / "run")
    assert ran.code == 0
    assert "note: " in ran.out
    assert "contrast" in ran.out.partition("note: ")[2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-c", "fog:severity=0"), "severity must be 1..5, got 0"),
        (("-c", "fog:severity=6"), "severity must be 1..5, got 6"),
        (("-c", "imagenet-c:severity=three"), "severity=three: write a number from 1 to 5"),
        (("-c", "frog"), "unknown corruption 'frog': did you mean 'fog'"),
        (("-c", "fog", "-c", "fog:severity=1"), "fog[1] is asked for twice"),
        (("-c", "fog", "--storage-jpeg", "0"), "storage jpeg must be 1 or more, got 0"),
        (("-c", "frost", "--frost-dir", "nowhere"), "nowhere"),
        (("-c", "p:fog"), "unknown perturbation 'fog'"),
        (("-c", "imagenet-p:difficulty=4"), "difficulty must be 1..3, got 4"),
        (("-c", "fog", "--baseline", "nowhere.json"), "nowhere.json is no baseline"),
        (("-c", "fog", "--trained-on", "nonsense"), "nonsense"),
        (("--data", "cifar10-c:/nowhere"), "zenodo.org/records/2535967"),
        (("--data", "imagenet-r:/nowhere"), "imagenet-r"),
    ],
)
def test_wrong_input_is_one_line(inside: Callable[..., Ran], tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    ran = inside(*DIGITS, *options, "--out", tmp_path / "run")
    assert (ran.code, ran.out) == (2, "")
    assert words.lower() in ran.complaint.lower()


def cifar_c(folder: Path) -> Path:
    folder.mkdir()
    labels = np.arange(10, dtype=np.uint8)
    np.save(folder / "labels.npy", np.tile(labels, 5))
    rng = np.random.default_rng(0)
    np.save(folder / "fog.npy", rng.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8))
    return folder


def test_a_published_set(inside: Callable[..., Ran], tmp_path: Path) -> None:
    folder = cifar_c(tmp_path / "CIFAR-10-C")
    ran = inside("--model", "digits_cnn", "--data", f"cifar10-c:{folder}", "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert [row["condition"] for row in read(tmp_path / "run", "table.csv")] == [f"fog[{severity}]" for severity in range(1, 6)]


def test_published_files_that_are_cut_off_or_do_not_fit(inside: Callable[..., Ran], tmp_path: Path) -> None:
    folder = cifar_c(tmp_path / "CIFAR-10-C")
    whole = (folder / "fog.npy").read_bytes()
    (folder / "fog.npy").write_bytes(whole[: len(whole) // 2])
    asked = ("--model", "digits_cnn", "--data", f"cifar10-c:{folder}", "--out", tmp_path / "run")
    assert "fog.npy is cut off" in inside(*asked).complaint
    np.save(folder / "fog.npy", np.zeros((40, 32, 32, 3), np.uint8))
    complaint = inside(*asked).complaint
    assert "(40, 32, 32, 3)" in complaint
    assert "(50, 32, 32, 3)" in complaint


def test_images_that_are_too_small(inside: Callable[..., Ran], tmp_path: Path) -> None:
    np.savez(tmp_path / "small.npz", images=np.zeros((2, 12, 12, 3), np.uint8), labels=np.zeros(2, np.int64))
    (tmp_path / "any.py").write_text(
        "import torch\n\ndef build():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(432, 3)).eval()\n"
    )
    asked = ("--model", f"{tmp_path / 'any.py'}:build", "--data", f"npz:{tmp_path / 'small.npz'}", "-c", "fog", "--out", tmp_path / "run")
    ran = inside(*asked)
    assert ran.code == 2
    assert "fog: images of 12x12 are too small, 16 pixels are the least" in ran.complaint


@pytest.mark.slow
def test_killed_and_interrupted_runs_go_on(robust_eval: CommandLine) -> None:
    asked = ("--model", "digits_cnn", "--limit", "300", "--corruption", "all", "--batch-size", "16")
    assert robust_eval(*asked, "--out", "whole").code == 0
    process = robust_eval.start(*asked, "--out", "stopped")
    until = time.monotonic() + 120
    while len(robust_eval.broken("stopped")) < 3000:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    process.kill()
    process.communicate()
    process = robust_eval.start(*asked, "--out", "stopped")
    known = len(robust_eval.broken("stopped"))
    while len(robust_eval.broken("stopped")) < known + 2000:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in complaint
    assert len(robust_eval.broken("stopped")) < 96 * 300
    assert robust_eval(*asked, "--out", "stopped").code == 0
    assert robust_eval.broken("stopped") == robust_eval.broken("whole")


def test_overlap_with_sequences_is_noted(inside: Callable[..., Ran], tmp_path: Path) -> None:
    ran = inside("--model", "digits_cnn", "--limit", "2", "-c", "p:rotate", "--trained-on", "randaugment", "--out", tmp_path / "run")
    assert "trained on randaugment, which does much the same as rotate" in ran.out
