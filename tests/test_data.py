"""Labelled images: bundled samples as their publisher reads them, stable ids, nested stratified subsets, refusals in one line."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from robustbench_lite.classifier import Classifier, Preprocess
from robustbench_lite.data import default_for, from_arrays, from_loader, load_data
from robustbench_lite.errors import BadSpec, DataError, UnknownName, UsageError

BUNDLED = {
    "imagenet": (1000, 4 / 255),
    "cifar10": (10, 8 / 255),
    "cifar100": (100, 8 / 255),
    "mnist": (10, 0.3),
    "fashion-mnist": (10, 0.3),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what foolbox imports
@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_samples_are_those_that_foolbox_reads(name: str) -> None:
    from foolbox.utils import _samples

    images = load_data(name)
    wanted, labels = _samples(name.replace("fashion-mnist", "fashionMNIST"), 0, 20, (224, 224), "channels_first", (0, 1))
    assert images.labels == labels.tolist()
    if name != "imagenet":  # foolbox squeezes those to 224; ours keep their size until a model says otherwise
        assert torch.equal(torch.stack([image for image, _ in images]), torch.from_numpy(wanted))
    assert (len(images), images.classes, images.default_eps["linf"]) == (20, *BUNDLED[name])
    assert images[0][0].dtype == torch.float32


def test_a_models_preprocessing_applies_to_pictures() -> None:
    prepared = load_data("imagenet", preprocess=Preprocess(size=(224, 224), resize=256))
    assert {tuple(image.shape) for image, _ in prepared} == {(3, 224, 224)}
    small = load_data("cifar10", preprocess=Preprocess(size=(32, 32), resize=None))
    assert torch.equal(small[3][0], load_data("cifar10")[3][0]), "a model of 32 pixels sees these pictures as they are"
    assert load_data("mnist", preprocess=Preprocess(size=None, resize=None, channels=3))[0][0].shape == (3, 28, 28)


def test_bundled_pictures_are_found_without_importing_what_bundles_them() -> None:
    code = """
