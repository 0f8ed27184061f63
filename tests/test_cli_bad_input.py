"""Bad input: one line that begins with `robust-eval:`, the exit code of the errors module, and no traceback."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_fixture import CommandLine, Ran
from PIL import Image

Inside = Callable[..., Ran]
DIGITS = ("--model", "digits_cnn", "--limit", "8", "--out", "run")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--attack", "pgdd"), "did you mean 'pgd'"),
        (("--attack", ""), "empty name"),
        (("--attack", "pgd:step=3"), "did you mean 'steps'"),
        (("--attack", "pgd:steps=x"), "pgd:steps=x: input should be a valid integer"),
        (("--attack", "pgd:steps=0"), "greater than or equal to 1"),
        (("--attack", "pgd:steps=3,steps=4"), "given twice"),
        (("--attack", "pgd:loss=huge"), "'ce', 'dlr' or 'margin'"),
        (("--attack", "pgd", "--attack", "pgd"), "asked for twice"),
        (("--attack", "bim", "--norm", "l0", "--eps", "3"), "has no norm l0: it has linf, l2, l1"),
        (("--attack", "foolbox"), "foolbox:NAME"),
        (("--attack", "foolbox:LinfPG"), "did you mean 'LinfPGD'"),
        (("--attack", "foolbox:LinfPGD:stepss=3"), "did you mean 'steps'"),
        (("--attack", "pgd", "--norm", "l3"), '"linf", "l2", "l1", "l0"'),
        (("--attack", "pgd", "--norm", "l0"), "no usual eps for l0 on digits"),
        (("--attack", "pgd", "--epss", "3"), "Did you mean --eps?"),
        (("--attack", "pgd", "stray"), "stray"),
        (("--attack", "pgd", "--eps", "-1"), "eps must be positive"),
        (("--attack", "pgd", "--eps", "0"), "eps must be positive"),
        (("--attack", "pgd", "--eps", "8"), "write 8/255 and not 8"),
        (("--attack", "pgd", "--eps", "much"), "'much' is not a number"),
        (("--attack", "pgd", "--eps", "nan"), "not a finite number"),
        (("--attack", "pgd", "--eps", "inf", "--norm", "l2"), "not a finite number"),
        (("--attack", "pgd", "--eps", "8/0"), "is not a number"),
        (("--attack", "pgd", "--eps", "2.5", "--norm", "l0"), "must be whole"),
        (("--attack", "pgd", "--data", "digit"), "did you mean 'digits'"),
        (("--attack", "pgd", "--data", "imagenet"), "10 outputs, but the data has the label 990"),
        (("--attack", "pgd", "--data", "imagefolder:/no/such/place"), "no folder /no/such/place"),
        (("--attack", "pgd", "--data", "npz:no.npz"), "no file no.npz"),
        (("--attack", "pgd", "--batch-size", "0"), "must be 1 or more, got 0"),
        (("--attack", "pgd", "--batch-size", "x"), "--batch-size takes a whole number, auto or tune, got 'x'"),
        (("--attack", "pgd", "--witnesses", "some"), "--witnesses takes a whole number"),
        (("--attack", "pgd", "--witnesses", "-1"), "must be 0 or more"),
        (("--attack", "pgd", "--query-budget", "0"), "must be 1 or more"),
        (("--attack", "pgd", "--seed", "-1"), "must be 0 or more"),
        (("--attack", "sgm+pgd"), "pgd cannot be combined with others"),
        (("--attack", "mi+mi"), "mi is named twice"),
        (("--attack", "autoattack:version=best"), "should be 'standard', 'plus' or 'rand'"),
        (("--attack", "fab", "--norm", "l0"), "fab has no norm l0"),
        (("--attack", "sgm"), "sgm needs residual connections, and digits_cnn shows none"),
        (("--attack", "pgd", "--surrogate", "digits_cnn"), "the surrogate digits_cnn is the model itself"),
        (("--attack", "pgd", "--surrogate", "nothing"), "unknown model 'nothing'"),
        (("--attack", "pgd", "--eot", "0"), "eot must be 1 or more, got 0"),
        (("--attack", "pgd", "--votes", "0"), "votes must be 1 or more, got 0"),
        (("--attack", "pgd", "--target", "10"), "one of the model's classes 0..9, got 10"),
        (("--attack", "pgd", "--target", "cat"), "unknown target 'cat'"),
        (("--attack", "pgd", "--mean", "0.5,x,0.5"), "--mean takes numbers"),
        (("--attack", "pgd", "--mean", "0.5,0.5"), "digits_cnn does not take 3x32x32 images"),
        (("--attack", "pgd", "--mean", "127,127,127"), "in [0, 1] units"),
        (("--attack", "pgd", "--std", "0,0,0"), "in [0, 1] units"),
        (("--attack", "pgd", "--weights", "no.pt"), "no weights file no.pt"),
        (("--attack", "pgd", "--num-classes", "7"), "10 classes, not 7"),
        (("--attack", "pgd", "--device", "tpu"), "unknown device 'tpu'"),
        (("--attack", "pgd", "--device", "cuda:99"), "no device 'cuda:99'"),
        (("--attack",), "--attack requires an argument"),
    ],
)
def test_options(inside: Inside, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    ran = inside(*DIGITS, *options)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.complaint
    assert not (tmp_path / "run" / "table.csv").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("--model", "digit_cnn", "--attack", "pgd"), "did you mean 'digits_cnn'"),
        (("--model", "resnet5", "--attack", "pgd"), "did you mean 'resnet50'"),
        (("--model", "digits_cnn", "--limit", "0", "--attack", "pgd"), "limit must be 1 or more, got 0"),
        (("--model", "digits_cnn", "--limit", "few", "--attack", "pgd"), 'unable to convert "few" into int'),
        (("--attack", "pgd"), "--model requires an argument"),
        (("verify", "nowhere"), "nowhere is not a run"),
        (("report", "nowhere"), "nowhere is not a run"),
        (("list", "attack"), '"attacks"'),
        (("describe", "pdg"), "did you mean 'pgd'"),
        (("describe",), "requires an argument"),
    ],
)
def test_commands(inside: Inside, command: tuple[str, ...], words: str) -> None:
    ran = inside(*command)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.complaint


def test_debug_shows_where_and_keeps_the_exit_code(inside: Inside) -> None:
    ran = inside(*DIGITS, "--attack", "pgd", "--eps", "nan", "--debug")
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("robust-eval: eps")


# ---------------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("factory", "code", "words"),
    [
        ("training", 2, "in training mode"),
        ("partly", 2, "model.layer of factory.py:partly is in training mode"),
        ("five", 2, "5 outputs, but the data has the label 9"),
        ("detached", 2, "needs gradients, and factory.py:detached has none"),
        ("oneway", 2, "needs gradients, and factory.py:oneway has none"),
        ("pair", 2, "returns tuple for 4 images"),
        ("crash", 2, "does not take 3x32x32 images: boom"),
        ("raising", 2, "factory.py:raising failed: KeyError: 'hm'"),
        ("junk", 2, "must return a torch.nn.Module or a Classifier, got int"),
        ("plane", 2, "did you mean 'plain'"),
        ("all_nan", 4, "answers NaN to every image of the first batch"),
    ],
)
def test_models_that_cannot_be_attacked(inside: Inside, factories: Path, factory: str, code: int, words: str) -> None:
    ran = inside("--model", f"factory.py:{factory}", "--data", "digits", "--limit", "30", "--attack", "pgd:steps=3")
    assert (ran.code, ran.out) == (code, "")
    assert words in ran.complaint


def test_some_nan_is_undecided_and_never_correct(robust_eval: CommandLine, inside: Inside, factories: Path) -> None:
    ran = inside("--model", "factory.py:some_nan", "--data", "digits", "--limit", "30", "--attack", "pgd:steps=3", "--out", "run")
    assert ran.code == 4
    clean, attacked, worst = robust_eval.table("run")
    undecided = int(clean["undecided"])
    assert 0 < undecided < 30
    assert int(attacked["undecided"]) >= undecided  # an attack may find further ones
    assert ran.complaint.startswith(f"{attacked['undecided']} images are undecided (the model's logits were NaN or infinite)")
    for row in (clean, attacked, worst):
        assert row["n"] == "30"
        assert int(row["correct"]) <= 30 - int(row["undecided"])


def test_nan_on_the_way_of_an_attack_is_undecided(robust_eval: CommandLine, inside: Inside, factories: Path) -> None:
    ran = inside("--model", "factory.py:nan_off_grid", "--data", "digits", "--limit", "30", "--attack", "pgd:steps=3", "--out", "run")
    assert ran.code == 4
    clean, attacked, _ = robust_eval.table("run")
    assert (clean["undecided"], attacked["correct"]) == ("0", "0")
    assert int(attacked["undecided"]) == int(clean["correct"]) > 0
    assert {s["prediction"] for s in robust_eval.samples("run") if s["reason"]} != {""}


class Linear(torch.nn.Module):
    def __init__(self, detached: bool) -> None:
        super().__init__()
        self.layer, self.detached = torch.nn.Linear(3 * 32 * 32, 10), detached

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.layer(x.flatten(1))
        return logits.detach() if self.detached else logits


def test_archives_with_and_without_gradients(inside: Inside, tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch would rather export
        torch.jit.script(Linear(detached=True).eval()).save(str(tmp_path / "stuck.ts"))
        torch.jit.freeze(torch.jit.script(Linear(detached=False).eval())).save(str(tmp_path / "frozen.ts"))
    ran = inside("--model", "stuck.ts", "--data", "digits", "--limit", "8", "--attack", "pgd:steps=3")
    assert ran.code == 2
    assert "needs gradients, and stuck.ts has none" in ran.complaint
    assert inside("--model", "frozen.ts", "--data", "digits", "--limit", "8", "--attack", "pgd:steps=3").code == 0


class Trap:
    """A pickle that leaves a file behind where it is allowed to run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


