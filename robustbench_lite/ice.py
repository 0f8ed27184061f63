"""Pictures of ice on glass: the photographs that ImageNet-C has, read from a folder, and others that are computed."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import DataError, UsageError, first_line
from .pictures import picture_in, quietly
from .streams import Streams

PHOTOGRAPHS = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
SOURCE = "they are in ImageNet-C/create_c of https://github.com/hendrycks/robustness"


class Look(NamedTuple):
    """Of one photograph: its mean colour, its luma at the percentiles of LEVELS, the slope of its log power over log frequency."""

    colour: tuple[float, float, float]
    luma: tuple[float, ...]
    slope: float


LEVELS = (-2.326, -1.645, -0.674, 0.0, 0.674, 1.645, 2.326)
"""Percentiles 1, 5, 25, 50, 75, 95, 99 of a normal distribution."""

LOOKS = (
    Look((78, 149, 166), (95, 102, 116, 128, 141, 163, 177), -1.16),
    Look((201, 205, 214), (140, 165, 193, 208, 220, 235, 244), -1.71),
    Look((201, 205, 214), (140, 165, 193, 208, 220, 235, 244), -1.71),
    Look((138, 153, 165), (81, 102, 132, 150, 167, 196, 231), -1.27),
    Look((112, 123, 135), (43, 58, 89, 117, 149, 202, 237), -1.87),
)
"""Measured on the photographs, of which the second and the third are the same."""

BLUR = 0.4
"""Standard deviation in pixels, without which the grain is sharper than a photograph's."""

SPACING = 40.0
"""Pixels between crystals' edges."""

EDGES = 0.3
"""Share of the variance that the edges of crystals make."""

EXTENT = 450.0
"""Pixels, the width of the computed picture that a crop is thought to be from; what varies more slowly makes the crop lighter or darker."""

STEPS = 256
"""Entries of the table of colours per standard deviation."""


def photographed(folder: str, scale: float, height: int, width: int, draw: Streams) -> Tensor:
    """(B, 3, H, W) uint8, cut from the photographs in a folder after they are resized `scale` times.

    Raises:
        UsageError: one of them is not there or cannot be read.
        DataError: one of them is too small.
    """
    stack, sizes = photographs(folder, scale)
    for name, (tall, wide) in zip(PHOTOGRAPHS, sizes.tolist(), strict=True):
        if tall <= height or wide <= width:
            size = f"{tall}x{wide} pixels at the scale of {scale:g}"
            raise DataError(f"frost: {Path(folder) / name} has {size}, too small for images of {height}x{width}; {SOURCE}")
    picture = draw.integers("picture", 0, len(PHOTOGRAPHS))
    room = sizes.to(picture.device)[picture] - torch.tensor([height, width], device=picture.device)
    top, left = (draw.uniform("corner", 2).double() * room).long().unbind(1)
    rows = top[:, None] + torch.arange(height, device=top.device)
    columns = left[:, None] + torch.arange(width, device=left.device)
    channels = torch.arange(3, device=picture.device)[:, None, None]
    return stack.to(picture.device)[picture[:, None, None, None], channels, rows[:, None, :, None], columns[:, None, None]]


