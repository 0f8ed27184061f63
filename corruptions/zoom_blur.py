"""Zoom blur of ImageNet-C (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.filters import NUDGE, clipped_zoom
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams

SMALL = ((7, 0.01), (12, 0.01), (16, 0.01), (21, 0.01), (26, 0.01))
LARGE = ((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03))


@corruption("zoom_blur")
@dataclass(frozen=True)
class ZoomBlur:
    """Average the image with enlargements of itself; the parameters are how many (the first is by 1) and by how much the factor grows.

    The reference writes these as ranges of floats, some of which end a step later than one would read them; here is what they hold.
    """

    settings = {224: LARGE, 32: SMALL, 64: SMALL, 299: LARGE}

    def __call__(self, x: Images, setting: tuple[int, float], draw: Streams) -> Tensor:
        count, step = setting
        # As numpy's arange counts: the step is a difference of rounded numbers. At 32 pixels its last bit decides how large a crop is.
        factors = [1 + index * ((1 + step) - 1) for index in range(count)]
        # An image at a time: it stays in the cache, which halves the time on a CPU.
        return torch.cat([_sum(image, factors) for image in torch.split(x, 1)]) / (count + 1) + NUDGE


def _sum(image: Tensor, factors: list[float]) -> Tensor:
    total = image.clone()
    for factor in factors:
        total += clipped_zoom(image, factor)
    return total
