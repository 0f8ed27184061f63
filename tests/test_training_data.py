"""What a training learns from: framing against other implementations, batches, and real files in their published formats."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from robustbench_lite.defenses.feed import smoothed, stacked
from robustbench_lite.defenses.framing import SHIFT, TURN, framing
from robustbench_lite.defenses.recipe import Augment
from robustbench_lite.defenses.splitting import splits
from robustbench_lite.defenses.train_cli import main
from scipy.ndimage import map_coordinates
from torch import Tensor

from robustbench_lite.data import load_data
from robustbench_lite.errors import DataError, UsageError
from robustbench_lite.streams import Streams
from robustbench_lite.trained import load_trained

COMMAND = [sys.executable, "-m", "robustbench_lite.defenses.train_cli"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def images(count: int = 8, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def draws(count: int = 8, seed: int = 0) -> Streams:
    return Streams(seed, "training", [(f"image {row}", 3) for row in range(count)], None, torch.device("cpu"))


# --- framing


@pytest.mark.parametrize("name", get_args(Augment))
def test_an_image_is_framed_alike_in_every_batch_and_stays_in_the_box(name: Augment) -> None:
    x = images()
    before, draw = x.clone(), draws()
    together = framing(name)(x, draw)
    apart = torch.cat([framing(name)(x[rows], draw.take(rows)) for rows in (slice(0, 3), slice(3, 8))])
    assert torch.allclose(together, apart, atol=1e-6)
    assert together.shape == x.shape
    assert 0 <= together.min() <= together.max() <= 1
    assert torch.equal(x, before)
    if name not in ("none", "auto"):
        assert not torch.equal(together, framing(name)(x, draws(seed=1)))


@pytest.mark.parametrize(("size", "reach"), [(32, 4), (64, 8)])
def test_crops_are_those_of_a_picture_with_a_black_border(size: int, reach: int) -> None:
    x, draw = (images(40, size) * 255).round() / 255, draws(40)
    found = framing("crop-flip")(x, draw)
    corners, mirrored = draw.integers("crop", 0, 2 * reach + 1, 2), draw.uniform("flip", 1)[:, 0] < 0.5
    assert (corners.min(), corners.max()) == (0, 2 * reach)
    assert 8 < mirrored.sum() < 32
    for image, result, (top, left), mirror in zip(x, found, corners.tolist(), mirrored.tolist(), strict=True):
        picture = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
        cut = picture.crop((left - reach, top - reach, left - reach + size, top - reach + size))  # beyond its edges a picture is black
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else cut
        assert np.array_equal((result * 255).round().byte().permute(1, 2, 0).numpy(), np.asarray(cut))


def test_a_flip_mirrors_every_other_image() -> None:
    x, draw = images(64), draws(64)
    found = framing("flip")(x, draw)
    mirrored = torch.tensor([torch.equal(one, other.flip(2)) for one, other in zip(found, x, strict=True)])
    same = torch.tensor([torch.equal(one, other) for one, other in zip(found, x, strict=True)])
    assert (mirrored ^ same).all()
    assert 20 < mirrored.sum() < 44


def looked_up(image: Tensor, rows: np.ndarray, columns: np.ndarray, mode: str) -> Tensor:
    """SciPy's linear interpolation at places given in pixels."""
    planes = [map_coordinates(plane, [rows, columns], order=1, mode=mode, cval=0.0) for plane in image.double().numpy()]
    return torch.from_numpy(np.stack(planes)).float()


def test_turns_and_shifts_are_those_of_scipy() -> None:
    x, draw = images(), draws()
    found = framing("turn-shift")(x, draw)
    drawn = draw.uniform("turn and shift", 3, low=-1.0, high=1.0).double().numpy()
    rows, columns = np.meshgrid(np.arange(32) - 15.5, np.arange(32) - 15.5, indexing="ij")
    for image, result, (turn, across, down) in zip(x, found, drawn, strict=True):
        angle = math.radians(TURN * turn)
        source_columns = math.cos(angle) * columns - math.sin(angle) * rows + 32 * SHIFT * across + 15.5
        source_rows = math.sin(angle) * columns + math.cos(angle) * rows + 32 * SHIFT * down + 15.5
        assert torch.allclose(result, looked_up(image, source_rows, source_columns, "grid-constant"), atol=1e-4)


