"""Fog, of ImageNet-C (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from dataclasses import dataclass

from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.plasma import plasma
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams


@corruption("fog")
@dataclass(frozen=True)
class Fog:
    """Lay a plasma cloud over the image and darken the sum until the brightest value there can be is what it was.

    The cloud is the upper left corner of one on a torus of the next power of two, so that at 32 and 64 pixels opposite
    sides of it match.

    A setting is (weight of the cloud in image units, decay of its roughness from scale to scale).
    """

    settings = {
        224: ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
        32: ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
        64: ((0.4, 3.0), (0.7, 3.0), (1.0, 2.5), (1.5, 2.0), (2.0, 1.75)),
        299: ((1.5, 2.0), (2.0, 2.0), (2.5, 1.8), (2.5, 1.6), (3.0, 1.5)),
    }

    def __call__(self, x: Images, setting: tuple[float, float], draw: Streams) -> Tensor:
        weight, decay = setting
        height, width = x.shape[2:]
        size = 1 << (max(height, width) - 1).bit_length()
        cloud = plasma(draw.uniform("wibble", size**2 - 1, low=-1, high=1).to(x.dtype), decay)[:, None, :height, :width]
        brightest = x.amax((1, 2, 3), keepdim=True)
        return (x + weight * cloud).mul_(brightest).div_(brightest + weight)
