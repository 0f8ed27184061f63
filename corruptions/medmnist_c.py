"""MedMNIST-C (Di Salvo et al., 2024, https://arxiv.org/abs/2406.17536): the sets of pneumonia, retina and derma.

What ImageNet-C has is used with other parameters. `characters` of derma is left out: it writes in a font of OpenCV's. The published
files hold images of 224 pixels; grey ones were corrupted as colour images and made grey again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from robustbench_lite.classifier import Images
from robustbench_lite.corrupting import Member, Pixels, luma
from robustbench_lite.registry import CORRUPTIONS, corruption, suite
from robustbench_lite.streams import Streams

Five = Sequence[Any]
"""Parameters at the severities 1 to 5."""

BRIGHTER, DARKER = (1.1, 1.2, 1.3, 1.4, 1.5), (0.9, 0.8, 0.7, 0.6, 0.5)
STRONGER, WEAKER = (1.1, 1.2, 1.3, 1.4, 1.6), (0.9, 0.8, 0.7, 0.6, 0.4)
DEFOCUS = ((4, 0.1), (5, 0.2), (6, 0.3), (7, 0.4), (8, 0.5))


@corruption("exposure")
@dataclass(frozen=True)
class Exposure:
    """Multiply every level, as Pillow's `Brightness` does; the setting is the factor."""

    settings = {224: DARKER}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Pixels:
        return _blended(_pixels(x).float(), 0, setting)


@corruption("tonal_contrast")
@dataclass(frozen=True)
class TonalContrast:
    """Draw every level towards the mean grey of the image, or away from it, as Pillow's `Contrast` does; the setting is the factor."""

    colour = True
    settings = {224: WEAKER}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Pixels:
        pixels = _pixels(x)
        grey = luma(pixels).long().sum((1, 2, 3), keepdim=True)  # a whole number, whatever the order of adding
        count = x.shape[2] * x.shape[3]
        mean = (2 * grey + count) // (2 * count)  # halves upwards
        return _blended(pixels.float(), mean.float(), setting)


@corruption("gamma")
@dataclass(frozen=True)
class Gamma:
    """Raise every level to a power, as torchvision's `adjust_gamma` does to pictures; the setting is the power, below 1 to brighten."""

    settings = {224: STRONGER}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Pixels:
        table = torch.tensor([int((255 + 1 - 1e-3) * (level / 255) ** setting) for level in range(256)], dtype=torch.uint8, device=x.device)
        return table[_pixels(x).long()]


@corruption("kernel_blur")
@dataclass(frozen=True)
class KernelBlur:
    """Blur by a Gaussian cut off early, as torchvision's `gaussian_blur` does; the setting is the kernel's side in pixels, odd.

    The standard deviation is 0.15 sides + 0.35 pixels. The result is rounded, not truncated. For images of other sizes than the published
    a side may be a fraction, so that no two severities are the same: the kernel then has the next odd number of pixels, 3 at least.
    """

    settings = {224: (3, 5, 7, 9, 11)}

    def scaled(self, setting: float, factor: float) -> float:
        return setting * factor + max(0, factor - 1) * 0.35 / 0.15  # in larger images the deviation is in proportion

    def __call__(self, x: Images, setting: float, draw: Streams) -> Pixels:
        radius = max(1, math.ceil((setting - 1) / 2))
        distance = torch.arange(-radius, radius + 1, dtype=torch.float64) / (0.15 * setting + 0.35)
        kernel = torch.exp(-distance.square() / 2)
        weights = (kernel / kernel.sum()).tolist()
        x = pad(x, (radius,) * 4, mode="reflect")
        for dim in (3, 2):
            size = x.shape[dim] - 2 * radius
            blurred = torch.zeros_like(x.narrow(dim, 0, size))
            for tap, weight in enumerate(weights):  # one after the other, because elementwise sums are rounded alike in every batch
                blurred += weight * x.narrow(dim, tap, size)
            x = blurred
        return _pixels(x)