@pytest.mark.parametrize(("size", "least"), [(32, 0.25), (48, 0.08)])
def test_resized_crops_are_parts_of_the_image_enlarged(size: int, least: float) -> None:
    x, draw = images(48, size), draws(48)
    found = framing("resized-crop-flip")(x, draw)
    drawn, mirrored = draw.uniform("resized crop", 4).double().numpy(), draw.uniform("flip", 1)[:, 0] < 0.5
    areas = []
    for image, result, (a, b, across, down), mirror in zip(x, found, drawn, mirrored.tolist(), strict=True):
        area, ratio = least + (1 - least) * a, (3 / 4) ** (1 - b) * (4 / 3) ** b
        width, height = min(1.0, math.sqrt(area * ratio)) * size, min(1.0, math.sqrt(area / ratio)) * size
        areas.append(width * height / size**2)
        rows = (np.arange(size) + 0.5) * height / size + down * (size - height) - 0.5
        columns = (np.arange(size) + 0.5) * width / size + across * (size - width) - 0.5
        expected = looked_up(image, *np.meshgrid(rows, columns, indexing="ij"), "nearest")
        assert torch.allclose(result, expected.flip(2) if mirror else expected, atol=1e-4)
    assert least <= min(areas) < least + 0.15
    assert max(areas) > 0.8


# --- targets and batches


def test_smoothed_targets_follow_their_formula() -> None:
    found = smoothed(torch.tensor([2, 0]), 5, 0.1)
    assert torch.allclose(found, torch.tensor([[0.025, 0.025, 0.9, 0.025, 0.025], [0.9, 0.025, 0.025, 0.025, 0.025]]))
    assert torch.equal(smoothed(torch.tensor([1]), 3, 0.0), torch.tensor([[0.0, 1.0, 0.0]]))


def test_images_of_several_shapes_are_refused() -> None:
    with pytest.raises(DataError, match=r"mixed: the images differ in shape, \(3, 4, 4\) and \(3, 5, 4\): give --size"):
        stacked([torch.zeros(3, 4, 4), torch.zeros(3, 5, 4)], "mixed")


# --- real files


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real pictures of CIFAR-10 in its binary format: two in every batch, four in the test batch."""
    folder = tmp_path_factory.mktemp("cifar")
    found = load_data("cifar10")
    records = [bytes([label]) + (image * 255).round().byte().numpy().tobytes() for image, label in found if isinstance(label, int)]
    for number in range(5):
        (folder / f"data_batch_{number + 1}.bin").write_bytes(b"".join(records[3 * number : 3 * number + 3]))
    (folder / "test_batch.bin").write_bytes(b"".join(records[15:]))
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real photographs in the folders train and val, JPEG and PNG, each with one folder a class."""
    folder = tmp_path_factory.mktemp("photographs")
    for number, (image, _) in enumerate(load_data("imagenet", limit=12)):
        picture = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
        place = folder / ("train" if number < 8 else "val") / ("even", "odd")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture.resize((72, 60)).save(place / f"{number}.{('jpg', 'png')[number % 2]}")
    return folder


