"""Noise of ImageNet-C, independent per value (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams


@corruption("gaussian_noise")
@dataclass(frozen=True)
class GaussianNoise:
    """Add normal noise; the parameter is its standard deviation, of images in [0, 1]."""

    settings = {
        224: (0.08, 0.12, 0.18, 0.26, 0.38),
        32: (0.04, 0.06, 0.08, 0.09, 0.10),
        64: (0.04, 0.08, 0.12, 0.15, 0.18),
        299: (0.09, 0.13, 0.19, 0.27, 0.40),
    }

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        return x + setting * draw.normal("noise", *x.shape[1:])


@corruption("shot_noise")
@dataclass(frozen=True)
class ShotNoise:
    """Count photons; the parameter is how many, on average, make white."""

    settings = {
        224: (60, 25, 12, 5, 3),
        32: (500, 250, 100, 75, 50),
        64: (250, 100, 50, 30, 15),
        299: (50, 20, 10, 5, 3),
    }

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        rates = torch.arange(256, dtype=torch.float64) / 255 * setting
        return draw.poisson("counts", (x * 255).round().long(), rates).to(x.device, x.dtype) / setting


@corruption("impulse_noise")
@dataclass(frozen=True)
class ImpulseNoise:
    """Set values (of single channels, not whole pixels) to 0 or 1, each as often; the parameter is the share that is set."""

    settings = {
        224: (0.03, 0.06, 0.09, 0.17, 0.27),
        32: (0.01, 0.02, 0.03, 0.05, 0.07),
        64: (0.01, 0.02, 0.05, 0.08, 0.14),
        299: (0.04, 0.07, 0.10, 0.18, 0.28),
    }

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        chance = draw.uniform("chance", *x.shape[1:])
        return x.where(chance >= setting, (chance < setting / 2).to(x.dtype))


@corruption("speckle_noise")
@dataclass(frozen=True)
class SpeckleNoise:
    """Add normal noise that grows with the value; the parameter is its standard deviation where the image is white."""

    settings = {
        224: (0.15, 0.20, 0.35, 0.45, 0.60),
        32: (0.06, 0.10, 0.12, 0.16, 0.20),
        64: (0.15, 0.20, 0.25, 0.30, 0.35),
        299: (0.16, 0.21, 0.36, 0.46, 0.61),
    }

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        return x + x * (setting * draw.normal("noise", *x.shape[1:]))
