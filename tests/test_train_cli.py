"""The command `robust-train`: its mistakes in one line each, its files, and a short real run."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from robustbench_lite.defenses.job import count_correct, save
from robustbench_lite.defenses.train_cli import main
from safetensors.torch import load_file
from torch import nn
from training_fixture import made, metadata

from robustbench_lite.cli import main as evaluate
from robustbench_lite.data import load_data
from robustbench_lite.errors import InvalidEvaluation
from robustbench_lite.registry import ARCHITECTURES, architecture
from robustbench_lite.trained import load_trained

COMMAND = [sys.executable, "-m", "robustbench_lite.defenses.train_cli"]
QUICK = ["--model", "small_cnn", "--batch-size", "450", "--device", "cpu", "--epochs"]


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_the_real_command_writes_a_checkpoint_that_loads_and_beats_a_floor(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "--epochs", "4", "--seed", "3", "--out", "short.safetensors"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "epoch 4 of 4" in done.stderr
    out = tmp_path / "short.safetensors"
    facts, classifier = metadata(out), load_trained(out)
    correct = count_correct(classifier, load_data("digits"))
    assert correct > 0.85 * 900
    assert f"{correct} of 900 test images right" in done.stdout
    assert (classifier.name, classifier.data, classifier.classes) == ("short", "digits", 10)
    assert (facts["seed"], facts["torch"], facts["test_accuracy"]) == ("3", torch.__version__, f"{correct / 900:.4f}")
    assert facts["command"].startswith("robust-train --data digits --model digits_cnn --defense none --optimizer adamw --epochs 4 ")


def test_an_architecture_is_added_by_registering_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ARCHITECTURES.names()
    monkeypatch.setattr(ARCHITECTURES, "found", dict(ARCHITECTURES.found))

    @architecture("linear")
    def linear(classes: int, channels: int = 3) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * 32 * 32, classes))

    assert main(["--model", "linear", "--epochs", "2", "--out", "linear.safetensors"]) == 0
    assert load_file("linear.safetensors")["1.weight"].shape == (10, 3 * 32 * 32)
    assert float(metadata(tmp_path / "linear.safetensors")["test_accuracy"]) > 0.5


def test_the_command_in_a_checkpoint_makes_it_again(tmp_path: Path) -> None:
    settings = "--schedule steps --drops 0.4 --drops 0.8 --ema 0.9 --scale-lr --validation 0.1 --label-smoothing 0"
    assert main([*QUICK, "1", *settings.split(), "--seed", "5", "--out", "once.safetensors"]) == 0
    first = load_file("once.safetensors")
    written = metadata(tmp_path / "once.safetensors")["command"]
    for flags in ("--drops 0.4 --drops 0.8", "--scale-lr", "--validation 0.1", "--label-smoothing 0.0", "--seed 5"):
        assert flags in written
    assert main([*shlex.split(written)[1:], "--force"]) == 0
    again = load_file("once.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert metadata(tmp_path / "once.safetensors")["command"] == written


def test_a_file_that_exists_is_kept_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.safetensors"
    out.write_bytes(b"mine")
    assert main([*QUICK, "1", "--out", str(out)]) == 2
    assert "add --force" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert main([*QUICK, "1", "--out", str(out), "--force"]) == 0
    assert '"architecture": "small_cnn"' in metadata(out)["robust_train"]
    assert {file.name for file in tmp_path.iterdir()} == {"mine.safetensors", "mine.training.csv", "mine.training.png"}


def test_the_table_and_the_picture_are_what_they_say(tmp_path: Path) -> None:
    from PIL import Image

    assert main([*QUICK, "1", "--out", "a.safetensors", "--validation", "0.1", "--validation-attack", "fgsm"]) == 0
    header, line = (tmp_path / "a.training.csv").read_text().splitlines()
    assert header == "number,loss,lr,seconds,clean,attacked"
    number, loss, lr, seconds, clean, attacked = map(float, line.split(","))
    assert number == 1
    assert 0 < loss < 10
    assert 0 < lr <= 3e-3
    assert seconds > 0
    assert 0 <= attacked <= clean <= 1
    with Image.open("a.training.png") as picture:
        assert picture.size == (840, 480)
    facts = metadata(tmp_path / "a.safetensors")
    assert (facts["chosen_epoch"], float(facts["held_out_accuracy"])) == ("1", attacked)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--out"),
        (["--out", "a.pt"], ".safetensors"),
        (["--out", "no/such/folder/a.safetensors"], "no folder"),
        (["--epochs", "0"], "epochs must be 1 or more, got 0"),
        (["--epochs", "many"], "--epochs"),
        (["--epoch", "3"], "--epochs"),
        (["--batch-size", "-1"], "batch-size must be 1 or more, got -1"),
        (["--lr", "0"], "lr must be a number above 0, got 0.0"),
        (["--lr", "nan"], "lr must be a number above 0, got nan"),
        (["--weight-decay", "-0.1"], "weight-decay must be"),
        (["--seed", "-1"], "seed must be"),
        (["--label-smoothing", "1"], "label-smoothing must be at least 0 and below 1, got 1.0"),
        (["--clip", "0"], "clip must be a number above 0, got 0.0"),
        (["--warmup", "5", "--epochs", "5"], "warmup of 5 epochs leaves nothing of the 5: make it shorter"),
        (["--ema", "1"], "ema must be at least 0 and below 1, got 1.0"),
        (["--drops", "1.5"], "drops are shares of the training between 0 and 1, got 1.5"),
        (["--schedule", "linear"], "--schedule"),
        (["--precision", "int8"], "--precision"),
        (["--model", "digits_cn"], "did you mean 'digits_cnn'"),
        (["--data", "digit"], "did you mean 'digits'"),
        (["--data", "cifar10"], "no training images"),
        (["--data", "imagenet"], "cannot be split"),
        (["--data", "imagefolder:."], "must hold the folders train and val"),
        (["--device", "tpu"], "--device"),
        (["digits"], "digits"),
        (["--defense", "pgdat"], "did you mean 'pgd-at'"),
        (["--defense", "pgd-at:esp=0.1"], "eps"),
        (["--defense", "pgd-at:eps=8"], "eps 8 is more than the whole range of a pixel"),
        (["--defense", "pgd-at+trades"], "pgd-at and trades both choose the adversarial images: take one of the two"),
        (["--defense", "bit-depth"], "bit-depth is not trained but put around a model: robust-eval --defense bit-depth"),
        (["--defense", "pgd-at:attack=square"], "square cannot make training images"),
        (["--validation", "0.0001"], "a share between 0 and 1 that leaves some of the 897 images on either side"),
        (["--validation", "1.5"], "a share between 0 and 1"),
        (["--validation", "0.1", "--validation-attack", "pgd", "--validation-eps", "much"], "--validation-eps: 'much' is not a number"),
        (["--validation", "0.1", "--validation-attack", "pgd", "--validation-eps", "-1"], "eps must be positive"),
        (["--validation", "0.1", "--validation-attack", "pgdd"], "did you mean 'pgd'"),
        (["--validation-attack", "pgd"], "--validation-attack and --validation-eps need images held out: add --validation 0.1"),
        (["--init", "nothing.safetensors"], "there is no weights file nothing.safetensors"),
        (["--model", "nope_net"], "nope_net"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = [] if not flags or "--out" in flags else ["--out", "a.safetensors"]
    assert main([*flags, *out]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("robust-train: ")
    assert said in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_architecture_is_refused_by_both_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    save(made("small_cnn").untrained(), other, made("small_cnn"), {})
    assert main(["--model", "digits_cnn", "--init", str(other), "--out", "a.safetensors"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"robust-train: {other} does not fit digits_cnn: ")
    assert said.count("\n") == 1
    words = ["robust-eval", "--model", "digits_cnn", "--weights", str(other), "--data", "digits", "--attack", "fgsm", "--limit", "4"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="2"):
        evaluate()
    assert "does not fit digits_cnn" in capsys.readouterr().err.replace("\n", " ")


def test_training_starts_from_a_checkpoint(tmp_path: Path) -> None:
    assert main([*QUICK, "3", "--out", "first.safetensors"]) == 0
    assert main([*QUICK, "1", "--init", "first.safetensors", "--lr", "1e-6", "--out", "second.safetensors"]) == 0
    first, second = load_file("first.safetensors"), load_file("second.safetensors")
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert "--init first.safetensors" in metadata(tmp_path / "second.safetensors")["command"]


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--device", "cuda", "--out", "a.safetensors"]) == 2
    assert capsys.readouterr().err == "robust-train: there is no device 'cuda' on this machine: use --device auto\n"


def test_debug_shows_where_a_mistake_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--debug", "--out", "a.pt"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_shows_its_traceback_and_says_that_it_is_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("robustbench_lite.defenses.job.splits", fail)
    assert main(["--out", "a.safetensors"]) == 4
    printed = capsys.readouterr().err
    assert "RuntimeError: broken on purpose" in printed
    assert "this is a bug in robust-train" in printed


def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InvalidEvaluation, match="No space left on device"):
        save(made().untrained(), tmp_path / "a.safetensors", made(), {})
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_torch() -> None:
    code = "import sys; from robustbench_lite.defenses.train_cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for option in ("--defense", "--weight-decay", "--validation-attack", "--ema", "--init"):
        assert option in done.stdout
