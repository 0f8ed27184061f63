"""Operations of PIL on batches of 8-bit images, every image with a strength of its own.

What maps levels is a table for every image and channel, what moves pixels is a matrix for every image, so that images under different
operations go through one `looked_up` or one `moved`. The tables give PIL's very values; `moved` gives all but one in a hundred, which
lie within NUDGE of a whole level and are one level off.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from robustbench_lite.rows import per_sample

Levels = Tensor
"""(N, C, H, W) float32, whole numbers in 0..255; C is 1 or 3."""
Tables = Tensor
"""(N, C, 256) float32, whole numbers in 0..255: what becomes of each level."""
Matrices = Tensor
"""(N, 2, 3) from the middle of a pixel (across, down, 1) to where it is looked up, in pixels; the corner of the image is (0, 0)."""

NUDGE = 0.01
"""Levels added before an interpolated value is truncated, as PIL does: weights that add up to 1 - 1e-7 would make a white area 254."""

GREY = 128.0
"""Of the square that `cutout` leaves."""


def looked_up(x: Levels, tables: Tables) -> Levels:
    return tables.gather(2, x.flatten(2).long()).view_as(x)


def autocontrast(x: Levels) -> Tables:
    """Every channel stretched until it reaches from 0 to 255; one of a single level is left as it is."""
    low, high = (each.flatten(2).double() for each in (x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)))
    # rounded wherever PIL rounds, in float64, for it truncates; and 255 / tensor would be a reciprocal times 255
    scale = torch.full_like(low, 255) / (high - low)
    stretched = (_levels(x).double() * scale + -low * scale).clamp(0, 255).floor().to(x.dtype)
    return torch.where(high > low, stretched, _levels(x))


def equalize(x: Levels) -> Tables:
    """The levels of every channel spread so that they become equally frequent, as far as that can be."""
    pixels = x.flatten(2).long()
    histogram = torch.zeros(*pixels.shape[:2], 256, device=x.device).scatter_add_(2, pixels, torch.ones_like(x).flatten(2)).long()
    brightest = histogram.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - brightest) // 255
    spread = ((step // 2 + histogram.cumsum(2) - histogram) // step.clamp(min=1)).clamp(max=255).to(x.dtype)
    return torch.where(step > 0, spread, _levels(x))


def posterize(x: Levels, bits: Tensor) -> Tables:
    """Only the first `bits` (N,) of the 8 bits of every level, 1..8."""
    width = 2.0 ** (8 - bits[:, None, None])
    return ((_levels(x) / width).floor() * width).expand(-1, x.shape[1], -1)


def solarize(x: Levels, threshold: Tensor) -> Tables:
    """Levels from `threshold` (N,) on inverted."""
    levels = _levels(x)
    return torch.where(levels < threshold[:, None, None], levels, 255 - levels).expand(-1, x.shape[1], -1)


def inverted(x: Levels) -> Tables:
    """Every level as far from white as it was from black."""
    return (255 - _levels(x)).expand(len(x), x.shape[1], -1)


def brightness(x: Levels, factor: Tensor) -> Tables:
    """Every level times `factor` (N,)."""
    return (_levels(x) * factor[:, None, None]).clamp(0, 255).floor().expand(-1, x.shape[1], -1)


def contrast(x: Levels, factor: Tensor) -> Tables:
    """Away from the mean grey of the image, or towards it below 1; `factor` (N,)."""
    mean = (_grey(x).mean((1, 2, 3), dtype=torch.float64) + 0.5).floor().to(x.dtype)[:, None, None]
    return (mean + factor[:, None, None] * (_levels(x) - mean)).clamp(0, 255).floor().expand(-1, x.shape[1], -1)


def color(x: Levels, factor: Tensor) -> Levels:
    """Away from grey, or towards it below 1; `factor` (N,)."""
    return _blended(_grey(x), x, factor)


def sharpness(x: Levels, factor: Tensor) -> Levels:
    """Away from a smoothed copy, or towards it below 1; `factor` (N,). The outermost pixels are left as they are."""
    smooth = x.clone()
    sums = avg_pool2d(x, 3, 1, divisor_override=1) + 4 * x[:, :, 1:-1, 1:-1]
    smooth[:, :, 1:-1, 1:-1] = (sums / 13 + 0.5).floor()
    return _blended(smooth, x, factor)


def paired(x: Levels, others: Levels, share: Tensor) -> Levels:
    """Every image with another one (N, C, H, W) over it, of which `share` (N,) in 0..1 is seen."""
    return _blended(others, x, 1 - share)


def cutout(x: Levels, side: Tensor, middle: Tensor) -> Levels:
    """A grey square whose sides are `side` (N,) pixels, as far as it is in the image, about `middle` (N, 2) down and across in pixels.

    A pixel is grey where its own middle is inside; a square of no size changes nothing.
    """
    inside = [
        ((torch.arange(size, device=x.device) + 0.5 - place[:, None]).abs() < side[:, None] / 2)
        for size, place in zip(x.shape[2:], middle.unbind(1), strict=True)
    ]
    return torch.where(inside[0][:, None, :, None] & inside[1][:, None, None, :], GREY, x)


def moved(x: Levels, matrices: Matrices) -> Levels:
    """Bilinear interpolation at other places, black where nothing was."""
    height, width = x.shape[2:]
    columns = torch.arange(width, device=x.device) + 0.5
    rows = torch.arange(height, device=x.device) + 0.5
    # complex numbers, across + i * down, in -1 to 1 from edge to edge: one sum of a row and a column writes both parts of the grid
    scale = x.new_tensor([[2 / width], [2 / height]])
    by_column, by_row, offset = (matrices * scale).unbind(2)
    first = torch.complex(*(by_column[:, :, None] * columns).unbind(1))
    second = torch.complex(*(by_row[:, :, None] * rows + offset[:, :, None] - 1).unbind(1))
    grid = torch.view_as_real(first[:, None, :] + second[:, :, None])
    outside = torch.maximum(*grid.abs().unbind(3)).sub_(1).clamp_(min=0)
    found = grid_sample(x, grid, padding_mode="border", align_corners=False)
    # black by a sum and a bound: a mask takes a processor several times as long
    return found.add_(outside.mul_(-1e12).add_(NUDGE)[:, None]).clamp_(min=0).floor_()


def turned(degrees: Tensor, height: int, width: int) -> Matrices:
    """Images turned by `degrees` (N,) about their middle, against the clock."""
    angle = degrees.deg2rad()
    cos, sin = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    return torch.stack([cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y], 1).view(-1, 2, 3)


def sheared(across: Tensor, down: Tensor) -> Matrices:
    """Every row looked up further right by `across` (N,) times its place, and every column further down by `down` (N,) times its place."""
    one, zero = torch.ones_like(across), torch.zeros_like(across)
    return torch.stack([one, across, zero, down, one, zero], 1).view(-1, 2, 3)


def shifted(across: Tensor, down: Tensor) -> Matrices:
    """Every pixel looked up `across` (N,) pixels further right and `down` (N,) further down."""
    one, zero = torch.ones_like(across), torch.zeros_like(across)
    return torch.stack([one, zero, across, zero, one, down], 1).view(-1, 2, 3)


def _levels(like: Tensor) -> Tensor:
    """(1, 1, 256) all levels."""
    return torch.arange(256, device=like.device, dtype=like.dtype)[None, None]


def _grey(x: Levels) -> Levels:
    """(N, 1, H, W) by PIL's weights, which are whole 65536ths."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(x.dtype)[:, None]


def _blended(plain: Levels, x: Levels, factor: Tensor) -> Levels:
    return (plain + per_sample(factor, x) * (x - plain)).clamp_(0, 255).floor_()
