"""Bent images of ImageNet-C-bar and CIFAR-10-C-bar: caustics, twirls, ripples (Mintun et al., NeurIPS 2021, https://arxiv.org/abs/2102.11273)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from robustbench_lite.classifier import Images
from robustbench_lite.filters import NUDGE, gaussian
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams


@corruption("caustic_refraction")
@dataclass(frozen=True)
class CausticRefraction:
    """Looks at the image through wavy water, which bends it and lights it by its slopes.

    Parameter: depth in twentieths of the shorter side, and light per unit of slope in fifths.
    """

    settings = {224: (2.35, 3.2, 4.9, 6.6, 9.15)}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        height, width = x.shape[2:]
        side = min(height, width)
        time = draw.uniform("time", 1, 1, low=0.5, high=2.0).to(x)
        size = draw.uniform("size", 1, 1, low=0.75, high=1.25).to(x) * side
        rows, columns = torch.arange(height).to(x)[:, None], torch.arange(width).to(x)
        grain = max(1.0, side / 224)  # published for a pixel of 224; in larger images pixels are finer, and slopes between them smaller
        water = pad(gaussian(_caustics(rows / size, columns / size, time), grain, border="symmetric"), (1, 1, 1, 1))
        down = grain * (water[:, 2:, 1:-1] - water[:, :-2, 1:-1])
        right = grain * (water[:, 1:-1, 2:] - water[:, 1:-1, :-2])
        # Refracted as from a medium 4 times as dense: sin(out) = sin(in) / 4. Where the water is flat, light goes straight on.
        slope = torch.hypot(down, right)
        cosine = 1 / torch.hypot(slope, torch.ones_like(slope))
        sine = slope * cosine
        bent = torch.sqrt(1 - (sine / 4) ** 2) * sine - sine / 4 * cosine
        depth = torch.where(cosine < 1 - 1e-3, 0.05 * setting * side * bent / slope, 0)
        moved = sampled(x, rows + (down * depth).round(decimals=3), columns + (right * depth).round(decimals=3))
        return moved + 0.2 * setting * (down - right)[:, None] + NUDGE


def _caustics(rows: Tensor, columns: Tensor, time: Tensor) -> Tensor:
    """(B, H, W) brightness at the bottom of a pool, 0 to 1, at places in tiles; the numbers are those of the published shader."""
    down, right = ((places % 1) * 6.28318530718 - 250 for places in (rows, columns))
    row, column = down, right
    light = torch.ones_like(down + right)
    for number in range(1, 6):
        moment = time * (1 - 3.5 / number)
        row, column = (
            down + torch.cos(moment - row) + torch.sin(moment + column),
            right + torch.sin(moment - column) + torch.cos(moment + row),
        )
        light = light + 1 / torch.hypot(down / torch.sin(row + moment), right / torch.cos(column + moment)) / 0.005
    return ((1.17 - (light / 5) ** 1.4).abs() ** 8).clamp(0, 1)


@corruption("pinch_and_twirl")
@dataclass(frozen=True)
class PinchAndTwirl:
    """Pinches the image and twirls it, in circles side by side: 3 a side, 5 in images of 224 pixels and more.

    Parameter: the angle in 9 degrees, either way, and with it how much is pinched.
    """

    settings = {32: (5.5, 6.0, 6.5, 8.5, 10.0)}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        height, width = x.shape[2:]
        side = min(height, width)
        cell = side // (5 if side >= 224 else 3)
        down, right = (torch.arange(size).to(x) % cell - cell / 2 for size in (height, width))
        offset = torch.stack([down[:, None].expand(height, width), right.expand(height, width)])
        distance = torch.hypot(*offset) / (cell / 2)
        # Pixels past the last whole circle stay, and so does its middle.
        whole = [torch.arange(size, device=x.device) < size // cell * cell for size in (height, width)]
        inside = whole[0][:, None] & whole[1] & (distance <= 1) & (distance > 0)
        pinched = offset * torch.sin(math.pi / 2 * distance).clamp(min=1e-9) ** (-0.1 - 0.04 * setting)
        ways = 1 - 2 * draw.integers("ways", 0, 2, width // cell, height // cell).to(x)
        ways = pad(ways.transpose(1, 2), (0, 1, 0, 1))
        way = ways[:, torch.arange(height) // cell][:, :, torch.arange(width) // cell]
        angle = way * 0.05 * math.pi * setting * (1 - distance) ** 2
        twirled = torch.stack([pinched[0] * angle.cos() - pinched[1] * angle.sin(), pinched[0] * angle.sin() + pinched[1] * angle.cos()], 1)
        moved = torch.where(inside, twirled - offset, 0)
        rows, columns = torch.arange(height).to(x)[:, None] + moved[:, 0], torch.arange(width).to(x) + moved[:, 1]
        return sampled(x, rows, columns) + NUDGE


@corruption("ripple")
@dataclass(frozen=True)
class Ripple:
    """Moves rows up and down and columns to and fro by sines of random wavelength and phase.

    Parameter: their amplitude, in 1/400 of the shorter side.
    """

    settings = {32: (5.5, 6.0, 6.5, 7.5, 8.0)}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        height, width = x.shape[2:]
        side = min(height, width)
        lengths = draw.uniform("wavelengths", 2, 1, low=0.1, high=0.3).to(x) * side
        phases = draw.uniform("phases", 2, 1, high=2 * math.pi).to(x)
        rows, columns = (
            torch.arange(size).to(x) + 0.0025 * setting * side * torch.sin(2 * math.pi * torch.arange(size).to(x) / length + phase)
            for size, length, phase in zip((height, width), lengths.unbind(1), phases.unbind(1), strict=True)
        )
        return sampled(x, rows[:, :, None], columns[:, None]) + NUDGE


def sampled(x: Images, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, C, H, W) the images at fractional places, linearly between the four pixels around; outside is black.

    Args:
        rows: (B, H, W), (B, H, 1) or (B, 1, W) places in pixels.
        columns: likewise.
    """
    height, width = x.shape[2:]
    top, left = rows.floor(), columns.floor()
    total = torch.zeros_like(x)
    for row, row_weight in ((top, 1 - (rows - top)), (top + 1, rows - top)):
        for column, column_weight in ((left, 1 - (columns - left)), (left + 1, columns - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            at = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            found = x.flatten(2).gather(2, at.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view_as(x)
            total += (row_weight * column_weight * inside)[:, None] * found
    return total
