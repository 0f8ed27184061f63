"""RandAugment (Cubuk et al., NeurIPS 2020, https://arxiv.org/abs/1909.13719), as torchvision has it."""

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from robustbench_lite.defending import Batch
from robustbench_lite.registry import defense
from robustbench_lite.streams import Streams

from .image_by_image import each_transformed


@defense("randaugment")
@dataclass(frozen=True)
class RandAugment:
    """A few operations of one strength on every image, chosen at random from fourteen.

    A baseline: one image at a time, a millisecond or so each. It trains on brightness, contrast, saturate, sharpness and others, so that
    accuracy on such corruptions is not on something new, and evaluating a model there says so.

    Args:
        operations: on each image, one after the other.
        magnitude: strength of all of them, of 30.
    """

    kind = "augmentation"
    trained_on = ("randaugment",)

    operations: Annotated[int, Field(ge=1)] = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9

    def augment(self, batch: Batch, draw: Streams) -> Batch:
        from torchvision.transforms import RandAugment as Transform

        transform = Transform(self.operations, self.magnitude)
        return replace(batch, images=each_transformed(batch.images, transform, draw.seeds("randaugment")))
