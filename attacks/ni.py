"""NI-FGSM, Nesterov's accelerated gradient (Lin et al., ICLR 2020, https://arxiv.org/abs/1908.06281)."""

from dataclasses import dataclass

from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.pipeline import Momentum
from robustbench_lite.registry import attack


@attack("ni", "ni-fgsm")
@dataclass(frozen=True)
class NI(Momentum):
    """Take the gradient where the momentum would lead, and climb along the momentum that comes of it.

    Made for transfer; it costs one more forward a step than mi, because the image itself is asked about too. Against the model itself
    pgd and apgd are stronger.

    Args:
        steps: gradient steps.
        step_size: in multiples of eps; by default 1 / steps.
        loss: ce, dlr or margin.
        decay: share of the accumulated direction that is kept at every step.
    """

    norms = ("linf",)  # the look-ahead's length is linf's
    cost = "2 * steps + 1 forwards, steps backwards"

    def ahead(self, x: Images, momentum: Images, length: Tensor) -> Images:
        return x + length * self.decay * momentum
