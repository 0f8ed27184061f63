"""MI-FGSM, the iterative fast gradient sign method with momentum (Dong et al., CVPR 2018, https://arxiv.org/abs/1710.06081)."""

from dataclasses import dataclass

from robustbench_lite.pipeline import Momentum
from robustbench_lite.registry import attack


@attack("mi", "mi-fgsm")
@dataclass(frozen=True)
class MI(Momentum):
    """Climb along the sum of all gradients so far, each scaled to one size, so that a step does not follow the last one's noise.

    Made for transfer and combined with others, as in sgm+mi+di. Against the model itself pgd and apgd are stronger.

    Args:
        steps: gradient steps.
        step_size: in multiples of eps; by default 1 / steps.
        loss: ce, dlr or margin.
        decay: share of the sum that is kept at every step.
    """
