"""Pieces of work over the workers of an engine: taken up again after a death, cut up after a second one, issued twice where one is slow,
named where one hangs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Generic, Protocol, Self, TypeVar

from .engines.engine import Died, Engine, Event, Failed, Job, Said
from .errors import InvalidEvaluation, UsageError

WAIT = 0.5
"""Seconds after which a driver that hears nothing looks around."""

DRAIN = 5
"""Seconds at most for what is on its way when a run is broken off."""

CUT_UP = 2
"""Deaths at one piece after which it is cut up, to find what in it kills."""

BEGIN = 120
"""Seconds after which the first worker must have begun, unless the user allows for longer silence."""

HOPELESS = 3
"""Times `retries` deaths for each worker after which a run is given up in which none has done anything."""


class Piece(Protocol):
    """Some work that does not hang on other pieces. `name` is for people, `size` in images."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def job(self, deaths: int) -> Job:
        """What is left of it, after so many workers have died at it."""

    def parts(self) -> Sequence[Self]:
        """The same work in smaller pieces; none where it cannot be cut."""


Work = TypeVar("Work", bound=Piece)
Item = TypeVar("Item")


def halves(items: Sequence[Item]) -> Sequence[Sequence[Item]]:
    """Both halves; none of a single item."""
    middle = len(items) // 2
    return (items[:middle], items[middle:]) if middle else ()


@dataclass
class Attempt(Generic[Work]):
    piece: Work
    started: float
    heard: float | None = None
    """When it last said something; None until it is there: a worker's start takes as long as it takes."""
    doing: str = ""
    moved: bool = False


