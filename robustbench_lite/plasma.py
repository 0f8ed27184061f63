"""Plasma clouds by diamond-square on a torus, as the fog of ImageNet-C has them (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

WIBBLE = 100.0
"""Square root of the noise's amplitude on the coarsest grid."""


def plasma(noise: Tensor, decay: float) -> Tensor:
    """Clouds in [0, 1], each stretched to its full range.

    A grid is refined until it is N wide: every new point is the mean of the four about it plus noise, whose amplitude is the square of
    the wibble (as published).

    Args:
        noise: (B, N^2 - 1) in [-1, 1), N a power of two; spent grid by grid: on the middles of the squares, of their
            upper sides, of their left sides.
        decay: by which the wibble is divided from one grid to the next: the larger, the smoother.

    Returns:
        (B, N, N) like the noise.
    """
    size = isqrt(noise.shape[1] + 1)
    corners = noise.new_zeros(len(noise), 1, 1)
    wibble, spent = WIBBLE, 0
    while (count := corners.shape[1]) < size:
        wibbles = (wibble**2 * noise[:, spent : spent + 3 * count**2]).view(-1, 3, count, count)
        pairs = corners + corners.roll(-1, 1)
        middle = wibbles[:, 0].add_(pairs.roll(-1, 2).add_(pairs), alpha=0.25)
        upper = wibbles[:, 1].add_(middle.roll(1, 1).add_(middle).add_(corners.roll(-1, 2).add_(corners)), alpha=0.25)
        left = wibbles[:, 2].add_(middle.roll(1, 2).add_(middle).add_(pairs), alpha=0.25)
        rows = torch.stack((corners, upper), 3), torch.stack((left, middle), 3)
        corners = torch.stack(rows, 2).view(-1, 2 * count, 2 * count)
        wibble, spent = wibble / decay, spent + 3 * count**2
    heights = corners - corners.amin((1, 2), keepdim=True)
    return heights.div_(heights.amax((1, 2), keepdim=True))
