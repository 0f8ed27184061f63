"""The only doors to a model. They judge every image that is asked about, keep the best witness, and count.

    Labels    predict(x)                   decision-based black box
    Scores    + logits(x)                  score-based black box
    WhiteBox  + gradient(x, loss), jacobian(x, classes)
    Surrogate the same of another model; the one attacked is asked once, at the end
    WholeModel + answer(x)                 for foreign attacks

An attack names the door it needs (`access = Scores`) and is handed exactly that: a door that was not granted does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

FINE, BAD_LOGITS, BAD_GRADIENT, BAD_SOURCE = 0, 1, 2, 3
TROUBLE = {
    BAD_LOGITS: "the model's logits were NaN or infinite",
    BAD_GRADIENT: "the model's gradient was NaN or infinite",
    BAD_SOURCE: "the surrogate's logits or gradient were NaN or infinite",
}


@dataclass(frozen=True)
class Case(Rows):
    """What is asked, per row: the clean images, what may be done to them, what counts as broken; and for an attack on several
    targets, the criterion that it climbs towards the `target` (B,) of this row, which is else -1. `spent` (B,) is what earlier lanes of
    the image have cost."""

    origin: Images
    threat: Ball
    criterion: Criterion
    aim: Criterion
    target: Tensor
    spent: Tensor


@dataclass
class Ledger(Rows):
    """What was found, per row; the oracle writes it, the scheduler reads it.

    `best` is the image of highest margin asked about so far (goal `closest`: the nearest one that broke), with its logits, margin
    and distance. `fresh` marks a best that is new since it was last settled; `slope` is the largest absolute value in any gradient so far.
    """

    best: Images
    logits: Logits
    margin: Tensor
    distance: Tensor
    fresh: Tensor
    forwards: Tensor
    backwards: Tensor
    trouble: Tensor
    slope: Tensor

    @classmethod
    def opened(cls, origin: Images, clean_logits: Logits) -> Ledger:
        rows, device = len(origin), origin.device
        count = torch.zeros(rows, dtype=torch.long, device=device)
        return cls(
            best=origin.clone(),
            logits=clean_logits.clone(),
            margin=torch.full((rows,), -torch.inf, device=device, dtype=clean_logits.dtype),
            distance=torch.zeros(rows, device=device, dtype=origin.dtype),
            fresh=torch.zeros(rows, dtype=torch.bool, device=device),
            forwards=count,
            backwards=count.clone(),
            trouble=count.clone(),
            slope=torch.zeros(rows, device=device),
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

    def broken(self, x: Images) -> Tensor:
        """(B,) whether x meets the criterion: all that a decision tells. (B, Q) for Q queries a row, x (B, Q, C, H, W)."""
        logits = self._ask(x)
        if x.dim() == 5:
            return torch.stack([self.criterion.margin(each) > 0 for each in logits.unbind(1)], 1)
        return self.criterion.margin(logits) > 0

    def ask(self, x: Images, passes: Passes) -> None:
        """Judge x by a model of the scheduler's and tell nothing."""
        self._judge(x, passes.logits(x), forwards=passes.draws)

    def look(self, x: Images) -> None:
        """For the scheduler, after every step: an attack that asked about other images only is to be judged at x."""
        if not self.judged:
            self.ask(x, self._passes)

    def take(self, rows: Selection) -> Self:
        return type(self)(self._passes, self._case.take(rows), self.ledger.take(rows), self._goal, self._budget)

    def join(self, other: Self) -> Self:
        return type(self)(self._passes, self._case.join(other._case), self.ledger.join(other.ledger), self._goal, self._budget)

    @contextmanager
    def among(self, rows: Tensor) -> Iterator[Self]:
        """The same door for some of the rows, by their numbers: the others are asked nothing and pay nothing."""
        some = self.take(rows)
        yield some
        self.ledger.put(rows, some.ledger)
        self.judged |= some.judged

    def spent(self) -> Tensor:
        """(B,) whether the row's budget is used up."""
        if self._budget is None:
            return torch.zeros_like(self.ledger.forwards, dtype=torch.bool)
        return self._spent() >= self._budget

    def _spent(self) -> Tensor:
        return self._case.spent + self.ledger.forwards + self.ledger.backwards

    def _ask(self, x: Images) -> Logits:
        """Logits (B, K) or, for x (B, Q, C, H, W), (B, Q, K)."""
        logits = self._passes.logits(x if x.dim() == 4 else x.flatten(0, 1))
        logits = logits.view(*x.shape[:2], -1) if x.dim() == 5 else logits
        self._judge(x, logits, forwards=self._passes.draws)
        return logits

    def _judge(self, x: Images, logits: Logits, *, forwards: int, backwards: int = 0) -> None:
        """Count, and keep what is better than the best so far. x (B, C, H, W), or (B, Q, C, H, W) for Q queries that cost so much each."""
        ledger, self.judged = self.ledger, True
        if x.dim() == 4:
            x, logits = x[:, None], logits[:, None]
        rows, queries = logits.shape[:2]
        affordable = None
        if self._budget is not None:
            affordable = self._spent()[:, None] + forwards * torch.arange(queries, device=x.device) < self._budget
        ledger.forwards = ledger.forwards + forwards * queries
        ledger.backwards = ledger.backwards + backwards
        margin = self._criterion_of(queries).margin(logits.flatten(0, 1)).view(rows, queries)
        candidate = margin > (0 if self._goal == "closest" else ledger.margin[:, None])
        if not logits.sum().isfinite():  # one number that is not finite would have come through it
            finite = logits.isfinite().all(2)
            candidate &= finite
            ledger.trouble = torch.where((ledger.trouble == FINE) & ~finite.all(1), BAD_LOGITS, ledger.trouble)
        if affordable is not None:
            candidate &= affordable
        some = candidate.flatten().nonzero()[:, 0]
        if len(some):
            images = x.detach().flatten(0, 1).index_select(0, some)
            self._keep(images, logits.flatten(0, 1)[some], margin.flatten()[some], some, queries)

    def _criterion_of(self, queries: int) -> Criterion:
        """The criterion with one row for every query."""
        if queries == 1:
            return self.criterion
        return self.criterion.take(torch.arange(len(self.origin), device=self.origin.device).repeat_interleave(queries))

    def _keep(self, images: Images, logits: Logits, margin: Tensor, some: Tensor, queries: int) -> None:
        """Of these candidates, the queries `some` (N,) of all rows' queries in a line: what is allowed and better than the best so far."""
        ledger, of = self.ledger, some // queries
        threat, origin = self.threat.take(of), self.origin.index_select(0, of)
        distance = threat.distance(images, origin)
        good = threat.allows(images, distance)
        if self._goal == "closest":
            good &= (distance < ledger.distance[of]) | (ledger.margin[of] <= 0)
        chosen = good.nonzero()[:, 0]
        if queries > 1:
            chosen = self._best_of_each_row(-distance if self._goal == "closest" else margin, chosen, some, queries)
        index = of[chosen]
        # by index_copy_ and index_select, which copy an image in one piece, as brackets do not
        ledger.best.index_copy_(0, index, images.index_select(0, chosen))
        ledger.logits[index], ledger.margin[index], ledger.distance[index] = logits[chosen], margin[chosen], distance[chosen]
        ledger.fresh[index] = True

    def _best_of_each_row(self, worth: Tensor, chosen: Tensor, some: Tensor, queries: int) -> Tensor:
        """Of the candidates `chosen`, those worth most to their rows; the first of equals."""
        rows = len(self.origin)
        ranked = torch.full((rows * queries,), -torch.inf, device=worth.device, dtype=worth.dtype)
        value, query = ranked.index_copy_(0, some[chosen], worth[chosen]).view(rows, queries).max(1)
        index = (value > -torch.inf).nonzero()[:, 0]
        return torch.searchsorted(some, index * queries + query[index])


