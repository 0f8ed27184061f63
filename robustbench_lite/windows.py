"""How the square attack changes an image under each norm: linf, l2 (Andriushchenko et al., ECCV 2020), l1 (Croce & Hein, ICML 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import torch
from torch import Tensor

from .classifier import Images
from .results import WITHIN
from .rows import per_sample
from .streams import Streams
from .threat import Ball


@dataclass(frozen=True)
class Sides:
    """The sides that windows come in, and which of them each row uses now: `level` (B,)."""

    sizes: tuple[int, ...]
    level: Tensor

    @property
    def of_row(self) -> Tensor:
        """(B,)"""
        return torch.tensor(self.sizes, device=self.level.device)[self.level]


@dataclass(frozen=True)
class Patches:
    """P square windows in every row, at places of their own: what a move costs then goes with the windows and not with the image.

    Args:
        corner: (B, P, 2) row and column of the first pixel.
        side: (B,) of all windows of a row.
        lengths: (2,) height and width of the images.
    """

    corner: Tensor
    side: Tensor
    lengths: Tensor

    @classmethod
    def at(cls, u: Tensor, side: Tensor, height: int, width: int) -> Patches:
        """Where u (B, 2 P), uniform in [0, 1), says; never so that the last row or column is covered, as published."""
        lengths = torch.tensor([height, width], device=u.device)
        corner = (u.view(len(u), -1, 2) * (lengths - side[:, None])[:, None]).long()
        return cls(corner, side, lengths)

    @cached_property
    def pixels(self) -> Tensor:
        """(B, P, 2, S) rows and columns, for the largest side S: the smaller windows are read with some of the pixels around them."""
        size = int(self.side.max())
        return self.corner.minimum(self.lengths - size)[..., None] + torch.arange(size, device=self.side.device)

    @cached_property
    def inside(self) -> Tensor:
        """(B, P, S, S) bool: what belongs to each window of what is read for it."""
        return self.within(self.corner)

    def within(self, corner: Tensor) -> Tensor:
        """(B, P, S, S) bool: which of the pixels that are read belong to windows at these corners (B, 1 or P, 2)."""
        away = self.pixels - corner[..., None]
        near = (away >= 0) & (away < self.side[:, None, None, None])
        return near[:, :, 0, :, None] & near[:, :, 1, None, :]

    def read(self, images: Images) -> Tensor:
        """(B, C, P, S, S)"""
        index = self._index.flatten(1)[:, None].expand(-1, images.shape[1], -1)
        return images.flatten(2).gather(2, index).view(*images.shape[:2], *self._index.shape[1:])

    def write(self, images: Images, which: int, values: Tensor) -> None:
        """Set what lies in the window of this number to values (B, C, S, S); the images are contiguous."""
        index, inside = self._index[:, which].flatten(1)[:, None].expand(-1, images.shape[1], -1), self.inside[:, which, None]
        flat = images.view(*images.shape[:2], -1)
        if not inside.all():  # smaller windows beside larger ones
            values = torch.where(inside, values, flat.gather(2, index).view_as(values))
        flat.scatter_(2, index, values.flatten(2))

    @cached_property
    def _index(self) -> Tensor:
        """(B, P, S, S) of pixels."""
        return self.pixels[:, :, 0, :, None] * self.lengths[1] + self.pixels[:, :, 1, None, :]


class Moves(Protocol):
    """How an image is changed from one query to the next under one norm."""

    def numbers(self, channels: int) -> int:
        """How many uniform numbers a move needs."""

    def side(self, area: float, height: int, width: int) -> int:
        """Of a window that covers this share of the image."""

    def start(self, origin: Images, threat: Ball, draw: Streams) -> Images: ...

    def move(self, x: Images, origin: Images, threat: Ball, sides: Sides, u: Tensor) -> Images: ...


class Squares:
    """linf: stripes of one pixel, then squares, set to the edge of the ball with one sign per channel."""

    def numbers(self, channels: int) -> int:
        return 2 + channels

    def side(self, area: float, height: int, width: int) -> int:
        return min(max(round(math.sqrt(area * height * width)), 1), height, width)

    def start(self, origin: Images, threat: Ball, draw: Streams) -> Images:
        signs = draw.uniform("stripes", origin.shape[1], 1, origin.shape[3], low=-1.0, high=1.0).sign()
        return (origin + per_sample(threat.eps, origin) * signs).clamp_(0, 1)

    def move(self, x: Images, origin: Images, threat: Ball, sides: Sides, u: Tensor) -> Images:
        window, moved = Patches.at(u[:, :2], sides.of_row, *x.shape[2:]), x.clone(memory_format=torch.contiguous_format)
        # the paper adds 2 eps and projects: from any point of the ball that ends at its edge, where this starts
        edge = window.read(origin)[:, :, 0] + per_sample(threat.eps, origin) * (2 * u[:, 2:] - 1).sign()[:, :, None, None]
        window.write(moved, 0, edge.clamp_(0, 1))
        return moved


@dataclass(frozen=True)
class Windows:
    """Take what one window holds of the budget, and what is left of it, to another, where it forms a pattern around two centres.

    Args:
        order: of the norm, 1 or 2.
        falloff: the power with which the pattern falls off from its centres.
        overshoot: give the window the budget times the channels, and let the projection take back what is too much.
    """

    order: int
    falloff: int
    overshoot: bool = False

    def numbers(self, channels: int) -> int:
        return 5 + channels

    def side(self, area: float, height: int, width: int) -> int:
        side = max(round(math.sqrt(area * height * width)), 3)
        return min(side + 1 - side % 2, height, width)

    def start(self, origin: Images, threat: Ball, draw: Streams) -> Images:
        """Tiles with one pattern each, five to the shorter edge."""
        _, channels, height, width = origin.shape
        side = max(1, min(height, width) // 5)
        down, across = height // side, width // side
        u = draw.uniform("tiles", down, across, 1 + channels)
        upright = pattern(side, self.order, self.falloff).to(origin)
        turned = torch.where((u[..., 0] > 0.5)[..., None, None], upright.T, upright)  # (B, down, across, side, side)
        tiles = turned[..., None, :, :] * (2 * u[..., 1:] - 1).sign()[..., None, None]  # (B, down, across, C, side, side)
        delta, top, left = torch.zeros_like(origin), (height - down * side) // 2, (width - across * side) // 2
        tiled = tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, down * side, across * side)
        delta[:, :, top : top + down * side, left : left + across * side] = tiled
        length = self._length(self._sizes(delta).flatten(1).sum(1)).clamp(min=1e-30)
        return threat.project(origin + delta * per_sample((threat.eps / length).clamp(min=1), delta), origin)

    def move(self, x: Images, origin: Images, threat: Ball, sides: Sides, u: Tensor) -> Images:
        two = Patches.at(u[:, :4], sides.of_row, *x.shape[2:])  # to the first, from the second
        clean = two.read(origin)
        own = torch.stack([two.inside[:, 0], two.inside[:, 1] & ~two.within(two.corner[:, :1])[:, 1]], 1)  # no pixel twice
        delta = (two.read(x) - clean) * own[:, None]
        held = self._sizes(delta).sum((3, 4))  # (B, C, 2)
        there, both = held[:, :, 0], held.sum(2)
        spent = threat.distance(x, origin) ** self.order
        # below zero where rounding has spent too much: so the next move gives it back
        unused = threat.eps**self.order - spent
        budget = (per_sample(unused, both) / x.shape[1] + both).clamp(min=0)
        if self.overshoot:
            budget = budget * x.shape[1]
        fresh = self._shape(two, sides, u[:, 4], x)[:, None] * (2 * u[:, 5:] - 1).sign()[:, :, None, None]
        fresh = (fresh + delta[:, :, 0] / (self._length(there) + 1e-12)[:, :, None, None]) * own[:, None, 0]
        fresh *= (self._length(budget) / (self._length(self._sizes(fresh).sum((2, 3))) + 1e-12))[:, :, None, None]
        moved = x.clone(memory_format=torch.contiguous_format)
        two.write(moved, 1, clean[:, :, 1])
        two.write(moved, 0, clean[:, :, 0] + fresh)
        # the rest is as it was, so that most moves end at the edge of the ball as they are
        now = spent - both.sum(1) + self._sizes(fresh).sum((1, 2, 3))
        outside = (now > (threat.eps * (1 + WITHIN / 2)) ** self.order).nonzero()[:, 0]
        if len(outside):
            far, start = moved.index_select(0, outside), origin.index_select(0, outside)
            moved.index_copy_(0, outside, sparsely_projected(far, start, threat.take(outside)))
        return moved.clamp_(0, 1)

    def _shape(self, windows: Patches, sides: Sides, u: Tensor, x: Images) -> Tensor:
        """(B, S, S) the pattern where each row's first window is, turned or not; outside of the window it means nothing."""
        table = patterns(sides.sizes, self.order, self.falloff).to(x)
        place = (windows.pixels - windows.corner[..., None])[:, 0].clamp(0, table.shape[1] - 1)
        kind = sides.level + len(sides.sizes) * (u > 0.5)
        return table[kind[:, None, None], place[:, 0, :, None], place[:, 1, None, :]]

    def _sizes(self, delta: Tensor) -> Tensor:
        return delta.abs() if self.order == 1 else delta.square()

    def _length(self, total: Tensor) -> Tensor:
        return total if self.order == 1 else total.sqrt()


