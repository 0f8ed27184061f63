"""Light of ImageNet-C-bar and CIFAR-10-C-bar: sparkles, and all but a sparkle (Mintun et al., NeurIPS 2021, https://arxiv.org/abs/2102.11273)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams

SPARKLES = 5
FEWEST_RAYS, MOST_RAYS = 50, 199


@corruption("sparkles")
@dataclass(frozen=True)
class Sparkles:
    """Lays five white stars of 50 to 199 rays over the image.

    Parameter: their mean radius, in hundredths of the shorter side.
    """

    settings = {224: (1.0, 2.0, 3.0, 5.0, 6.0), 32: (0.7, 3.5, 5.6, 6.3, 7.0)}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        height, width = x.shape[2:]
        radius = 0.01 * setting * min(height, width)
        centres = draw.uniform("centres", SPARKLES, 2).to(x) * x.new_tensor([height, width])
        rays = draw.integers("rays", FEWEST_RAYS, MOST_RAYS + 1, SPARKLES)
        lengths = (radius + 0.25 * radius * draw.normal("lengths", SPARKLES, MOST_RAYS).to(x)).clamp(min=1)
        left = torch.ones_like(x[:, :1])
        for number in range(SPARKLES):
            left = left * (1 - _star(x, centres[:, number], rays[:, number], lengths[:, number], 1.0))
        return x + (1 - left) * (1 - x)


@corruption("inverse_sparkles")
@dataclass(frozen=True)
class InverseSparkles:
    """Makes everything white but for a star of 50 to 199 rays near the middle.

    Parameter: how steeply the star ends, in 0.13 of a power of the distance.
    """

    settings = {224: (1.0, 2.0, 4.0, 9.0, 10.0), 32: (1.0, 1.5, 2.5, 4.5, 5.0)}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        height, width = x.shape[2:]
        radius = 0.25 * min(height, width)
        centre = draw.uniform("centre", 2, low=0.25, high=0.75).to(x) * x.new_tensor([height, width])
        rays = draw.integers("rays", FEWEST_RAYS, MOST_RAYS + 1)
        lengths = radius + 0.25 * radius * draw.normal("lengths", MOST_RAYS).to(x)
        return x + (1 - _star(x, centre, rays, lengths, 0.13 * setting)) * (1 - x)


def _star(like: Images, centre: Tensor, rays: Tensor, lengths: Tensor, power: float) -> Tensor:
    """(B, 1, H, W) how bright a star is, 0 to 1.

    Args:
        centre: (B, 2) row and column.
        rays: (B,) how many it has.
        lengths: (B, MOST_RAYS) of them, in pixels; those above its number are not looked at.
        power: of the inverse square of the distance, with which it fades.
    """
    down = torch.arange(like.shape[2]).to(like)[:, None] - centre[:, 0, None, None]
    right = torch.arange(like.shape[3]).to(like) - centre[:, 1, None, None]
    count = rays[:, None, None]
    turn = (torch.atan2(right, down) + math.pi) / (2 * math.pi) * count
    ray = turn.floor()
    between = turn - ray
    this, following = (lengths.gather(1, (at.long() % count).flatten(1)).view_as(turn) for at in (ray, ray + 1))
    length = this + between * (following - this)
    fade = (length**2 / (down**2 + right**2 + 1e-4)) ** power
    return ((1 - (between - 0.5) ** 2) * fade).clamp(0, 1)[:, None]
