"""What hides parts in ImageNet-C-bar and CIFAR-10-C-bar: a checkerboard, lines (Mintun et al., NeurIPS 2021, https://arxiv.org/abs/2102.11273)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams

CELLS = 40
"""Cells a side of the checkerboard: the most that four image sides hold."""


@corruption("checkerboard_cutout")
@dataclass(frozen=True)
class CheckerboardCutout:
    """Paints some of the black fields of a turned checkerboard grey (128).

    Parameter: the share of them, in tenths.
    """

    settings = {224: (2.0, 3.0, 4.0, 5.0, 6.0), 32: (1.0, 2.0, 3.0, 4.0, 5.0)}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        height, width = x.shape[2:]
        angle = draw.uniform("angle", 1, 1, high=2 * math.pi).to(x)
        cell = (draw.uniform("cell", 1, 1, low=0.1, high=0.25).to(x) * min(height, width)).clamp(min=1)
        painted = draw.uniform("cells", CELLS, CELLS) < setting / 10
        rows, columns = torch.arange(height).to(x)[:, None], torch.arange(width).to(x)
        down = (torch.cos(angle) * rows + torch.sin(angle) * columns) / cell
        right = (torch.cos(angle) * columns - torch.sin(angle) * rows) / cell
        # Towards 0 as published, so that the cells on both sides of an axis are one and their colours are not.
        at = down.long() % CELLS * CELLS + right.long() % CELLS
        black = down.remainder(2).long() == right.remainder(2).long()
        hidden = black & painted.flatten(1).gather(1, at.flatten(1)).view_as(black)
        return torch.where(hidden[:, None], 128 / 255, x)


@corruption("lines")
@dataclass(frozen=True)
class Lines:
    """Draws grey (128) lines of random places and directions, smoothed, two image sides long.

    Parameter: their number, in tenths of the shorter side in pixels.
    """

    settings = {32: (0.5, 1.0, 1.5, 2.0, 2.5)}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        height, width = x.shape[2:]
        side = min(height, width)
        angle = draw.uniform("angle", 1, high=2 * math.pi).to(x)
        variation = draw.uniform("variation", 1, low=0.1, high=1.0).to(x)
        right, down, turn = draw.uniform("lines", int(0.1 * setting * side), 3).to(x).unbind(2)
        angles = angle + 2 * math.pi * variation * (turn - 0.5)
        middles = torch.stack([right * height, down * width], 1)  # the published x is the row
        reach = side * torch.stack([angles.cos(), angles.sin()], 1)
        levels = (x * 255).round()
        for start, end in zip((middles - reach).trunc().unbind(2), (middles + reach).trunc().unbind(2), strict=True):
            covered = _line(x, start, end)
            levels = ((1 - covered) * levels + covered * 128).trunc()  # to 8 bits after every line
        return levels.to(torch.uint8)


def _line(like: Images, start: Tensor, end: Tensor) -> Tensor:
    """(B, 1, H, W) the share of each pixel under a line between two pixels: 1 less its distance from the line.

    The published lines are those of Zingl's algorithm (https://zingl.github.io/bresenham.html). In closed form: the pixels nearer than
    1 to the line, from the start's row or column to the end's, less the corner before the start and the one behind the end.

    Args:
        start: (B, 2) whole row and column.
        end: (B, 2).
    """
    direction = (end - start).sign()[:, :, None, None]
    rows, columns = (end - start).abs()[:, :, None, None].unbind(1)
    down = (torch.arange(like.shape[2]).to(like)[:, None] - start[:, :1, None]) * direction[:, 0]
    right = (torch.arange(like.shape[3]).to(like) - start[:, 1:, None]) * direction[:, 1]
    steep = rows > columns
    beside = torch.where(steep, right * rows - down * columns, down * columns - right * rows)
    along, length = torch.where(steep, down, right), torch.maximum(rows, columns)
    within = (along >= 0) & (along <= length) & ~((along == 0) & (beside < 0)) & ~((along == length) & (beside > 0))
    distance = beside.abs() / torch.hypot(rows, columns).clamp(min=1)
    return ((1 - distance).clamp(min=0) * within)[:, None]
