"""Mixup (Zhang et al., ICLR 2018, https://arxiv.org/abs/1710.09412)."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from robustbench_lite.defending import Batch
from robustbench_lite.registry import defense
from robustbench_lite.streams import Streams

from .mixing import mixed, partnered


@defense("mixup")
@dataclass(frozen=True)
class Mixup:
    """Learn weighted means of two images and of their targets.

    Costs nothing. It makes a model unsure of itself, which weakens attacks that follow the gradient of the loss: judge it by AutoAttack,
    never by PGD alone.

    Args:
        alpha: of the Beta distribution of the weights, one an image; 0.2 for ImageNet and 1 for CIFAR-10 in the paper.
    """

    kind = "mixing"
    trained_on = ("mixup",)

    alpha: Annotated[float, Field(ge=0.05)] = 0.2

    def augment(self, batch: Batch, draw: Streams) -> Batch:
        partner, share = partnered(draw, self.alpha)
        return mixed(batch, partner, share, share)
