"""Hue, saturation and value (Smith, SIGGRAPH 1978, https://doi.org/10.1145/965139.807361), rounded as scikit-image rounds them."""

from __future__ import annotations

import torch
from torch import Tensor


def to_hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in [0, 1), saturation and value in [0, 1], (B, H, W) each, of (B, 3, H, W) in [0, 1]; grey has hue and saturation 0."""
    red, green, blue = x.unbind(1)
    value = x.amax(1)
    delta = value - x.amin(1)
    grey = delta == 0
    saturation = (delta / value).masked_fill_(grey, 0)
    # Where two channels are the largest, the later one decides. The offsets come after the division, as in the reference: truncation
    # to 8 bits tells apart what differs in the last bit.
    is_green, is_blue = green == value, blue == value
    hue = torch.where(is_blue, red - green, torch.where(is_green, blue - red, green - blue)).div_(delta)
    hue += torch.where(is_blue, 4.0, torch.where(is_green, 2.0, 0.0)).to(x.dtype)
    hue.div_(6).masked_fill_(grey, 0)
    hue += hue < 0
    return hue, saturation, value


def to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """(B, 3, H, W) from hue in [0, 1), saturation and value, (B, H, W) each.

    A channel is `value * (1 - weight * saturation)`: its weight runs from 0 to 1 and back along the hue. Each is written so that no bit
    of it is lost where it is neither 0 nor 1.
    """
    sextant = hue * 6
    weights = sextant.new_empty((len(sextant), 3, *sextant.shape[1:]))
    red, green, blue = weights.unbind(1)
    torch.sub(sextant, 3, out=red).abs_().neg_().add_(2)
    torch.maximum(1 - sextant, sextant - 3, out=green)
    torch.sub(sextant, 4, out=blue).abs_().sub_(1)
    return weights.clamp_(0, 1).mul_(saturation[:, None]).neg_().add_(1).mul_(value[:, None])
