"""The sets of ImageNet-C-bar and CIFAR-10-C-bar (Mintun et al., NeurIPS 2021, https://arxiv.org/abs/2102.11273)."""

from __future__ import annotations

from robustbench_lite.corrupting import Member
from robustbench_lite.registry import suite

from .suites import named

IMAGENET_C_BAR = (
    "blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout", "cocentric_sine_waves", "inverse_sparkles",
    "perlin_noise", "plasma_noise", "single_frequency_greyscale", "sparkles",
)  # fmt: skip
CIFAR_C_BAR = (
    "blue_noise_sample", "brownish_noise", "checkerboard_cutout", "circular_motion_blur", "inverse_sparkles", "lines", "pinch_and_twirl",
    "ripple", "sparkles", "transverse_chromatic_abberation",
)  # fmt: skip


@suite("c-bar")
def imagenet_c_bar() -> list[Member]:
    """The 10 of ImageNet-C-bar, chosen to be unlike those of ImageNet-C."""
    return named(IMAGENET_C_BAR)


@suite("cifar-c-bar")
def cifar_c_bar() -> list[Member]:
    """The 10 of CIFAR-10-C-bar, chosen to be unlike those of CIFAR-10-C."""
    return named(CIFAR_C_BAR)
