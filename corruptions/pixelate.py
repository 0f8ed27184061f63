"""Pixelation (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams

PRECISION = 22
"""Bits after the point in which Pillow holds the weights of a mean."""


@corruption("pixelate")
@dataclass(frozen=True)
class Pixelate:
    """Shrink the image by means over boxes and enlarge it again; the setting is the share of the rows and columns that is left."""

    settings = {
        32: (0.95, 0.9, 0.85, 0.75, 0.65),
        64: (0.9, 0.8, 0.7, 0.6, 0.5),
        224: (0.6, 0.5, 0.4, 0.3, 0.25),
        299: (0.5, 0.4, 0.3, 0.25, 0.2),
    }

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        pixels = (x * 255).round().to(torch.uint8)
        return by_integers(pixels, setting) if pixels.is_cuda else by_pillow(pixels, setting)


def by_pillow(pixels: Tensor, share: float) -> Tensor:
    """Every channel of (B, C, H, W) uint8 by Pillow, which is faster on a CPU."""
    height, width = pixels.shape[2:]
    small = int(width * share), int(height * share)
    images = [Image.fromarray(plane) for plane in pixels.flatten(0, 1).cpu().numpy()]
    resized = [image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in resized])).view(pixels.shape).to(pixels.device)


def by_integers(pixels: Tensor, share: float) -> Tensor:
    """The same bytes by arithmetic, on the device that (B, C, H, W) uint8 is on."""
    height, width = pixels.shape[2:]
    rows, columns = int(height * share), int(width * share)
    narrow = _rounded(pixels.double() @ _boxes(width, columns).T.to(pixels.device))
    small = _rounded(_boxes(height, rows).to(pixels.device) @ narrow).to(torch.uint8)
    return small[:, :, _nearest(rows, height)[:, None], _nearest(columns, width)]


def _boxes(size: int, fewer: int) -> Tensor:
    """(fewer, size) float64, the weights of the means in 2^-22ths: whole numbers, whose matrix product is exact in float64."""
    scale = size / fewer
    centre = (torch.arange(fewer, dtype=torch.float64)[:, None] + 0.5) * scale
    first, end = (centre - scale / 2 + 0.5).floor(), (centre + scale / 2 + 0.5).floor()
    place = torch.arange(size, dtype=torch.float64)
    # A pixel half way between two boxes falls as the rounding of these very operations decides: Pillow asks in both ways.
    apart = (place - centre + 0.5) * (1 / scale)
    inside = ((place >= first) & (place < end) & (apart > -0.5) & (apart <= 0.5)).double()
    return inside * ((1 << PRECISION) / inside.sum(1, keepdim=True) + 0.5).floor()


def _rounded(sums: Tensor) -> Tensor:
    return sums.mul_(0.5**PRECISION).add_(0.5).floor_().clamp_(max=255)


def _nearest(fewer: int, size: int) -> Tensor:
    """(size,) the box that each of the places falls into."""
    return ((torch.arange(size, dtype=torch.float64) + 0.5) * (fewer / size)).long()