def test_checkpoints_that_are_damaged_or_would_run_code(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "trap.pt").write_bytes(pickle.dumps(Trap(tmp_path / "ran"), protocol=2))
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pt")
    whole = (tmp_path / "other.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "empty.pt").write_bytes(b"")
    for name, words in {
        "trap.pt": "could run code",
        "other.pt": "does not fit digits_cnn",
        "cut.pt": "damaged",
        "cut.safetensors": "damaged",
        "empty.pt": "damaged",
    }.items():
        ran = inside(*DIGITS, "--attack", "pgd", "--weights", name)
        assert ran.code == 2
        assert words in ran.complaint
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------------- images


def test_arrays_that_are_no_images(inside: Inside, tmp_path: Path) -> None:
    good, labels = np.full((4, 3, 32, 32), 0.5, dtype=np.float32), np.arange(4)
    with_nan = good.copy()
    with_nan[2, 0, 0, 0] = np.nan
    bad = {
        "must lie in [0, 1] but span": {"images": good * 255, "labels": labels},
        "images hold NaN": {"images": with_nan, "labels": labels},
        "does not take 1x32x32 images: it is normalised for 3 channels": {"images": good[:, :1], "labels": labels},
        "1 or 3 channels": {"images": np.zeros((4, 2, 32, 32), dtype=np.float32), "labels": labels},
        "does not take 3x5x5 images": {"images": good[..., :5, :5], "labels": labels},
        "the data has the label 10": {"images": good, "labels": labels + 7},
        "class indices are 0 or more": {"images": good, "labels": labels - 1},
        "whole numbers": {"images": good, "labels": labels + 0.5},
        "there must be one each": {"images": good, "labels": labels[:3]},
        "holds no images": {"images": good[:0], "labels": labels[:0]},
        "it needs the arrays": {"pictures": good},
    }
    for words, arrays in bad.items():  # all in one folder: what was refused before the first verdict does not occupy it
        np.savez(tmp_path / "data.npz", **arrays)
        ran = inside("--model", "digits_cnn", "--attack", "pgd", "--data", "npz:data.npz", "--eps", "0.1")
        assert (ran.code, ran.out) == (2, "")
        assert words in ran.complaint


def make_folder(root: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(10):
        (root / str(number)).mkdir(parents=True)
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(root / str(number) / "one.png")


def test_unreadable_images_are_named_and_counted(robust_eval: CommandLine, inside: Inside, tmp_path: Path) -> None:
    make_folder(tmp_path / "pictures")
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "torn.bmp")
    whole = (tmp_path / "torn.bmp").read_bytes()
    (tmp_path / "pictures" / "3" / "torn.bmp").write_bytes(whole[: len(whole) // 2])
    command = ("--model", "digits_cnn", "--data", "imagefolder:pictures", "--attack", "fgsm", "--eps", "0.1", "--out", "run")
    refused = inside(*command)
    assert (refused.code, refused.out) == (4, "")
    assert "1 of 11 images cannot be used" in refused.complaint
    assert "3/torn.bmp" in refused.complaint
    ran = inside(*command, "--on-bad-image", "quarantine")
    assert ran.code == 4
    assert ran.complaint.startswith("1 images are undecided")
    assert [(row["n"], row["undecided"]) for row in robust_eval.table("run")] == [("11", "1")] * 3
    assert [s["sample_id"] for s in robust_eval.samples("run", "clean") if s["reason"]] == ["3/torn.bmp"]


def test_folders_without_images(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "0").mkdir(parents=True)
    for name in ("empty", "hollow"):
        ran = inside("--model", "digits_cnn", "--data", f"imagefolder:{name}", "--attack", "fgsm", "--eps", "0.1")
        assert ran.code == 2
        assert name in ran.complaint


def test_images_of_several_sizes(inside: Inside, factories: Path, tmp_path: Path) -> None:
    """Where the model says no size, pictures come as they are; one that differs late is found too."""
    make_folder(tmp_path / "pictures")
    Image.new("RGB", (32, 40)).save(tmp_path / "pictures" / "9" / "tall.png")
    complaints = set()
    for order in range(6):
        ran = inside("--model", "factory.py:plain", "--data", "imagefolder:pictures", "--attack", "fgsm", "--eps", "0.1", "--out",
                     f"run{order}", "--shuffle-seed", order)  # fmt: skip
        assert ran.code in (2, 4)
        assert "--size" in ran.complaint
        complaints.add(ran.code)
    assert complaints == {2, 4}  # found among the first few images, or later


# ---------------------------------------------------------------------- the run's folder


def test_places_that_cannot_hold_a_run(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").touch()
    for place, words in {
        "file": "choose another --out",
        "file/run": "choose another --out",
        "/proc/run": "choose another --out",
        "foreign": "holds other files (thesis.tex)",
    }.items():
        ran = inside("--model", "digits_cnn", "--limit", "8", "--attack", "fgsm", "--out", place)
        assert (ran.code, ran.out) == (2, "")
        assert words in ran.complaint
    assert (tmp_path / "foreign" / "thesis.tex").exists()
    assert inside("--model", "digits_cnn", "--limit", "8", "--attack", "fgsm", "--out", "foreign", "--fresh").code == 2
    assert (tmp_path / "foreign" / "thesis.tex").exists()


def test_a_run_of_another_configuration_is_left_alone(inside: Inside, tmp_path: Path) -> None:
    command = ("--model", "digits_cnn", "--limit", "8", "--attack", "fgsm", "--out", "run")
    assert inside(*command).code == 0
    before = (tmp_path / "run" / "results.sqlite").read_bytes()
    for other, words in {("--eps", "0.3"): "another conditions", ("--seed", "1"): "another", ("--goal", "full"): "another goal"}.items():
        ran = inside(*command, *other)
        assert ran.code == 2
        assert words in ran.complaint
        assert "--fresh" in ran.complaint
    assert (tmp_path / "run" / "results.sqlite").read_bytes() == before
    assert inside(*command, "--eps", "0.3", "--fresh").code == 0
    (tmp_path / "run" / "run.json").write_text("{")
    assert "--fresh" in inside(*command).complaint


def test_the_real_process_says_the_same(robust_eval: CommandLine, factories: Path) -> None:
    """What the tests above see inside this process, a shell sees too."""
    unknown = robust_eval(*DIGITS, "--attack", "pgdd")
    assert (unknown.code, unknown.out) == (2, "")
    assert "did you mean 'pgd'" in unknown.complaint
    undecided = robust_eval(
        "--model", "factory.py:some_nan", "--data", "digits", "--limit", "30", "--attack", "pgd:steps=3", "--out", "run"
    )
    assert undecided.code == 4
    assert "are undecided" in undecided.complaint
    assert json.loads((robust_eval.folder / "run" / "run.json").read_text())["data"]["n"] == 30