@dataclass
class Spread(Generic[Work]):
    """Args:
    heard: told what a piece's job sent.
    hang_after: seconds without a word after which a job is given up. None: never.
    slow: a piece that takes so many times the median is issued a second time, once a worker has nothing else to do.
    retries: deaths of workers at one piece that cannot be cut, without anything done in between, before the run is given up.
    deadly: told such a piece and how its last worker ended, instead; it may raise, else the run goes on without the piece.
    """

    engine: Engine
    heard: Callable[[Work, Any], None]
    hang_after: float | None = None
    slow: float = 3.0
    retries: int = 3
    deadly: Callable[[Work, str], None] | None = None
    clock: Callable[[], float] = time.monotonic
    deaths: dict[int, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    """A sentence for every worker that died."""

    def run(self, pieces: Iterable[Work]) -> None:
        """Do all pieces.

        Raises:
            UsageError, InvalidEvaluation: what a job raised; or its workers never begin, die again and again, or one hangs.
        """
        self.waiting = list(pieces)
        self.running: dict[object, Attempt[Work]] = {}
        self.took: list[float] = []  # seconds an image, of the pieces that are done
        self.done = False  # anything at all
        self.began: float | None = self.clock()  # until a worker has said something
        looked = self.began
        try:
            while self.waiting or self.running:
                self._start()
                for handle, event in self.engine.events(WAIT):
                    if handle in self.running:
                        self._meet(handle, event)
                if self.clock() - looked > WAIT:
                    looked = self.clock()
                    self._look()
        except BaseException:
            self._drain()
            raise
        finally:
            for handle in self.running:
                self.engine.kill(handle)

    def _start(self) -> None:
        free = self.engine.size - len(self.running)
        if not self.engine.size and not self.running:
            raise InvalidEvaluation("no worker is left: the same command goes on where it stopped, once there are some")
        for piece in [self.waiting.pop(0) for _ in range(min(free, len(self.waiting)))]:
            self._begin(piece)

    def _begin(self, piece: Work) -> None:
        self.running[self.engine.start(piece.job(self.deaths.get(id(piece), 0)))] = Attempt(piece, self.clock())

    def _slow(self) -> Sequence[Work]:
        """The slowest piece that is not under way twice already, where it is far slower than others were; none that kills, for its copies
        would follow each other for ever."""
        if not self.took:
            return ()
        under_way = Counter(id(a.piece) for a in self.running.values())
        alone = [a for a in self.running.values() if under_way[id(a.piece)] == 1 and self.deaths.get(id(a.piece), 0) < CUT_UP]
        late = [a for a in alone if self.clock() - a.started > self.slow * median(self.took) * a.piece.size + 2 * WAIT]
        return [min(late, key=lambda a: a.started).piece] if late else ()

    def _meet(self, handle: object, event: Event) -> None:
        attempt = self.running[handle]
        piece, attempt.heard, self.began = attempt.piece, self.clock(), None
        if isinstance(event, Said):
            attempt.doing, attempt.moved = getattr(event.what, "doing", ""), attempt.moved or getattr(event.what, "moved", False)
            self.done |= attempt.moved
            self.heard(piece, event.what)
            return
        del self.running[handle]
        if isinstance(event, Failed):
            raise event.error(piece.name)
        others = [other for other, each in self.running.items() if each.piece is piece]
        if isinstance(event, Died):
            self.deaths[id(piece)] = 1 + (0 if attempt.moved else self.deaths.get(id(piece), 0))
            self.lost.append(f"a worker died at {piece.name} ({event.reason})")
            if not others:
                self._again(piece, event.reason)
            return
        self.done = True
        self.took.append((self.clock() - attempt.started) / max(1, piece.size))
        for other in others:  # the first to end has done it
            del self.running[other]
            self.engine.kill(other)

    def _again(self, piece: Work, reason: str) -> None:
        """What becomes of a piece after a death. What is suspicious comes last, so that it holds up nothing else."""
        deaths, all_deaths = self.deaths[id(piece)], len(self.lost)
        parts = piece.parts() if deaths >= CUT_UP else ()
        blamed = deaths > self.retries and not parts
        if blamed and self.deadly is not None:
            self.deadly(piece, reason)
            self.done = True
        elif blamed or (not self.done and all_deaths > HOPELESS * self.retries * max(1, self.engine.size)):
            said = f"{deaths} workers died at it" if blamed else f"{all_deaths} workers died before any had done anything"
            raise InvalidEvaluation(
                f"{piece.name}: {said} ({reason}), perhaps for lack of memory: use fewer --workers or a smaller --batch-size; "
                "the same command goes on where it stopped"
            )
        elif deaths < CUT_UP:
            self.waiting.insert(0, piece)
        else:
            self.waiting += parts or [piece]
            self.deaths |= {id(part): CUT_UP for part in parts}

    def _look(self) -> None:
        allowed = max(BEGIN, self.hang_after or 0)
        if self.began is not None and self.clock() - self.began > allowed and (lack := self.engine.lack()) is not None:
            raise UsageError(f"no worker has begun within {allowed:g} s: {lack}; --hang-after {2 * allowed:g} would wait longer")
        for piece in self._slow() if self.engine.size > len(self.running) and not self.waiting else ():
            self._begin(piece)
        for handle, attempt in list(self.running.items()):
            silent = 0.0 if attempt.heard is None else self.clock() - attempt.heard
            if self.hang_after is not None and silent > self.hang_after:
                if any(other.piece is attempt.piece and other is not attempt for other in self.running.values()):
                    del self.running[handle]  # its copy goes on
                    self.engine.kill(handle)
                    continue
                where = f"{attempt.piece.name}{' at ' if attempt.doing else ''}{attempt.doing}"
                raise InvalidEvaluation(
                    f"{where} has not moved for {silent:.0f} s: the model hangs, or is slower than --hang-after allows; "
                    "the same command goes on where it stopped"
                )

    def _drain(self) -> None:
        """Take what is on its way already, so that an interruption loses nothing that was sent; the reason for it is the error to show."""
        until, more = self.clock() + DRAIN, True
        with suppress(Exception):
            while more and self.clock() < until:
                more = False
                for handle, event in self.engine.events(0):
                    if handle in self.running and isinstance(event, Said):
                        more = True
                        self.heard(self.running[handle].piece, event.what)
