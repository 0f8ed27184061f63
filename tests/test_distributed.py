"""Several processes learn what one learns; one of them speaks and writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from robustbench_lite.defenses.world import World
from safetensors.torch import load_file

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
TRAIN = ["-m", "robustbench_lite.defenses.train_cli"]


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine, which find each other on a free port."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


def alone(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=ENVIRONMENT)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("defense", ["none", "pgd-at:norm=l2,attack=(pgd:steps=2)"])
def test_two_processes_train_what_one_trains(defense: str, tmp_path: Path) -> None:
    """Parts of a step differ in size. In linf an attack's sign would make much of the last bit, by which sums over fewer images differ."""
    flags = "--model small_cnn --epochs 1 --batch-size 225 --optimizer sgd --lr 0.05 --ema 0.9 --clip 1 --validation 0.1 --device cpu"
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    done = alone(*TRAIN, *flags.split(), "--defense", defense, "--out", str(one))
    assert done.returncode == 0, done.stderr
    both = torchrun(*TRAIN, *flags.split(), "--defense", defense, "--out", str(two))
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("test images right") == 1
    assert both.stdout.split(": ")[1] == done.stdout.split(": ")[1]
    assert both.stderr.count("epoch 1 of 1") == 1
    expected, found = load_file(one), load_file(two)
    assert all(torch.allclose(expected[name], found[name], atol=1e-4) for name in expected)
    rows = [(tmp_path / f"{name}.training.csv").read_text().splitlines()[1:] for name in ("one", "two")]
    for ours, theirs in zip(*rows, strict=True):
        number, loss, lr, _, clean, attacked = map(float, ours.split(","))
        number2, loss2, lr2, _, clean2, attacked2 = map(float, theirs.split(","))
        assert (number, lr) == (number2, lr2)
        assert loss == pytest.approx(loss2, abs=1e-4)
        assert (clean, attacked) == pytest.approx((clean2, attacked2), abs=0.025)  # two images of 90
    suffixes = (".safetensors", ".training.csv", ".training.png")
    assert {file.name for file in tmp_path.iterdir()} == {f"{stem}{suffix}" for stem in ("one", "two") for suffix in suffixes}


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "said"), [("--epochs 0", "epochs must be 1 or more"), ("--lr 1e30 --epochs 3", "the loss became")])
def test_an_error_of_all_is_said_once_and_ends_all(flags: str, said: str, tmp_path: Path) -> None:
    done = torchrun(*TRAIN, "--model", "small_cnn", *flags.split(), "--device", "cpu", "--out", str(tmp_path / "a.safetensors"))
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("robust-train: ")]
    assert len(ours) == 1
    assert said in ours[0]
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(tmp_path: Path) -> None:
    script = tmp_path / "second_fails.py"
    script.write_text(
        "import os, sys\n"
        "from robustbench_lite.defenses import training\n"
        "from robustbench_lite.defenses.train_cli import main\n"
        "from robustbench_lite.errors import DataError\n"
        "def fail(*arguments): raise DataError('a picture is damaged')\n"
        "if os.environ['RANK'] == '1': training.Training._step = fail\n"
        "sys.exit(main())\n"
    )
    done = torchrun(str(script), "--model", "small_cnn", "--device", "cpu", "--out", str(tmp_path / "a.safetensors"))
    assert done.returncode != 0
    assert done.stderr.count("robust-train: a picture is damaged") == 1
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.slow
def test_more_processes_than_images_in_a_step_are_refused(tmp_path: Path) -> None:
    done = torchrun(*TRAIN, "--model", "small_cnn", "--batch-size", "1", "--device", "cpu", "--out", str(tmp_path / "a.safetensors"))
    assert done.returncode != 0
    assert "2 processes cannot share steps of 1 images: raise --batch-size or start fewer" in done.stderr


def test_every_image_of_a_step_is_in_one_part() -> None:
    chosen = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    parts = [World(rank, 3, torch.device("cpu")).share(chosen) for rank in range(3)]
    assert [len(part) for part in parts] == [4, 4, 3]
    assert torch.equal(torch.cat(parts), chosen)
