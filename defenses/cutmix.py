"""CutMix (Yun et al., ICCV 2019, https://arxiv.org/abs/1905.04899)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.defending import Batch
from robustbench_lite.registry import defense
from robustbench_lite.streams import Streams

from .mixing import mixed, partnered


@defense("cutmix")
@dataclass(frozen=True)
class CutMix:
    """Learn images with a rectangle of another image, and their targets in the shares of the area.

    Costs nothing. A baseline for clean accuracy: on corruptions it does not help (30.3 % error on CIFAR-10-C in AugMix's paper, where
    standard training has 29.0 %).

    Args:
        alpha: of the Beta distribution of the area that an image keeps, one an image.
    """

    kind = "mixing"
    trained_on = ("cutmix",)

    alpha: Annotated[float, Field(ge=0.05)] = 1.0

    def augment(self, batch: Batch, draw: Streams) -> Batch:
        partner, share = partnered(draw, self.alpha)
        outside = outside_box(share, draw.uniform("cutmix", 2), *batch.images.shape[2:])
        return mixed(batch, partner, outside, outside.mean((1, 2, 3)))


def outside_box(share: Tensor, middle: Tensor, height: int, width: int) -> Tensor:
    """(B, 1, H, W) 1 where an image stays, and 0 in a rectangle of its shape around a pixel, cut off at the edges.

    Args:
        share: (B,) of the area that would stay outside if nothing were cut off.
        middle: (B, 2) row and column of that pixel, in [0, 1).
    """
    apart = []
    for size, place in zip((height, width), middle.unbind(1), strict=True):
        half, centre = (0.5 * (1 - share).sqrt() * size).floor(), (place * size).floor()
        at = torch.arange(size, device=share.device)
        apart.append((at >= (centre - half)[:, None]) & (at < (centre + half)[:, None]))
    rows, columns = apart
    return 1 - (rows[:, None, :, None] & columns[:, None, None, :]).float()
