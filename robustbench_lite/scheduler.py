"""Continuous batching: one attack over many images, the device always at work on undecided ones.

A row of the batch is a lane: an image, one of the attack's restarts, and one of its targets. A lane leaves when its image is
broken (goal `first`), when its steps or its budget are used up, or when the model answers NaN; a waiting lane takes its place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from .classifier import Images, Logits
from .criteria import Criterion
from .oracle import FINE, TROUBLE, Case, Labels, Ledger
from .passes import Passes, settle
from .results import Goal
from .rows import Rows, Selection
from .streams import Streams
from .threat import Ball


@dataclass(frozen=True)
class State(Rows):
    """What an attack remembers between two steps; attacks add fields. Every field is a tensor with the row first.

    x: (B, C, H, W) the current images. t: (B,) steps done: the rows of one batch may be at different steps.
    """

    x: Images
    t: Tensor

    @classmethod
    def at(cls, x: Images, **more: Tensor) -> Self:
        return cls(x=x, t=torch.zeros(len(x), dtype=torch.long, device=x.device), **more)

    def moved(self, x: Images, **more: Tensor) -> Self:
        """One step on, at x."""
        return replace(self, x=x, t=self.t + 1, **more)


class Attack(Protocol):
    """A frozen dataclass whose fields are its hyper-parameters. It may also have `restarts` and `targets` (how many of each to try)."""

    access: ClassVar[type[Labels]]
    norms: ClassVar[tuple[str, ...]]
    steps: int

    def start(self, oracle: Any, draw: Streams) -> State: ...
    def step(self, oracle: Any, state: Any, draw: Streams) -> State: ...


@dataclass(frozen=True)
class Subject:
    """An image to be attacked: criterion and logits are records of one row, logits the clean ones (1, K)."""

    id: str
    image: Callable[[], Tensor]
    criterion: Criterion
    logits: Logits
    spent: int = 0  # of its query budget, in an earlier search


@dataclass(frozen=True)
class Finding:
    """What came of one image: `image` (C, H, W) is the witness where broken, else the image of highest margin, with its logits (K,)."""

    id: str
    broken: bool | None
    reason: str | None
    image: Tensor
    logits: Tensor
    margin: float
    distance: float
    restart: int
    target: int | None
    steps: int
    forwards: int
    backwards: int
    reduced: bool = False  # the search ran in reduced precision

    def merged(self, other: Finding, goal: Goal) -> Finding:
        """The better of two lanes of one image, with the cost of both."""

        def rank(f: Finding) -> tuple[bool, bool, float]:
            return bool(f.broken), f.broken is None, (-f.distance if f.broken and goal == "closest" else f.margin)

        first, second = sorted((self, other), key=rank)
        return second.after(first)

    def after(self, earlier: Finding) -> Finding:
        """This finding, with the cost of an earlier search added."""
        return replace(
            self,
            steps=self.steps + earlier.steps,
            forwards=self.forwards + earlier.forwards,
            backwards=self.backwards + earlier.backwards,
        )


@dataclass(frozen=True)
class Plan:
    """How a set of images is attacked.

    Args:
        search: the model that the attack asks, perhaps prepared.
        given: the model as it was given, in float32: it settles every witness.
        side_by_side: where no image waits, fill the batch with further lanes of the images in it. Pays on an accelerator.
    """

    attack: Attack
    threat: Ball
    condition: str
    search: Passes
    given: Passes
    goal: Goal = "first"
    seed: int = 0
    budget: int | None = None
    side_by_side: bool = False

    def targets(self, subject: Subject) -> int:
        """How many targets are tried, 1 for an attack without: there are no more than other classes."""
        return max(1, min(getattr(self.attack, "targets", 0), subject.logits.shape[1] - 1))

    def lanes(self, subject: Subject) -> int:
        return int(getattr(self.attack, "restarts", 1)) * self.targets(subject)


@dataclass
class Account:
    """What is known of one image over all its lanes."""

    subject: Subject
    opened: int = 0  # lanes started so far
    running: int = 0
    found: Finding | None = None
    closed: bool = False

    @property
    def spent(self) -> int:
        """Forwards and backwards of the lanes that have ended, and of an earlier search."""
        return self.subject.spent + (self.found.forwards + self.found.backwards if self.found else 0)


@dataclass(frozen=True)
class Lane:
    account: Account
    restart: int
    rank: int  # of the target among the other classes, by clean logit

    @property
    def key(self) -> tuple[str, int]:
        return self.account.subject.id, self.restart

    def target(self, plan: Plan) -> int:
        subject = self.account.subject
        if not getattr(plan.attack, "targets", 0):
            return -1
        order = subject.logits[0].argsort(descending=True)
        others = order[order != subject.criterion.predict(subject.logits)[0]]
        return int(others[self.rank])


@dataclass(frozen=True)
class Held(Rows):
    """The settled witness of each row, where `found`."""

    found: Tensor
    x: Images
    logits: Logits
    margin: Tensor
    distance: Tensor


@dataclass
class Batch:
    """The lanes at work now."""

    plan: Plan
    lanes: list[Lane]
    oracle: Labels
    state: State
    held: Held

    @classmethod
    def started(cls, plan: Plan, lanes: list[Lane]) -> Batch:
        subjects = [lane.account.subject for lane in lanes]
        logits = torch.cat([s.logits for s in subjects])
        device = logits.device
        origin = torch.stack([s.image() for s in subjects]).to(device)
        first, *rest = (s.criterion for s in subjects)
        target = torch.tensor([lane.target(plan) for lane in lanes], device=device)
        spent = torch.tensor([lane.account.spent for lane in lanes], device=device)
        case = Case(origin, plan.threat, first.join(*rest), target, spent)
        oracle = plan.attack.access(plan.search, case, Ledger.opened(origin, logits), plan.goal, plan.budget)
        state = plan.attack.start(oracle, Streams(plan.seed, plan.condition, [lane.key for lane in lanes], None, device))
        ledger = oracle.ledger
        found = torch.zeros(len(lanes), dtype=torch.bool, device=device)
        held = Held(found, origin.clone(), logits.clone(), ledger.margin.clone(), ledger.distance.clone())
        batch = cls(plan, lanes, oracle, state, held)
        batch.settle()
        return batch

    def step(self) -> None:
        plan, oracle = self.plan, self.oracle
        oracle.judged = False
        draw = Streams(plan.seed, plan.condition, [lane.key for lane in self.lanes], self.state.t, self.state.x.device)
        self.state = plan.attack.step(oracle, self.state, draw)
        if not oracle.judged:  # it asked about transformed images or another model only
            oracle.ask(self.state.x)
        self.settle()

    def settle(self, everything: bool = False) -> None:
        """Ask the model as given, in a fresh forward, about new witnesses; what does not hold is forgotten and the search goes on.

        Under the goal `full` every step may better the witness, so after the first one only the last is settled, by `everything`;
        that asks about images which the search thought unbroken as well.
        """
        ledger, held = self.oracle.ledger, self.held
        rows = ledger.fresh & (ledger.margin > 0)
        if self.plan.goal == "full":
            rows = rows & ~held.found
        if everything:
            rows = ledger.fresh
        index = rows.nonzero()[:, 0]
        if not len(index):
            return
        criterion = self.oracle.criterion.take(index)
        logits = settle(self.plan.given, ledger.best[index], criterion)
        margin = criterion.margin(logits)
        holds = (margin > 0) & logits.isfinite().all(1)
        ledger.logits[index] = logits
        ledger.margin[index] = torch.where(holds | torch.tensor(everything, device=margin.device), margin, -torch.inf)
        ledger.fresh[index] = False
        nearer, surer = ledger.distance[index] < held.distance[index], margin > held.margin[index]
        better = holds & (~held.found[index] | (nearer if self.plan.goal == "closest" else surer))
        good, back = index[better], index[~better & held.found[index]]
        held.found[good] = True
        held.x[good], held.logits[good] = ledger.best[good], ledger.logits[good]
        held.margin[good], held.distance[good] = ledger.margin[good], ledger.distance[good]
        # what did not hold, or is less than it seemed, must not displace what was settled before
        ledger.best[back], ledger.logits[back] = held.x[back], held.logits[back]
        ledger.margin[back], ledger.distance[back] = held.margin[back], held.distance[back]

    def finished(self) -> Tensor:
        """(B,) lanes that have nothing left to do."""
        over = (self.state.t >= self.plan.attack.steps) | (self.oracle.ledger.trouble != FINE) | self.oracle.spent()
        if self.plan.goal == "first":
            over = over | self.held.found
        return over | self.cancelled()

    def cancelled(self) -> Tensor:
        """(B,) lanes whose image another lane has decided."""
        return torch.tensor([lane.account.closed for lane in self.lanes], device=self.state.x.device)

    def last_words(self, ask: bool) -> None:
        """What only the prepared model thought unbroken counts too, and so does (`ask`) the final iterate.

        In this order: the two models' margins do not compare, so the final iterate must meet one that is settled.
        """
        everything = self.plan.search.prepared or self.plan.goal == "full"
        self.settle(everything)
        if ask:
            self.oracle.ask(self.state.x, self.plan.given)
            self.settle(everything)

    def take(self, rows: Selection) -> Batch:
        mask = rows.tolist() if isinstance(rows, Tensor) else [True] * len(self.lanes)
        lanes = [lane for lane, kept in zip(self.lanes, mask, strict=True) if kept]
        return Batch(self.plan, lanes, self.oracle.take(rows), self.state.take(rows), self.held.take(rows))

    def join(self, other: Batch) -> Batch:
        oracle, state, held = self.oracle.join(other.oracle), self.state.join(other.state), self.held.join(other.held)
        return Batch(self.plan, self.lanes + other.lanes, oracle, state, held)

    def findings(self) -> Iterator[tuple[Lane, Finding]]:
        ledger, held = self.oracle.ledger, self.held
        for row, lane in enumerate(self.lanes):
            broken, trouble = bool(held.found[row]), int(ledger.trouble[row])
            source, image = (held, held.x) if broken else (ledger, ledger.best)
            target = int(self.oracle.target[row])
            yield (
                lane,
                Finding(
                    id=lane.account.subject.id,
                    broken=True if broken else (None if trouble != FINE else False),
                    reason=TROUBLE.get(trouble) if not broken else None,
                    image=image[row],
                    logits=source.logits[row],
                    margin=float(source.margin[row]),
                    distance=float(source.distance[row]),
                    restart=lane.restart,
                    target=target if target >= 0 else None,
                    steps=int(self.state.t[row]),
                    forwards=int(ledger.forwards[row]),
                    backwards=int(ledger.backwards[row]),
                    reduced=self.plan.search.reduced is not None,
                ),
            )


@dataclass
class Queue:
    """Lanes that wait: first lanes before second ones, so that no image is tried twice while another was not tried at all."""

    plan: Plan
    waiting: deque[Account]
    active: dict[int, Account] = field(default_factory=dict)

    def next(self, room: int) -> list[Lane]:
        lanes: list[Lane] = []
        while len(lanes) < room and self.waiting:
            lanes.append(self._open(self.waiting.popleft()))
        if self.plan.side_by_side:
            for account in list(self.active.values()):
                while len(lanes) < room and account.opened < self.plan.lanes(account.subject):
                    lanes.append(self._open(account))
        return lanes

    def _open(self, account: Account) -> Lane:
        restart, rank = divmod(account.opened, self.plan.targets(account.subject))
        account.opened += 1
        account.running += 1
        self.active[id(account)] = account
        return Lane(account, restart, rank)

    def ended(self, lane: Lane, finding: Finding) -> None:
        account = lane.account
        account.found = finding if account.found is None else account.found.merged(finding, self.plan.goal)
        account.running -= 1
        if account.found.broken is None or (account.found.broken and self.plan.goal == "first"):
            account.closed = True  # its other lanes leave at the next look
        if account.running == 0 and not account.closed and account.opened < self.plan.lanes(account.subject):
            del self.active[id(account)]
            self.waiting.append(account)

    def emit(self) -> list[Finding]:
        """The images that are done."""
        done = [a for a in self.active.values() if a.running == 0]
        for account in done:
            del self.active[id(account)]
        return [a.found for a in done if a.found is not None]


def run(plan: Plan, subjects: Iterable[Subject], batch_size: int) -> Iterator[list[Finding]]:
    """Attack the subjects; after every step, the images that were decided in it (often none). Each image comes once."""
    queue = Queue(plan, deque(Account(s) for s in subjects))
    batch: Batch | None = None
    while batch is not None or queue.waiting:
        room = batch_size - (len(batch.lanes) if batch else 0)
        # not for every single place: an attack that asks the model when it starts would do so in tiny batches
        if (batch is None or room >= max(1, batch_size // 4)) and (lanes := queue.next(room)):
            new = Batch.started(plan, lanes)
            batch = batch.join(new) if batch else new
        assert batch is not None
        batch = _let_go(batch, queue)
        if batch is not None:
            batch.step()
            batch = _let_go(batch, queue)
        yield queue.emit()


def _let_go(batch: Batch, queue: Queue) -> Batch | None:
    """What remains of the batch once the finished lanes have left it."""
    while (done := batch.finished()).any():
        leaving = batch.take(done)
        unasked = ~leaving.held.found if batch.plan.goal == "first" else torch.ones_like(leaving.held.found)
        unasked = unasked & (leaving.oracle.ledger.trouble == FINE) & ~leaving.oracle.spent() & ~leaving.cancelled()
        for rows, ask in ((unasked, True), (~unasked, False)):
            if rows.any():
                part = leaving.take(rows)
                part.last_words(ask)
                for lane, finding in part.findings():
                    queue.ended(lane, finding)
        if done.all():
            return None
        batch = batch.take(~done)
    return batch
