"""Data of the user's own: folders of pictures, CIFAR's binaries and .npz files, read to the byte or refused with the file's name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_lite.classifier import Preprocess
from robustbench_lite.data import load_data
from robustbench_lite.errors import DataError

RANDOM = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def folder_of(root: Path, names: list[str], each: int = 2) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(noise(6, 8, 3)).save(root / name / f"{number}.png")
    return root


# --- imagefolder -----------------------------------------------------------------------------------------------------------


def test_a_folder_of_named_classes(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "pets", ["dog", "cat"])
    (root / "cat" / "deep").mkdir()
    Image.fromarray(noise(6, 8)).save(root / "cat" / "deep" / "GREY.PNG")
    (root / "cat" / "notes.txt").write_text("no picture")
    (root / "cat" / ".hidden.png").write_text("no picture")
    (root / ".ipynb_checkpoints").mkdir()
    images = load_data(f"imagefolder:{root}")
    assert images.ids == ["cat/0.png", "cat/1.png", "cat/deep/GREY.PNG", "dog/0.png", "dog/1.png"]
    assert (images.labels, images.classes, images.name, images.default_eps) == ([0, 0, 0, 1, 1], 2, "pets", {})
    assert "1 files of other kinds left out" in images.source
    assert torch.equal(images[3][0] * 255, torch.from_numpy(np.asarray(Image.open(root / "dog" / "0.png")).copy()).permute(2, 0, 1).float())
    assert images[2][0].shape == (1, 6, 8)
    prepared = load_data(f"imagefolder:{root}", preprocess=Preprocess(size=(4, 4), resize=5), limit=2)
    assert {tuple(image.shape) for image, _ in prepared} == {(3, 4, 4)}
    assert sorted(prepared.labels) == [0, 1]


def test_the_digest_sees_a_changed_file(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "pets", ["dog", "cat"])
    before = load_data(f"imagefolder:{root}").digest
    Image.fromarray(noise(16, 18, 3)).save(root / "dog" / "0.png")
    assert load_data(f"imagefolder:{root}").digest != before


def test_whole_numbers_are_class_indices(tmp_path: Path) -> None:
    images = load_data(f"imagefolder:{folder_of(tmp_path / 'val', ['10', '9', '243'], each=1)}")
    assert images.labels == [10, 243, 9]
    assert images.classes is None, "three folders of a data set of unknown size"
    assert load_data(f"imagefolder:{folder_of(tmp_path / 'all', ['0', '1', '2'], each=1)}").classes == 3


def test_synsets_have_their_usual_indices_unless_a_mapping_says_otherwise(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "imagenette", ["n01440764", "n03394916"], each=1)
    some = load_data(f"imagefolder:{root}")
    assert (some.labels, some.classes, some.default_eps["linf"]) == ([0, 566], 1000, 4 / 255)
    strange = folder_of(tmp_path / "strange", ["n01440764", "n99999999"], each=1)
    with pytest.raises(
        DataError, match=r"holds 2 synsets, of which 1 are not among ImageNet's 1000, the first is n99999999: add mapping=FILE"
    ):
        load_data(f"imagefolder:{strange}")
    for content in ({"n01440764": 0, "n03394916": 566, "n04": 3}, {"0": ["n01440764", "tench"], "566": ["n03394916", "French_horn"]}):
        (tmp_path / "map.json").write_text(json.dumps(content))
        assert load_data(f"imagefolder:{root},mapping={tmp_path / 'map.json'}").labels == [0, 566]
    whole = {f"n{number:08d}": number for number in range(998)} | {"n01440764": 998, "n03394916": 999}
    (tmp_path / "map.json").write_text(json.dumps(whole))
    mapped = load_data(f"imagefolder:{root},mapping={tmp_path / 'map.json'}")
    assert (mapped.labels, mapped.classes, mapped.default_eps["linf"]) == ([998, 999], 1000, 4 / 255)

    every = tmp_path / "val"
    for number in range(1000):
        (every / f"n{1000 - number:08d}").mkdir(parents=True)
    Image.fromarray(noise(6, 8, 3)).save(every / "n00000003" / "a.jpg")
    images = load_data(f"imagefolder:{every}")
    assert (images.labels, images.classes, images.default_eps["linf"]) == ([2], 1000, 4 / 255)


@pytest.mark.parametrize("content", ["[1, 2]", "{", '{"n01440764": "tench"}', '{"n01440764": 0.5}', '{"0": []}', '{"other": 1}'])
def test_mappings_that_do_not_map_are_refused(content: str, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "imagenette", ["n01440764"], each=1)
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(DataError, match=r"map\.json (must be JSON|has no class index for 1 of the folders)"):
        load_data(f"imagefolder:{root},mapping={tmp_path / 'map.json'}")
    with pytest.raises(DataError, match="cannot read the mapping"):
        load_data(f"imagefolder:{root},mapping={tmp_path / 'nowhere.json'}")


def test_folders_without_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        load_data(f"imagefolder:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match="has no sub-folders"):
        load_data(f"imagefolder:{tmp_path}")
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="has no pictures in its 1 sub-folders"):
        load_data(f"imagefolder:{tmp_path}")
    folder_of(tmp_path / "pets" / "train", ["cat", "dog"])
    with pytest.raises(DataError, match=r"holds train, which are splits and not classes: write imagefolder:.*train"):
        load_data(f"imagefolder:{tmp_path / 'pets'}")


def test_unreadable_pictures_are_named_when_they_are_reached(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "pets", ["cat", "dog"], each=4)
    for number in range(4):
        (root / "dog" / f"{number}.png").write_bytes(b"no picture" * number)
    images = load_data(f"imagefolder:{root}")
    assert images[0][0].shape == (3, 6, 8)
    with pytest.raises(DataError, match=r"cannot read the image .*dog/2\.png"):
        images[6]


def test_a_picture_that_is_cut_off_is_named_when_it_is_reached(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "pets", ["cat"])
    Image.fromarray(noise(64, 64, 3)).save(root / "cat" / "0.jpg")
    content = (root / "cat" / "0.jpg").read_bytes()
    (root / "cat" / "0.jpg").write_bytes(content[: len(content) // 2])
    images = load_data(f"imagefolder:{root}")
    with pytest.raises(DataError, match=r"cannot read the image .*0\.jpg"):
        images[0]


# --- CIFAR -----------------------------------------------------------------------------------------------------------------


def write_cifar(file: Path, labels: np.ndarray[Any, Any], pixels: np.ndarray[Any, Any]) -> None:
    """The published record: label bytes, then 1024 red, 1024 green and 1024 blue values, row by row."""
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = labels.reshape(len(labels), -1).astype(np.uint8)
    file.write_bytes(np.concatenate([columns, pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)], axis=1).tobytes())


def test_cifar10_binaries(tmp_path: Path) -> None:
    pixels, labels = noise(12, 32, 32, 3), np.arange(12) % 10
    inner = tmp_path / "cifar-10-batches-bin"
    write_cifar(inner / "test_batch.bin", labels, pixels)
    for number in range(1, 6):
        write_cifar(inner / f"data_batch_{number}.bin", labels[number : number + 1], pixels[number : number + 1])
    for path in (tmp_path, inner):
        images = load_data(f"cifar10:{path}")
        assert images.labels == labels.tolist()
        assert torch.equal(images[4][0] * 255, torch.from_numpy(pixels[4]).permute(2, 0, 1).float())
    assert (images.classes, images.default_eps["linf"], images.name) == (10, 8 / 255, "cifar10")
    train = load_data(f"cifar10:{tmp_path},split=train")
    assert train.labels == [1, 2, 3, 4, 5]
    assert train.ids == images.ids[1:6], "the same picture has the same id wherever it lies"


def test_cifar100_binaries_have_fine_labels(tmp_path: Path) -> None:
    pixels, labels = noise(3, 32, 32, 3), np.array([[19, 99], [0, 7], [4, 50]])
    write_cifar(tmp_path / "cifar-100-binary" / "test.bin", labels, pixels)
    images = load_data(f"cifar100:{tmp_path}")
    assert images.labels == [99, 7, 50]
    assert torch.equal(images[2][0] * 255, torch.from_numpy(pixels[2]).permute(2, 0, 1).float())


def test_cifar_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        load_data(f"cifar10:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match=r"has no test_batch\.bin: get the binary version, cifar-10-binary\.tar\.gz"):
        load_data(f"cifar10:{tmp_path}")
    write_cifar(tmp_path / "test_batch.bin", np.arange(2), noise(2, 32, 32, 3))
    with (tmp_path / "test_batch.bin").open("ab") as stream:
        stream.truncate(5000)
    with pytest.raises(DataError, match=r"test_batch\.bin is cut off.* 5000 bytes"):
        load_data(f"cifar10:{tmp_path}")
    write_cifar(tmp_path / "test_batch.bin", np.array([3, 11]), noise(2, 32, 32, 3))
    with pytest.raises(DataError, match=r"label 1 of cifar10 is 11: class indices are 0\.\.9"):
        load_data(f"cifar10:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "inner", "file"), [("cifar10", "cifar-10-batches-py", "test_batch"), ("cifar100", "cifar-100-python", "test")]
)
def test_cifar_in_pickles_is_refused(name: str, inner: str, file: str, tmp_path: Path) -> None:
    (tmp_path / inner).mkdir()
    (tmp_path / inner / file).write_bytes(pickle.dumps({b"data": b"", b"labels": []}))
    for path in (tmp_path, tmp_path / inner):
        with pytest.raises(DataError, match=r"is the Python version .* whose pickles could run code when read: get the binary version"):
            load_data(f"{name}:{path}")


# --- npz -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("test_images", "test_labels")])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW", "NHW1", "float NHWC", "float NCHW"])
def test_npz_layouts(keys: tuple[str, str], layout: str, tmp_path: Path) -> None:
    pixels, labels = noise(4, 9, 8, 3), np.array([[0], [2], [1], [3]])
    grey = "NHW" in layout and "C" not in layout
    stored = {"NHW": pixels[..., 0], "NHW1": pixels[..., :1]}.get(layout, pixels)
    stored = pixels.transpose(0, 3, 1, 2) if "NCHW" in layout else stored
    np.savez(tmp_path / "d.npz", **{keys[0]: stored / np.float32(255) if "float" in layout else stored, keys[1]: labels})
    images = load_data(f"npz:{tmp_path / 'd.npz'}")
    wanted = torch.from_numpy(pixels[1].transpose(2, 0, 1).copy())[: 1 if grey else 3] / 255
    assert torch.equal(images[1][0], wanted)
    assert (images.labels, images.name, images.classes, images.default_eps) == ([0, 2, 1, 3], "d", None, {})


def test_npz_bytes_are_prepared_for_the_model(tmp_path: Path) -> None:
    pixels = noise(2, 9, 9, 3)
    np.savez(tmp_path / "d.npz", images=pixels, labels=[0, 1])
    preprocess = Preprocess(size=(4, 4), resize=5, interpolation="bicubic")
    images = load_data(f"npz:{tmp_path / 'd.npz'}", preprocess=preprocess)
    assert torch.equal(images[1][0], preprocess(Image.fromarray(pixels[1])))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": noise(2, 4, 4, 3).astype(float), "labels": [0, 1]}, r"must lie in \[0, 1\]"),
        ({"images": np.full((2, 4, 4, 3), np.nan), "labels": [0, 1]}, "NaN"),
        ({"images": noise(2, 4, 4, 3).astype(int), "labels": [0, 1]}, "got int64"),
        ({"images": noise(2, 28, 28, 28), "labels": [0, 1]}, "with 1 or 3 channels"),
        ({"images": noise(2, 4, 4, 3), "labels": [0]}, "2 images and 1 labels"),
        ({"images": noise(2, 4, 4, 3), "labels": [0, -1]}, "label 1 of d is -1"),
        ({"images": noise(0, 4, 4, 3), "labels": []}, "holds no images"),
        ({"pictures": noise(2, 4, 4, 3)}, "holds pictures: it needs the arrays images and labels, or x and y"),
        ({"images": np.array([{}, {}]), "labels": [0, 1]}, "holds pickled objects, which could run code"),
    ],
)
def test_npz_without_images_is_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_data(f"npz:{tmp_path / 'd.npz'}")


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.95])
def test_npz_that_is_cut_off_is_one_line(kept: float, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", images=noise(9, 8, 8, 3), labels=np.arange(9))
    content = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(content[: int(kept if isinstance(kept, int) else kept * len(content))])
    with pytest.raises(DataError, match=r"d\.npz (is damaged|holds)") as caught:
        load_data(f"npz:{tmp_path / 'd.npz'}")
    assert "\n" not in str(caught.value)


def test_npz_of_one_array_or_none(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", noise(2, 4, 4, 3))
    with pytest.raises(DataError, match="holds one array"):
        load_data(f"npz:{tmp_path / 'd.npy'}")
    with pytest.raises(DataError, match="there is no file"):
        load_data(f"npz:{tmp_path / 'nowhere.npz'}")
