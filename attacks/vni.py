"""VNI-FGSM, variance tuning with Nesterov's look-ahead (Wang & He, CVPR 2021, https://arxiv.org/abs/2103.15571)."""

from dataclasses import dataclass

from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.pipeline import Tuned
from robustbench_lite.registry import attack


@attack("vni", "vni-fgsm")
@dataclass(frozen=True)
class VNI(Tuned):
    """Take gradients where the momentum would lead, and correct each by how the last one differed from those around the image.

    Made for transfer; a step costs as much as 22 of mi. Against the model itself pgd and apgd are stronger.

    Args:
        steps: gradient steps.
        step_size: in multiples of eps; by default 1 / steps.
        loss: ce, dlr or margin.
        decay: share of the accumulated direction that is kept at every step.
        neighbours: images around the current one at which gradients are taken (N).
        reach: of the neighbours, in multiples of eps (beta).
    """

    norms = ("linf",)  # the look-ahead's length is linf's, and the neighbours fill a cube
    cost = "steps * (neighbours + 2) + 1 forwards, steps * (neighbours + 1) backwards"

    def ahead(self, x: Images, momentum: Images, length: Tensor) -> Images:
        return x + length * self.decay * momentum
