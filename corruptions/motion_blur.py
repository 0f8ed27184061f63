"""Motion blur of ImageNet-C (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from dataclasses import dataclass

from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.filters import motion_blur
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams


@corruption("motion_blur")
@dataclass(frozen=True)
class MotionBlur:
    """Blur along a line within 45 degrees of the horizontal; the parameters are its radius and its sigma, in pixels."""

    settings = {
        224: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        32: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        64: ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        299: ((12, 4), (17, 6), (17, 9), (17, 13), (22, 16)),
    }

    def scaled(self, setting: tuple[float, float], factor: float) -> tuple[float, float]:
        return setting[0] * factor, setting[1] * factor

    def __call__(self, x: Images, setting: tuple[float, float], draw: Streams) -> Tensor:
        return motion_blur(x, *setting, draw.uniform("angle", low=-45, high=45))