def sparsely_projected(x: Images, origin: Images, threat: Ball) -> Images:
    """`threat.project` on those values alone that have moved, which are few in l1; what has not moved stays where it is."""
    start, result = origin.flatten(1), x.flatten(1).clone()
    row, value = (result != start).nonzero().unbind(1)
    count = torch.bincount(row, minlength=len(x))
    place = torch.arange(len(row), device=x.device) - (count.cumsum(0) - count)[row]
    before, after = (torch.zeros(len(x), int(count.max()), device=x.device, dtype=x.dtype) for _ in range(2))
    before[row, place], after[row, place] = start[row, value], result[row, value]
    result[row, value] = threat.project(after, before)[row, place]
    return result.view_as(x)


def pattern(side: int, order: int, falloff: int) -> Tensor:
    """(side, side) float64 of norm 1: positive around the centre of its upper half, negative around the lower one's."""
    delta = torch.zeros(side, side, dtype=torch.float64)
    for rows, sign in ((slice(0, side // 2), 1), (slice(side // 2, side), -1)):
        half = delta[rows]
        down, across = (torch.arange(n) - n // 2 for n in half.shape)
        # the published loop adds 1 / k^falloff on squares that grow around the centre: at distance d, all terms from d + 1 on
        terms = torch.arange(1, max(half.shape) // 2 + 2, dtype=torch.float64) ** -falloff
        sums = terms.flip(0).cumsum(0).flip(0)
        half.copy_(sign * sums[torch.maximum(down.abs()[:, None], across.abs())])
        half /= torch.linalg.vector_norm(half, ord=order) if half.numel() else 1
    delta /= torch.linalg.vector_norm(delta, ord=order)
    return delta


@lru_cache(maxsize=16)
def patterns(sides: tuple[int, ...], order: int, falloff: int) -> Tensor:
    """(2 * sides, S, S), the pattern of every side, padded to the largest; then all of them turned."""
    table = torch.zeros(len(sides), max(sides), max(sides), dtype=torch.float32)
    for place, side in zip(table, sides, strict=True):
        place[:side, :side] = pattern(side, order, falloff)
    return torch.cat([table, table.transpose(1, 2)])


MOVES: dict[str, Moves] = {"linf": Squares(), "l2": Windows(order=2, falloff=2), "l1": Windows(order=1, falloff=4, overshoot=True)}
"""By norm."""
