"""Edges (Canny, TPAMI 1986, https://doi.org/10.1109/TPAMI.1986.4767851) and distances (Borgefors, 1986, https://doi.org/10.1016/S0734-189X(86)80047-0).

In whole numbers and as OpenCV finds them.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

TANGENT = 13573
"""Of 22.5 degrees, in 1/2^15."""

ONE = 1 << 16
"""A pixel, in the units of the chamfer distance."""

STRAIGHT, DIAGONAL, KNIGHT = ONE, 91750, 143976
"""What a chamfer distance counts for a step to a neighbour, to a diagonal one, and two along and one across."""


def canny(grey: Tensor, low: int, high: int) -> Tensor:
    """Edges: where the slope is steepest across itself and above `low`, if connected to such a place above `high`.

    Args:
        grey: (B, H, W) int32 grey levels.
        low, high: bounds of the slope |dx| + |dy| of the Sobel filter.

    Returns:
        (B, H, W) bool.
    """
    framed = pad(grey[:, None].float(), (1, 1, 1, 1), "replicate")[:, 0].int()
    rows = framed[:, :-2] + 2 * framed[:, 1:-1] + framed[:, 2:]
    columns = framed[..., :-2] + 2 * framed[..., 1:-1] + framed[..., 2:]
    across, along = rows[..., 2:] - rows[..., :-2], columns[:, 2:] - columns[:, :-2]
    slope = across.abs() + along.abs()

    around = pad(slope, (1, 1, 1, 1))
    height, width = slope.shape[1:]

    def neighbour(down: int, right: int) -> Tensor:
        return around[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    shallow, steep = across.abs() * TANGENT, along.abs() << 15
    sideways = steep < shallow
    upright = steep > shallow + (across.abs() << 16)
    falling = (across ^ along) >= 0  # the gradient points down and right, or up and left
    diagonal = torch.where(falling, neighbour(-1, -1).maximum(neighbour(1, 1)), neighbour(-1, 1).maximum(neighbour(1, -1)))
    # Of two equal neighbours along a row or a column the first is the edge, along a diagonal neither.
    straight = torch.where(sideways, neighbour(0, -1).maximum(neighbour(0, 1) - 1), neighbour(-1, 0).maximum(neighbour(1, 0) - 1))
    crest = (slope > low) & (slope > torch.where(sideways | upright, straight, diagonal))
    return connected(crest & (slope > high), crest)


def connected(seeds: Tensor, within: Tensor) -> Tensor:
    """(B, H, W) bool: what can be reached from the seeds over the eight neighbours without leaving `within`."""
    reached = seeds
    while True:
        tall = reached.clone()
        tall[:, 1:] |= reached[:, :-1]
        tall[:, :-1] |= reached[:, 1:]
        grown = tall.clone()
        grown[..., 1:] |= tall[..., :-1]
        grown[..., :-1] |= tall[..., 1:]
        grown &= within
        if torch.equal(grown, reached):
            return reached
        reached = grown


def chamfer(edges: Tensor, furthest: int) -> Tensor:
    """The distance from the nearest edge along straight, diagonal and knight's steps, as (B, H, W) int32 in 1/ONE pixel.

    Within a row the nearest edge is the one that counts, so that a row's distances and a table of (along, across) do.

    Args:
        edges: (B, H, W) bool.
        furthest: pixels, beyond which distances are not told apart.
    """
    height, width = edges.shape[1:]
    at = torch.arange(width, device=edges.device)
    before = torch.where(edges, at, -furthest).cummax(2).values
    after = torch.where(edges, at, width + furthest).flip(2).cummin(2).values.flip(2)
    aside = torch.minimum(at - before, after - at).clamp(max=furthest).int().flatten()
    table = _chamfers(furthest).to(edges.device)
    nearest = table[0].index_select(0, aside).view(edges.shape)
    for down in range(1, min(furthest, height)):
        distance = table[down].index_select(0, aside).view(edges.shape)
        torch.minimum(nearest[:, down:], distance[:, :-down], out=nearest[:, down:])
        torch.minimum(nearest[:, :-down], distance[:, down:], out=nearest[:, :-down])
    return nearest


@lru_cache(maxsize=4)
def _chamfers(furthest: int) -> Tensor:
    """(furthest + 1, furthest + 1) int32 distances, by rows and by columns."""
    steps = torch.arange(furthest + 1, dtype=torch.int32)
    longer, shorter = steps[:, None].maximum(steps), steps[:, None].minimum(steps)
    mostly_straight = (longer - 2 * shorter) * STRAIGHT + shorter * KNIGHT
    mostly_diagonal = (longer - shorter) * KNIGHT + (2 * shorter - longer) * DIAGONAL
    return torch.where(longer >= 2 * shorter, mostly_straight, mostly_diagonal).clamp(max=furthest * ONE).int()
