"""Fast adversarial training, FGSM from a random start (Wong et al., ICLR 2020, https://arxiv.org/abs/2001.03994)."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from robustbench_lite.defending import Step
from robustbench_lite.registry import defense

from .adversary import Within, attack_for_training, loss_where_attacked


@defense("fast-at")
@dataclass(frozen=True)
class FastAT(Within):
    """Learn from one long gradient step from a random point of the ball, in place of every image.

    Costs twice as much as standard training. Not for large radii or many epochs, where it overfits catastrophically: within an epoch
    the network stands this one step and nothing else, and its accuracy under pgd falls to about 0. The training loss does not tell;
    --validation shows it and keeps an epoch from before.

    Args:
        eps: radius of the ball, in units of a pixel's full range; by default the usual one of the data.
        norm: linf or l2.
        step_size: in multiples of eps.
    """

    step_size: Annotated[float, Field(gt=0)] = 1.25

    def fit(self, step: Step) -> Tensor:
        # one step of PGD by the letter: a start that is uniform in the ball (in l2 by radius), a step, the way back into ball and box;
        # the authors attack in training mode
        attack = attack_for_training(f"pgd:steps=1,step_size={self.step_size}", self.norm)
        return loss_where_attacked(step, self.threat, attack)
