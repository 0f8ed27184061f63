"""CutMix without mixed labels, in discs (after Yun et al., ICCV 2019, https://arxiv.org/abs/1905.04899)."""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field

from robustbench_lite.defending import Batch
from robustbench_lite.registry import defense
from robustbench_lite.streams import Streams

from .mixing import partnered


@defense("pasted")
@dataclass(frozen=True)
class Pasted:
    """Learn half of the images with a disc of another image stuck on somewhere, under their own labels.

    Costs nothing. Against stickers and pads that are none of an image's business; of no use against an adversary, and no published defense.

    Args:
        largest: radius of the largest disc, as a share of an image's height; radii are uniform from a fifth of it.
    """

    kind = "mixing"
    trained_on = ("cutmix",)

    largest: Annotated[float, Field(gt=0, le=1)] = 0.25

    def augment(self, batch: Batch, draw: Streams) -> Batch:
        partner, _ = partnered(draw, 1.0)
        height, width = batch.images.shape[2:]
        there, size, row, column, down, across = draw.uniform("pasted", 6)[:, :, None, None].unbind(1)
        y, x = torch.arange(height)[:, None] / height, torch.arange(width)[None] / height
        distance = torch.hypot(y - row, x - column * width / height)
        disc = (distance < self.largest * (0.2 + 0.8 * size)) & (there < 0.5)
        # the piece comes from elsewhere in the other image, or left would stay left
        moved = [
            image.roll((int(a), int(b)), (1, 2))
            for image, a, b in zip(batch.images[partner], (down * height).flatten(), (across * width).flatten(), strict=True)
        ]
        return replace(batch, images=torch.where(disc[:, None].to(batch.images.device), torch.stack(moved), batch.images))
