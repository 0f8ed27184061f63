"""What a careless hand does to a picture: it is put in askew, and its brightness is set wrongly.

There are 45 settings: nine angles and five degrees of brightness, evenly spread over the range. A finite list, so that it can be said
of any image whether it came about in this way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .classifier import Images
from .rows import per_sample

DEGREES = 30.0
"""The largest rotation, to either side."""

BRIGHTNESS = 0.2
"""The most that is added to every pixel, or taken away."""

SETTINGS = tuple(sorted(((turn / 4, light / 2) for turn in range(-4, 5) for light in range(-2, 3)), key=lambda each: max(map(abs, each))))
"""(rotation, brightness) as shares of the range, the weakest first: the picture as it is."""


def strength(setting: tuple[float, float]) -> float:
    """Of one of `SETTINGS`, as a share of the range."""
    return max(map(abs, setting))


def handled(x: Images, rotation: Tensor, brightness: Tensor) -> Images:
    """The pictures turned, then brightened. What a turn brings in from outside is black, as film is beside the picture.

    Args:
        rotation, brightness: (B,) in -1..1, shares of `DEGREES` and `BRIGHTNESS`.
    """
    angle, (height, width) = rotation * math.radians(DEGREES), x.shape[-2:]
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # grid_sample's coordinates run from -1 to 1 along both sides, whatever their lengths
    turn = torch.stack([cos, -sin * height / width, none, sin * width / height, cos, none], 1).view(-1, 2, 3).to(x.dtype)
    grid = functional.affine_grid(turn, list(x.shape), align_corners=False)
    turned = functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    turned = torch.where(per_sample(rotation == 0, x), x, turned)
    return (turned + per_sample(BRIGHTNESS * brightness, x)).clamp(0, 1).to(x.dtype)
