"""Pre-activation ResNets (He et al., ECCV 2016, https://arxiv.org/abs/1603.05027)."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from robustbench_lite.registry import architecture


class PreActBlock(nn.Module):
    """Two convolutions, each after a normalisation and ReLU. Where the width changes, the skip is a convolution of what the first takes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.projection = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.norm1(x))
        skip = x if self.projection is None else self.projection(active)
        summed: Tensor = self.conv2(self.relu2(self.norm2(self.conv1(active)))) + skip
        return summed


def preactivated(stem: int, widths: Sequence[int], blocks: int, classes: int, channels: int) -> nn.Sequential:
    """A 3x3 stem, stages of blocks that each but the first halve the image, and one linear layer after the mean over places.

    Args:
        stem: channels of the stem.
        widths: channels of each stage.
        blocks: in every stage.
        classes, channels: K, and the channels of an image.
    """
    layers: dict[str, nn.Module] = {"stem": nn.Conv2d(channels, stem, 3, padding=1, bias=False)}
    inputs = stem
    for number, width in enumerate(widths, start=1):
        first = PreActBlock(inputs, width, stride=1 if number == 1 else 2)
        layers[f"stage{number}"] = nn.Sequential(first, *(PreActBlock(width, width, stride=1) for _ in range(blocks - 1)))
        inputs = width
    layers |= {
        "norm": nn.BatchNorm2d(inputs),
        "relu": nn.ReLU(inplace=True),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "head": nn.Linear(inputs, classes),
    }
    network = nn.Sequential(OrderedDict(layers))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


@architecture("preact_resnet18")
def preact_resnet18(classes: int, channels: int = 3) -> nn.Module:
    """Pre-activation ResNet-18 for small images: 11.2 million weights, the network of fast adversarial training and robust overfitting.

    With the normalisation and ReLU before the head that the paper has, and that some published code leaves out.
    """
    return preactivated(64, (64, 128, 256, 512), 2, classes, channels)
