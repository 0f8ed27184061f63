"""Digits with textures: what the pictures show is what their names say, and shape bias between classes of one's own is measured on them."""

from __future__ import annotations

import importlib
import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from robustbench_lite.defenses.splitting import splits

from robustbench_lite.data import load_data
from robustbench_lite.errors import DataError
from robustbench_lite.evaluation import evaluate
from robustbench_lite.shape_bias import CATEGORIES, Cues, cues, shape_bias

SCRIPT = Path(__file__).parents[1] / "docs" / "texture_digits.py"
OWN = ("cross", "ring", "star")
FIGURES, SHAPES = (importlib.import_module(f"robustbench_lite.reports.{name}") for name in ("figures", "shapes"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    made = importlib.util.spec_from_file_location("texture_digits", SCRIPT)
    assert made is not None
    assert made.loader is not None
    module = importlib.util.module_from_spec(made)
    sys.modules["texture_digits"] = module  # where dataclasses look their annotations up
    made.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("textures")
    assert script.written(place, limit=40) == 120
    return place


def wave(pixels: np.ndarray) -> tuple[float, float]:
    """Direction in degrees, 0 to 180, and spacing in pixels of the strongest wave in a picture."""
    side = len(pixels)
    spectrum = np.abs(np.fft.fft2(pixels - pixels.mean(), s=(8 * side, 8 * side)))
    row, column = np.unravel_index(spectrum[:, : 4 * side].argmax(), (8 * side, 4 * side))
    y, x = np.fft.fftfreq(8 * side)[row], np.fft.fftfreq(8 * side)[column]
    return math.degrees(math.atan2(y, x)) % 180, 1 / math.hypot(x, y)


@pytest.mark.parametrize("split", ["train", "test", "conflict"])
def test_a_picture_is_the_digit_and_the_texture_that_its_name_says(script: ModuleType, split: str) -> None:
    digits, names = load_data("digits:split=train" if split == "train" else "digits", limit=60), list(script.NAMES)
    right = 0
    for (digit, label), picture in zip(digits, script.pictures(split, limit=60), strict=True):
        place, shape, name = picture.file.split("/")
        said = cues(f"{shape}/{name}", names) if split == "conflict" else (shape, name.partition(".")[0].rstrip("0123456789"))
        assert (place, names.index(shape), said[0]) == (split, label, shape)
        assert (said[0] == said[1]) is (split != "conflict")
        middle = (len(picture.pixels) - 32) // 2
        pixels = picture.pixels[middle : middle + 32, middle : middle + 32]
        rest = (pixels - script.GROUND - script.INK * digit[0]).numpy()
        assert np.abs(rest).max() <= script.GRAIN + 1e-9, "what is left without the digit is grain alone"
        assert picture.pixels.min() >= 0
        assert picture.pixels.max() <= 1
        angle, period = wave(rest)
        kind = names.index(said[1])
        apart = abs(angle - 36 * (kind % 5)) % 180
        right += min(apart, 180 - apart) < 12 and abs(period / (3.0 if kind < 5 else 6.0) - 1) < 0.2
    assert right >= 57, "the strongest wave of nearly every picture is of its texture's class"


def test_every_conflict_may_occur_and_textures_are_each_pictures_own(script: ModuleType) -> None:
    made = [cues(picture.file, script.NAMES)[1] for picture in script.pictures("conflict", limit=200)]
    assert set(made) == set(script.NAMES)
    assert not torch.equal(script.texture(3, 32, "test", "a"), script.texture(3, 32, "test", "b"))
    assert torch.equal(script.texture(3, 32, "test", "a"), script.texture(3, 32, "test", "a"))


def test_the_same_pictures_come_out_again_and_a_few_are_some_of_many(script: ModuleType, folder: Path, tmp_path: Path) -> None:
    script.written(tmp_path, limit=20)
    contents = {p.read_bytes() for p in folder.rglob("*.png")}
    few = [p.read_bytes() for p in tmp_path.rglob("*.png")]
    assert (len(contents), len(few)) == (120, 60)
    assert set(few) <= contents
    first = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    assert "cue conflicts" in first.stdout


def test_robust_train_crops_them_and_resizes_nothing(folder: Path) -> None:
    found = splits(f"imagefolder:{folder}", 32)
    for index, key in enumerate(found.test.ids):
        pixels = torch.from_numpy(np.asarray(Image.open(folder / "test" / key)).transpose(2, 0, 1).copy()) / 255
        assert torch.equal(found.test[index][0], pixels[:, 2:34, 2:34])
    conflicts = load_data(f"cue-conflict:{folder / 'conflict'},classes=own", preprocess=found.preprocess)
    pixels = torch.from_numpy(np.asarray(Image.open(folder / "conflict" / conflicts.ids[0])).transpose(2, 0, 1).copy()) / 255
    assert torch.equal(conflicts[0][0], pixels)
    assert [found.train.labels[i] for i in range(3)] == [0] * 3, "the classes of both are the sorted folders"
    assert conflicts.class_names == sorted(p.name for p in (folder / "train").iterdir())
    assert conflicts.readout is None


def test_shape_bias_on_a_table_by_hand() -> None:
    decisions = [
        ("ring/ring1-star1.png", 1),  # shape
        ("ring/ring2-star2.png", 2),  # texture
        ("ring/ring3-cross1.png", 2),  # neither
        ("star/star1-cross2.png", 0),  # texture
        ("star/star2-star3.png", 2),  # no conflict
        ("cross/cross1-ring1.png", None),
        ("cross/cross2-ring1.png", 0),  # shape
    ]
    found = shape_bias(decisions, OWN)
    assert (found.shape_correct, found.texture_correct, found.n, found.bias) == (2, 2, 6, 0.5)
    assert found.per_class == {"cross": Cues(1, 0, 2), "ring": Cues(1, 1, 3), "star": Cues(0, 1, 1)}
    with pytest.raises(DataError, match=r"ring1-bear1\.png is not named .* two of cross, ring, star"):
        cues("ring/ring1-bear1.png", OWN)
    with pytest.raises(DataError, match="is not named as a cue-conflict image"):
        shape_bias(decisions)


def test_a_run_on_conflicts_between_own_classes_reports_its_shape_bias(folder: Path) -> None:
    result = evaluate("digits_standard", data=f"cue-conflict:{folder / 'conflict'},classes=own", attacks=(), limit=30)
    names = result.config["data"]["class_names"]
    expected = shape_bias([(v.sample_id, v.prediction) for v in result.of("clean")], names)
    rows = SHAPES.shape_rows(result)
    assert (rows[0].category, rows[0].n) == ("all", 30)
    assert [(r.category, r.n) for r in rows[1:]] == [(name, counted.n) for name, counted in expected.per_class.items()]
    assert (rows[0].shape_correct, rows[0].texture_correct) == (expected.shape_correct, expected.texture_correct)
    assert expected.shape_correct + expected.texture_correct > 0
    chart = FIGURES.shape_biases(rows)
    assert "published" not in chart.note, "figures for 16 categories of ImageNet are nothing to compare digits with"
    assert set(names).isdisjoint(CATEGORIES)


def test_a_conflict_with_a_class_that_has_no_folder_is_refused_before_the_run(folder: Path, tmp_path: Path) -> None:
    picture = next((folder / "conflict").rglob("*.png")).read_bytes()
    for name in ("ring/ring1-star1.png", "star/star1-bear1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture)
    with pytest.raises(DataError, match=r"star1-bear1\.png is not named .* two of ring, star"):
        load_data(f"cue-conflict:{tmp_path},classes=own")
    with pytest.raises(DataError, match="there is no folder"):
        load_data(f"cue-conflict:{tmp_path / 'nowhere'},classes=own")