def test_files_are_split_into_training_and_test_images(cifar: Path, photographs: Path) -> None:
    found = splits(f"cifar10:{cifar}")
    assert (found.kind, len(found.train), len(found.test), found.train.classes) == ("cifar10", 15, 5, 10)
    assert not set(found.train.ids) & set(found.test.ids)
    assert found.preprocess.size == (32, 32)
    assert found.mean == (0.4914, 0.4822, 0.4465)
    found = splits(f"imagefolder:{photographs}", 56)
    assert (found.kind, len(found.train), len(found.test), found.train.classes) == ("imagefolder", 8, 4, 2)
    assert found.train[0][0].shape == (3, 56, 56)
    assert found.preprocess.resize == 64


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cifar_is_trained_on_and_the_checkpoint_is_evaluated(cifar: Path, tmp_path: Path) -> None:
    out = tmp_path / "cifar.safetensors"
    flags = "--model small_cnn --defense pgd-at:attack=(pgd:steps=2) --epochs 3 --batch-size 8 --optimizer sgd --precision bf16 --ema 0.9"
    flags += " --clip 1 --warmup 1 --schedule steps --drops 0.5 --scale-lr --validation 0.2 --device cpu"
    done = subprocess.run(
        [*COMMAND, "--data", f"cifar10:{cifar}", *flags.split(), "--out", str(out)], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    assert "of 5 test images right" in done.stdout
    assert len((tmp_path / "cifar.training.csv").read_text().splitlines()) == 4
    evaluated = [sys.executable, "-m", "robustbench_lite.cli", "--model", str(out), "--data", f"cifar10:{cifar}", "--attack", "pgd:steps=2"]
    done = subprocess.run([*evaluated, "--out", str(tmp_path / "run")], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "pgd" in done.stdout


@pytest.mark.slow
def test_a_short_name_is_the_variant_for_small_images(cifar: Path, tmp_path: Path) -> None:
    out = tmp_path / "resnet.safetensors"
    assert main(["--model", "resnet18", "--data", f"cifar10:{cifar}", "--epochs", "1", "--batch-size", "8", "--out", str(out)]) == 0
    classifier = load_trained(out)
    assert classifier.model.state_dict()["conv1.weight"].shape[-1] == 3, "CIFAR's networks begin with a convolution of 3 x 3"


def test_folders_of_pictures_are_trained_on(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "photographs.safetensors"
    command = ["--model", "small_cnn", "--data", f"imagefolder:{photographs}", "--size", "32", "--epochs", "2", "--batch-size", "4"]
    assert main([*command, "--lr", "0.01", "--device", "cpu", "--out", str(out)]) == 0
    classifier = load_trained(out)
    assert classifier.classes == 2
    assert (classifier.preprocess.size, classifier.preprocess.resize) == ((32, 32), 37)
    test = load_data(f"imagefolder:{photographs / 'val'}", preprocess=classifier.preprocess)
    assert classifier(torch.stack([image for image, _ in test])).shape == (4, 2)


@pytest.mark.parametrize("spec", ["cifar10", "imagenet", "mnist"])
def test_data_without_a_training_split_is_refused_and_never_trained_on_its_test_images(spec: str) -> None:
    with pytest.raises(UsageError, match=spec):
        splits(spec)


def said_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_data_that_cannot_be_trained_on_are_one_line(
    cifar: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["--model", "small_cnn", "--out", str(tmp_path / "a.safetensors"), "--data"]
    assert "there is no folder" in said_of([*usual, f"cifar10:{tmp_path / 'nowhere'}"], capsys)

    one = tmp_path / "one"
    for split in ("train", "val"):
        (one / split / "only").mkdir(parents=True)
        for picture in sorted((photographs / split / "even").iterdir()):
            (one / split / "only" / picture.name).write_bytes(picture.read_bytes())
    assert "are of one class: there is nothing to learn" in said_of([*usual, f"imagefolder:{one}", "--size", "32"], capsys)

    (one / "val" / "other").mkdir()
    assert "hold other classes: every class needs a folder in both" in said_of([*usual, f"imagefolder:{one}", "--size", "32"], capsys)

    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(1, 6):
        (flat / f"data_batch_{number}.bin").write_bytes((cifar / "data_batch_1.bin").read_bytes()[:3073])
    (flat / "test_batch.bin").write_bytes((cifar / "test_batch.bin").read_bytes())
    assert "are of one class" in said_of([*usual, f"cifar10:{flat}"], capsys)

    (flat / "data_batch_3.bin").unlink()
    assert "data_batch_3.bin" in said_of([*usual, f"cifar10:{flat}"], capsys)
    assert "small_cnn cannot take images of shape (3, 64, 64)" in said_of([*usual, f"imagefolder:{photographs}", "--size", "64"], capsys)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == []
