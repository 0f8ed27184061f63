"""Elastic transform, of ImageNet-C (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import grid_sample

from robustbench_lite.classifier import Images
from robustbench_lite.filters import NUDGE, gaussian
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams

Lengths = tuple[float, ...]
"""Largest displacement by the field, its smoothness as a standard deviation, largest shift of the points."""

IMAGENET = ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))


def _times(side: int, shares: tuple[Lengths, ...]) -> tuple[Lengths, ...]:
    return tuple(tuple(side * share for share in lengths) for lengths in shares)


@corruption("elastic_transform")
@dataclass(frozen=True)
class ElasticTransform:
    """Move three points of the image a little, the rest of it along with them, and then every pixel by a smooth random field.

    The published data were made with OpenCV 3 and 4, which round the coordinates of the first step to 1/32 pixel; OpenCV 5 does not. Kept
    as published: the 244 in the parameters for 224 pixels, and a centre (row, column) of points that are (column, row).

    A setting is `Lengths`, in pixels.

    Args:
        subpixel: parts of a pixel that the first step tells apart; 0 for exact coordinates.
    """

    settings = {
        224: _times(244, IMAGENET),
        32: _times(32, ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))),
        64: _times(64, ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02))),
        299: _times(360, IMAGENET),
    }

    subpixel: Annotated[int, Field(ge=0, le=1024)] = 32

    def scaled(self, setting: Lengths, factor: float) -> Lengths:
        return tuple(length * factor for length in setting)

    def __call__(self, x: Images, setting: Lengths, draw: Streams) -> Tensor:
        size, sigma, shift = setting
        height, width = x.shape[2:]
        corners = draw.uniform("points", 3, 2, low=-shift, high=shift)
        moved = _at(x, *self._sources(corners, height, width, x.dtype), half_samples=False)
        field = draw.uniform("field", 2, height, width, low=-1, high=1).to(x.dtype)
        right, down = (gaussian(field, sigma, truncate=3, border="symmetric") * size).unbind(1)
        rows, columns = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
        return _at(moved, columns + right, rows + down, half_samples=True) + NUDGE

    def _sources(self, jitter: Tensor, height: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Columns and rows, each (B, H, W), that the pixels come from when the points move by `jitter`, (B, 3, 2)."""
        side = min(height, width) // 3
        centre = torch.tensor([height // 2, width // 2], device=jitter.device)
        points = centre + side * torch.tensor([[1, 1], [1, -1], [-1, -1]], device=jitter.device)
        targets = (points.to(jitter.dtype) + jitter).to(dtype)
        # The points are corners of a square, so that their differences are the map's columns.
        across, along = (targets[:, 1] - targets[:, 2]) / (2 * side), (targets[:, 0] - targets[:, 1]) / (2 * side)
        origin = targets[:, 2] - across * points[2, 0] - along * points[2, 1]
        determinant = across[:, 0] * along[:, 1] - along[:, 0] * across[:, 1]
        inverse = torch.stack((along[:, 1], -along[:, 0], -across[:, 1], across[:, 0]), 1) / determinant[:, None]
        per_column, per_row = inverse[:, 0::2], inverse[:, 1::2]
        start = -per_column * origin[:, :1] - per_row * origin[:, 1:]
        rows, columns = torch.arange(height, device=jitter.device), torch.arange(width, device=jitter.device)
        by_row = (start[..., None] + per_row[..., None] * rows)[..., None]
        by_column = (per_column[..., None] * columns)[:, :, None]
        if self.subpixel:  # as OpenCV 4: both terms in 1/1024, their sum to the nearest part
            step = 1024 / self.subpixel
            both = ((by_row * 1024).round() + (by_column * 1024).round() + step / 2).div(step).floor() / self.subpixel
        else:
            both = by_row + by_column
        return both[:, 0], both[:, 1]


def _at(x: Images, columns: Tensor, rows: Tensor, *, half_samples: bool) -> Images:
    """The image between its pixels, linearly.

    Args:
        columns, rows: (B, H, W) where; a pixel's middle is a whole number.
        half_samples: beyond the border the image is mirrored with its last pixels, `dcba|abcd|dcba`; else about them, `dcb|abcd|cba`.
    """
    height, width = x.shape[2:]
    if half_samples:
        grid = torch.stack(((columns * 2 + 1) / width - 1, (rows * 2 + 1) / height - 1), -1)
    else:
        grid = torch.stack((columns * 2 / (width - 1) - 1, rows * 2 / (height - 1) - 1), -1)
    return grid_sample(x, grid, "bilinear", "reflection", align_corners=not half_samples)
