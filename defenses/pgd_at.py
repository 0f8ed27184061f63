"""Adversarial training (Madry et al., ICLR 2018, https://arxiv.org/abs/1706.06083)."""

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field
from torch import Tensor

from robustbench_lite.defending import Step
from robustbench_lite.registry import defense

from .adversary import Within, attack_for_training, loss_where_attacked


@defense("pgd-at")
@dataclass(frozen=True)
class PGDAT(Within):
    """Learn from what an attack makes of every image, in place of the image.

    Costs the attack's passes besides: with ten steps a training takes about eleven times as long. Clean accuracy falls, and robustness
    outside the ball is not learnt. In long trainings robustness is lost again: --validation keeps the best epoch.

    Args:
        eps: radius of the ball, in units of a pixel's full range; by default the usual one of the data.
        norm: linf or l2.
        attack: any gradient attack with its own parameters, such as (pgd:steps=7,step_size=0.25) or (apgd:steps=5,loss=dlr).
        ramp: share of the training in which the radius rises in a straight line from 0 (Pang et al., ICLR 2021,
            https://arxiv.org/abs/2010.00467); small networks may learn nothing under the whole of it from the first step.
    """

    attack: str = "pgd:steps=10"
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        attack_for_training(self.attack, self.norm)

    def fit(self, step: Step) -> Tensor:
        # the authors attack in training mode; batch statistics of images that are not learnt from would then enter the running ones
        threat = self.threat
        if self.ramp:
            threat = replace(threat, eps=threat.eps * min(1.0, step.progress / self.ramp))
        return loss_where_attacked(step, threat, attack_for_training(self.attack, self.norm))
