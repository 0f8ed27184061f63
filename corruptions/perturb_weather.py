"""Sequences of falling snow (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_lite.filters import NUDGE, clipped_zoom, motion_blur
from robustbench_lite.registry import perturbation
from robustbench_lite.sequences import Picture, is_large
from robustbench_lite.streams import Streams


@perturbation("snow")
@dataclass(frozen=True)
class Snow:
    """Flakes whose direction of fall turns by 4 degrees a frame, from -150 to -30, over a whitened picture."""

    against_first = False
    colour = True

    def __call__(self, picture: Picture, draw: Streams, difficulty: int) -> Tensor:
        zoom, radius, sigma = (3, 14, 4.0) if is_large(picture) else (2, 10, 2.0)
        layer = clipped_zoom(0.05 + 0.3 * draw.normal("flakes", *picture.shape[1:]).to(picture)[None], zoom)
        flakes = (layer.where(layer >= 0.5, 0).clamp(0, 1) * 255 + NUDGE).floor() / 255
        angles = torch.arange(-150, -29, 4)
        fallen = motion_blur(flakes.expand(len(angles), -1, -1, -1), radius, sigma, angles).to(picture) / 255
        red, green, blue = picture
        grey = 0.299 * red + 0.587 * green + 0.114 * blue
        whitened = 0.85 * picture + 0.15 * torch.maximum(picture, 1.5 * grey + 0.5)
        return whitened + fallen + fallen.rot90(2, (2, 3)) + NUDGE
