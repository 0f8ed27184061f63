"""Adversarial images while training: an attack by its name, run to its last step on every image of a batch."""

# no `from __future__ import annotations`: the annotations of inherited fields are read in the modules of the defenses that inherit them

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from robustbench_lite.classifier import Images, Labels, Logits
from robustbench_lite.criteria import Misclassified
from robustbench_lite.defending import About, Kind, Step, soft_cross_entropy
from robustbench_lite.errors import UsageError
from robustbench_lite.oracle import Case, Ledger, WhiteBox
from robustbench_lite.passes import Passes
from robustbench_lite.plan import Attack, State, parts
from robustbench_lite.registry import ATTACKS
from robustbench_lite.streams import Streams
from robustbench_lite.threat import Ball, ball


@dataclass(frozen=True)
class Within:
    """What defenses against an attacker in a ball have in common.

    Args:
        eps: radius of the ball, in units of a pixel's full range; by default the usual one of the data.
        norm: linf or l2.
    """

    kind: ClassVar[Kind] = "adversarial"

    eps: Annotated[float, Field(gt=0)] | None = None
    norm: Literal["linf", "l2"] = "linf"

    def __post_init__(self) -> None:
        if self.eps is not None:
            ball(self.norm, self.eps)  # refuses what is no radius in this norm

    @property
    def threat(self) -> Ball:
        """Known once the defense is informed."""
        assert self.eps is not None
        return ball(self.norm, self.eps)

    def informed(self, about: About) -> Self:
        """
        Raises:
            UsageError: no radius was given, and the data have no usual one in this norm.
        """
        if self.eps is None and self.norm not in about.eps:
            raise UsageError(f"these data have no usual radius in {self.norm}: give the defense one, eps=...")
        return replace(self, eps=about.eps[self.norm] if self.eps is None else self.eps)


class Training(WhiteBox):
    """A door that judges nothing and counts nothing: every image is attacked to the last step, whatever the model says of it."""

    name = "training"

    def _judge(self, x: Images, logits: Logits, *, forwards: int, backwards: int = 0) -> None:
        self.judged = True

    def _finite(self, gradient: Tensor) -> Tensor:
        return gradient  # what is no number reaches the loss, and stops the training there


def attack_for_training(spec: str, norm: str) -> Attack:
    """The attack of this name for a norm.

    Raises:
        UnknownName, BadSpec: there is none, or not with such parameters.
        UsageError: it does not know the norm, does not follow gradients, or is several attacks or runs, of which a judge would choose.
    """
    made: Any = ATTACKS.build(spec)
    if norm not in made.norms:
        raise UsageError(f"{spec} has no norm {norm}: it has {', '.join(made.norms)}")
    attack, *others = parts(made, norm).values()
    # these look for the nearest image that breaks, wherever it is, and steer by what they have found
    nearest = getattr(attack, "goal", "first") == "closest" or isinstance(attack, ATTACKS.get("fab"))  # type: ignore[arg-type]  # a class
    if others or attack.access is not WhiteBox or not getattr(attack, "batched", True) or nearest or hasattr(attack, "fit"):
        raise UsageError(f"{spec} cannot make training images: take a gradient attack such as pgd, fgsm or apgd")
    if getattr(attack, "restarts", 1) > 1 or getattr(attack, "targets", 0):
        raise UsageError(f"{spec} is several runs an image, and a training image is the end of one: set no restarts and no targets")
    return attack


def attacked(model: nn.Module, images: Images, labels: Labels, threat: Ball, attack: Attack, draw: Streams) -> Images:
    """(B, C, H, W) what an attack makes of the images in its last step; inside the ball and the box.

    Args:
        model: images in [0, 1] -> logits. It is attacked in eval mode, gathers no statistics and gets no gradients; under autocast to
            bfloat16 the attack computes in bfloat16 too.
        labels: (B,).
    """
    hooks = getattr(attack, "hooks", lambda *_: nullcontext())
    with evaluating(model), hooks(model, images[:1]), torch.no_grad():
        criterion = Misclassified(labels)
        count = torch.zeros(len(images), dtype=torch.long, device=images.device)
        case = Case(images, threat, criterion, criterion, count - 1, count)
        ledger = Ledger.opened(images[:0], images.new_zeros(0, 1))  # nothing is written down
        oracle = Training(Passes(model, reduced="bf16" if reduced(images.device.type) else None), case, ledger)
        state: State = attack.start(oracle, draw)
        for _ in range(attack.steps):
            state = attack.step(oracle, state, replace(draw, steps=state.t))
        return threat.project(state.x, images)


def loss_where_attacked(step: Step, threat: Ball, attack: Attack) -> Tensor:
    """(B,) cross-entropy of a step's images after an attack, which climbs away from the class of largest share."""
    batch = step.batch
    x_adv = attacked(step.classifier, batch.images, batch.labels, threat, attack, step.draw)
    logits: Logits = step.classifier(x_adv)
    return soft_cross_entropy(logits.float(), batch.targets)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which the model is in eval mode and its parameters are constants, whose gradients would be computed for nothing; every
    part is afterwards as it was."""
    training = [module for module in model.modules() if module.training]
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in learnt:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learnt:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def reduced(device: str) -> torch.dtype | None:
    """bfloat16 where the training computes in it. Not float16, in which small gradients vanish: nothing scales the attack's."""
    half = torch.get_autocast_dtype(device)
    return half if torch.is_autocast_enabled(device) and half is torch.bfloat16 else None
