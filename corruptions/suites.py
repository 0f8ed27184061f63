"""The sets of corruptions that were published together."""

from __future__ import annotations

from collections.abc import Sequence

from robustbench_lite.corrupting import Member
from robustbench_lite.registry import CORRUPTIONS, suite

IMAGENET_C = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog",
    "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")


def named(names: Sequence[str]) -> list[Member]:
    """The registered corruptions under these names, with their own parameters."""
    return [Member(name, CORRUPTIONS.build(name)) for name in names]


@suite("imagenet-c", "cifar-c", "tiny-imagenet-c")
def imagenet_c() -> list[Member]:
    """The 15 of ImageNet-C, CIFAR-10/100-C and Tiny-ImageNet-C; the image size says which parameters."""
    return named(IMAGENET_C)


@suite("extra")
def extra() -> list[Member]:
    """The 4 more that ImageNet-C has for validation: speckle_noise, gaussian_blur, spatter, saturate."""
    return named(EXTRA)


@suite("all")
def everything() -> list[Member]:
    """All 19 of ImageNet-C, those for validation included."""
    return named((*IMAGENET_C, *EXTRA))
