"""Sequences of a changing light (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_lite.hsv import to_hsv, to_rgb
from robustbench_lite.registry import perturbation
from robustbench_lite.sequences import Picture, is_large
from robustbench_lite.streams import Streams


@perturbation("brightness")
@dataclass(frozen=True)
class Brightness:
    """Add to the value of every pixel in HSV, from -0.3 to 0.3 (224), from -0.225 to 0.225 (32), in 31 frames."""

    against_first = False
    colour = True

    def __call__(self, picture: Picture, draw: Streams, difficulty: int) -> Tensor:
        percent = 2 if is_large(picture) else 1.5
        added = torch.tensor([i * percent / 100 for i in range(-15, 16)], dtype=picture.dtype, device=picture.device)
        hue, saturation, value = to_hsv(picture[None])
        lit = (value + added.view(-1, 1, 1)).clamp(0, 1)
        return to_rgb(hue.expand_as(lit), saturation.expand_as(lit), lit)
