"""JPEG without the file (Wallace, CACM 1991, https://doi.org/10.1145/103085.103089): what it loses, to the byte.

The entropy coding loses nothing, so that what is left is colour conversion, 4:2:0 subsampling, and the quantised cosine transform.
All of it is written in whole numbers, as libjpeg does it by default (accurate integer transform, smooth upsampling), and gives the
pixels that Pillow reads back.
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import DataError

# The left half of the cosine transform, in 8192ths; even rows are mirrored to the right, odd ones with the sign turned. They are sums
# of libjpeg's rounded constants, so that equal cosines differ by one here and there.
COSINES = (
    (8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260),
    (10703, 4433, -4433, -10703),
    (9633, -2259, -11362, -6436),
    (8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633),
    (4433, -10704, 10704, -4433),
    (2260, -6436, 9633, -11363),
)

# The standard's quantisation tables (ITU T.81, tables K.1 and K.2) at quality 50.
LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61,
    12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77,
    24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99,
    18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99,
    *(99,) * 32,
)  # fmt: skip


def jpeg(pixels: Tensor, quality: int) -> Tensor:
    """Images as a JPEG file gives them back: Pillow's on a CPU, where it is faster, the same bytes by arithmetic on a GPU.

    Args:
        pixels: (B, C, H, W) uint8, C = 3 (4:2:0) or 1 (greyscale file).
        quality: 1 to 100.

    Raises:
        DataError: another number of channels.
    """
    if pixels.shape[1] not in (1, 3):
        raise DataError(f"JPEG holds 1 or 3 channels, and these images have {pixels.shape[1]}")
    return by_integers(pixels, quality) if pixels.is_cuda else by_pillow(pixels, quality)


def by_pillow(pixels: Tensor, quality: int) -> Tensor:
    """`jpeg` by writing and reading files in memory, one after the other: a pool of threads was measured to gain nothing."""
    read = np.stack([_through_file(planes, quality) for planes in pixels.cpu().numpy()])
    return torch.from_numpy(read).to(pixels.device)


def _through_file(planes: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.merge("L" if len(planes) == 1 else "RGB", [Image.fromarray(plane) for plane in planes]).save(file, "JPEG", quality=quality)
    return np.stack([np.asarray(band) for band in Image.open(file).split()])


def by_integers(pixels: Tensor, quality: int) -> Tensor:
    """`jpeg` in whole numbers on the device that the pixels are on."""
    if pixels.shape[1] == 1:
        return _coded(pixels.int(), LUMA, quality).to(torch.uint8)
    height, width = pixels.shape[2:]
    red, green, blue = pixels.int().unbind(1)
    luma = 19595 * red + 38470 * green + 7471 * blue + 0x8000 >> 16
    offset = (128 << 16) + 0x7FFF
    from_blue = -11059 * red - 21709 * green + 32768 * blue + offset >> 16
    from_red = 32768 * red - 27439 * green - 5329 * blue + offset >> 16
    chroma = torch.stack([from_blue, from_red], 1)
    y = _coded(luma[:, None], LUMA, quality)[:, 0]
    half = _coded(_subsampled(chroma), CHROMA, quality)[..., : (width + 1) // 2]
    cb, cr = (_upsampled(half)[..., :height, :width] - 128).unbind(1)
    decoded = [y + (91881 * cr + 0x8000 >> 16), y + (-22554 * cb - 46802 * cr + 0x8000 >> 16), y + (116130 * cb + 0x8000 >> 16)]
    return torch.stack(decoded, 1).clamp_(0, 255).to(torch.uint8)


@cache
def _transform(device: torch.device) -> Tensor:
    """(8, 8) float64: matrix products of whole numbers are exact in it below 2^53, and no device has them in integers."""
    half = torch.tensor(COSINES, dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)[:, None]
    return torch.cat([half, half.flip(1) * signs], 1).to(device)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Whole numbers divided by 2^bits and rounded, halves upwards."""
    return x.mul_(0.5**bits).add_(0.5).floor_()


def _coded(plane: Tensor, table: tuple[int, ...], quality: int) -> Tensor:
    """(B, C, H, W) int32 levels, quantised in blocks of 8x8 and restored."""
    height, width = plane.shape[2:]
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = (torch.tensor(table) * scale + 50).div(100, rounding_mode="floor").clamp_(1, 255).view(8, 8).to(plane.device, torch.float64)
    cosines = _transform(plane.device)
    padded = _replicated(plane, -width % 8, -height % 8)
    rows, columns = padded.shape[2] // 8, padded.shape[3] // 8
    x = padded.reshape(*plane.shape[:2], rows, 8, columns, 8).transpose(3, 4).double() - 128  # (B, C, rows, columns, 8, 8)
    # libjpeg goes forward along rows first, back along columns first, and rounds between the two.
    along_rows = _shifted(x @ cosines.T, 11)
    coefficients = _shifted(along_rows.mT @ cosines.T, 15).mT  # 8 times the cosine transform
    quantised = coefficients.sign() * coefficients.abs().add_(4 * steps).div_(8 * steps).floor_()
    along_columns = _shifted((quantised * steps).mT @ cosines, 11)
    restored = _shifted(along_columns.mT @ cosines, 18).add_(128).clamp_(0, 255)
    return restored.int().transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, :height, :width]


def _replicated(plane: Tensor, right: int, below: int) -> Tensor:
    """The last column and the last row repeated this many times."""
    if right:
        plane = torch.cat([plane, plane[..., -1:].expand(*plane.shape[:-1], right)], -1)
    if below:
        plane = torch.cat([plane, plane[..., -1:, :].expand(*plane.shape[:-2], below, plane.shape[-1])], -2)
    return plane


def _subsampled(chroma: Tensor) -> Tensor:
    """(B, 2, ceil(H / 2), W / 2 filled up to whole blocks): means of 2x2, rounded down and up in turn along a row."""
    height, width = chroma.shape[2:]
    even = _replicated(chroma, -width % 16, height % 2)
    total = even[..., ::2, ::2] + even[..., ::2, 1::2] + even[..., 1::2, ::2] + even[..., 1::2, 1::2]
    return total + 1 + torch.arange(total.shape[3], device=chroma.device, dtype=torch.int32) % 2 >> 2


def _upsampled(chroma: Tensor) -> Tensor:
    """Twice as many rows and columns: three parts of the nearest sample and one of the next, first along columns, then along rows."""
    framed = torch.cat([chroma[..., :1, :], chroma, chroma[..., -1:, :]], 2)
    near = 3 * chroma
    tall = torch.stack([near + framed[..., :-2, :], near + framed[..., 2:, :]], 3).flatten(2, 3)
    framed = torch.cat([tall[..., :1], tall, tall[..., -1:]], 3)
    near = 3 * tall
    return torch.stack([near + framed[..., :-2] + 8 >> 4, near + framed[..., 2:] + 7 >> 4], 4).flatten(3, 4)
