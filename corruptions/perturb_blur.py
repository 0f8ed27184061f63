"""Blur in sequences, by motion that turns and by a Gaussian that widens (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_lite.filters import NUDGE, gaussian, motion_blur
from robustbench_lite.registry import perturbation
from robustbench_lite.sequences import Picture, is_large
from robustbench_lite.streams import Streams


@perturbation("motion_blur")
@dataclass(frozen=True)
class MotionBlur:
    """Motion that turns by 4 degrees a frame, from -120 to 0 (224), by 9 degrees from -180 to 0 (32)."""

    against_first = False

    def __call__(self, picture: Picture, draw: Streams, difficulty: int) -> Tensor:
        radius, sigma, angles = (10, 3.0, range(-120, 1, 4)) if is_large(picture) else (6, 1.8, range(-180, 1, 9))
        return motion_blur(picture.expand(len(angles), -1, -1, -1), radius, sigma, torch.tensor(angles))


@perturbation("gaussian_blur")
@dataclass(frozen=True)
class GaussianBlur:
    """A Gaussian of 0.25 to 1.3 pixels (224), of 0.3 to 0.75 (32), in 31 frames."""

    against_first = False

    def __call__(self, picture: Picture, draw: Streams, difficulty: int) -> Tensor:
        first, step, truncate = (0.25, 0.035, 6.0) if is_large(picture) else (0.3, 0.015, 7.0)
        return torch.stack([gaussian(picture, first + step * i, truncate=truncate) for i in range(31)]) + NUDGE
