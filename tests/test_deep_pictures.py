"""Pictures of more than 8 bits a channel: nothing of their range is lost, and they are resized and cropped as pictures of 8 bits are."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_lite.classifier import Interpolation, Preprocess
from robustbench_lite.data import load_data
from robustbench_lite.errors import DataError

DEEP = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48) * 21  # 3,072 different values up to 64,491


def folder_with(root: Path, name: str, save: Any) -> str:
    (root / "ill").mkdir(parents=True)
    save(root / "ill" / name)
    return f"imagefolder:{root}"


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bits_keep_every_value(tmp_path: Path, ending: str) -> None:
    data = folder_with(tmp_path / "xray", f"0.{ending}", Image.fromarray(DEEP).save)
    (image, _), *_ = load_data(data)
    assert image.shape == (1, 64, 48)
    assert torch.equal(image[0], torch.from_numpy((DEEP / 65535).astype(np.float32)))
    in_colour = load_data(data, preprocess=Preprocess(size=None, resize=None, channels=3))[0][0]
    assert torch.equal(in_colour, image.expand(3, -1, -1))


def test_twelve_bits_in_a_file_of_sixteen_stay_as_dark_as_they_are(tmp_path: Path) -> None:
    data = folder_with(tmp_path / "xray", "0.png", Image.fromarray(np.full((4, 4), 4095, np.uint16)).save)
    assert load_data(data)[0][0].unique().tolist() == [np.float32(4095 / 65535)]


def test_tiff_files_whose_zero_is_white_are_inverted(tmp_path: Path) -> None:
    data = folder_with(tmp_path / "xray", "0.tif", lambda file: Image.fromarray(DEEP).save(file, tiffinfo={262: 0}))
    assert torch.equal(load_data(data)[0][0][0], torch.from_numpy((1 - DEEP / 65535).astype(np.float32)))


@pytest.mark.parametrize("pixels", [DEEP.astype(np.int32), DEEP.astype(np.float32)])
def test_other_ranges_are_refused_instead_of_clipped(tmp_path: Path, pixels: np.ndarray[Any, Any]) -> None:
    data = folder_with(tmp_path / "xray", "0.tif", Image.fromarray(pixels).save)
    with pytest.raises(DataError, match=r"cannot read the image .*0\.tif: it has signed values or more than 16 bits a channel"):
        load_data(data)[0]


def test_twelve_bits_that_a_tiff_file_packs_span_black_to_white(tmp_path: Path) -> None:
    values = np.array([[0, 4095], [1, 2048]])
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.tolist())
    entries = {256: 2, 257: 2, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: 2, 279: len(packed)}
    tags = b"".join(struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, value) for tag, value in entries.items())
    file = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + tags + bytes(4) + packed
    data = folder_with(tmp_path / "xray", "0.tif", lambda path: path.write_bytes(file))
    assert torch.equal(load_data(data)[0][0][0], torch.from_numpy((values / 4095).astype(np.float32)))


def test_tiff_files_of_several_pages_are_refused_instead_of_cut(tmp_path: Path) -> None:
    pages = [Image.fromarray(DEEP // 2)]
    data = folder_with(tmp_path / "xray", "0.tif", lambda file: Image.fromarray(DEEP).save(file, save_all=True, append_images=pages))
    with pytest.raises(DataError, match="it holds 2 pages: write each into a file of its own"):
        load_data(data)[0]


# --- prepared for a model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("size", "resize"), [((20, 24), 31), ((20, 24), None), (None, 17), ((60, 70), 90), ((60, 70), 40), (None, None)])
@pytest.mark.parametrize("shape", [(37, 53), (53, 37, 3)])
def test_floats_are_prepared_as_bytes_are(
    interpolation: Interpolation, size: tuple[int, int] | None, resize: int | None, shape: tuple[int, ...]
) -> None:
    swings = interpolation in ("bicubic", "lanczos")  # it has negative lobes: kept away from black and white, where bytes are clipped
    pixels = np.random.default_rng(0).integers(100 if swings else 0, 156 if swings else 256, shape, dtype=np.uint8)
    for channels in (1, 3):
        preprocess = Preprocess(size, resize, interpolation, channels)
        whole, floats = preprocess(Image.fromarray(pixels)), preprocess.of_levels((pixels / 255).astype(np.float32))
        assert whole.shape == floats.shape
        # bytes are rounded when they turn grey, across and down
        assert (whole - floats).abs().max() * 255 <= 1.5 * (1.2 if swings else 1)
        assert (whole - floats).abs().mean() * 255 < 0.5
    if len(shape) == 2:
        assert (whole - floats).abs().max() * 255 < 1.2


def test_what_swings_beyond_white_is_clipped() -> None:
    edge = np.zeros((16, 16), np.float32)
    edge[:, 8:] = 1
    sharp = Preprocess((48, 48), None, "lanczos", 1).of_levels(edge)
    assert (sharp.min(), sharp.max()) == (0, 1)


def test_resizing_keeps_more_than_256_values() -> None:
    shrunk = Preprocess((32, 24), None, channels=1).of_levels((DEEP / 65535).astype(np.float32))
    assert len(shrunk.unique()) > 700
    # where the filter is flat, the mean of each 2 x 2 block, to the precision of floats
    blocks = torch.from_numpy((DEEP / 65535).astype(np.float32)).reshape(32, 2, 24, 2).mean((1, 3))
    boxes = Preprocess((32, 24), None, "bilinear", 1).of_levels((DEEP / 65535).astype(np.float32))[0]
    assert (boxes - blocks)[2:-2, 2:-2].abs().max() < 1e-5