@corruption("black_corner")
@dataclass(frozen=True)
class BlackCorner:
    """Blacken all but a disc in the middle, as a dermatoscope does; the setting is its radius over half the shorter side.

    Severity 5 is milder than 4 in the published set.
    """

    settings = {224: (1.10, 1.05, 1.00, 0.90, 0.95)}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        height, width = x.shape[2:]
        radius = int(min(height // 2, width // 2) * setting)
        down = torch.arange(height, device=x.device) - height // 2
        right = torch.arange(width, device=x.device) - width // 2
        return x * (down.square()[:, None] + right.square() <= radius**2)


def _pixels(x: Images) -> Pixels:
    return (x * 255).round().to(torch.uint8)


def _blended(levels: Tensor, towards: Tensor | float, factor: float) -> Pixels:
    """In float32 and truncated, as Pillow computes it."""
    return ((levels - towards) * factor + towards).clamp_(0, 255).to(torch.uint8)


@suite("medmnist-c-pneumonia")
def pneumonia() -> list[Member]:
    """The 13 of PneumoniaMNIST-C (grey chest X-rays)."""
    return _members(
        "pneumonia",
        {
            "pixelate": ("pixelate", (0.8, 0.7, 0.6, 0.5, 0.4)),
            "jpeg_compression": ("jpeg_compression", (50, 30, 15, 10, 7)),
            "gaussian_noise": ("gaussian_noise", (0.04, 0.05, 0.06, 0.07, 0.08)),
            "speckle_noise": ("speckle_noise", (0.05, 0.07, 0.10, 0.15, 0.20)),
            "impulse_noise": ("impulse_noise", (0.005, 0.01, 0.013, 0.017, 0.02)),
            "shot_noise": ("shot_noise", (300, 200, 150, 100, 80)),
            "gaussian_blur": ("kernel_blur", (3, 5, 7, 9, 11)),
            "brightness_up": ("exposure", BRIGHTER),
            "brightness_down": ("exposure", DARKER),
            "contrast_up": ("tonal_contrast", STRONGER),
            "contrast_down": ("tonal_contrast", WEAKER),
            "gamma_corr_up": ("gamma", STRONGER),
            "gamma_corr_down": ("gamma", WEAKER),
        },
        grey=True,
    )


@suite("medmnist-c-retina")
def retina() -> list[Member]:
    """The 8 of RetinaMNIST-C (fundus photographs)."""
    return _members(
        "retina",
        {
            "pixelate": ("pixelate", (0.8, 0.6, 0.5, 0.4, 0.35)),
            "jpeg_compression": ("jpeg_compression", (30, 25, 20, 10, 5)),
            "gaussian_noise": ("gaussian_noise", (0.04, 0.08, 0.12, 0.16, 0.20)),
            "speckle_noise": ("speckle_noise", (0.10, 0.15, 0.20, 0.25, 0.30)),
            "defocus_blur": ("defocus_blur", DEFOCUS),
            "motion_blur": ("motion_blur", ((8, 5), (15, 5), (15, 8), (15, 12), (20, 15))),
            "brightness_down": ("exposure", DARKER),
            "contrast_down": ("tonal_contrast", WEAKER),
        },
    )


@suite("medmnist-c-derma")
def derma() -> list[Member]:
    """The 14 of DermaMNIST-C (dermatoscopic photographs) that need no font."""
    return _members(
        "derma",
        {
            "pixelate": ("pixelate", (0.7, 0.5, 0.4, 0.3, 0.25)),
            "jpeg_compression": ("jpeg_compression", (30, 20, 15, 10, 7)),
            "gaussian_noise": ("gaussian_noise", (0.04, 0.08, 0.12, 0.18, 0.26)),
            "speckle_noise": ("speckle_noise", (0.05, 0.15, 0.2, 0.35, 0.45)),
            "impulse_noise": ("impulse_noise", (0.01, 0.03, 0.06, 0.09, 0.17)),
            "shot_noise": ("shot_noise", (60, 25, 18, 10, 5)),
            "defocus_blur": ("defocus_blur", DEFOCUS),
            "motion_blur": ("motion_blur", ((10, 5), (15, 5), (15, 8), (15, 12), (20, 15))),
            "zoom_blur": ("zoom_blur", None),
            "brightness_up": ("exposure", BRIGHTER),
            "brightness_down": ("exposure", DARKER),
            "contrast_up": ("tonal_contrast", STRONGER),
            "contrast_down": ("tonal_contrast", (0.8, 0.7, 0.6, 0.5, 0.4)),
            "black_corner": ("black_corner", None),
        },
    )


def _members(data: str, listed: Mapping[str, tuple[str, Five | None]], *, grey: bool = False) -> list[Member]:
    """Members from {name: (registered corruption, its parameters at 224 pixels; None for its own)}."""
    return [
        Member(f"{data}/{name}", CORRUPTIONS.build(done), None if five is None else {224: five}, through_colour=grey)
        for name, (done, five) in listed.items()
    ]
