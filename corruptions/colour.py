"""Brightness, contrast and saturation (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from dataclasses import dataclass

from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.hsv import to_hsv, to_rgb
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams


@corruption("brightness")
@dataclass(frozen=True)
class Brightness:
    """Add to the value of every pixel in HSV; hue and saturation stay. The setting is what is added."""

    colour = True
    settings = {
        32: (0.05, 0.1, 0.15, 0.2, 0.3),
        64: (0.1, 0.2, 0.3, 0.4, 0.5),
        224: (0.1, 0.2, 0.3, 0.4, 0.5),
        299: (0.1, 0.2, 0.3, 0.4, 0.5),
    }

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        hue, saturation, value = to_hsv(x)
        return to_rgb(hue, saturation, value.add_(setting).clamp_(0, 1))


@corruption("saturate")
@dataclass(frozen=True)
class Saturate:
    """Scale and shift the saturation of every pixel in HSV; the setting is (factor, shift).

    Grey has hue 0 in HSV, so that a shift turns it red, as it does in the published data.
    """

    colour = True
    settings = {
        32: ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        64: ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
        224: ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        299: ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    }

    def __call__(self, x: Images, setting: tuple[float, float], draw: Streams) -> Tensor:
        factor, shift = setting
        hue, saturation, value = to_hsv(x)
        return to_rgb(hue, saturation.mul_(factor).add_(shift).clamp_(0, 1), value)


@corruption("contrast")
@dataclass(frozen=True)
class Contrast:
    """Draw every channel towards its mean over the image; the setting is the share of the contrast that stays."""

    settings = {
        32: (0.75, 0.5, 0.4, 0.3, 0.15),
        64: (0.4, 0.3, 0.2, 0.1, 0.05),
        224: (0.4, 0.3, 0.2, 0.1, 0.05),
        299: (0.4, 0.3, 0.2, 0.1, 0.05),
    }

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        # The sum of the levels is a whole number, which the order of adding, and so the batch, cannot change.
        total = (x.sum((2, 3), keepdim=True) * 255).round()
        mean = total / (x.shape[2] * x.shape[3]) / 255
        return (x - mean).mul_(setting).add_(mean)
