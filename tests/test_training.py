"""The training loop, its command `robust-train`, and the checkpoint it made for the digits."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from robustbench_lite.defenses.architectures import ARCHITECTURES, architecture, find_architecture
from robustbench_lite.defenses.recipe import Recipe
from robustbench_lite.defenses.standard import Standard
from robustbench_lite.defenses.train_cli import main
from robustbench_lite.defenses.training import count_correct, save, splits, train
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Generator, nn

from robustbench_lite.classifier import Classifier
from robustbench_lite.data import load_data
from robustbench_lite.errors import DataError, InvalidEvaluation, UsageError
from robustbench_lite.labelled import LabelledImages, from_arrays
from robustbench_lite.registry import MODELS

CPU = torch.device("cpu")
COMMAND = [sys.executable, "-m", "robustbench_lite.defenses.train_cli"]
DOCS = Path(__file__).parent.parent / "docs" / "training.md"


@pytest.fixture(scope="module")
def some_digits() -> LabelledImages:
    return load_data("digits:train", limit=96)


def bundled_file() -> Path:
    package = find_spec("robustbench_lite.defenses")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).with_name("digits_cnn.safetensors")


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        found: dict[str, str] = opened.metadata()
    return found


def short_run(data: LabelledImages, seed: int = 0) -> Classifier:
    return train(find_architecture("digits_cnn"), data, Standard(), Recipe(epochs=2, seed=seed), CPU, lambda epoch, loss: None)


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == name2 and torch.equal(value, value2) for (name, value), (name2, value2) in pairs)


# --- the bundled checkpoint


def test_the_bundled_checkpoint_is_small_accurate_and_says_how_it_was_made() -> None:
    digits, classifier = load_data("digits"), MODELS.build("digits_cnn")
    correct = count_correct(classifier, digits)
    facts = metadata(bundled_file())
    assert len(digits) == 900
    assert correct / len(digits) >= 0.97
    assert bundled_file().stat().st_size < 300_000
    assert facts["test_accuracy"] == f"{correct / 900:.4f}"
    assert facts["command"] in DOCS.read_text()
    assert f"{correct} of 900 test images right" in DOCS.read_text()


def test_the_bundled_classifier_is_ready_for_an_attack() -> None:
    classifier = MODELS.build("digits_cnn")
    assert not any(module.training for module in classifier.modules())
    assert (classifier.name, classifier.data, classifier.classes) == ("digits_cnn", "digits", 10)
    assert (classifier.preprocess.size, classifier.preprocess.resize) == ((32, 32), None)
    grey = torch.full((1, 3, 32, 32), 0.305)
    assert torch.equal(classifier(grey), classifier.model(torch.zeros(1, 3, 32, 32)))  # normalised inside, once


@pytest.mark.slow
def test_a_picture_needs_less_than_ten_million_operations() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        MODELS.build("digits_cnn")(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() < 10_000_000


# --- the loop


def test_the_same_seed_gives_the_same_weights_whatever_happened_before(some_digits: LabelledImages) -> None:
    first = short_run(some_digits)
    torch.rand(7)
    assert same_tensors(first, short_run(some_digits))
    other = short_run(some_digits, seed=1)
    assert not torch.equal(first.model.state_dict()["head.weight"], other.model.state_dict()["head.weight"])


def test_training_leaves_global_random_state_and_data_as_they_were(some_digits: LabelledImages) -> None:
    state, pixels = torch.get_rng_state(), torch.stack([image for image, _ in some_digits])
    short_run(some_digits)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(pixels, torch.stack([image for image, _ in some_digits]))


def test_a_trained_classifier_is_in_eval_mode_and_frozen(some_digits: LabelledImages) -> None:
    classifier = short_run(some_digits)
    assert not any(module.training for module in classifier.modules())
    assert not any(parameter.requires_grad for parameter in classifier.parameters())


def test_every_image_is_used_once_an_epoch_in_batches_of_nearly_equal_size(some_digits: LabelledImages) -> None:
    batches: list[torch.Tensor] = []

    class Recorded(Standard):
        def __call__(self, classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, generator: Generator) -> torch.Tensor:
            batches.append(images)
            return super().__call__(classifier, images, labels, generator)

    odd = some_digits[:65]  # one more than two batches of 32
    train(find_architecture("digits_cnn"), odd, Recorded(), Recipe(epochs=1, batch_size=32), CPU, lambda epoch, loss: None)
    assert [len(batch) for batch in batches] == [22, 22, 21]
    seen = {image.numpy().tobytes() for image in torch.cat(batches)}
    assert seen == {image.numpy().tobytes() for image, _ in odd}


def test_every_epoch_is_reported_with_its_mean_loss(some_digits: LabelledImages) -> None:
    reports: list[tuple[int, float]] = []

    def constant(classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, generator: Generator) -> torch.Tensor:
        return 0 * classifier(images).sum(1) + labels  # the mean over the images is known

    train(find_architecture("digits_cnn"), some_digits, constant, Recipe(epochs=2), CPU, lambda *report: reports.append(report))
    mean = sum(label for _, label in some_digits if isinstance(label, int)) / len(some_digits)
    assert reports == [(1, pytest.approx(mean)), (2, pytest.approx(mean))]


def test_a_loss_that_is_no_number_ends_training(some_digits: LabelledImages) -> None:
    recipe = Recipe(epochs=5, lr=1e30)
    with pytest.raises(InvalidEvaluation, match=r"the loss became (nan|inf) in epoch \d: try a smaller --lr than 1e\+30"):
        train(find_architecture("digits_cnn"), some_digits, Standard(), recipe, CPU, lambda epoch, loss: None)


def test_data_without_one_class_an_image_is_refused(some_digits: LabelledImages) -> None:
    several = from_arrays(torch.zeros(2, 3, 32, 32), torch.tensor([[0.0, 1.0], [1.0, 1.0]]), "xrays", ids=["a", "b"], classes=2)
    with pytest.raises(DataError, match="xrays has several labels an image"):
        short_run(several)
    with pytest.raises(DataError, match="does not say how many classes"):
        short_run(replace(some_digits, classes=None))


def test_an_architecture_is_added_by_registering_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ARCHITECTURES.names()
    monkeypatch.setattr(ARCHITECTURES, "found", dict(ARCHITECTURES.found))

    @architecture("linear")
    def linear(classes: int) -> Classifier:
        return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, classes)).eval())

    out = tmp_path / "linear.safetensors"
    assert main(["--model", "linear", "--epochs", "2", "--out", str(out)]) == 0
    assert load_file(out)["1.weight"].shape == (10, 3 * 32 * 32)
    assert float(metadata(out)["test_accuracy"]) > 0.5


@pytest.mark.parametrize("data", ["cifar10", "imagenet", "mnist"])
def test_data_without_a_training_split_is_refused_and_never_trained_on_its_test_images(data: str) -> None:
    with pytest.raises(UsageError, match=data):
        splits(data)


# --- standard training's images


def test_moved_images_stay_in_the_box_and_follow_the_generator() -> None:
    images = torch.rand(16, 3, 32, 32, generator=Generator().manual_seed(1))
    before = images.clone()
    once = Standard().moved(images, Generator().manual_seed(0))
    assert 0 <= once.min() <= once.max() <= 1
    assert torch.equal(once, Standard().moved(images, Generator().manual_seed(0)))
    assert not torch.equal(once, Standard().moved(images, Generator().manual_seed(1)))
    assert torch.equal(images, before)


def test_shifts_and_turns_have_the_size_that_they_are_given() -> None:
    dot = torch.zeros(512, 1, 33, 33)
    dot[:, :, 15:18, 15:18] = 1
    across = torch.arange(33.0) - 16
    moved = Standard(turn=0, shift=0.25).moved(dot, Generator().manual_seed(0))
    offset = (moved.sum(2) * across).sum((1, 2)) / moved.sum((1, 2, 3))
    assert 7.5 < offset.abs().max() <= 0.25 * 33
    assert abs(offset.mean()) < 1
    assert torch.allclose(Standard(turn=0, shift=0).moved(dot, Generator()), dot, atol=1e-4)
    bar = torch.zeros(1, 1, 33, 33)
    bar[:, :, 16, :] = 1
    turned = torch.cat([Standard(turn=90, shift=0).moved(bar, Generator().manual_seed(seed)) for seed in range(20)])
    upright = turned[:, 0, :, 16].sum(1)  # a bar that was turned by about 90 degrees fills the middle column
    assert upright.max() > 20
    assert torch.allclose(turned[:, 0, 16, 16], torch.ones(20), atol=0.3)


# --- the command


@pytest.mark.slow
def test_the_real_command_writes_a_checkpoint_that_loads_and_beats_a_floor(tmp_path: Path) -> None:
    out = tmp_path / "short.safetensors"
    done = subprocess.run([*COMMAND, "--data", "digits", "--epochs", "3", "--seed", "3", "--out", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "epoch 3 of 3" in done.stderr
    facts = metadata(out)
    classifier = find_architecture("digits_cnn")(10)
    classifier.model.load_state_dict(load_file(out))
    correct = count_correct(classifier, load_data("digits"))
    assert correct > 0.85 * 900
    assert f"{correct} of 900 test images right" in done.stdout
    assert {key: facts[key] for key in ("model", "data", "seed", "torch")} == {
        "model": "digits_cnn", "data": "digits", "seed": "3", "torch": torch.__version__,
    }  # fmt: skip
    assert facts["test_accuracy"] == f"{correct / 900:.4f}"
    assert facts["command"].startswith("robust-train --data digits --model digits_cnn --epochs 3 --batch-size 32 ")


def test_the_command_in_a_checkpoint_makes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--epochs", "1", "--batch-size", "128", "--seed", "5", "--out", "once.safetensors"]) == 0
    first = load_file("once.safetensors")
    assert main([*metadata(Path("once.safetensors"))["command"].split()[1:], "--force"]) == 0
    again = load_file("once.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_file_that_exists_is_kept_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.safetensors"
    out.write_bytes(b"mine")
    assert main(["--epochs", "1", "--out", str(out)]) == 2
    assert "add --force" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert main(["--epochs", "1", "--out", str(out), "--force"]) == 0
    assert metadata(out)["model"] == "digits_cnn"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--out"),
        (["--out", "a.pt"], ".safetensors"),
        (["--out", "no/such/folder/a.safetensors"], "no folder"),
        (["--out", "a.safetensors", "--epochs", "0"], "epochs must be 1 or more, got 0"),
        (["--out", "a.safetensors", "--epochs", "many"], "--epochs"),
        (["--out", "a.safetensors", "--epoch", "3"], "--epochs"),
        (["--out", "a.safetensors", "--batch-size", "-1"], "batch-size must be 1 or more, got -1"),
        (["--out", "a.safetensors", "--lr", "0"], "lr must be a number above 0, got 0.0"),
        (["--out", "a.safetensors", "--lr", "nan"], "lr must be a number above 0, got nan"),
        (["--out", "a.safetensors", "--weight-decay", "-0.1"], "weight-decay must be"),
        (["--out", "a.safetensors", "--seed", "-1"], "seed must be"),
        (["--out", "a.safetensors", "--model", "digits_cn"], "did you mean 'digits_cnn'"),
        (["--out", "a.safetensors", "--data", "digit"], "did you mean 'digits'"),
        (["--out", "a.safetensors", "--data", "cifar10"], "no training images"),
        (["--out", "a.safetensors", "--data", "imagenet"], "cannot be split"),
        (["--out", "a.safetensors", "--device", "tpu"], "--device"),
        (["digits", "--out", "a.safetensors"], "digits"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    flags: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("robust-train: ")
    assert said in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--device", "cuda", "--out", str(tmp_path / "a.safetensors")]) == 2
    assert capsys.readouterr().err == "robust-train: --device cuda: this machine has none that PyTorch can use; try --device auto\n"


def test_debug_shows_where_a_mistake_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--debug", "--out", str(tmp_path / "a.pt")]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_shows_its_traceback_and_says_that_it_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("robustbench_lite.defenses.architectures.find_architecture", fail)
    assert main(["--out", str(tmp_path / "a.safetensors")]) == 4
    printed = capsys.readouterr().err
    assert "RuntimeError: broken on purpose" in printed
    assert "this is a bug in robust-train" in printed


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InvalidEvaluation, match="No space left on device"):
        save(find_architecture("digits_cnn")(10), tmp_path / "a.safetensors", {})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_exits_130_and_writes_nothing(tmp_path: Path) -> None:
    command = [*COMMAND, "--epochs", "100000", "--out", tmp_path / "a.safetensors"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert running.stderr.readline().startswith("epoch 1 of 100000")
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said == "robust-train: interrupted; nothing was written\n"
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_torch() -> None:
    code = "import sys; from robustbench_lite.defenses.train_cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--weight-decay" in done.stdout
