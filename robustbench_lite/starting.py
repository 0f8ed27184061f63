"""Where decision-based attacks start: an image that is broken, however far, and the way back from it to the boundary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from .classifier import Images
from .oracle import Labels
from .rows import per_sample
from .streams import Streams

CELLS = (2, 4, 0, 1)  # of black and white noise along a side; 0: every pixel its own; 1: a plain colour
FRAMES = 12  # images of noise of each coarseness
MOST_QUERIES = 12 + FRAMES * len(CELLS)
"""What `broken_start` asks of a row at most."""

HALVINGS = 24
"""After so many the way is shorter than float32 tells."""


def broken_start(oracle: Labels, draw: Streams) -> tuple[Images, Tensor]:
    """For each row an image in [0, 1] that meets the criterion, and (B,) bool whether one was found; without, the origin.

    The nearer ones first. What is tried next is asked of the rows only that still lack one.
    """
    return first_broken(oracle, _candidates(oracle.origin, draw))


def first_broken(oracle: Labels, candidates: Iterable[Images]) -> tuple[Images, Tensor]:
    """For each row the first of the candidates that is broken, and (B,) bool whether one is; without, the origin."""
    x, found = oracle.origin.clone(), torch.zeros(len(oracle.origin), dtype=torch.bool, device=oracle.origin.device)
    for tried in candidates:
        rows = (~found).nonzero()[:, 0]
        if not len(rows):
            break
        with oracle.among(rows) as some:
            met = some.broken(tried[rows])
        x[rows[met]] = tried[rows[met]]
        found[rows[met]] = True
    return x, found


def _candidates(origin: Images, draw: Streams) -> Iterator[Images]:
    """The image in noise that grows, turned round and in other light, plain, and pure noise, fine and coarse."""
    noise = draw.uniform("noise to start from", *origin.shape[1:]).to(origin)
    for share in (0.25, 0.5, 0.75):
        yield origin.lerp(noise, share)
    yield from (origin.flip(3), origin.flip(2), 1 - origin, (2 * origin - 0.5).clamp(0, 1), (4 * origin - 1.5).clamp(0, 1))
    yield from (torch.full_like(origin, level) for level in (0.5, 0.0, 1.0))
    yield noise
    yield from corners(origin, draw)


def corners(origin: Images, draw: Streams) -> Iterator[Images]:
    """Of the box: black and white noise, fine and coarse."""
    height, width = origin.shape[2:]
    for cells in CELLS:
        shape = (min(cells or height, height), min(cells or width, width))
        # rounded to black and white: the last resort should be as unlike the image as noise can be
        frames = draw.uniform(f"starts of {cells}", FRAMES, origin.shape[1], *shape).round().to(origin)
        for frame in frames.unbind(1):
            yield functional.interpolate(frame, (height, width))


def bisected(oracle: Labels, near: Images, far: Images, tolerance: Tensor | float, left: Tensor | float = HALVINGS) -> Images:
    """The broken images on the way from `near` to `far` that lie within `tolerance` of the boundary; each row pays for itself only.

    The way is that of the ball's projection: in l2 a straight line, in linf far cut off at growing distances from near.

    Args:
        near, far: (B, C, H, W) unbroken and broken images.
        tolerance: 0-d or (B,), a distance in the ball's norm.
        left: (B,) queries that a row may still ask.
    """
    low, high, best = torch.zeros_like(far[:, 0, 0, 0]), oracle.threat.distance(far, near), far.clone()
    for asked in range(HALVINGS):
        rows = ((high - low > tolerance) & (torch.as_tensor(left, device=far.device) > asked)).nonzero()[:, 0]
        if not len(rows):
            break
        middle = (low[rows] + high[rows]) / 2
        tried = replace(oracle.threat, eps=middle).project(far[rows], near[rows])
        with oracle.among(rows) as some:
            met = some.broken(tried)
        low[rows], high[rows] = torch.where(met, low[rows], middle), torch.where(met, middle, high[rows])
        best[rows] = torch.where(per_sample(met, tried), tried, best[rows])
    return best
