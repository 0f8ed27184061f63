"""Published corruptions in their own layouts: the same images under named conditions, whole or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_lite.classifier import Preprocess
from robustbench_lite.corrupted_arrays import _pixels
from robustbench_lite.data import from_arrays, load_data
from robustbench_lite.errors import DataError
from robustbench_lite.labelled import LabelledImages
from robustbench_lite.synsets import imagenet_synsets

RANDOM = np.random.default_rng(0)
MODEL = Preprocess(size=(12, 12), resize=14)
IDS = ["n01440764/ILSVRC2012_val_00000293.JPEG", "n01440764/ILSVRC2012_val_00002138.JPEG", "n01443537/ILSVRC2012_val_00000236.JPEG"]


def noise(*shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def picture(file: Path, height: int = 12, width: int = 12) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, 3)).save(file, "PNG")


def stored(file: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(file)).transpose(2, 0, 1).copy()) / 255


def published(root: Path, corruptions: dict[str, list[str]], ids: list[str] = IDS) -> Path:
    for corruption, severities in corruptions.items():
        for severity in severities:
            for key in ids:
                picture(root / corruption / severity / key)
    return root


FIVE = list("12345")

# --- folders -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["imagenet-c", "imagenet-3dcc", "imagenet-c-bar"])
def test_folders_of_corruptions_are_variants_of_one_set(name: str, tmp_path: Path) -> None:
    root = published(tmp_path / "c", {"zebra": ["1"], "fog": ["5", "3"], "gaussian_noise": FIVE, "weather/snow": ["2"]})
    for key in IDS:
        picture(tmp_path / "val" / key, 20, 30)
    picture(tmp_path / "val" / "n01440764" / "ILSVRC2012_val_00009999.JPEG")
    images = load_data(f"{name}:{root},clean={tmp_path / 'val'}", preprocess=MODEL)
    assert list(images.variants) == [*(f"gaussian_noise[{s}]" for s in FIVE), "snow[2]", "fog[3]", "fog[5]", "zebra[1]"]
    assert (images.ids, images.labels, images.classes, images.has_clean) == (IDS, [0, 0, 1], 1000, True)
    assert torch.equal(images[2][0], MODEL(Image.open(tmp_path / "val" / IDS[2])))
    assert torch.equal(images.variants["fog[3]"][2], stored(root / "fog" / "3" / IDS[2])), "cropped once, not again"
    assert torch.equal(images.variants["snow[2]"][0], stored(root / "weather" / "snow" / "2" / IDS[0]))
    part = images.subset(2, seed=1)
    for position, key in enumerate(part.ids):
        assert torch.equal(part.variants["fog[5]"][position], stored(root / "fog" / "5" / key))
    assert images.default_eps["linf"] == 4 / 255

    for key in IDS:
        picture(tmp_path / "flat" / key.rpartition("/")[2], 20, 30)
    flat = load_data(f"{name}:{root},clean={tmp_path / 'flat'}")
    assert flat.ids == IDS
    assert flat[1][0].shape == (3, 20, 30)


def test_a_model_of_another_size_sees_the_whole_published_picture(tmp_path: Path) -> None:
    root = published(tmp_path, {"fog": ["1"]})
    images = load_data(f"imagenet-c:{root}", preprocess=Preprocess(size=(15, 15), resize=17, interpolation="bicubic"))
    wanted = Image.open(root / "fog" / "1" / IDS[0]).resize((15, 15), Image.Resampling.BICUBIC)
    assert torch.equal(images[0][0] * 255, torch.from_numpy(np.asarray(wanted).transpose(2, 0, 1).copy()).float())


def test_without_clean_pictures_the_first_variant_stands_in_and_says_so(tmp_path: Path) -> None:
    root = published(tmp_path, {"fog": ["2", "1"]})
    images = load_data(f"imagenet-c:{root}")
    assert not images.has_clean
    assert "no clean ones" in images.source
    assert torch.equal(images[1][0], stored(root / "fog" / "1" / IDS[1]))
    before = images.digest
    assert before != load_data(f"imagenet-c:{published(tmp_path, {'snow': ['1']})}").digest, "more variants are other data"


def test_severities_of_c_bar_are_named_by_their_parameters(tmp_path: Path) -> None:
    parameters = ["2.35", "3.20", "4.90", "6.60", "10.15"]
    root = published(tmp_path, {"caustic_refraction": parameters})
    images = load_data(f"imagenet-c-bar:{root}")
    assert list(images.variants) == [f"caustic_refraction[{s}]" for s in range(1, 6)]
    assert torch.equal(images.variants["caustic_refraction[5]"][0], stored(root / "caustic_refraction" / "10.15" / IDS[0]))


def test_tiny_imagenet_has_classes_of_its_own(tmp_path: Path) -> None:
    names = imagenet_synsets()[300:500]
    root = published(tmp_path / "c", {"fog": ["1"]}, [f"{name}/test_{number}.JPEG" for number, name in enumerate(names)])
    images = load_data(f"tiny-imagenet-c:{root}", preprocess=MODEL)
    assert (images.labels, images.classes, images.default_eps) == (list(range(200)), 200, {})
    assert torch.equal(images[0][0], MODEL(Image.open(root / "fog" / "1" / names[0] / "test_0.JPEG"))), "nobody cropped it before"
    some = published(tmp_path / "some", {"fog": ["1"]})
    with pytest.raises(DataError, match=r"holds 2 of the 200 classes, whose indices are then not known: add mapping=FILE"):
        load_data(f"tiny-imagenet-c:{some}")
    (tmp_path / "map.json").write_text(json.dumps({"n01440764": 5, "n01443537": 6}))
    assert load_data(f"tiny-imagenet-c:{some},mapping={tmp_path / 'map.json'}").labels == [5, 5, 6]


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*ImageNet-C is to be had from https://zenodo\.org/records/2235448$"):
        load_data(f"imagenet-c:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match=r"has no folders CORRUPTION/1 to CORRUPTION/5: ImageNet-C is to be had from https://zenodo"):
        load_data(f"imagenet-c:{tmp_path}")
    (tmp_path / "c" / "fog" / "1" / "n01440764").mkdir(parents=True)
    with pytest.raises(DataError, match=r"fog/1 has no pictures in its"):
        load_data(f"imagenet-c:{tmp_path / 'c'}")
    root = published(tmp_path / "c", {"fog": ["1", "2"]})
    with pytest.raises(DataError, match=r"lacks 3 of the 3 pictures of ImageNet-C, the first is n01440764/ILSVRC2012_val_00000293"):
        load_data(f"imagenet-c:{root},clean={published(tmp_path / 'other', {'n01440764': ['x']}, ['a.png'])}")
    (root / "fog" / "2" / IDS[1]).unlink()
    with pytest.raises(
        DataError, match=rf"fog\[1\] and fog\[2\] of .* do not hold the same pictures, the first that only one has is {IDS[1]}"
    ):
        load_data(f"imagenet-c:{root}")
    picture(root / "fog" / "2" / IDS[1])
    for severity in ("1", "2"):
        picture(root / "fog" / severity / "dog" / "a.JPEG")
    with pytest.raises(DataError, match=r"the set has no class index for 1 of the folders in .*, the first is 'dog'"):
        load_data(f"imagenet-c:{root}")


def test_a_picture_that_is_cut_off_is_named_when_it_is_reached(tmp_path: Path) -> None:
    root = published(tmp_path, {"fog": ["1"]})
    (root / "fog" / "1" / IDS[1]).write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"cannot read the image .*fog/1/{IDS[1]}"):
        load_data(f"imagenet-c:{root}")[1]


# --- CIFAR -------------------------------------------------------------------------------------------------------------------


def cifar(root: Path, *corruptions: str, count: int = 4) -> dict[str, np.ndarray[Any, Any]]:
    root.mkdir(exist_ok=True)
    np.save(root / "labels.npy", np.tile(np.arange(count) % 10, 5))
    made = {name: noise(5 * count, 32, 32, 3) for name in corruptions}
    for name, pixels in made.items():
        np.save(root / f"{name}.npy", pixels)
    return made


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_c_is_read_from_the_disk_and_next_to_its_clean_images(classes: int, tmp_path: Path) -> None:
    root = tmp_path / f"CIFAR-{classes}-C"
    made = cifar(root, "fog", "zebra", "shot_noise")
    clean = noise(4, 32, 32, 3)
    inner = tmp_path / ("cifar-10-batches-bin/test_batch.bin" if classes == 10 else "cifar-100-binary/test.bin")
    inner.parent.mkdir()
    labels = np.arange(4, dtype=np.uint8)[:, None]
    columns = labels if classes == 10 else np.concatenate([labels * 0, labels], 1)
    inner.write_bytes(np.concatenate([columns, clean.transpose(0, 3, 1, 2).reshape(4, -1)], 1).tobytes())
    for path in (root, tmp_path):
        images = load_data(f"cifar{classes}-c:{path},clean={tmp_path}")
        assert list(images.variants) == [f"{name}[{s}]" for name in ("shot_noise", "fog", "zebra") for s in FIVE]
    assert images.ids == load_data(f"cifar{classes}:{tmp_path}").ids
    assert (images.labels, images.classes, images.has_clean, images.name) == ([0, 1, 2, 3], classes, True, f"cifar-{classes}-c")
    assert torch.equal(images[1][0] * 255, torch.from_numpy(clean[1]).permute(2, 0, 1).float())
    assert torch.equal(images.variants["fog[3]"][1] * 255, torch.from_numpy(made["fog"][9]).permute(2, 0, 1).float())
    assert isinstance(images.variants["fog[3]"].pixels, np.memmap)
    alone = load_data(f"cifar{classes}-c:{root}", limit=3)
    assert not alone.has_clean
    position = int(alone.labels[2])
    assert torch.equal(alone.variants["zebra[5]"][2] * 255, torch.from_numpy(made["zebra"][16 + position]).permute(2, 0, 1).float())


def test_cifar_c_that_is_not_whole(tmp_path: Path) -> None:
    root = tmp_path / "c"
    with pytest.raises(DataError, match=r"CIFAR-10-C is to be had from https://zenodo\.org/records/2535967$"):
        load_data(f"cifar10-c:{root}")
    root.mkdir()
    with pytest.raises(DataError, match=r"has no labels\.npy: get CIFAR-100-C from https://zenodo\.org/records/3555552$"):
        load_data(f"cifar100-c:{root}")
    cifar(root)
    with pytest.raises(DataError, match=r"has no corruptions beside labels\.npy"):
        load_data(f"cifar10-c:{root}")
    pixels = cifar(root, "fog")["fog"]
    for wrong in (pixels[:-1], pixels.astype(np.float32), pixels[:, :, :, 0], pixels[:, :28]):
        np.save(root / "fog.npy", wrong)
        with pytest.raises(DataError, match=r"fog\.npy holds (uint8|float32) \(.*has uint8 \(20, 32, 32, 3\): get it from https://zenodo"):
            load_data(f"cifar10-c:{root}")
    np.save(root / "fog.npy", pixels)
    content = (root / "fog.npy").read_bytes()
    for kept in (0, 5, 100, len(content) - 1):
        (root / "fog.npy").write_bytes(content[:kept])
        with pytest.raises(DataError, match=r"fog\.npy is cut off or no array") as caught:
            load_data(f"cifar10-c:{root}")
        assert "\n" not in str(caught.value)
    (root / "fog.npy").write_bytes(content)
    for labels in (np.arange(20) % 10, np.arange(19) % 4, np.array([])):
        np.save(root / "labels.npy", labels)
        with pytest.raises(DataError, match="not those of the test images five times"):
            load_data(f"cifar10-c:{root}")
    cifar(root, "fog")
    inner = tmp_path / "cifar-10-batches-bin"
    inner.mkdir()
    (inner / "test_batch.bin").write_bytes(bytes(4 * 3073))
    with pytest.raises(DataError, match=r"the test labels in .* are not those of"):
        load_data(f"cifar10-c:{root},clean={tmp_path}")


# --- MedMNIST ----------------------------------------------------------------------------------------------------------------


def medmnist(root: Path, shape: tuple[int, ...], *corruptions: str, labels: Any = ((1,), (0,), (1,))) -> dict[str, np.ndarray[Any, Any]]:
    root.mkdir(exist_ok=True)
    made = {name: noise(5 * len(labels), *shape) for name in corruptions}
    for name, pixels in made.items():
        np.savez_compressed(root / f"{name}.npz", test_images=pixels, test_labels=np.tile(np.array(labels), (5, 1)))
    return made


@pytest.mark.parametrize("shape", [(12, 12), (12, 12, 1), (12, 12, 3)])
def test_medmnist_c_holds_one_archive_at_a_time(shape: tuple[int, ...], tmp_path: Path) -> None:
    made = medmnist(tmp_path / "pneumoniamnist", shape, "gamma_corr_up", "pixelate", "jpeg_compression")
    clean = noise(3, *shape)
    np.savez(tmp_path / "clean.npz", test_images=clean, test_labels=[[1], [0], [1]], train_images=clean, train_labels=[[0], [0], [0]])
    images = load_data(f"medmnist-c:{tmp_path / 'pneumoniamnist'},clean={tmp_path / 'clean.npz'}")
    assert [name for name in images.variants if name.endswith("[1]")] == ["pixelate[1]", "jpeg_compression[1]", "gamma_corr_up[1]"]
    assert (images.labels, images.name, images.has_clean, len(images.variants)) == ([1, 0, 1], "pneumoniamnist-c", True, 15)
    assert images.ids == load_data(f"npz:{tmp_path / 'clean.npz'}").ids
    for name, pixels in made.items():
        wanted = torch.from_numpy(pixels[3 * 3 + 2].reshape(12, 12, -1)).permute(2, 0, 1)[: 3 if shape[2:] == (3,) else 1].float()
        assert torch.equal(images.variants[f"{name}[4]"][2] * 255, wanted)
    assert _pixels.cache_info().maxsize == 1
    alone = load_data(f"medmnist-c:{tmp_path / 'pneumoniamnist'}", preprocess=MODEL, limit=2)
    assert (alone.has_clean, alone[0][0].shape, alone.variants["pixelate[5]"][1].shape) == (False, (3, 12, 12), (3, 12, 12))


def test_medmnist_c_of_several_findings(tmp_path: Path) -> None:
    medmnist(tmp_path / "chestmnist", (12, 12), "pixelate", labels=((1, 0), (1, 1), (0, 0)))
    assert load_data(f"medmnist-c:{tmp_path / 'chestmnist'}").labels == [(1.0, 0.0), (1.0, 1.0), (0.0, 0.0)]


def test_medmnist_c_that_is_not_whole(tmp_path: Path) -> None:
    root = tmp_path / "retinamnist"
    with pytest.raises(DataError, match=r"MedMNIST-C is to be had from https://zenodo\.org/records/11471504$"):
        load_data(f"medmnist-c:{root}")
    root.mkdir()
    with pytest.raises(DataError, match=r"has no \.npz files, one a corruption"):
        load_data(f"medmnist-c:{root}")
    pixels = medmnist(root, (12, 12, 3), "pixelate", "zoom_blur")["zoom_blur"]
    labels = np.tile([[1], [0], [1]], (5, 1))
    for arrays, message in (
        ({"test_images": pixels[:-3], "test_labels": labels}, r"zoom_blur\.npz holds images \(12, 12, 12, 3\) for 3 labels"),
        ({"test_images": pixels, "test_labels": 1 - labels}, r"pixelate\.npz has other labels than zoom_blur\.npz"),
        ({"test_images": pixels / 255, "test_labels": labels}, r"must be uint8 \(N, H, W\) .* got float64"),
        ({"test_images": pixels}, r"zoom_blur\.npz is cut off or lacks test_images and test_labels"),
        ({"test_labels": labels}, r"zoom_blur\.npz is cut off or lacks test_images and test_labels"),
    ):
        np.savez(root / "zoom_blur.npz", **arrays)
        with pytest.raises(DataError, match=message):
            load_data(f"medmnist-c:{root}")
    medmnist(root, (12, 12, 3), "pixelate", "zoom_blur")
    content = (root / "pixelate.npz").read_bytes()
    (root / "pixelate.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"pixelate\.npz is cut off or lacks"):
        load_data(f"medmnist-c:{root}")
    medmnist(root, (12, 12, 3), "pixelate", "zoom_blur")
    np.savez(tmp_path / "clean.npz", test_images=noise(3, 12, 12, 3), test_labels=[[0], [0], [1]])
    with pytest.raises(DataError, match=r"the test labels in .* are not those of .*: is it the same data set"):
        load_data(f"medmnist-c:{root},clean={tmp_path / 'clean.npz'}")


# --- what variants are -------------------------------------------------------------------------------------------------------


def test_variants_are_of_the_same_images() -> None:
    images = from_arrays(torch.rand(3, 1, 4, 4), [0, 1, 0])
    with pytest.raises(DataError, match=r"data has 3 images and 2 images in fog\[1\]"):
        LabelledImages(images.pictures, images.labels, images.ids, variants={"fog[1]": torch.rand(2, 1, 4, 4)})
