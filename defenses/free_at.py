"""Free adversarial training (Shafahi et al., NeurIPS 2019, https://arxiv.org/abs/1904.12843)."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from robustbench_lite.defending import Step, soft_cross_entropy
from robustbench_lite.registry import defense

from .adversary import Within


@defense("free-at")
@dataclass(frozen=True)
class FreeAT(Within):
    """Learn from every batch several times in a row, and move its images by the very gradients that moved the weights.

    Costs `replays` times as much as standard training of as many epochs, and the paper gives it so many times fewer: where standard
    training takes --epochs 80, --epochs 10 with 8 replays costs the same. A single gradient step between two updates of the weights is
    a weak attack, and as with fast-at robustness can be lost within an epoch: --validation shows it. The paper carries a perturbation
    on to whatever image takes the place in the next batch; here every batch starts at random points of its images' balls, so that an
    image's fate depends neither on its neighbours nor on processes or interruptions.

    Args:
        eps: radius of the ball, in units of a pixel's full range; by default the usual one of the data.
        norm: linf or l2.
        replays: how often a batch is learnt from in a row, the paper's m; 8 is its choice for CIFAR-10, 4 for ImageNet.
        step_size: in multiples of eps.
    """

    replays: Annotated[int, Field(ge=1)] = 8
    step_size: Annotated[float, Field(gt=0)] = 1.0

    def fit(self, step: Step) -> Tensor:
        x, before = step.batch.images, step.replay.moved
        if before is None:
            x_adv = self.threat.random_point(x, step.draw)
        else:
            assert before.grad is not None
            # fp16 skips an update whose gradients overflow, and so do the images
            slope = before.grad.nan_to_num(0.0, 0.0, 0.0)
            x_adv = self.threat.project(before.detach() + self.threat.ascent(slope, self.step_size, before.detach()), x)
        # in training mode, the images' gradient with it: it is the one pass that there is, as in the paper
        step.replay.moved = x_adv.detach().requires_grad_()
        logits: Tensor = step.classifier(step.replay.moved)
        return soft_cross_entropy(logits.float(), step.batch.targets)
