"""TI-FGSM, translation-invariant gradients (Dong et al., CVPR 2019, https://arxiv.org/abs/1904.02884)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch.nn import functional

from robustbench_lite.classifier import Images
from robustbench_lite.pipeline import Stage
from robustbench_lite.registry import attack


@attack("ti", "ti-fgsm")
@dataclass(frozen=True)
class TI(Stage):
    """Smooth the gradient by a Gaussian kernel, which stands for the mean over shifted images.

    Made for transfer to models that look elsewhere than the source, and combined with others, as in ti+mi+di. On small images (below about
    64 pixels) the default kernel wipes out what there is to climb: set a smaller one.

    Args:
        steps: gradient steps.
        step_size: in multiples of eps; by default 1 / steps.
        loss: ce, dlr or margin.
        size: of the kernel, in pixels; odd.
        deviations: how many standard deviations lie between the kernel's centre and its edge.
    """

    size: Annotated[int, Field(ge=1)] = 15
    deviations: Annotated[float, Field(gt=0)] = 3.0

    def __post_init__(self) -> None:
        if self.size % 2 == 0:
            raise ValueError(f"size={self.size}: a kernel with a centre has an odd size, such as {self.size + 1}")

    def filtered(self, gradient: Images) -> Images:
        channels = gradient.shape[1]
        side = torch.linspace(-self.deviations, self.deviations, self.size, dtype=torch.float64) if self.size > 1 else torch.zeros(1)
        bell = torch.exp(-(side**2) / 2)
        kernel = torch.outer(bell, bell)
        kernel = (kernel / kernel.sum()).to(gradient).expand(channels, 1, -1, -1)
        return functional.conv2d(gradient, kernel, padding="same", groups=channels)
