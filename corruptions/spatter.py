"""Spatter, of ImageNet-C (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from robustbench_lite.classifier import Images
from robustbench_lite.edges import ONE, canny, chamfer
from robustbench_lite.filters import NUDGE, gaussian, kept_by_gaussian
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams

WATER = (175, 238, 238)
MUD = (63, 42, 20)
REACH = 20
"""Pixels from the edge of a drop, beyond which it is equally thick."""

LIGHT = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))
"""Weights of the nine pixels about one: drops are lit from one corner."""


class Splash(NamedTuple):
    """How it spatters.

    Args:
        mean: of the noise that drops come from.
        deviation: its standard deviation.
        sigma: standard deviation of its blur, in pixels.
        threshold: the noise below which there is no drop.
        strength: the opacity of water; of mud the standard deviation of the drops' rims, in pixels.
        mud: whether it is mud.
    """

    mean: float
    deviation: float
    sigma: float
    threshold: float
    strength: float
    mud: bool


@corruption("spatter")
@dataclass(frozen=True)
class Spatter:
    """Splash water (severities 1 to 3) or mud (4 and 5) over the image, where blurred noise lies above a threshold.

    Water brightens, with light and shade at the rims of its drops.

    A setting is a `Splash`.
    """

    settings = {
        224: (
            Splash(0.65, 0.3, 4, 0.69, 0.6, False),
            Splash(0.65, 0.3, 3, 0.68, 0.6, False),
            Splash(0.65, 0.3, 2, 0.68, 0.5, False),
            Splash(0.65, 0.3, 1, 0.65, 1.5, True),
            Splash(0.67, 0.4, 1, 0.65, 1.5, True),
        ),
        32: (
            Splash(0.62, 0.1, 0.7, 0.7, 0.5, False),
            Splash(0.65, 0.1, 0.8, 0.7, 0.5, False),
            Splash(0.65, 0.3, 1, 0.69, 0.5, False),
            Splash(0.65, 0.1, 0.7, 0.69, 0.6, True),
            Splash(0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
        64: (
            Splash(0.62, 0.1, 0.7, 0.7, 0.6, False),
            Splash(0.65, 0.1, 0.8, 0.7, 0.6, False),
            Splash(0.65, 0.3, 1, 0.69, 0.6, False),
            Splash(0.65, 0.1, 0.7, 0.68, 0.6, True),
            Splash(0.65, 0.1, 0.5, 0.67, 0.6, True),
        ),
        299: (
            Splash(0.65, 0.3, 4, 0.69, 0.9, False),
            Splash(0.65, 0.3, 3.5, 0.68, 0.9, False),
            Splash(0.65, 0.3, 3, 0.68, 0.8, False),
            Splash(0.65, 0.3, 1.2, 0.65, 1.8, True),
            Splash(0.67, 0.4, 1.2, 0.65, 1.8, True),
        ),
    }
    colour = True

    def scaled(self, setting: Splash, factor: float) -> Splash:
        rims = setting.strength * factor if setting.mud else setting.strength
        # A wider blur leaves less of the noise. That much more of it keeps as many drops above the threshold.
        louder = kept_by_gaussian(setting.sigma) / kept_by_gaussian(setting.sigma * factor)
        return setting._replace(deviation=setting.deviation * louder, sigma=setting.sigma * factor, strength=rims)

    def __call__(self, x: Images, setting: Splash, draw: Streams) -> Tensor:
        noise = draw.normal("drops", *x.shape[2:]).to(x.dtype) * setting.deviation + setting.mean
        liquid = gaussian(noise, setting.sigma)
        if setting.mud:
            cover = gaussian((liquid > setting.threshold).to(x.dtype), setting.strength)[:, None]
            cover = cover.where(cover >= 0.8, 0)
            return x * (1 - cover) + cover * _colour(MUD, x) + NUDGE
        return x + water(liquid.where(liquid >= setting.threshold, 0), setting.strength) + NUDGE


def water(liquid: Tensor, opacity: float) -> Tensor:
    """(B, 3, H, W): the light that drops add to an image, as thick as `liquid` (B, H, W), which is 0 where there is none."""
    drops = (liquid.clamp(0, 1) * 255).int()
    thickness = (drops * _relief(drops)).to(liquid.dtype)
    thickest = thickness.amax((1, 2), keepdim=True).clamp(min=1)  # where there is no water, the reference divides by zero
    return (thickness / thickest * opacity)[:, None] * _colour(WATER, liquid)


def _relief(drops: Tensor) -> Tensor:
    """(B, H, W) int32 in 0..255: light and shade of drops, by the distance from their edges."""
    distance = chamfer(canny(drops, 50, 150), REACH)
    rounded = _nine(distance, ((1, 1, 1),) * 3) // (9 * ONE)
    lit = _nine(_equalised(rounded), LIGHT).clamp(0, 255)
    return (_nine(lit, ((1, 1, 1),) * 3) + 4) // 9


def _nine(x: Tensor, weights: tuple[tuple[int, int, int], ...]) -> Tensor:
    """(B, H, W) of whole numbers: the weighted sum of the nine pixels about each, mirrored about the border's pixels."""
    height, width = x.shape[1:]
    framed = pad(x.double(), (1, 1, 1, 1), "reflect").to(x.dtype)
    total = torch.zeros_like(x)
    for down, row in enumerate(weights):
        for right, weight in enumerate(row):
            if weight:
                total.add_(framed[:, down : down + height, right : right + width], alpha=weight)
    return total


def _equalised(levels: Tensor) -> Tensor:
    """(B, H, W) of 0..REACH, spread over 0..255 by rank as OpenCV does; an image of one level stays as it is."""
    batch, size = len(levels), levels[0].numel()
    entries = levels.flatten(1).long()
    bins = entries + (REACH + 1) * torch.arange(batch, device=levels.device)[:, None]
    counts = bins.flatten().bincount(minlength=batch * (REACH + 1)).view(batch, -1).cumsum(1)
    lowest = counts.where(counts > 0, size).amin(1, keepdim=True)
    scale = 255 / (size - lowest).clamp(min=1).float()
    table = ((counts - lowest).clamp(min=0) * scale).round().to(levels.dtype)
    table = torch.where(lowest == size, torch.arange(REACH + 1, device=levels.device, dtype=levels.dtype), table)
    return table.gather(1, entries).view_as(levels)


def _colour(levels: tuple[int, int, int], like: Tensor) -> Tensor:
    """(3, 1, 1) in [0, 1]."""
    return torch.tensor(levels, dtype=like.dtype, device=like.device)[:, None, None] / 255
