"""Training on linear bounds over intervals, CROWN-IBP (Zhang et al., ICLR 2020, https://arxiv.org/abs/1906.06316)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from robustbench_lite.classifier import Labels
from robustbench_lite.defending import Step
from robustbench_lite.plain_bounds import Bounds, backward_margins, interval_margins
from robustbench_lite.registry import defense

from .proven import Proven


@defense("crown-ibp")
@dataclass(frozen=True)
class CROWNIBP(Proven):
    """Learn the worst logits that bounds allow in the ball: linear ones at first, which are tighter, and intervals at last.

    Steadier than ibp while the radius rises. A step costs a pass back for every class: about ten times one without a defense for ten
    classes, and as ibp once beta is 0. For plain sequences without normalisation, such as small_cnn. Certify what comes of it with
    ibp or crown, and read the certified accuracy: the loss of a training proves nothing.

    Args:
        eps: radius of the ball, in units of a pixel's full range; by default the usual one of the data. One somewhat larger than
            that to be certified is often the better.
        norm: linf.
        warmup: share of the training in which the images are learnt as they are.
        ramp: share of the training, after the warm-up, in which the radius rises in a straight line from 0 to eps.
        kappa: weight of the cross-entropy of the images as they are, to which it falls from 1 while the radius rises.
        beta: weight of the linear bounds, to which it falls from 1 while the radius rises; the rest is for intervals.
    """

    beta: Annotated[float, Field(ge=0, le=1)] = 0.0

    def fit(self, step: Step) -> Tensor:
        beta = 1 - self.risen(step.progress) * (1 - self.beta)

        def margins(layers: Sequence[nn.Module], inputs: Sequence[Bounds], labels: Labels) -> Tensor:
            intervals = interval_margins(layers, inputs, labels)
            if beta == 0:
                return intervals
            return beta * backward_margins(layers, inputs, labels) + (1 - beta) * intervals

        return self.loss(step, margins)
