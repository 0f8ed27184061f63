"""Two small networks for phantoms, of different build, so that images made on one can be tried on the other; for images of any size."""

from __future__ import annotations

from torch import Tensor, nn

from robustbench_lite.registry import architecture

WIDTHS = (12, 24, 24, 24)


@architecture("phantom_cnn")
def phantom_cnn(classes: int, channels: int = 3) -> nn.Module:
    """Four convolutions of stride 2 with BatchNorm and ReLU, the mean over places, and one linear layer: 13 thousand weights."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip((channels, *WIDTHS), WIDTHS, strict=False):
        kernel = 5 if inputs == channels else 3
        layers += [nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], classes))


@architecture("phantom_residual")
def phantom_residual(classes: int, channels: int = 3) -> nn.Module:
    """Patches of 4 x 4 pixels, then three residual blocks of wide depthwise convolutions, after Liu et al. (ConvNeXt, CVPR 2022)."""
    width = 24
    stem = nn.Sequential(nn.Conv2d(channels, width, 4, stride=4), nn.BatchNorm2d(width))
    return nn.Sequential(stem, *[_Residual(width) for _ in range(3)], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, 2 * width, 1),
            nn.GELU(),
            nn.Conv2d(2 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        planes: Tensor = x + self.branch(x)
        return planes
