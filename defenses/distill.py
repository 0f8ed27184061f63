"""Knowledge distillation (Hinton, Vinyals, Dean, NIPS workshop 2015, https://arxiv.org/abs/1503.02531)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import kl_div

from robustbench_lite.checks import first_answer
from robustbench_lite.classifier import Classifier
from robustbench_lite.defending import About, Kind, Step
from robustbench_lite.errors import ModelError
from robustbench_lite.models import load_model
from robustbench_lite.registry import defense


@defense("distill")
@dataclass(frozen=True)
class Distill:
    """Learn besides the labels what a trained teacher says about the same images, softened by a temperature.

    Costs a forward pass of the teacher. Its soft targets lower the confidence and with it the gradients: judge the result by `autoattack`.
    Beside adversarial training it compares the answers on the images as they are, not on the attacked ones, which takes one pass more.

    Args:
        teacher: a checkpoint of `robust-train`, or a model as `robust-eval` names it, in parentheses where a colon is part of it.
        temperature: what both sides' logits are divided by (20 in He et al., CVPR 2019, https://arxiv.org/abs/1812.01187).
        weight: of this loss beside the other.
    """

    kind: ClassVar[Kind] = "distillation"

    teacher: str
    temperature: Annotated[float, Field(gt=0)] = 20.0
    weight: Annotated[float, Field(gt=0)] = 1.0

    @cached_property
    def network(self) -> Classifier:
        """The teacher, in eval mode, its parameters free of gradients. Nothing but training asks for it."""
        return load_model(self.teacher)

    @property
    def taught_by(self) -> str:
        """Digest of the teacher."""
        return self.network.digest[:16]

    def informed(self, about: About) -> "Distill":
        """Itself, its teacher loaded and on the device.

        Raises:
            ModelError: the teacher does not take these images, or has other classes.
        """
        self.network.to(about.device)
        logits, _ = first_answer(self.network, torch.zeros(1, *about.shape, device=about.device), torch.zeros(1, dtype=torch.int64))
        if logits.shape[1] != len(about.counts):
            raise ModelError(
                f"distill: the teacher {self.network.name} has {logits.shape[1]} classes, and the data {len(about.counts)}: "
                "name a teacher that was trained on the same classes"
            )
        return self

    def penalty(self, step: Step) -> Tensor:
        """(B,) T^2 KL(teacher || student): the papers' cross-entropy less the teacher's entropy, which no weight of the student moves."""
        temperature = self.temperature
        with torch.no_grad():
            taught = (self.network(step.batch.images).float() / temperature).log_softmax(1)
        learnt = (step.logits / temperature).log_softmax(1)
        return self.weight * temperature**2 * kl_div(learnt, taught, reduction="none", log_target=True).sum(1)
