"""DenseNets for small images (Huang et al., CVPR 2017, https://arxiv.org/abs/1608.06993)."""

from collections import OrderedDict

from torch import nn
from torchvision.models import densenet121

from robustbench_lite.registry import architecture


@architecture("cifar_densenet121")
def cifar_densenet121(classes: int, channels: int = 3) -> nn.Module:
    """DenseNet-121 of growth 32 with a bare 3x3 stem: 7.0 million weights, and several times the time and memory of a ResNet-18.

    As on CIFAR in the paper, nothing stands between the stem and the first dense block; the four blocks are those of its ImageNet network.
    """
    features = densenet121(weights=None).features
    features.conv0 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(features.conv0.weight)  # as torchvision draws the others
    del features.norm0, features.relu0, features.pool0
    head = nn.Linear(features.norm5.num_features, classes)
    nn.init.zeros_(head.bias)
    layers: dict[str, nn.Module] = {
        "features": features,
        "relu": nn.ReLU(inplace=True),  # a function in torchvision's network, which nobody could exchange
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "classifier": head,
    }
    return nn.Sequential(OrderedDict(layers))
