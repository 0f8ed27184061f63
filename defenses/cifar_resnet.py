"""ResNets for small images (He et al., CVPR 2016, https://arxiv.org/abs/1512.03385), in the form common on CIFAR."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models import resnet18, resnet34

from robustbench_lite.registry import architecture


@architecture("cifar_resnet18")
def cifar_resnet18(classes: int, channels: int = 3) -> nn.Module:
    """ResNet-18 with a 3x3 stem and no pooling before the blocks: 11.2 million weights, the network of most of the literature.

    The paper's own networks for CIFAR are thinner, and are not these.
    """
    return _for_small_images(resnet18, classes, channels)


@architecture("cifar_resnet34")
def cifar_resnet34(classes: int, channels: int = 3) -> nn.Module:
    """ResNet-34 with a 3x3 stem and no pooling before the blocks: 21.3 million weights."""
    return _for_small_images(resnet34, classes, channels)


def _for_small_images(build: Callable[..., Any], classes: int, channels: int) -> nn.Module:
    network: nn.Module = build(weights=None, num_classes=classes)
    stem = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as torchvision draws the others
    network.conv1, network.maxpool = stem, nn.Identity()
    return network
