"""Training on interval bounds, IBP (Gowal et al., ICCV 2019, https://arxiv.org/abs/1810.12715)."""

from dataclasses import dataclass

from torch import Tensor

from robustbench_lite.defending import Step
from robustbench_lite.plain_bounds import interval_margins
from robustbench_lite.registry import defense

from .proven import Proven


@defense("ibp")
@dataclass(frozen=True)
class IBP(Proven):
    """Learn the worst logits that interval bounds allow in the ball, so that a cheap certificate can prove the network.

    A step costs about three times one without a defense, and no adversary is needed; clean accuracy falls by more than with other
    defenses. The radius has to rise slowly: give it epochs. For plain sequences without normalisation, such as small_cnn. Certify
    what comes of it with ibp or crown, and read the certified accuracy: the loss of a training proves nothing.

    Args:
        eps: radius of the ball, in units of a pixel's full range; by default the usual one of the data. One somewhat larger than
            that to be certified is often the better.
        norm: linf.
        warmup: share of the training in which the images are learnt as they are.
        ramp: share of the training, after the warm-up, in which the radius rises in a straight line from 0 to eps.
        kappa: weight of the cross-entropy of the images as they are, to which it falls from 1 while the radius rises.
    """

    def fit(self, step: Step) -> Tensor:
        return self.loss(step, interval_margins)
