"""Continuous batching: one attack over many images, the device always at work on undecided ones.

A row of the batch is a lane: an image, one of the attack's restarts, and one of its targets. A lane leaves when its image is
broken (goal `first`), when its steps or its budget are used up, or when the model answers NaN; a waiting lane takes its place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor

from .ahead import stacked
from .classifier import Images, Logits
from .oracle import FINE, TROUBLE, Case, Labels, Ledger
from .plan import Finding, Plan, State, Subject
from .rows import Rows, Selection
from .streams import Streams, seeded

COARSENESS = 0.95
"""An image's approach is told in steps of a twentieth of its distance."""

NOTICEABLY = 0.999
"""A nearest image that came less than a thousandth nearer has not come nearer, to one's patience."""


Expect = Callable[[Iterable[str], int], None]


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
    rank: int  # of the target among the criterion's aims
    approach: list[tuple[int, float]] = field(default_factory=list)  # passes and distance, under the goal `closest`

    def came_nearer(self, passes: int, distance: float) -> None:
        """Keep the last distance, and before it those that are a twentieth apart."""
        if len(self.approach) > 1 and self.approach[-1][1] > COARSENESS * self.approach[-2][1]:
            self.approach.pop()
        self.approach.append((passes, distance))

    @property
    def key(self) -> tuple[str, int]:
        """Of its random draws: every target has starts of its own."""
        return f"{self.account.subject.id}/{self.rank}" if self.rank else self.account.subject.id, self.restart

    def target(self, plan: Plan) -> int:
        subject = self.account.subject
        aims = subject.criterion.aims(subject.logits)
        return int(aims[self.rank]) if getattr(plan.attack, "targets", 0) and len(aims) else -1


@dataclass(frozen=True)
class Held(Rows):
    """The settled witness of each row, where `found`.

    Under the goal `closest`, `mark` is its distance when it last came noticeably nearer, and `still` the steps since. `unconfirmed` counts
    the witnesses of the search that did not hold.
    """

    found: Tensor
    x: Images
    logits: Logits
    margin: Tensor
    distance: Tensor
    mark: Tensor
    still: Tensor
    unconfirmed: Tensor

    def waited(self) -> Held:
        """A step later."""
        nearer = self.distance < NOTICEABLY * self.mark
        still = torch.where(nearer, 0, self.still + 1)
        return replace(self, mark=torch.where(self.found & nearer, self.distance, self.mark), still=torch.where(self.found, still, 0))


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
        image = {s.id: s.image() for s in {lane.account.subject.id: lane.account.subject for lane in lanes}.values()}
        origin = stacked([image[s.id] for s in subjects], device)
        first, *rest = (s.criterion for s in subjects)
        target = torch.tensor([lane.target(plan) for lane in lanes], device=device)
        spent = torch.tensor([lane.account.spent for lane in lanes], device=device)
        criterion = first.join(*rest)
        aim = criterion.aimed(target.clamp(min=0)) if getattr(plan.attack, "targets", 0) and criterion.aimable else criterion
        case = Case(origin, plan.searched(subjects), criterion, aim, target, spent)
        oracle = plan.door(plan.search, case, Ledger.opened(origin, logits), plan.goal, plan.budget)
        state = plan.attack.start(oracle, Streams(plan.seed, plan.condition, [lane.key for lane in lanes], None, device))
        ledger = oracle.ledger
        found = torch.zeros(len(lanes), dtype=torch.bool, device=device)
        far = torch.full_like(ledger.distance, torch.inf)
        still, none = state.t.clone(), torch.zeros_like(state.t)
        held = Held(found, origin.clone(), logits.clone(), ledger.margin.clone(), ledger.distance.clone(), far, still, none)
        batch = cls(plan, lanes, oracle, state, held)
        batch.settle()
        return batch

    def step(self) -> None:
        plan, oracle = self.plan, self.oracle
        oracle.judged = False
        draw = Streams(plan.seed, plan.condition, [lane.key for lane in self.lanes], self.state.t, self.state.x.device)
        self.state = plan.attack.step(oracle, self.state, draw)
        oracle.look(self.state.x)
        self.settle()
        if plan.patience is not None:
            self.held = self.held.waited()

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
        logits = self.plan.judge.logits(ledger.best[index], criterion, [self.lanes[row].account.subject.id for row in index.tolist()])
        margin = criterion.margin(logits)
        holds = (margin > 0) & logits.isfinite().all(1)
        ledger.logits[index] = logits
        held.unconfirmed[index] += (ledger.margin[index] > 0) & ~holds
        ledger.margin[index] = torch.where(holds | torch.tensor(everything, device=margin.device), margin, -torch.inf)
        ledger.fresh[index] = False
        nearer, surer = ledger.distance[index] < held.distance[index], margin > held.margin[index]
        better = holds & (~held.found[index] | (nearer if self.plan.goal == "closest" else surer))
        good, back = index[better], index[~better & held.found[index]]
        held.found[good] = True
        held.x[good], held.logits[good] = ledger.best[good], ledger.logits[good]
        held.margin[good], held.distance[good] = ledger.margin[good], ledger.distance[good]
        if self.plan.goal == "closest":
            for row in good.tolist():
                self.lanes[row].came_nearer(int(ledger.forwards[row] + ledger.backwards[row]), float(held.distance[row]))
        # what did not hold, or is less than it seemed, must not displace what was settled before
        ledger.best[back], ledger.logits[back] = held.x[back], held.logits[back]
        ledger.margin[back], ledger.distance[back] = held.margin[back], held.distance[back]

    def finished(self) -> Tensor:
        """(B,) lanes that have nothing left to do."""
        over = (self.state.t >= self.plan.attack.steps) | self.state.done | (self.oracle.ledger.trouble != FINE) | self.oracle.spent()
        if self.plan.goal == "first":
            over = over | self.held.found
        if self.plan.patience is not None:
            over = over | (self.held.still >= self.plan.patience)
        return over | self.cancelled() if any(lane.account.closed for lane in self.lanes) else over

    def cancelled(self) -> Tensor:
        """(B,) lanes whose image another lane has decided."""
        return torch.tensor([lane.account.closed for lane in self.lanes], device=self.state.x.device)

    def last_words(self, ask: bool) -> None:
        """What only the prepared model thought unbroken counts too, and so does (`ask`) the final iterate.

        In this order: the two models' margins do not compare, so the final iterate must meet one that is settled.
        """
        everything = self.plan.search.prepared or self.plan.goal == "full" or self.plan.random
        self.settle(everything)
        if ask:
            if self.plan.random:  # one draw's margin and the votes' do not compare
                self.oracle.ledger.margin[~self.held.found] = -torch.inf
            self.oracle.ask(self.state.x, self.plan.judge.passes)
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
            met, trouble = bool(held.found[row]), int(ledger.trouble[row])
            source, image = (held, held.x) if met else (ledger, ledger.best)
            broken = met and bool((held.distance[row] <= self.plan.ball([lane.account.subject]).reach).all())
            target = int(self.oracle.target[row])
            yield (
                lane,
                Finding(
                    id=lane.account.subject.id,
                    broken=True if broken else (None if trouble != FINE else False),
                    reason=TROUBLE.get(trouble) if not broken or self.plan.goal == "closest" else None,
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
                    gradient=float(ledger.slope[row]) if int(ledger.backwards[row]) else None,
                    approach=tuple(lane.approach),
                    origin=self.oracle.origin[row] if met else None,
                    # votes on a random model differ from the search's answers whatever was prepared
                    unconfirmed=int(held.unconfirmed[row]) if self.plan.search.prepared and not self.plan.random else None,
                ),
            )


