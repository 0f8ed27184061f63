"""AutoAugment (Cubuk et al., CVPR 2019, https://arxiv.org/abs/1805.09501), as torchvision has it."""

from dataclasses import dataclass, replace
from typing import Literal

from robustbench_lite.defending import Batch
from robustbench_lite.registry import defense
from robustbench_lite.streams import Streams

from .image_by_image import each_transformed


@defense("autoaugment")
@dataclass(frozen=True)
class AutoAugment:
    """Two operations on every image, of a pair that was searched for on a data set.

    A baseline: one image at a time, a millisecond or so each. It trains on brightness, contrast, saturate, sharpness and others, so that
    accuracy on such corruptions is not on something new, and evaluating a model there says so.

    Args:
        policy: the data set of the search: imagenet, cifar10 or svhn.
    """

    kind = "augmentation"
    trained_on = ("autoaugment",)

    policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet"

    def augment(self, batch: Batch, draw: Streams) -> Batch:
        from torchvision.transforms import AutoAugment as Transform
        from torchvision.transforms import AutoAugmentPolicy

        transform = Transform(AutoAugmentPolicy(self.policy))
        return replace(batch, images=each_transformed(batch.images, transform, draw.seeds("autoaugment")))
