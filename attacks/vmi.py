"""VMI-FGSM, variance tuning (Wang & He, CVPR 2021, https://arxiv.org/abs/2103.15571)."""

from dataclasses import dataclass

from robustbench_lite.pipeline import Tuned
from robustbench_lite.registry import attack


@attack("vmi", "vmi-fgsm")
@dataclass(frozen=True)
class VMI(Tuned):
    """Correct each gradient by how the last one differed from those around it, then climb along the momentum.

    Made for transfer; a step costs as much as 21 of mi. Against the model itself pgd and apgd are stronger.

    Args:
        steps: gradient steps.
        step_size: in multiples of eps; by default 1 / steps.
        loss: ce, dlr or margin.
        decay: share of the accumulated direction that is kept at every step.
        neighbours: images around the current one at which gradients are taken (N).
        reach: of the neighbours, in multiples of eps (beta).
    """

    norms = ("linf",)  # the neighbours fill a cube
    cost = "steps * (neighbours + 1) + 1 forwards, steps * (neighbours + 1) backwards"
