"""What counts as broken, per image. A criterion owns the labels; an attack never sees them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .classifier import Labels, Logits
from .errors import BadSpec
from .losses import LOSSES, gap, margin, reaching_dlr, targeted_dlr
from .rows import Rows


class Criterion(Rows):
    """Says whether logits mean that the image is broken."""

    @abstractmethod
    def margin(self, logits: Logits) -> Tensor:
        """(B,) positive exactly where broken; its size says by how much."""

    def loss(self, logits: Logits, loss: str | Callable[..., Tensor]) -> Tensor:
        """(B,) the loss to be climbed: ce, dlr, margin, or gap (to the target of the row, where it has one).

        Raises:
            BadSpec: a loss of the user's own, which needs class labels.
        """
        if callable(loss):
            raise BadSpec(f"a loss of your own needs class labels, which {type(self).__name__} does not have: use loss=margin")
        return self.cross_entropy(logits) if loss == "ce" else self.margin(logits)

    def cross_entropy(self, logits: Logits) -> Tensor:
        """(B,) it falls as the image comes nearer to being right."""
        return self.margin(logits)

    @property
    def aimable(self) -> bool:
        """Whether there is more than one way of being broken, to be tried in turn."""
        return True

    def aims(self, logits: Logits) -> Tensor:
        """(M,) what an attack may aim at one after the other, nearest first, for a record of one row with logits (1, K). None: empty."""
        return torch.empty(0, dtype=torch.long)

    def aimed(self, target: Tensor) -> Criterion:
        """The criterion to be climbed where each row aims at its target (B,), one of `aims`; anything, where a row has none."""
        return self

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
        gap = margin(logits, self.labels)
        return gap if gap.all() else _as_argmax_breaks_ties(gap, logits.argmax(1) != self.labels)

    def loss(self, logits: Logits, loss: str | Callable[..., Tensor]) -> Tensor:
        if callable(loss):
            return loss(logits, self.labels)
        return LOSSES["margin" if loss == "gap" else loss](logits, self.labels)

    def aims(self, logits: Logits) -> Tensor:
        order = logits[0].argsort(descending=True)
        return order[order != self.labels[0]]

    def aimed(self, target: Tensor) -> Criterion:
        return Rival(self.labels, target)


@dataclass(frozen=True)
class Targeted(Criterion):
    """Broken when the prediction is the target. labels, target: (B,)."""

    labels: Labels
    target: Labels

    def margin(self, logits: Logits) -> Tensor:
        return _as_argmax_breaks_ties(-margin(logits, self.target), logits.argmax(1) == self.target)

    def loss(self, logits: Logits, loss: str | Callable[..., Tensor]) -> Tensor:
        if loss == "dlr":
            return reaching_dlr(logits, self.target)
        if loss == "gap":
            return self.margin(logits)
        return -(loss if callable(loss) else LOSSES[loss])(logits, self.target)

    def aims(self, logits: Logits) -> Tensor:
        return self.target


@dataclass(frozen=True)
class Rival(Criterion):
    """Broken when the target is ahead of the label: what an attack on several wrong classes climbs. labels, target: (B,)."""

    labels: Labels
    target: Labels

    def margin(self, logits: Logits) -> Tensor:
        return gap(logits, self.labels, self.target)

    def loss(self, logits: Logits, loss: str | Callable[..., Tensor]) -> Tensor:
        if loss == "dlr":
            return targeted_dlr(logits, self.labels, self.target)
        if loss in ("margin", "gap"):
            return self.margin(logits)
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

    def cross_entropy(self, logits: Logits) -> Tensor:
        """Log-probability of the classes together."""
        return logits.masked_fill(~self.classes, -torch.inf).logsumexp(1) - logits.logsumexp(1)

    def aims(self, logits: Logits) -> Tensor:
        order = logits[0].argsort(descending=True)
        return order[self.classes[0][order]]

    def aimed(self, target: Tensor) -> Criterion:
        return Towards(torch.zeros_like(self.classes).scatter(1, target[:, None], True))


@dataclass(frozen=True)
class Among(Criterion):
    """Broken when the prediction is none of several right classes (ReaL). labels: (B, M) class indices, filled up with -1."""

    labels: Labels

    def margin(self, logits: Logits) -> Tensor:
        count = logits.shape[1]
        wrong = torch.ones(len(logits), count + 1, dtype=torch.bool, device=logits.device)  # one more, for what is filled up
        return Towards(wrong.scatter(1, self.labels.where(self.labels >= 0, count), False)[:, :count]).margin(logits)


@dataclass(frozen=True)
class OrdinalShift(Criterion):
    """Broken when the predicted grade is at least `steps` grades off. labels: (B,)."""

    labels: Labels
    steps: int = 1

    def margin(self, logits: Logits) -> Tensor:
        return self._far(logits).margin(logits)

    def cross_entropy(self, logits: Logits) -> Tensor:
        return self._far(logits).cross_entropy(logits)

    def aims(self, logits: Logits) -> Tensor:
        return self._far(logits).aims(logits)

    def aimed(self, target: Tensor) -> Criterion:
        return Targeted(self.labels, target)

    def _far(self, logits: Logits) -> Towards:
        grades = torch.arange(logits.shape[1], device=logits.device)
        return Towards((grades - self.labels[:, None]).abs() >= self.steps)


@dataclass(frozen=True)
class Binary(Criterion):
    """A model with one logit: broken when it lies on the wrong side of `threshold`. labels: (B,) 0 or 1; logits: (B, 1)."""

    labels: Labels
    threshold: float = 0.0

    def margin(self, logits: Logits) -> Tensor:
        above = logits[:, 0] - self.threshold
        return _as_argmax_breaks_ties(torch.where(self.labels == 1, -above, above), self.labels == 1)

    def cross_entropy(self, logits: Logits) -> Tensor:
        each = functional.binary_cross_entropy_with_logits(logits[:, 0] - self.threshold, self.labels.to(logits.dtype), reduction="none")
        return each

    def aims(self, logits: Logits) -> Tensor:
        return 1 - self.labels

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
        gaps = self._gaps(logits)
        if self.named is not None:
            gaps = gaps[:, list(self.named)]
        return gaps.amax(1) if self.which == "any" else gaps.amin(1)

    def cross_entropy(self, logits: Logits) -> Tensor:
        each = functional.binary_cross_entropy_with_logits(logits, self.labels.to(logits.dtype), reduction="none")
        return (each if self.named is None else each[:, list(self.named)]).sum(1)

    @property
    def aimable(self) -> bool:
        return self.which == "any"

    def aims(self, logits: Logits) -> Tensor:
        """Findings, where one of them is enough."""
        if self.which == "all":
            return super().aims(logits)
        order = self._gaps(logits)[0].argsort(descending=True)
        return order if self.named is None else order[torch.isin(order, torch.tensor(self.named, device=order.device))]

    def aimed(self, target: Tensor) -> Criterion:
        return OneFinding(self.labels, target)

    def _gaps(self, logits: Logits) -> Tensor:
        present = self.labels == 1
        return _as_argmax_breaks_ties(torch.where(present, -logits, logits), present)

    def predict(self, logits: Logits) -> Tensor:
        return (logits > 0).long()

    def confidence(self, logits: Logits) -> Tensor:
        return logits.abs().sigmoid().amin(1)


@dataclass(frozen=True)
class AnyFinding(MultiLabel):
    """Broken when a finding of those `among` is wrong, which may be others for every image. among: (B, K) bool."""

    among: Tensor = field(kw_only=True)

    def cross_entropy(self, logits: Logits) -> Tensor:
        each = functional.binary_cross_entropy_with_logits(logits, self.labels.to(logits.dtype), reduction="none")
        return (each * self.among).sum(1)

    def aims(self, logits: Logits) -> Tensor:
        order = super().aims(logits)
        return order[self.among[0][order]]

    def _gaps(self, logits: Logits) -> Tensor:
        return super()._gaps(logits).masked_fill(~self.among, -torch.inf)


@dataclass(frozen=True)
class OneFinding(Criterion):
    """Broken when one finding of several is wrong. labels: (B, K) 0 or 1; finding: (B,)."""

    labels: Labels
    finding: Tensor

    def margin(self, logits: Logits) -> Tensor:
        return Binary(self._one(self.labels)[:, 0]).margin(self._one(logits))

    def cross_entropy(self, logits: Logits) -> Tensor:
        return Binary(self._one(self.labels)[:, 0]).cross_entropy(self._one(logits))

    def _one(self, values: Tensor) -> Tensor:
        return values.gather(1, self.finding[:, None])
