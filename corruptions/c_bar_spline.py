"""Cubic splines in CIFAR-10-C-bar: a blur in circles, colours of several sizes (Mintun et al., NeurIPS 2021, https://arxiv.org/abs/2102.11273)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from robustbench_lite.classifier import Images
from robustbench_lite.filters import NUDGE
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams

ROTATIONS = 21


@corruption("circular_motion_blur")
@dataclass(frozen=True)
class CircularMotionBlur:
    """The weighted mean of the image under 21 rotations about its middle; corners fade to black.

    Parameter: the largest angle, in 1.5 degrees.
    """

    settings = {32: (2.8, 3.6, 4.4, 5.2, 6.0)}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        height, width = x.shape[2:]
        rows, columns = (torch.linalg.inv(_weights(torch.arange(size).to(x), size)) for size in (height, width))
        pixels = (rows @ x @ columns.T).flatten(2).flatten(0, 1).T.contiguous()  # (H * W, B * C) coefficients of the spline
        down = torch.arange(height).to(x)[:, None] - (height - 1) / 2
        right = torch.arange(width).to(x) - (width - 1) / 2
        total, share = torch.zeros_like(pixels), 0.0
        for number in range(ROTATIONS):
            turn = 2 * number / (ROTATIONS - 1) - 1
            angle, weight = math.radians(1.5 * setting * turn), math.exp(-2 * turn**2)
            row = math.cos(angle) * down + math.sin(angle) * right + (height - 1) / 2
            column = math.cos(angle) * right - math.sin(angle) * down + (width - 1) / 2
            at, weights = _taps(row.flatten(), column.flatten(), height, width)
            total += weight * embedding_bag(at, pixels, per_sample_weights=weights, mode="sum")
            share += weight
        return (total / share).T.reshape(x.shape) + NUDGE


@corruption("transverse_chromatic_abberation")
@dataclass(frozen=True)
class TransverseChromaticAbberation:
    """Enlarges the three colours about the middle by three different factors, 1 among them, in random order.

    The published data were interpolated by a cubic spline without the filter that belongs before it: the colour that keeps its size is
    blurred too.

    Parameter: by how much the largest is larger, in twentieths.
    """

    settings = {32: (1.0, 2.0, 5.0, 9.0, 10.0)}
    colour = True

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        order = draw.uniform("order", 3).argsort(1)
        factors = [1 + 0.05 * setting * part for part in (0, 0.5, 1)]
        rows, columns = (torch.stack([_enlarging(size, factor, x) for factor in factors])[order] for size in x.shape[2:])
        return ((rows @ x @ columns.mT) * 255 + 0.5 + NUDGE).floor().clamp(0, 255).to(torch.uint8)


def _enlarging(size: int, factor: float, like: Images) -> Tensor:
    """(size, size), by which a column is enlarged and cut to its middle."""
    larger = round(size * factor)
    first = (larger - size) // 2
    return _weights(torch.arange(first, first + size).to(like) * ((size - 1) / (larger - 1)), size)


def _weights(places: Tensor, size: int) -> Tensor:
    """(N, size) the weights of a cubic B-spline's coefficients at N places within 0..size - 1; beyond its ends the spline is mirrored."""
    at, weights = _four(places, size)
    return places.new_zeros(len(places), size).scatter_add_(1, at, weights)


def _four(places: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The four coefficients around each of N places, and their weights, (N, 4) each."""
    at = places.floor()[:, None] + torch.arange(-1, 3).to(places)
    distance = (places[:, None] - at).abs()
    weights = torch.where(distance < 1, 2 / 3 - distance**2 * (1 - distance / 2), (2 - distance).clamp(min=0) ** 3 / 6)
    return (size - 1 - (size - 1 - at.abs()).abs()).long(), weights


def _taps(rows: Tensor, columns: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The sixteen coefficients around each of N places in an image, and their weights, (N, 16) each; 0 for places outside."""
    inside = (rows >= 0) & (rows <= height - 1) & (columns >= 0) & (columns <= width - 1)
    (row, row_weight), (column, column_weight) = _four(rows.clamp(0, height - 1), height), _four(columns.clamp(0, width - 1), width)
    weights = row_weight[:, :, None] * column_weight[:, None] * inside[:, None, None]
    return (row[:, :, None] * width + column[:, None]).flatten(1), weights.flatten(1)
