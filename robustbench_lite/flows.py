"""Flows: every pixel is taken from a place nearby (Xiao et al., ICLR 2018, https://arxiv.org/abs/1801.02612)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from .balls import Ball
from .classifier import Images
from .errors import UsageError
from .resampling import bilinear
from .rows import per_sample

if TYPE_CHECKING:
    from .streams import Streams

LATTICE = 8
"""Steps of a pixel in which places are counted, so that it can be checked whether an image came about by a flow."""

FARTHEST = 8.0
"""The largest eps, in pixels: to check a flow of that size takes the 16,641 places of the lattice about every pixel."""

SAME_VALUE = 1e-5
"""By which a pixel may differ from what lies at the place that it was taken from: the rounding of two interpolations is far below."""


@dataclass(frozen=True)
class Flow(Ball):
    """Every pixel may be taken from a place at most eps pixels away, along either side, on a lattice of eighths of a pixel.

    Between pixels, values are interpolated; beyond the edge lie the values of the edge. A distance is the largest of the smallest
    displacements that explain each pixel, in pixels; infinite where one cannot be explained within eps.
    """

    norm = "flow"

    def bounded(self, flow: Tensor) -> Tensor:
        """Flows (B, 2, H, W), displacements down and to the right in pixels, cut off at eps."""
        limit = per_sample(self._limit.to(flow.dtype) / LATTICE, flow)
        return torch.maximum(torch.minimum(flow, limit), -limit)

    def warped(self, origin: Images, flow: Tensor) -> Images:
        """The images under flows (B, 2, H, W), rounded to the lattice; with gradients to the flows, as if they were not rounded."""
        flow = flow + ((flow * LATTICE).round() / LATTICE - flow).detach()
        height, width = origin.shape[-2:]
        row, column = torch.arange(height, device=flow.device), torch.arange(width, device=flow.device)
        down, right = (row[:, None] + flow[:, 0]).clamp(0, height - 1), (column + flow[:, 1]).clamp(0, width - 1)
        return bilinear(origin, down, right).clamp(0, 1)

    def distance(self, x: Images, origin: Images) -> Tensor:
        farthest = int(self._limit.max())
        border = farthest // LATTICE + 1
        padded = functional.pad(origin, (border,) * 4, mode="replicate")
        nearest = torch.full_like(x[:, 0], torch.inf)
        for down in range(-farthest, farthest + 1):
            moved = _shifted(padded, down, 2, border)
            for right in range(-farthest, farthest + 1):
                apart = _shifted(moved, right, 3, border).sub_(x).abs_().amax(1)
                size = max(abs(down), abs(right)) / LATTICE
                nearest = torch.where(apart <= SAME_VALUE, nearest.clamp(max=size), nearest)
        needed = nearest.flatten(1).amax(1)
        return needed.where(needed <= self.reach, torch.inf)  # not by how far the others of a batch may go

    def project(self, x: Images, origin: Images) -> Images:
        raise TypeError("what comes nearest to an image among all flows is not known: there is no projection")

    def steepest(self, gradient: Images) -> Images:
        raise TypeError("a flow moves pixels and not values: there are no steps along a gradient of the values")

    def random_point(self, origin: Images, draw: Streams) -> Images:
        """Every pixel from anywhere within eps."""
        drawn = draw.uniform("random point", 2, *origin.shape[-2:], low=-1.0, high=1.0).to(origin)
        return self.warped(origin, self.bounded(per_sample(self.eps.to(origin.dtype), origin) * drawn))

    def edge_point(self, origin: Images, draw: Streams) -> Images:
        """Every pixel from as far away as may be, down or up and right or left."""
        drawn = draw.normal("direction", 2, *origin.shape[-2:]).to(origin)
        return self.warped(origin, self.bounded(drawn.sign() * per_sample(self.eps.to(origin.dtype), origin)))

    @property
    def _limit(self) -> Tensor:
        """eps in steps of the lattice.

        Raises:
            UsageError: it is less than one.
        """
        limit = (self.reach * LATTICE).floor()
        if (limit < 1).any():
            raise UsageError(f"a flow goes by eighths of a pixel: its eps must be {1 / LATTICE:g} or more")
        return limit


def _shifted(padded: Images, steps: int, side: int, border: int) -> Images:
    """A picture with a border along one side, taken from so many steps of the lattice further on, without the border."""
    whole, part = divmod(steps, LATTICE)
    length = padded.shape[side] - 2 * border
    here = padded.narrow(side, border + whole, length)
    # a border is one pixel wider than whole pixels of the flow, so there is a next one
    return here.lerp(padded.narrow(side, border + whole + 1, length), part / LATTICE) if part else here.clone()
