"""Adversarial images while training: an attack by its name, run to its last step on every image of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_lite.classifier import Images, Labels, Logits
from robustbench_lite.criteria import Criterion, Misclassified
from robustbench_lite.errors import UsageError
from robustbench_lite.oracle import Case, Ledger, WhiteBox
from robustbench_lite.passes import Passes
from robustbench_lite.plan import Attack, State, parts
from robustbench_lite.registry import ATTACKS
from robustbench_lite.streams import Streams
from robustbench_lite.threat import Ball

Climbed = Callable[[Logits], Tensor]
"""What the attack climbs: logits (B, K) -> (B,)."""


class Training(WhiteBox):
    """A door that judges nothing and counts nothing: every image is attacked to the last step, whatever the model says of it."""

    name = "training"

    def _judge(self, x: Images, logits: Logits, *, forwards: int, backwards: int = 0) -> None:
        self.judged = True

    def _finite(self, gradient: Tensor) -> Tensor:
        return gradient


@dataclass(frozen=True)
class Climbing(Criterion):
    """The labels, with a loss of the defense's own in place of the attack's."""

    labels: Labels
    climbed: Climbed

    def margin(self, logits: Logits) -> Tensor:
        return Misclassified(self.labels).margin(logits)

    def loss(self, logits: Logits, loss: str | Callable[..., Tensor]) -> Tensor:
        return self.climbed(logits)


def attack_for_training(spec: str, norm: str) -> Attack:
    """The attack of this name for a norm.

    Raises:
        UnknownName, BadSpec: there is none, or not with such parameters.
        UsageError: it does not know the norm, needs more than gradients, or is several attacks in turn.
    """
    made: Any = ATTACKS.build(spec)
    norms = made.norms
    if norm not in norms:
        raise UsageError(f"{spec} has no norm {norm}: it has {', '.join(norms)}")
    found = parts(made, norm)
    (attack,) = found.values() if len(found) == 1 else (None,)
    if attack is None or not issubclass(WhiteBox, attack.access) or not getattr(attack, "batched", True):
        raise UsageError(f"{spec} cannot make training images: take a gradient attack such as pgd, fgsm or apgd")
    return attack


def attacked(
    model: nn.Module, images: Images, labels: Labels, threat: Ball, attack: Attack, draw: Streams, climbed: Climbed | None = None
) -> Images:
    """(B, C, H, W) what an attack makes of the images in its last step, with the model in eval mode for as long as this lasts.

    Args:
        model: images in [0, 1] -> logits; is neither changed nor does it gather statistics.
        labels: (B,).
        climbed: what the attack climbs in place of its own loss.
    """
    with evaluating(model), torch.no_grad():
        passes = Passes(model)
        criterion: Criterion = Misclassified(labels) if climbed is None else Climbing(labels, climbed)
        count = torch.zeros(len(images), dtype=torch.long, device=images.device)
        case = Case(images, threat, criterion, criterion, count - 1, count)
        ledger = Ledger.opened(images[:0], images.new_zeros(0, 1))  # nothing is written down
        oracle = Training(passes, case, ledger)
        state: State = attack.start(oracle, draw)
        for _ in range(attack.steps):
            state = attack.step(oracle, state, draw)
    return state.x.detach()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which the model is in eval mode, and every part of it as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
