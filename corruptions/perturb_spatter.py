"""Sequences of water that runs down (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from robustbench_lite.filters import NUDGE, gaussian
from robustbench_lite.registry import perturbation
from robustbench_lite.sequences import Picture, is_large
from robustbench_lite.streams import Streams

from .spatter import water


@perturbation("spatter")
@dataclass(frozen=True)
class Spatter:
    """Drops of water on the lens, blurred noise above a threshold, that run down by a pixel or two a frame for 31 frames."""

    against_first = False
    colour = True

    def __call__(self, picture: Picture, draw: Streams, difficulty: int) -> Tensor:
        large = is_large(picture)
        mean, deviation, sigma, threshold = (0.65, 0.27, 3.7, 0.69) if large else (0.6, 0.265, 1.75, 0.7)
        noise = draw.normal("drops", *picture.shape[1:]).to(picture)
        liquid = gaussian(mean + deviation * noise, sigma)
        layers = [liquid.where(liquid >= threshold, 0)]
        for _ in range(30):
            layers.append(_run((0.7, 0.15, 0.1, 0.05) if large else (0.8, 0.2), layers[-1]))
        return picture + water(torch.cat(layers), 0.6) + NUDGE


def _run(weights: Sequence[float], layer: Tensor) -> Tensor:
    """(1, H, W) a frame later: every pixel a mean of those above it, itself and one below, nothing coming in at the borders."""
    above = len(weights) // 2
    column = pad(layer, (0, 0, above, len(weights) - 1 - above))
    return torch.stack([weight * column[:, i : i + layer.shape[1]] for i, weight in enumerate(weights)]).sum(0)
