"""SI-FGSM, scale-invariant gradients (Lin et al., ICLR 2020, https://arxiv.org/abs/1908.06281)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from robustbench_lite.classifier import Images
from robustbench_lite.pipeline import Stage
from robustbench_lite.registry import attack
from robustbench_lite.streams import Streams


@attack("si", "si-fgsm")
@dataclass(frozen=True)
class SI(Stage):
    """Climb the mean of the gradients at x, x/2, x/4, x/8, ...

    Made for transfer and combined with others, as in si+ni (the paper's SI-NI-FGSM). Against the model itself pgd and apgd are stronger.

    Args:
        steps: gradient steps.
        step_size: in multiples of eps; by default 1 / steps.
        loss: ce, dlr or margin.
        scales: how many of them (m).
    """

    cost = "steps * (scales + 1) + 1 forwards, steps * scales backwards"

    scales: Annotated[int, Field(ge=1)] = 5

    def views(self, x: Images, draw: Streams) -> Images:
        return torch.cat([x / 2**i for i in range(self.scales)], 1)
