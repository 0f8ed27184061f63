"""What hides parts in ImageNet-C-bar and CIFAR-10-C-bar: a checkerboard, lines (Mintun et al., NeurIPS 2021, https://arxiv.org/abs/2102.11273)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

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

    Parameter: their number, in tenths of the shorter side in pixels; there is one at least.
    """

    settings = {32: (0.5, 1.0, 1.5, 2.0, 2.5)}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        height, width = x.shape[2:]
        side = min(height, width)
        angle = draw.uniform("angle", 1, high=2 * math.pi).to(x)
        variation = draw.uniform("variation", 1, low=0.1, high=1.0).to(x)
        right, down, turn = draw.uniform("lines", max(1, int(0.1 * setting * side)), 3).to(x).unbind(2)
        angles = angle + 2 * math.pi * variation * (turn - 0.5)
        middles = torch.stack([right * height, down * width], 1)  # the published x is the row
        reach = side * torch.stack([angles.cos(), angles.sin()], 1)
        levels = pad((x * 255).round().flatten(2), (0, 1))  # and a place for what lies outside
        for start, end in zip((middles - reach).trunc().unbind(2), (middles + reach).trunc().unbind(2), strict=True):
            at, covered = _line(height, width, start, end)
            at = at[:, None].expand(-1, x.shape[1], -1)
            drawn = (1 - covered[:, None]) * levels.gather(2, at) + covered[:, None] * 128
            levels.scatter_(2, at, drawn.trunc())  # to 8 bits after every line
        return levels[..., :-1].reshape_as(x).to(torch.uint8)


def _line(height: int, width: int, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Where in flattened images the pixels of a line are, height * width for those outside, and their share under it, (B, N) each.

    The published lines are those of Zingl's algorithm (https://zingl.github.io/bresenham.html). In closed form: the pixels nearer than
    1 to the line, from the start's row or column to the end's, less the corner before the start and the one behind the end, are
    covered to 1 less their distance.

    Args:
        start: (B, 2) whole row and column.
        end: (B, 2), another pixel.
    """
    steep = (end - start).abs().diff(dim=1) < 0
    (begin, side), (finish, other) = (torch.where(steep, point, point.flip(1)).chunk(2, 1) for point in (start, end))
    length, rise = (finish - begin).abs(), (other - side).abs()
    places = torch.arange(max(height, width)).to(start)  # rows of a steep line, columns of another
    walked = (places - begin) * torch.where(finish > begin, 1, -1)
    risen = (walked * rise / length).floor()[:, :, None] + torch.arange(-1, 3).to(start)
    beside = risen * length[:, :, None] - (walked * rise)[:, :, None]
    after, before = (walked[:, :, None] - end for end in (0, length[:, :, None]))
    within = (after >= 0) & (before <= 0) & ~((after == 0) & (beside < 0)) & ~((before == 0) & (beside > 0))
    covered = (1 - beside.abs() / torch.hypot(length, rise)[:, :, None]).clamp(min=0) * within
    across = side[:, :, None] + risen * torch.where(other > side, 1, -1)[:, :, None]
    along = places[:, None].expand_as(across)
    row, column = torch.where(steep[:, :, None], along, across), torch.where(steep[:, :, None], across, along)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    at = torch.where(inside, row * width + column, height * width).long()
    return at.flatten(1), (covered * inside).flatten(1)