class Scores(Labels):
    """A black box that answers with logits."""

    name = "scores"

    def logits(self, x: Images) -> Logits:
        """(B, K) at x; (B, Q, K) for Q queries a row, x (B, Q, C, H, W)."""
        return self._ask(x)


class WhiteBox(Scores):
    """The model with its gradients."""

    name = "white box"
    bad_gradient: ClassVar[int] = BAD_GRADIENT

    def gradient(self, x: Images, loss: str | Callable[..., Tensor], *, aside: bool = False) -> tuple[Logits, Images]:
        """(logits (B, K), gradient of the loss at x), in one forward and one backward.

        A row whose gradient is not finite becomes undecided, and gets a gradient of zero so that its images stay images.

        Args:
            loss: ce, dlr, margin or gap, towards the row's target where it has one; or a function of logits and labels.
            aside: x is not the attack's own image but a transformed one or a neighbour, so that its own is still to be judged.
        """
        before = self.judged
        logits, gradient = self._passes.gradient(x, self._case.aim, loss)
        self._judge(x, logits, forwards=self._passes.draws, backwards=self._passes.draws)
        self.judged = before if aside else True
        return logits, self._finite(gradient)

    def loss(self, logits: Logits, loss: str | Callable[..., Tensor]) -> Tensor:
        """(B,) the value of what `gradient` climbs, at logits that it returned."""
        return self._case.aim.loss(logits, loss)

    def jacobian(self, x: Images, classes: Tensor) -> tuple[Logits, Tensor]:
        """(logits (B, K), gradients (B, M, C, H, W) of the logits in classes (B, M)), in one forward and M backwards."""
        logits, gradients = self._passes.jacobian(x, classes)
        self._judge(x, logits, forwards=self._passes.draws, backwards=classes.shape[1] * self._passes.draws)
        return logits, self._finite(gradients)

    def _finite(self, gradient: Tensor) -> Tensor:
        ledger, size = self.ledger, gradient.flatten(1).abs().amax(1)  # NaN comes through it
        fine = size.isfinite()
        ledger.slope = torch.where(fine, ledger.slope.maximum(size), ledger.slope)
        if not fine.all():
            ledger.trouble = torch.where((ledger.trouble == FINE) & ~fine, self.bad_gradient, ledger.trouble)
            gradient = torch.where(fine.view(-1, *(1,) * (gradient.dim() - 1)), gradient, torch.zeros_like(gradient))
        return gradient


