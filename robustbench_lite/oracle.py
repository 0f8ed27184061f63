"""The only doors to a model. They judge every image that is asked about, keep the best witness, and count.

    Labels    predict(x)                   decision-based black box
    Scores    + logits(x)                  score-based black box
    WhiteBox  + gradient(x, loss), jacobian(x, classes)
    WholeModel + answer(x)                 for foreign attacks

An attack names the door it needs (`access = Scores`) and is handed exactly that: a door that was not granted does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from .classifier import Images, Logits
from .criteria import Criterion
from .passes import Passes
from .results import Goal
from .rows import Rows, Selection
from .threat import Ball

FINE, BAD_LOGITS, BAD_GRADIENT = 0, 1, 2
TROUBLE = {BAD_LOGITS: "the model's logits were NaN or infinite", BAD_GRADIENT: "the model's gradient was NaN or infinite"}


@dataclass(frozen=True)
class Case(Rows):
    """What is asked, per row: the clean images, what may be done to them, what counts as broken, and the class (B,) that an attack
    on several targets is to aim at in this row, -1 for none; `spent` (B,) what earlier lanes of the image have cost."""

    origin: Images
    threat: Ball
    criterion: Criterion
    target: Tensor
    spent: Tensor


@dataclass
class Ledger(Rows):
    """What was found, per row; the oracle writes it, the scheduler reads it.

    `best` is the image of highest margin asked about so far (goal `closest`: the nearest one that broke), with its logits, margin
    and distance. `fresh` marks a best that is new since it was last settled.
    """

    best: Images
    logits: Logits
    margin: Tensor
    distance: Tensor
    fresh: Tensor
    forwards: Tensor
    backwards: Tensor
    trouble: Tensor

    @classmethod
    def opened(cls, origin: Images, clean_logits: Logits) -> Ledger:
        rows, device = len(origin), origin.device
        count = torch.zeros(rows, dtype=torch.long, device=device)
        return cls(
            best=origin.clone(),
            logits=clean_logits.clone(),
            margin=torch.full((rows,), -torch.inf, device=device),
            distance=torch.zeros(rows, device=device),
            fresh=torch.zeros(rows, dtype=torch.bool, device=device),
            forwards=count,
            backwards=count.clone(),
            trouble=count.clone(),
        )


class Labels:
    """The narrowest door: it answers with predictions.

    Args:
        passes: the model that is asked.
        case, ledger: the rows in the batch now.
        goal: what makes one witness better than another.
        budget: forwards and backwards that a row may spend; what is asked beyond it is not judged.
    """

    name: ClassVar[str] = "labels"

    def __init__(self, passes: Passes, case: Case, ledger: Ledger, goal: Goal = "first", budget: int | None = None) -> None:
        self._passes, self._case, self._goal, self._budget = passes, case, goal, budget
        self.ledger = ledger
        self.judged = False  # whether an image was judged since the scheduler last looked

    @property
    def origin(self) -> Images:
        """(B, C, H, W) the clean images."""
        return self._case.origin

    @property
    def threat(self) -> Ball:
        return self._case.threat

    @property
    def criterion(self) -> Criterion:
        return self._case.criterion

    @property
    def target(self) -> Tensor:
        """(B,) the class that this row aims at, where the attack tries several `targets`; else -1."""
        return self._case.target

    def predict(self, x: Images) -> Tensor:
        """(B,) predicted classes at x; (B, Q) for Q queries a row, x (B, Q, C, H, W)."""
        if x.dim() == 5:
            return torch.stack([self.criterion.predict(logits) for logits in self._ask(x).unbind(1)], 1)
        return self.criterion.predict(self._ask(x))

    def ask(self, x: Images, passes: Passes | None = None) -> None:
        """Judge x and tell nothing: for the scheduler, which may ask another preparation of the same model."""
        self._judge(x, (passes or self._passes).logits(x), forwards=1)

    def take(self, rows: Selection) -> Self:
        return type(self)(self._passes, self._case.take(rows), self.ledger.take(rows), self._goal, self._budget)

    def join(self, other: Self) -> Self:
        return type(self)(self._passes, self._case.join(other._case), self.ledger.join(other.ledger), self._goal, self._budget)

    def spent(self) -> Tensor:
        """(B,) whether the row's budget is used up."""
        used = self._case.spent + self.ledger.forwards + self.ledger.backwards
        return used >= self._budget if self._budget is not None else torch.zeros_like(used, dtype=torch.bool)

    def _ask(self, x: Images) -> Logits:
        """Logits (B, K) or, for x (B, Q, C, H, W), (B, Q, K)."""
        if x.dim() == 4:
            logits = self._passes.logits(x)
            self._judge(x, logits, forwards=1)
            return logits
        logits = self._passes.logits(x.flatten(0, 1))
        logits = logits.reshape(*x.shape[:2], logits.shape[1])
        for query in range(x.shape[1]):
            self._judge(x[:, query], logits[:, query], forwards=1)
        return logits

    def _judge(self, x: Images, logits: Logits, *, forwards: int, backwards: int = 0) -> None:
        ledger, self.judged = self.ledger, True
        within_budget = ~self.spent()
        ledger.forwards = ledger.forwards + forwards
        ledger.backwards = ledger.backwards + backwards
        finite = logits.isfinite().all(1)
        ledger.trouble = torch.where((ledger.trouble == FINE) & ~finite, BAD_LOGITS, ledger.trouble)
        margin = self.criterion.margin(logits)
        candidate = finite & within_budget & ((margin > 0) if self._goal == "closest" else (margin > ledger.margin))
        if not candidate.any():
            return
        x = x.detach()
        distance = self.threat.distance(x, self.origin)
        better = candidate & self.threat.allows(x, distance)
        if self._goal == "closest":
            better &= (distance < ledger.distance) | (ledger.margin <= 0)
        ledger.best[better], ledger.logits[better] = x[better], logits[better]
        ledger.margin[better], ledger.distance[better], ledger.fresh[better] = margin[better], distance[better], True


