"""What trainings on proven bounds have in common: how the radius rises, and the loss of the worst logits that bounds allow."""

# no `from __future__ import annotations`: the annotations of inherited fields are read in the modules of the defenses that inherit them

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from robustbench_lite.classifier import Labels
from robustbench_lite.defending import Step, soft_cross_entropy
from robustbench_lite.plain_bounds import Bounds, ball_in_box, bounded_layers, interval_bounds

from .adversary import Within

Margins = Callable[[Sequence[nn.Module], Sequence[Bounds], Labels], Tensor]
"""(B, K) lower bounds of the label's logit less every other's, of layers, the bounds of their inputs, and labels."""


@dataclass(frozen=True)
class Proven(Within):
    """
    Args:
        eps: radius of the ball, in units of a pixel's full range; by default the usual one of the data.
        norm: linf.
        warmup: share of the training in which the images are learnt as they are.
        ramp: share of the training, after the warm-up, in which the radius rises in a straight line from 0 to eps.
        kappa: weight of the cross-entropy of the images as they are, to which it falls from 1 while the radius rises.
    """

    norm: Literal["linf"] = "linf"
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.05
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.5
    kappa: Annotated[float, Field(ge=0, le=1)] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup + self.ramp > 1:
            raise ValueError(f"warmup={self.warmup:g} and ramp={self.ramp:g} are shares of one training: together they may be 1 at most")

    def risen(self, progress: float) -> float:
        """The share of the radius that has been reached, 0..1."""
        past = progress - self.warmup
        return min(1.0, max(0.0, past / self.ramp)) if self.ramp else float(past >= 0)

    def settled(self, model: nn.Module, progress: float) -> bool:
        return self.risen(progress) == 1

    def loss(self, step: Step, margins: Margins) -> Tensor:
        """(B,) the images as they are, and the worst logits of their balls.

        Raises:
            ModelError: a layer of the network cannot be followed; before the first step.
        """
        layers, risen = bounded_layers(step.classifier.model), self.risen(step.progress)
        natural = soft_cross_entropy(step.logits, step.batch.targets)
        if risen == 0:
            return natural
        box = ball_in_box(step.classifier, step.batch.images, risen * float(self.threat.eps))
        with torch.autocast(box[0].device.type, enabled=False):  # bounds add up rounding, that of half precision too much of it
            worst = -margins(layers, interval_bounds(layers, box), step.batch.labels)
        kappa = 1 - risen * (1 - self.kappa)
        # less the label's logit: a softmax does not see what all logits have in common
        return kappa * natural + (1 - kappa) * soft_cross_entropy(worst, step.batch.targets)
