"""What is done to a picture as a whole: it is put in askew, moved, lit otherwise, tinted. Each in a finite list of settings.

A setting is a tuple of shares of the ranges below, in -1..1. The lists begin with the weakest, the picture as it is. Every function
takes the pixels that are wanted, by their numbers, so that a sample of them costs next to nothing.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from .classifier import Images
from .hsv import to_hsv, to_rgb

DEGREES = 30.0
"""The largest rotation, to either side."""

BRIGHTNESS = 0.2
"""The most that is added to every pixel, or taken away."""

SHIFT = 3 / 28
"""The farthest that a picture is moved, as a share of its side: 3 pixels of 28, 24 of 224 (Engstrom et al. 2019)."""

Setting = tuple[float, ...]


def strength(setting: Setting) -> float:
    """Of a setting, as a share of the range."""
    return max(map(abs, setting))


def _grid(*counts: int) -> tuple[Setting, ...]:
    """All settings of so many evenly spread values each, odd so that 0 is one; the weakest first."""
    values = [[(2 * place - count + 1) / (count - 1) for place in range(count)] for count in counts]
    return tuple(sorted(product(*values), key=strength))


HANDLED = _grid(9, 5)
"""Rotation, brightness."""

MOVED = _grid(31, 5, 5)
"""Rotation, the way to the right and the way down."""

TINTED = _grid(17, 9)
"""Hue, once round the circle, and saturation."""


def moved(x: Images, rotation: Tensor, right: Tensor, down: Tensor, pixels: Tensor) -> Tensor:
    """(B, S, C, P) of pictures turned about their centres, then moved. What comes in from outside is black, as film is beside the picture.

    Args:
        rotation, right, down: (B, S) in -1..1, shares of `DEGREES` and `SHIFT`; S settings for every picture.
        pixels: (P,) which are wanted.
    """
    height, width = x.shape[-2:]
    angle = rotation[..., None] * math.radians(DEGREES)
    cos, sin = angle.cos(), angle.sin()
    # from the centre, in pixels
    across = pixels % width - (width - 1) / 2 - (right * SHIFT * width)[..., None]
    below = pixels // width - (height - 1) / 2 - (down * SHIFT * height)[..., None]
    # grid_sample's coordinates run from -1 to 1 along both sides, whatever their lengths
    grid = torch.stack([(cos * across - sin * below) * 2 / width, (sin * across + cos * below) * 2 / height], -1)
    taken = functional.grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode="zeros", align_corners=False).transpose(1, 2)
    return _unless_unchanged(x, pixels, taken, rotation, right, down)


def handled(x: Images, rotation: Tensor, brightness: Tensor, pixels: Tensor) -> Tensor:
    """(B, S, C, P) of pictures turned, then brightened.

    Args:
        rotation, brightness: (B, S) in -1..1, shares of `DEGREES` and `BRIGHTNESS`.
    """
    none = torch.zeros_like(rotation)
    turned = moved(x, rotation, none, none, pixels)
    return (turned + (BRIGHTNESS * brightness)[..., None, None]).clamp(0, 1).to(x.dtype)


def tinted(x: Images, hue: Tensor, saturation: Tensor, pixels: Tensor) -> Tensor:
    """(B, S, 3, P) of pictures whose every pixel has its hue turned and its saturation raised or lowered by the same.

    Args:
        hue, saturation: (B, S) in -1..1, shares of half of the circle and of the whole range.
    """
    own_hue, own_saturation, value = (each[:, None] for each in to_hsv(x.flatten(2)[..., pixels][:, :, None]))
    turned = (own_hue + (hue / 2)[..., None, None]).remainder(1).to(x.dtype)
    coloured = (own_saturation + saturation[..., None, None]).clamp(0, 1).to(x.dtype)
    made = to_rgb(turned.flatten(0, 1), coloured.flatten(0, 1), value.expand_as(turned).flatten(0, 1)).view(*hue.shape, 3, len(pixels))
    return _unless_unchanged(x, pixels, made.clamp(0, 1), hue, saturation)


def _unless_unchanged(x: Images, pixels: Tensor, made: Tensor, *shares: Tensor) -> Tensor:
    """The picture itself where all shares are 0, to the last bit."""
    unchanged = torch.stack(shares).eq(0).all(0)[..., None, None]
    return torch.where(unchanged, x.flatten(2)[..., pixels][:, None], made)