@lru_cache(maxsize=4)
def photographs(folder: str, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The photographs as (5, 3, H, W) uint8, filled up with black below and on the right, and their own (5, 2) heights and widths.

    Raises:
        UsageError: one of them is not there or cannot be read.
    """
    pictures = []
    for name in PHOTOGRAPHS:
        path = Path(folder) / name
        try:
            with quietly(), picture_in(path) as picture:
                pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        except FileNotFoundError:
            raise UsageError(f"frost: there is no {path}; {SOURCE}") from None
        except Exception as error:  # a damaged file makes Pillow fail in any way
            raise UsageError(f"frost: {path} cannot be read as a picture ({first_line(error)}); {SOURCE}") from None
        pictures.append(_resized(pixels, scale))
    sizes = torch.tensor([pixels.shape[1:] for pixels in pictures])
    stack = torch.zeros(len(pictures), 3, *sizes.amax(0).tolist(), dtype=torch.uint8)
    for canvas, pixels in zip(stack, pictures, strict=True):
        canvas[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    return stack, sizes


def _resized(pixels: Tensor, scale: float) -> Tensor:
    """(3, H, W) uint8, linearly between the nearest four pixels and no others, as OpenCV, so that fine grain is not smoothed away."""
    if scale == 1:
        return pixels
    result = pixels.double()
    for dim in (1, 2):
        size = pixels.shape[dim]
        at = ((torch.arange(round(size * scale), dtype=torch.float64) + 0.5) / scale - 0.5).clamp(0, size - 1)
        low = at.floor().long()
        share = (at - low).view(-1, *[1] * (2 - dim))
        result = result.index_select(dim, low).lerp(result.index_select(dim, (low + 1).clamp(max=size - 1)), share)
    return result.round().to(torch.uint8)


def computed(scale: float, height: int, width: int, draw: Streams) -> Tensor:
    """(B, 3, H, W) uint8, crops of pictures that nobody took: noise and edges of crystals, with a photograph's spectrum and colours.

    Args:
        scale: of the picture, as if it had been a photograph of full size.
    """
    picture = draw.integers("picture", 0, len(LOOKS))
    grains, crystals, slow = (part.to(picture.device) for part in _filters(scale, height, width))
    waves = torch.fft.rfft2(draw.normal("waves", 2, height, width).double())
    grain = torch.fft.irfft2(waves[:, 0] * grains[picture], s=(height, width))
    between = (draw.normal("between").double() * slow[picture].sqrt())[:, None, None]
    # Where a field changes its sign there are lines, as jagged as its spectrum is shallow; 0.189 and 0.25 are their mean and deviation.
    lines = (torch.fft.irfft2(waves[:, 1] * crystals, s=(height, width)).abs().mul_(-4).exp_() - 0.189) / 0.25
    depth = (1 - EDGES) ** 0.5 * (grain + between) + EDGES**0.5 * lines
    entry = ((depth + 4) * STEPS).clamp_(0, 8 * STEPS).long()
    colours = _colours().to(picture.device)
    return torch.stack([channel[picture[:, None, None], entry] for channel in colours], 1)


@lru_cache(maxsize=4)
def _filters(scale: float, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Over the half plane of frequencies, of the grain (5, H, W // 2 + 1) and of the edges (H, W // 2 + 1); variances between crops, (5,).

    The grain's variance and that between crops make one, and so does the edges'.
    """
    squared = torch.fft.fftfreq(height, dtype=torch.float64)[:, None] ** 2 + torch.fft.fftfreq(width, dtype=torch.float64) ** 2
    slopes = torch.tensor([look.slope for look in LOOKS], dtype=torch.float64)
    power = squared.pow(slopes[:, None, None] / 2) * torch.exp(-4 * (torch.pi * BLUR * scale) ** 2 * squared)
    power[:, 0, 0] = 0
    side = max(height, width)
    slowest, slow, fast = (f ** (slopes + 2) for f in (1 / max(EXTENT * scale, side), 1 / side, 0.5))
    between = (slow - slowest) / (fast - slowest)
    power *= (1 - between[:, None, None]) / power.mean((1, 2), keepdim=True)
    edges = (squared + (SPACING * scale) ** -2) ** -1.75
    edges /= edges.mean()
    half = width // 2 + 1
    return power[:, :, :half].sqrt(), edges[:, :half].sqrt(), between


@lru_cache(maxsize=1)
def _colours() -> Tensor:
    """(3, 5, 8 * STEPS + 1) uint8: each look's colour at depths of -4 to 4 standard deviations."""
    depth = np.linspace(-4, 4, 8 * STEPS + 1)
    ends = (-4.0, *LEVELS, 4.0)
    tables = []
    for look in LOOKS:
        darkest, *_, brightest = look.luma
        luma = np.interp(depth, ends, (darkest - (look.luma[1] - darkest), *look.luma, brightest + (brightest - look.luma[-2])))
        tint = np.array(look.colour) / np.dot(look.colour, (0.299, 0.587, 0.114))
        tables.append((tint[:, None] * luma).round().clip(0, 255))
    return torch.from_numpy(np.stack(tables, 1).astype(np.uint8))