class Surrogate(WhiteBox):
    """Another model with its gradients, in place of the one that is attacked, which judges the last image only (`ask`)."""

    name = "surrogate"
    bad_gradient = BAD_SOURCE

    def look(self, x: Images) -> None:
        """The model attacked answers at the verdict and not before."""

    def ask(self, x: Images, passes: Passes) -> None:
        """Judge the image that was made. It is the row's image whatever the model says of it, and be that no number."""
        logits = passes.logits(x)
        super()._judge(x, logits, forwards=passes.draws)
        ledger, distance = self.ledger, self.threat.distance(x, self.origin)
        made = self.threat.allows(x, distance)
        ledger.best[made], ledger.logits[made], ledger.distance[made] = x[made], logits[made], distance[made]
        ledger.margin[made], ledger.fresh[made] = self.criterion.margin(logits)[made], True

    def _judge(self, x: Images, logits: Logits, *, forwards: int, backwards: int = 0) -> None:
        ledger, queries = self.ledger, x.shape[1] if x.dim() == 5 else 1
        ledger.forwards, ledger.backwards = ledger.forwards + forwards * queries, ledger.backwards + backwards
        finite = logits.isfinite().flatten(1).all(1)
        ledger.trouble = torch.where((ledger.trouble == FINE) & ~finite, BAD_SOURCE, ledger.trouble)


class WholeModel(WhiteBox):
    """The model itself, for attacks that are not ours: differentiable, and every image it is asked about is judged. One row at a time."""

    name = "whole model"

    def answer(self, x: Images) -> Logits:
        """(N, K) for N images about the one row, connected to x by the autograd graph."""
        logits: Logits = self._passes.model(x)
        detached = logits.detach()
        self._judge(x.detach()[None], detached[None], forwards=1)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]  # torch's
        if x.requires_grad:
            x.register_hook(self._measure)  # type: ignore[no-untyped-call]  # torch's
        return logits

    def _measure(self, gradient: Tensor) -> None:
        self.ledger.slope = self.ledger.slope.maximum(gradient.detach().abs().amax().nan_to_num(0, 0))

    def _count_backward(self, _: Tensor) -> None:
        self.ledger.backwards = self.ledger.backwards + 1
