"""Fuzzing files of images: archives, the binaries of CIFAR, published sets, DICOM, pictures. What is read is in [0, 1] or refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import BYTE_EDITS, fuzz, needs_limits, spoilt
from hypothesis import strategies as st
from PIL import Image

from robustbench_lite.checks import checked
from robustbench_lite.data import load_data

pytestmark = needs_limits
DRAW = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray[Any, Any]:
    return DRAW.integers(0, 256, shape, dtype=np.uint8)


def archive(compressed: bool = False, **arrays: Any) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def array(values: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def picture(form: str, mode: str = "RGB", side: int = 16) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(side, side, 3)).convert(mode).save(stream, form)
    return stream.getvalue()


MEDICAL = {f"{split}_{what}": values for split in ("train", "val", "test") for what, values in
           {"images": pixels(4, 8, 8), "labels": np.arange(4)[:, None] % 2}.items()}  # fmt: skip
NPZ = {"images": pixels(4, 8, 8, 3), "labels": np.arange(4), "patients": np.array(["a", "b", "c", "d"])}

SAMPLES: dict[str, tuple[str, str, bytes]] = {
    # data set, the file that is spoilt, what it holds
    "npz": ("npz:{}/a.npz", "a.npz", archive(**NPZ)),
    "npz-compressed": ("npz:{}/a.npz", "a.npz", archive(True, **NPZ)),
    "npz-floats": ("npz:{}/a.npz", "a.npz", archive(x=pixels(4, 3, 8, 8) / np.float32(255), y=np.eye(4))),
    "medmnist": ("medmnist:{}/a.npz", "a.npz", archive(**MEDICAL)),
    "cifar10": ("cifar10:{}", "test_batch.bin", pixels(2, 3073).clip(0, 9).tobytes()),
    "cifar100": ("cifar100:{}", "test.bin", pixels(2, 3074).clip(0, 99).tobytes()),
    "cifar10-c": ("cifar10-c:{}", "labels.npy", array(np.tile(np.arange(2), 5))),
    "cifar10-c-fog": ("cifar10-c:{}", "fog.npy", array(pixels(10, 32, 32, 3))),
    "medmnist-c": ("medmnist-c:{}", "fog.npz", archive(test_images=pixels(10, 8, 8), test_labels=np.tile(np.arange(2), 5)[:, None])),
    "png": ("imagefolder:{}", "0/a.png", picture("PNG")),
    "png-palette": ("imagefolder:{}", "0/a.png", picture("PNG", "P")),
    "jpeg": ("imagefolder:{}", "0/a.jpg", picture("JPEG")),
    "bmp": ("imagefolder:{}", "0/a.bmp", picture("BMP")),
    "tiff": ("imagefolder:{}", "0/a.tif", picture("TIFF")),
    "webp": ("imagefolder:{}", "0/a.webp", picture("WEBP")),
    "ppm": ("imagefolder:{}", "0/a.ppm", picture("PPM", "L")),
}


def everything(spec: str) -> None:
    """Read a data set as an evaluation does."""
    images = load_data(spec)
    for index, key in enumerate(images.ids):
        checked(images[index][0], key)
    for variant in images.variants.values():
        checked(variant[0], images.ids[0])


@pytest.mark.parametrize("name", SAMPLES)
def test_images(name: str, tmp_path: Path) -> None:
    spec, place, sample = SAMPLES[name]
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    if name.startswith("cifar10-c"):  # the set needs both of its files
        for _, other, content in (SAMPLES["cifar10-c"], SAMPLES["cifar10-c-fog"]):
            (tmp_path / other).write_bytes(content)

    def check(case: tuple[int, Any]) -> None:
        file.write_bytes(spoilt(sample, [(kind, place % case[0], length, word) for kind, place, length, word in case[1]]))
        everything(spec.format(tmp_path))

    check((1, []))
    fuzz(st.tuples(st.sampled_from((64, 400, 2**16)), BYTE_EDITS), check)  # the beginning says what the rest is


def test_dicom(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    known = Path(pydicom.__file__).parent / "data" / "test_files"
    samples = [(known / f"{name}.dcm").read_bytes() for name in ("CT_small", "MR_small_RLE", "SC_rgb_rle_16bit", "examples_palette")]
    samples = [content for content in samples if len(content) < 2**17]
    (tmp_path / "0").mkdir()

    def check(case: tuple[int, list[Any]]) -> None:
        (tmp_path / "0" / "a.dcm").write_bytes(spoilt(samples[case[0]], [(k, p % 3000, n, w) for k, p, n, w in case[1]]))
        everything(f"imagefolder:{tmp_path}")

    check((0, []))
    fuzz(st.tuples(st.integers(0, len(samples) - 1), BYTE_EDITS), check)
