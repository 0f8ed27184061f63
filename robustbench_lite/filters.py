"""Blurs and zooms that several corruptions share, as those of ImageNet-C do (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

Border = Literal["nearest", "symmetric"]

NUDGE = 1e-11
"""Added to what a sum gave before it is truncated to 8 bits. A sum is rounded one way in a large batch and another way in a small one;
without this, a white area whose weights add up to 1 - 1e-16 would be 254 in one of them."""

BITS = 23
"""After the point of a motion blur's weights, which are whole numbers: the most with which 255 still fits into 31 bits."""


def gaussian(x: Tensor, sigma: float, *, truncate: float = 4.0, border: Border = "nearest") -> Tensor:
    """(..., H, W) of any values, blurred by a Gaussian.

    Args:
        sigma: standard deviation in pixels.
        truncate: where the kernel ends, in sigma.
        border: what lies outside of `abcd`: `aaaa|abcd|dddd` (nearest) or `dcba|abcd|dcba` (symmetric).
    """
    if sigma <= 1e-15:  # the reference's bound: some parameters for small images are 0
        return x
    for dim in (-2, -1):
        operator = _gaussian_operator(x.shape[dim], sigma, truncate, border, x.dtype, x.device)
        x = _applied(operator, x, dim, int(truncate * sigma + 0.5))
    return x


def _applied(operator: Tensor, x: Tensor, dim: int, reach: int) -> Tensor:
    """The product along a dimension, -2 or -1. Where the operator is a narrow band, in four parts, which have little of its zeros."""
    size = len(operator)
    step = size if size < 128 or 8 * reach > size else -(-size // 4)
    parts = []
    for start in range(0, size, step):
        low, high = max(0, start - reach), min(size, start + step + reach)
        band, part = operator[start : start + step, low:high], x.narrow(dim, low, high - low)
        parts.append(band @ part if dim == -2 else part @ band.T)
    return torch.cat(parts, dim)


@lru_cache(maxsize=64)
def _gaussian_operator(size: int, sigma: float, truncate: float, border: Border, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size, size), by which a column is blurred, border included. Dense: one product beats a pass a tap, unless sigma is small."""
    weights = _gaussian_weights(sigma, truncate)
    radius = len(weights) // 2
    at = torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)
    folded = at % (2 * size)
    inside = at.clamp(0, size - 1) if border == "nearest" else torch.minimum(folded, 2 * size - 1 - folded)
    operator = torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, inside, weights.expand(size, -1))
    return operator.to(device, dtype)


def _gaussian_weights(sigma: float, truncate: float) -> Tensor:
    """(2 * radius + 1,) float64 with the sum 1."""
    radius = int(truncate * sigma + 0.5)
    weights = torch.exp(torch.arange(-radius, radius + 1).double() ** 2 / (-2 * sigma**2))
    return weights / weights.sum()


def kept_by_gaussian(sigma: float) -> float:
    """The share of independent noise's standard deviation that `gaussian` leaves."""
    return _gaussian_weights(sigma, 4.0).square().sum().item()


def motion_blur(x: Tensor, radius: float, sigma: float, angle: Tensor) -> Tensor:
    """Motion in one direction, as ImageMagick has it: half a Gaussian, laid along a line of whole pixels.

    Args:
        x: (B, C, H, W) in [0, 1], whole 255ths.
        radius: pixels; the line has 2 * ceil(radius) + 1 of them.
        sigma: standard deviation along the line, in pixels.
        angle: (B,) degrees, the direction of the line.

    Returns:
        (B, C, H, W) uint8, truncated as ImageMagick's.
    """
    taps = range(2 * math.ceil(radius) + 1)
    weights = [math.exp(-((tap / sigma) ** 2) / 2) for tap in taps]
    whole = [round(weight / sum(weights) * 2**BITS) for weight in weights]
    blurred = []
    # An image at a time, because the pixels at one offset are a slice of an image, and no index is needed.
    for image, degrees in zip((x * 255).round(), angle.tolist(), strict=True):
        down, right = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
        line = [(math.ceil(tap * down - 0.5), math.ceil(tap * right - 0.5)) for tap in taps]
        blurred.append(_along(image, line, whole))
    return torch.stack(blurred)


def _along(image: Tensor, line: list[tuple[int, int]], weights: list[int]) -> Tensor:
    """(C, H, W) uint8: the weighted sum of the pixels at (row, column) offsets, edges repeated; in whole numbers, equal on all devices."""
    height, width = image.shape[1:]
    top, left = (max(0, -min(offsets)) for offsets in zip(*line, strict=True))
    bottom, right = (max(0, *offsets) for offsets in zip(*line, strict=True))
    source = pad(image[None], (left, right, top, bottom), "replicate")[0].int()
    total = torch.full_like(image, 2**BITS // 1000, dtype=torch.int32)  # ImageMagick's pixels have 16 bits, which makes 254.999 a 255
    for (row, column), weight in zip(line, weights, strict=True):
        total.add_(source[:, top + row : top + row + height, left + column : left + column + width], alpha=weight)
    return (total >> BITS).to(torch.uint8)


def clipped_zoom(x: Tensor, factor: float) -> Tensor:
    """(B, C, H, W) of any values: the middle of each image, enlarged `factor` times (at least 1) to the size of the image, linearly."""
    crops = [math.ceil(size / factor) for size in x.shape[2:]]
    grown = [round(crop * factor) for crop in crops]
    return _middle(interpolate(_middle(x, crops), size=grown, mode="bilinear", align_corners=True), x.shape[2:])


def _middle(x: Tensor, size: Sequence[int]) -> Tensor:
    top, left = (x.shape[2] - size[0]) // 2, (x.shape[3] - size[1]) // 2
    return x[:, :, top : top + size[0], left : left + size[1]]
