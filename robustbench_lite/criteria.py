"""What counts as broken, per image. A criterion owns the labels; an attack never sees them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .classifier import Labels, Logits
from .errors import BadSpec
from .losses import LOSSES, margin, targeted_dlr
from .rows import Rows


class Criterion(Rows):
    """Says whether logits mean that the image is broken."""

    @abstractmethod
    def margin(self, logits: Logits) -> Tensor:
        """(B,) positive exactly where broken; its size says by how much."""

    def loss(self, logits: Logits, loss: str | Callable[..., Tensor]) -> Tensor:
        """(B,) the loss to be climbed.

        Raises:
            BadSpec: this criterion has no such loss.
        """
        if callable(loss):
            raise BadSpec(f"a loss of your own needs class labels, which {type(self).__name__} does not have: use loss=margin")
        if loss != "margin":
            raise BadSpec(f"the loss {loss!r} is not defined for {type(self).__name__}: use loss=margin")
        return self.margin(logits)

    def predict(self, logits: Logits) -> Tensor:
        """(B,) predicted class, or (B, K) 0/1 for a multi-label model."""
        return logits.argmax(1)

    def confidence(self, logits: Logits) -> Tensor:
        """(B,) the probability that the model gives to its own prediction."""
        return logits.softmax(1).amax(1)


def _as_argmax_breaks_ties(gap: Tensor, broken: Tensor) -> Tensor:
    """The gap, nudged off zero: at equal logits the prediction is argmax's, and a model must not gain or lose by a tie."""
    tiny = torch.finfo(gap.dtype).tiny
    return torch.where(gap == 0, torch.where(broken, tiny, -tiny), gap)


@dataclass(frozen=True)
class Misclassified(Criterion):
    """Broken when the prediction is not the label. labels: (B,)."""

    labels: Labels

    def margin(self, logits: Logits) -> Tensor:
        return _as_argmax_breaks_ties(margin(logits, self.labels), logits.argmax(1) != self.labels)

    def loss(self, logits: Logits, loss: str | Callable[..., Tensor]) -> Tensor:
        if callable(loss):
            return loss(logits, self.labels)
        return LOSSES[loss](logits, self.labels)


@dataclass(frozen=True)
class Targeted(Criterion):
    """Broken when the prediction is the target. labels, target: (B,)."""

    labels: Labels
    target: Labels

    def margin(self, logits: Logits) -> Tensor:
        return _as_argmax_breaks_ties(-margin(logits, self.target), logits.argmax(1) == self.target)

    def loss(self, logits: Logits, loss: str | Callable[..., Tensor]) -> Tensor:
        if loss == "dlr":
            return targeted_dlr(logits, self.labels, self.target)
        return -(loss if callable(loss) else LOSSES[loss])(logits, self.target)


@dataclass(frozen=True)
class Towards(Criterion):
    """Broken when the prediction is any of some classes (upcoding, eligibility). classes: (B, K) bool."""

    classes: Tensor

    def margin(self, logits: Logits) -> Tensor:
        inside = logits.masked_fill(~self.classes, -torch.inf).amax(1)
        outside = logits.masked_fill(self.classes, -torch.inf).amax(1)
        hit = self.classes.gather(1, logits.argmax(1, keepdim=True))[:, 0]
        return _as_argmax_breaks_ties(inside - outside, hit)


@dataclass(frozen=True)
class OrdinalShift(Criterion):
    """Broken when the predicted grade is at least `steps` grades off. labels: (B,)."""

    labels: Labels
    steps: int = 1

    def margin(self, logits: Logits) -> Tensor:
        grades = torch.arange(logits.shape[1], device=logits.device)
        far = (grades - self.labels[:, None]).abs() >= self.steps
        return Towards(far).margin(logits)


@dataclass(frozen=True)
class Binary(Criterion):
    """A model with one logit: broken when it lies on the wrong side of `threshold`. labels: (B,) 0 or 1; logits: (B, 1)."""

    labels: Labels
    threshold: float = 0.0

    def margin(self, logits: Logits) -> Tensor:
        above = logits[:, 0] - self.threshold
        return _as_argmax_breaks_ties(torch.where(self.labels == 1, -above, above), self.labels == 1)

    def predict(self, logits: Logits) -> Tensor:
        return (logits[:, 0] > self.threshold).long()

    def confidence(self, logits: Logits) -> Tensor:
        return (logits[:, 0] - self.threshold).abs().sigmoid()


@dataclass(frozen=True)
class MultiLabel(Criterion):
    """A model with one logit per finding, present above 0: broken when `any`, or `all`, of the `named` findings are wrong.

    labels: (B, K) 0 or 1. named: indices of findings, None for all of them.
    """

    labels: Labels
    which: Literal["any", "all"] = "any"
    named: tuple[int, ...] | None = None

    def margin(self, logits: Logits) -> Tensor:
        present = self.labels == 1
        gaps = _as_argmax_breaks_ties(torch.where(present, -logits, logits), present)
        if self.named is not None:
            gaps = gaps[:, list(self.named)]
        return gaps.amax(1) if self.which == "any" else gaps.amin(1)

    def loss(self, logits: Logits, loss: str | Callable[..., Tensor]) -> Tensor:
        if loss == "ce":
            each = functional.binary_cross_entropy_with_logits(logits, self.labels.to(logits.dtype), reduction="none")
            return (each if self.named is None else each[:, list(self.named)]).sum(1)
        return super().loss(logits, loss)

    def predict(self, logits: Logits) -> Tensor:
        return (logits > 0).long()

    def confidence(self, logits: Logits) -> Tensor:
        return logits.abs().sigmoid().amin(1)