class Scores(Labels):
    """A black box that answers with logits."""

    name = "scores"

    def logits(self, x: Images) -> Logits:
        """(B, K) at x; (B, Q, K) for Q queries a row, x (B, Q, C, H, W)."""
        return self._ask(x)


class WhiteBox(Scores):
    """The model with its gradients."""

    name = "white box"

    def gradient(self, x: Images, loss: str | Callable[..., Tensor]) -> tuple[Logits, Images]:
        """(logits (B, K), gradient of the loss at x), in one forward and one backward.

        A row whose gradient is not finite becomes undecided, and gets a gradient of zero so that its images stay images.
        """
        logits, gradient = self._passes.gradient(x, self.criterion, loss)
        self._judge(x, logits, forwards=1, backwards=1)
        return logits, self._finite(gradient)

    def jacobian(self, x: Images, classes: Tensor) -> tuple[Logits, Tensor]:
        """(logits (B, K), gradients (B, M, C, H, W) of the logits in classes (B, M)), in one forward and M backwards."""
        logits, gradients = self._passes.jacobian(x, classes)
        self._judge(x, logits, forwards=1, backwards=classes.shape[1])
        return logits, self._finite(gradients)

    def _finite(self, gradient: Tensor) -> Tensor:
        if not gradient.sum().isfinite():  # one pass over the pixels; which row it was is asked only then
            fine = gradient.isfinite().flatten(1).all(1)
            self.ledger.trouble = torch.where((self.ledger.trouble == FINE) & ~fine, BAD_GRADIENT, self.ledger.trouble)
            gradient = torch.where(fine.view(-1, *(1,) * (gradient.dim() - 1)), gradient, torch.zeros_like(gradient))
        return gradient


class WholeModel(WhiteBox):
    """The model itself, for attacks that are not ours: differentiable, and every image it is asked about is judged. One row at a time."""

    name = "whole model"

    def answer(self, x: Images) -> Logits:
        """(N, K) for N images about the one row, connected to x by the autograd graph."""
        logits: Logits = self._passes.model(x)
        detached = logits.detach()
        for query in range(len(x)):
            self._judge(x[query : query + 1].detach(), detached[query : query + 1], forwards=1)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]  # torch's
        return logits

    def _count_backward(self, _: Tensor) -> None:
        self.ledger.backwards = self.ledger.backwards + 1