@dataclass
class Queue:
    """Lanes that wait: first lanes before second ones, so that no image is tried twice while another was not tried at all."""

    plan: Plan
    waiting: deque[Account]
    expect: Expect
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
        if self.plan.budget is not None and account.spent >= self.plan.budget:
            account.closed = True  # a further lane would ask before it could be stopped
        if account.running == 0 and not account.closed and account.opened < self.plan.lanes(account.subject):
            del self.active[id(account)]
            self.waiting.append(account)

    def emit(self) -> list[Finding]:
        """The images that are done."""
        done = [a for a in self.active.values() if a.running == 0]
        for account in done:
            del self.active[id(account)]
        return [a.found for a in done if a.found is not None]


def run(plan: Plan, subjects: Iterable[Subject], batch_size: int, expect: Expect = lambda *_: None) -> Iterator[list[Finding]]:
    """Attack the subjects; after every step, the images that were decided in it (often none). Each image comes once.

    Args:
        expect: told whose images are asked for next, and how many at a time.
    """
    queue = Queue(plan, deque(Account(s) for s in subjects), expect)
    batch: Batch | None = None
    tick = 0
    while batch is not None or queue.waiting:
        tick += 1
        with seeded(plan.seed, plan.condition, "search", tick) if plan.random else nullcontext():
            batch = _tick(plan, queue, batch, batch_size)
        yield queue.emit()


def _tick(plan: Plan, queue: Queue, batch: Batch | None, batch_size: int) -> Batch | None:
    """Let waiting lanes in, take a step, let the finished ones go."""
    room = batch_size - (len(batch.lanes) if batch else 0)
    # not for every single place: an attack that asks the model when it starts would do so in tiny batches
    if (batch is None or room >= max(1, batch_size // 4)) and (lanes := queue.next(room)):
        coming = (account.subject.id for account in islice(queue.waiting, batch_size))
        queue.expect([*(lane.account.subject.id for lane in lanes), *coming], batch_size)
        new = Batch.started(plan, lanes)
        batch = _let_go(batch.join(new) if batch else new, queue)
    if batch is not None:
        batch.step()
        batch = _let_go(batch, queue)
    return batch


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
