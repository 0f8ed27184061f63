"""How the square attack changes an image under each norm: linf, l2 (Andriushchenko et al., ECCV 2020), l1 (Croce & Hein, ICML 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from .classifier import Images
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


def corner(u: Tensor, side: Tensor, length: int) -> Tensor:
    """(B,) where windows of these sides begin, uniformly by u (B,) in [0, 1); never so that the last pixel is covered, as published."""
    return (u * (length - side)).long()


def span(u: Tensor, side: Tensor, length: int) -> Tensor:
    """(B, length) bool, the pixels of one axis that the windows cover."""
    first, pixels = corner(u, side, length)[:, None], torch.arange(length, device=u.device)
    return (pixels >= first) & (pixels < first + side[:, None])


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
        # the paper adds 2 eps and projects: from any point of the ball that ends at its edge, where this starts
        edge = (origin + per_sample(threat.eps, origin) * (2 * u[:, 2:] - 1).sign()[:, :, None, None]).clamp_(0, 1)
        side = sides.of_row
        rows, columns = span(u[:, 0], side, x.shape[2]), span(u[:, 1], side, x.shape[3])
        return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], edge, x)


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
        return self._reached(delta, origin, threat)

    def move(self, x: Images, origin: Images, threat: Ball, sides: Sides, u: Tensor) -> Images:
        height, width = x.shape[2:]
        delta, side = x - origin, sides.of_row
        to_rows, to_columns = span(u[:, 0], side, height), span(u[:, 1], side, width)
        from_rows, from_columns = span(u[:, 2], side, height), span(u[:, 3], side, width)
        sizes = self._sizes(delta)

        def within(rows: Tensor, columns: Tensor) -> Tensor:
            return torch.einsum("bchw,bw,bh->bc", sizes, columns.to(x), rows.to(x))

        there = within(to_rows, to_columns)
        both = there + within(from_rows, from_columns) - within(to_rows & from_rows, to_columns & from_columns)
        unused = (threat.eps**self.order - sizes.flatten(1).sum(1)).clamp(min=0)
        budget = per_sample(unused, both) / x.shape[1] + both.clamp(min=0)
        if self.overshoot:
            budget = budget * x.shape[1]
        inside = (to_rows[:, :, None] & to_columns[:, None, :])[:, None]
        emptied = (from_rows[:, :, None] & from_columns[:, None, :])[:, None]
        shape = self._placed(x, sides, u)[:, None] * (2 * u[:, 5:] - 1).sign()[:, :, None, None]
        fresh = (shape + delta / (self._length(there) + 1e-12)[:, :, None, None]) * inside
        scale = self._length(budget) / (self._length(self._sizes(fresh).sum((2, 3))) + 1e-12)
        delta = torch.where(inside, fresh * scale[:, :, None, None], delta.masked_fill(emptied, 0))
        return self._reached(delta, origin, threat)

    def _placed(self, x: Images, sides: Sides, u: Tensor) -> Tensor:
        """(B, H, W) the pattern where each row's window is, turned or not; outside of the window it means nothing."""
        table = patterns(sides.sizes, self.order, self.falloff).to(x)
        rows, columns = (
            (torch.arange(length, device=x.device) - corner(u[:, axis], sides.of_row, length)[:, None]).clamp(0, table.shape[1] - 1)
            for axis, length in enumerate(x.shape[2:])
        )
        kind = sides.level + len(sides.sizes) * (u[:, 4] > 0.5)
        return table[kind[:, None, None], rows[:, :, None], columns[:, None, :]]

    def _reached(self, delta: Images, origin: Images, threat: Ball) -> Images:
        """At the edge of the ball in this direction."""
        length = self._length(self._sizes(delta).flatten(1).sum(1)).clamp(min=1e-30)
        return threat.project(origin + delta * per_sample((threat.eps / length).clamp(min=1), delta), origin)

    def _sizes(self, delta: Tensor) -> Tensor:
        return delta.abs() if self.order == 1 else delta.square()

    def _length(self, total: Tensor) -> Tensor:
        return total if self.order == 1 else total.sqrt()


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
