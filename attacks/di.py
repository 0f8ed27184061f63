"""DI-FGSM, diverse inputs (Xie et al., CVPR 2019, https://arxiv.org/abs/1803.06978)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.pipeline import Stage
from robustbench_lite.registry import attack
from robustbench_lite.streams import Streams


@attack("di", "di-fgsm")
@dataclass(frozen=True)
class DI(Stage):
    """Take the gradient at the image enlarged and shifted at random on a black canvas, every other time.

    Made for transfer, where alone it is one of the strongest, and combined with others, as in di+mi. Against the model itself pgd and
    apgd are stronger.

    Args:
        steps: gradient steps.
        step_size: in multiples of eps; by default 1 / steps.
        loss: ce, dlr or margin.
        probability: that an image is transformed in a step.
        largest: side of the canvas, in multiples of the image's; the image is enlarged to between 1 and as much.
    """

    cost = "2 * steps + 1 forwards, steps backwards"

    probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    largest: Annotated[float, Field(gt=1)] = 1.1

    def views(self, x: Images, draw: Streams) -> Images:
        # sizes and places are not rounded to pixels, so that small images vary too; back to the model's own size in one resampling, not two
        chance, size, down, right = draw.uniform("diverse inputs", x.shape[1], 4).to(x).unbind(2)
        size = 1 + (self.largest - 1) * size
        rows = self._resampling(x.shape[3], size, down)
        columns = self._resampling(x.shape[4], size, right)
        moved = rows[:, :, None] @ x @ columns[:, :, None].mT
        return torch.where((chance < self.probability)[:, :, None, None, None], moved, x)

    def _resampling(self, side: int, size: Tensor, place: Tensor) -> Tensor:
        """(B, N, side, side) bilinear weights of the image's lines in those of the canvas, which is scaled back to the image's side.

        A product with them, unlike grid_sample, has the same backward at every run on every device.

        Args:
            size: (B, N) of the image on the canvas, in multiples of its side.
            place: (B, N) of the image's first line, from 0 (at the canvas's first) to 1 (its last at the canvas's last).
        """
        line = torch.arange(side, device=size.device, dtype=size.dtype)
        on_canvas = (line + 0.5) / side * self.largest
        in_image = (on_canvas - (place * (self.largest - size))[..., None]) / size[..., None] * side - 0.5
        return (1 - (in_image[..., None] - line).abs()).clamp(min=0)