import sys
from robustbench_lite.data import load_data
load_data("cifar10"), load_data("digits")
assert not {"foolbox", "sklearn", "timm", "torchvision"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- digits ----------------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_split_once_and_for_all() -> None:
    from sklearn.datasets import load_digits

    train, test = load_data("digits:train"), load_data("digits")
    assert (len(train), len(test), test.classes, test.default_eps["linf"]) == (897, 900, 10, 0.15)
    assert test.ids == load_data("digits:split=test").ids
    assert not set(train.ids) & set(test.ids)
    order = np.random.RandomState(0).permutation(1797)
    theirs = load_digits()
    assert test.labels == theirs.target[order[897:]].tolist()
    enlarged = Image.fromarray((theirs.images[order[897]] / 16).astype(np.float32)).resize((32, 32), Image.Resampling.BILINEAR)
    assert torch.allclose(test[0][0], torch.from_numpy(np.array(enlarged)).expand(3, -1, -1), atol=1e-6)
    assert test.digest == load_data("digits").digest != train.digest


def test_digits_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustbench_lite.data.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'robustbench-lite\[demo\]'"):
        load_data("digits")
    with pytest.raises(DataError, match="pip install foolbox"):
        load_data("mnist")


# --- subsets and identity --------------------------------------------------------------------------------------------------


def test_subsets_are_nested_stratified_and_in_order() -> None:
    images = load_data("digits")
    whole = Counter(images.labels)
    previous: set[str] = set()
    for limit in (1, 10, 30, 60, 450, 899):
        part = images.subset(limit, seed=4)
        assert len(part) == limit
        assert previous <= set(part.ids)
        assert [key for key in images.ids if key in set(part.ids)] == part.ids
        for label, count in Counter(part.labels).items():
            assert abs(count - limit * whole[label] / 900) <= 1
        previous = set(part.ids)
    assert images.subset(30, seed=4).ids != images.subset(30, seed=5).ids
    assert images.subset(30, seed=4).ids == load_data("digits", limit=30, seed=4).ids
    assert images.subset(900, 0) is images
    image, label = images.subset(30, seed=4)[7]
    position = images.ids.index(images.subset(30, seed=4).ids[7])
    assert torch.equal(image, images[position][0])
    assert label == images.labels[position]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(UsageError, match=f"the limit must be 1 or more, got {limit}"):
        load_data("digits", limit=limit)


def test_ids_name_the_content() -> None:
    pixels = torch.rand(5, 1, 4, 4)
    pixels[3] = pixels[1]
    images = from_arrays(pixels, [0, 1, 2, 1, 0])
    assert images.ids[3] == f"{images.ids[1]}-2"
    assert len(images.ids[0]) == 16
    assert from_arrays(pixels.flip(0)[:2], [0, 1]).ids[0] == images.ids[4]
    assert from_arrays(pixels.reshape(5, 1, 2, 8), [0] * 5).ids[0] != images.ids[0]
    assert images.digest != from_arrays(pixels, [0, 1, 2, 1, 1]).digest


def test_a_sequence_like_any_other() -> None:
    images = from_arrays(torch.rand(5, 1, 4, 4), [0, 1, 2, 1, 0], groups=["a", "b", "c", "d", "e"])
    assert len(list(images)) == 5
    assert torch.equal(images[-1][0], images[4][0])
    assert (images[1:3].ids, images[1:3].labels, images[1:3].groups) == (images.ids[1:3], [1, 2], ["b", "c"])
    with pytest.raises(IndexError):
        images[5]


# --- arrays and loaders ----------------------------------------------------------------------------------------------------


def test_bytes_are_scaled_and_labels_may_come_as_a_column_or_a_matrix() -> None:
    pixels = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(from_arrays(pixels, [[0], [1], [2]])[1][0], pixels[1] / 255)
    assert from_arrays(pixels.numpy(), np.array([0.0, 1.0, 2.0])).labels == [0, 1, 2]
    assert from_arrays(pixels, [[0, 1], [1, 1], [0, 0]]).labels == [(0.0, 1.0), (1.0, 1.0), (0.0, 0.0)]


GOOD = torch.full((3, 3, 4, 4), 0.5)
NAN = GOOD.clone()
NAN[1, 0, 0, 0] = float("nan")


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (GOOD * 255, [0, 1, 2], {}, r"must lie in \[0, 1\] but span \[127.5, 127.5\]: divide by 255"),
        (GOOD - 1, [0, 1, 2], {}, "normalisation"),
        (NAN, [0, 1, 2], {}, "1 of 3 images hold NaN or infinity, the first is number 1"),
        (NAN * 0 + float("inf"), [0, 1, 2], {}, "3 of 3 images hold NaN"),
        (GOOD[0], [0, 1, 2], {}, r"must have the shape \(N, channels, height, width\)"),
        (GOOD.long(), [0, 1, 2], {}, "floats in .* or uint8, got int64"),
        (GOOD[:0], [], {}, "holds no images"),
        (GOOD, [0, 1], {}, "3 images and 2 labels"),
        (GOOD, [0, 1, -1], {}, "label 2 of data is -1: class indices are 0 or more"),
        (GOOD, [0, 1, 10], {"classes": 10}, r"label 2 of data is 10: class indices are 0\.\.9"),
        (GOOD, [0, 1, 0.5], {}, "labels must be whole numbers, got 0.5"),
        (GOOD, [0, 1, float("nan")], {}, "labels must be whole numbers, got nan"),
        (GOOD, [[0, 1], [1, 2], [0, 0]], {}, "entries of a multi-label label are 0 or 1"),
        (GOOD, [[0, 1], [1, 1], [0, 0]], {"classes": 3}, "has 2 entries, but there are 3 classes"),
        (GOOD, torch.zeros(3, 1, 1), {}, r"labels must have the shape"),
        (GOOD, [0, 1, 2], {"groups": ["a"]}, "3 images and 1 groups"),
        (GOOD, [0, 1, 2], {"ids": ["a", "b", "a"]}, "ids must be unique"),
    ],
)
def test_what_is_no_data_is_refused(images: torch.Tensor, labels: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_arrays(images, labels, **options)


def test_a_data_loader_is_read_whole() -> None:
    pixels, labels = torch.rand(7, 3, 4, 4), torch.arange(7)
    images = from_loader(DataLoader(TensorDataset(pixels, labels), batch_size=3), name="mine", classes=7)
    assert torch.equal(torch.stack([image for image, _ in images]), pixels)
    assert (images.labels, images.name, images.classes) == (list(range(7)), "mine", 7)
    assert images.ids == from_arrays(pixels, labels).ids


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "yields no batches"),
        ([torch.rand(2, 3, 4, 4)], r"must yield \(images, labels\) batches, got Tensor"),
        ([(torch.rand(1, 3, 4, 4), [0]), (torch.rand(1, 3, 5, 5), [0])], r"differ in shape: \(3, 4, 4\) and \(3, 5, 5\)"),
        ([(torch.randn(2, 3, 9, 9) * 3, [0, 1])], "leave normalisation out of the data"),
    ],
)
def test_loaders_of_another_form_are_refused(batches: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_loader(batches)


# --- names -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "channels", "data", "expected"),
    [
        (1000, 3, None, "imagenet"),
        (100, 3, None, "cifar100"),
        (10, 3, None, "cifar10"),
        (10, 1, None, "mnist"),
        (10, 3, "digits", "digits"),
    ],
)
def test_the_class_count_chooses_the_data(classes: int, channels: int, data: str | None, expected: str) -> None:
    preprocess = Preprocess(size=None, resize=None, channels=channels)
    assert default_for(Classifier(nn.Flatten().eval(), preprocess=preprocess, classes=classes, data=data)) == expected


@pytest.mark.parametrize("classes", [None, 7])
def test_other_class_counts_ask_for_data(classes: int | None) -> None:
    with pytest.raises(UsageError, match="pass --data"):
        default_for(Classifier(nn.Flatten().eval(), classes=classes))


def test_names_and_options_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown data 'imgenet': did you mean 'imagenet'"):
        load_data("imgenet")
    with pytest.raises(BadSpec, match="digits:split=validation"):
        load_data("digits:validation")
    with pytest.raises(BadSpec, match="npz needs path: write npz:path="):
        load_data("npz")
    with pytest.raises(DataError, match="is a path: write imagefolder:"):
        load_data(str(tmp_path))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="is a path: write npz:"):
        load_data(str(tmp_path / "a.png"))
