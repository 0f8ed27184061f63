"""Small plain convolutional networks without batch statistics, for images of 25 to 32 pixels."""

from torch import nn

from robustbench_lite.registry import architecture


@architecture("small_cnn")
def small_cnn(classes: int, channels: int = 3) -> nn.Module:
    """Three convolutions of stride 2 with ReLU, and one linear layer: 20 thousand weights, and an image is computed without the others."""
    return nn.Sequential(*_block(channels, 16), *_block(16, 32), *_block(32, 32), nn.Flatten(), nn.Linear(32 * 4 * 4, classes))


@architecture("small_cnn_gn")
def small_cnn_gn(classes: int, channels: int = 3) -> nn.Module:
    """The same with group normalisation, which trains faster and looks at one image at a time as well."""
    widths = ((channels, 16), (16, 32), (32, 32))
    blocks = [layer for inputs, outputs in widths for layer in _block(inputs, outputs, groups=8)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(32 * 4 * 4, classes))


def _block(inputs: int, outputs: int, groups: int | None = None) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, *([] if groups is None else [nn.GroupNorm(groups, outputs)]), nn.ReLU()]
