"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016, https://arxiv.org/abs/1605.07146)."""

from torch import nn

from robustbench_lite.registry import architecture

from .preact_resnet import preactivated


@architecture("wrn_28_10")
def wrn_28_10(classes: int, channels: int = 3) -> nn.Module:
    """28 layers, ten times as wide: 36.5 million weights, about ten times the work of ResNet-18."""
    return _wide(28, 10, classes, channels)


@architecture("wrn_40_2")
def wrn_40_2(classes: int, channels: int = 3) -> nn.Module:
    """40 layers, twice as wide: 2.2 million weights, the network of AugMix on CIFAR."""
    return _wide(40, 2, classes, channels)


def _wide(depth: int, factor: int, classes: int, channels: int) -> nn.Module:
    """Without dropout, of which the published networks have none."""
    return preactivated(16, (16 * factor, 32 * factor, 64 * factor), (depth - 4) // 6, classes, channels)
