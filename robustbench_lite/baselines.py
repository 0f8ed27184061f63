"""What errors under corruptions are divided by and put beside: the figures of other models, each with its source."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError

# AlexNet's errors at severities 1 to 5 (the table of timm-bits; their means are those of the code of AugMix)
ALEXNET_ERRORS = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost": (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog": (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness": (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast": (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}
THE_15 = tuple(ALEXNET_ERRORS)
"""The corruptions of ImageNet-C that an mCE is over."""


@dataclass(frozen=True)
class Baseline:
    """What errors are divided by: another model's clean error and its mean errors over the five severities, as shares of 1."""

    name: str
    clean: float
    errors: Mapping[str, float]


ALEXNET = Baseline(
    "AlexNet",
    0.4348,
    {name: statistics.fmean(errors) for name, errors in ALEXNET_ERRORS.items()}
    # published as means only (Mintun et al., NeurIPS 2021)
    | {"speckle_noise": 0.845388, "gaussian_blur": 0.787108, "spatter": 0.717512, "saturate": 0.658248},
)

CIFAR10 = Baseline(  # the denominators of CIFAR-10-C-bar (Mintun et al., NeurIPS 2021, https://arxiv.org/abs/2102.11273)
    "the baseline of CIFAR-10-C-bar",
    0.05334,
    dict(
        zip(
            THE_15,
            (0.5443, 0.4202, 0.4419, 0.1875, 0.4749, 0.2329, 0.2534, 0.1870, 0.2296, 0.1213, 0.0673, 0.2140, 0.1725, 0.2748, 0.2191),
            strict=True,
        )
    ),
)

PNEUMONIA = Baseline(  # the part of MedMNIST-C's AlexNet figures that could be read; others come from a file (Di Salvo et al., 2024)
    "AlexNet (MedMNIST-C)", 0.1009, {"gaussian_noise": 0.4415, "impulse_noise": 0.4581, "contrast_up": 0.0953}
)


@dataclass(frozen=True)
class Published:
    """A model with a published mCE, in per cent. `images` is how many each corruption and severity was measured on."""

    name: str
    mce: float
    images: int


PUBLISHED = (  # of 5,000 images: from RobustBench's accuracies per corruption and severity; of 50,000: the README of hendrycks/robustness
    Published("AlexNet", 99.97, 5000),
    Published("WRN-50-2, l-inf training (Salman 2020)", 79.99, 5000),
    Published("ResNet-50, SIN (Geirhos 2018)", 76.65, 5000),
    Published("ResNet-50", 76.37, 5000),
    Published("ResNet-50, Patch Uniform", 74.3, 50000),
    Published("ResNet-50, SIN+IN, then IN (Geirhos 2018)", 73.18, 5000),
    Published("ResNet-50, SIN+IN (Geirhos 2018)", 68.67, 5000),
    Published("ResNet-50, AugMix (Hendrycks 2020)", 64.17, 5000),
    Published("ResNet-50, ANT 3x3 (Rusak 2020)", 63.0, 50000),
    Published("ResNet-50, NoisyMix (Erichson 2022)", 60.46, 5000),
    Published("ResNet-50, DeepAugment+AugMix", 60.05, 5000),
    Published("ResNet-50, NoisyMix, newer (Erichson 2022)", 59.43, 5000),
    Published("Assemble-ResNet-50", 56.5, 50000),
    Published("DeiT-S (Tian 2022)", 47.63, 5000),
    Published("DeiT-B (Tian 2022)", 41.70, 5000),
)


def read_baseline(path: str | Path) -> Baseline:
    """A baseline from a JSON file: `{"name": ..., "clean": 0.43, "errors": {"fog": 0.82, ...}}`.

    Raises:
        UsageError: it cannot be read, or an error is not a share in (0, 1].
    """
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
        baseline = Baseline(str(given["name"]), float(given["clean"]), {str(key): float(e) for key, e in given["errors"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f'{path} is no baseline ({error}): write {{"name": ..., "clean": 0.43, "errors": {{"fog": 0.82}}}}') from error
    strange = [key for key, value in [("clean", baseline.clean), *baseline.errors.items()] if not 0 < value <= 1]
    if strange:
        raise UsageError(f"{path}: the error for {strange[0]} must be a share above 0 and up to 1, as 0.82 for 82 %")
    return baseline
