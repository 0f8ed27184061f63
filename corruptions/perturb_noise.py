"""Noise in sequences: independent at every frame (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_lite.registry import perturbation
from robustbench_lite.sequences import Picture, is_large
from robustbench_lite.streams import Streams

NOISY = 30
"""Frames, after the clean first one."""


@perturbation("gaussian_noise")
@dataclass(frozen=True)
class GaussianNoise:
    """Add normal noise; parameter: its standard deviation, in image units, by difficulty."""

    against_first = True

    def __call__(self, picture: Picture, draw: Streams, difficulty: int) -> Tensor:
        deviation = ((0.03, 0.05, 0.08) if is_large(picture) else (0.02, 0.04, 0.06))[difficulty - 1]
        return _after(picture, picture + deviation * draw.normal("noise", NOISY, *picture.shape)[0].to(picture))


@perturbation("shot_noise")
@dataclass(frozen=True)
class ShotNoise:
    """Count photons; parameter: how many a white pixel gets, by difficulty."""

    against_first = True

    def __call__(self, picture: Picture, draw: Streams, difficulty: int) -> Tensor:
        photons = ((300, 120, 60) if is_large(picture) else (700, 400, 200))[difficulty - 1]
        rates = torch.arange(256, dtype=torch.float64) / 255 * photons
        grey = (picture * 255).round().long().expand(1, NOISY, *picture.shape)
        return _after(picture, draw.poisson("noise", grey, rates)[0].to(picture) / photons)


@perturbation("speckle_noise")
@dataclass(frozen=True)
class SpeckleNoise:
    """Multiply by normal noise around 1; parameter: its standard deviation, by difficulty."""

    against_first = True

    def __call__(self, picture: Picture, draw: Streams, difficulty: int) -> Tensor:
        deviation = ((0.05, 0.1, 0.15) if is_large(picture) else (0.05, 0.07, 0.1))[difficulty - 1]
        return _after(picture, picture + picture * deviation * draw.normal("noise", NOISY, *picture.shape)[0].to(picture))


def _after(picture: Picture, noisy: Tensor) -> Tensor:
    return torch.cat([picture[None], noisy])
