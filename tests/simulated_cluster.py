"""A cluster that is not there: workers, their deaths and a clock in one process, so that a thousand of them cost nothing."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from robustbench_lite.engines.engine import Died, Ended, Event, Job, Said, Send
from robustbench_lite.spreading import halves


@dataclass(frozen=True)
class Slice:
    """Some images of which each takes a second; the ones in `done` have their verdicts."""

    number: int
    images: tuple[int, ...]
    done: set[int]

    @property
    def name(self) -> str:
        return f"slice {self.number}"

    @property
    def size(self) -> int:
        return len(self.images)

    def job(self, deaths: int) -> Job:
        return partial(_say, [image for image in self.images if image not in self.done])

    def parts(self) -> Sequence[Slice]:
        return [replace(self, images=tuple(half)) for half in halves(self.images)]


def _say(images: list[int], send: Send) -> None:
    for image in images:
        send(image)


@dataclass
class Cluster:
    """An engine.

    `lives`: seconds after which a job's worker dies, by job; `pace`: seconds that a worker takes for an image; `start_up`: those until a
    new worker begins; `deadly`: images at which every worker dies.
    """

    size: int
    lives: Callable[[int], float] = lambda _: np.inf
    pace: Callable[[int], float] = lambda _: 1.0
    start_up: float = 0.0
    deadly: Set[int] = frozenset()
    now: float = 0.0
    spent: float = 0.0
    started: int = 0
    handles: dict[int, tuple[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.warm: set[int] = set()
        self.free = list(range(self.size))
        heapq.heapify(self.free)
        self.ahead: list[tuple[float, int, int, Event]] = []  # when, in which order, of which job, what

    def clock(self) -> float:
        return self.now

    def start(self, job: Job) -> object:
        worker, handle = heapq.heappop(self.free), self.started
        self.started += 1
        self.handles[handle] = worker, self.now
        said: list[Any] = []
        job(said.append)
        pace, ends = self.pace(worker), self.now + self.lives(handle)
        last = self.now + (0.0 if worker in self.warm else self.start_up)
        for number, image in enumerate(said):
            last += pace
            if image in self.deadly:
                ends = min(ends, last - pace / 2)
            if last < ends:
                heapq.heappush(self.ahead, (last, number, handle, Said(image)))
        gone, event = (ends, Died("killed by SIGKILL")) if ends < last else (last, Ended())
        if gone < np.inf:
            heapq.heappush(self.ahead, (gone, len(said), handle, event))
        return handle

    def events(self, seconds: float) -> Iterator[tuple[object, Event]]:
        until = self.now + seconds
        while self.ahead and self.ahead[0][2] not in self.handles:
            heapq.heappop(self.ahead)  # of a job that was killed
        if not self.ahead or self.ahead[0][0] > until:
            self.now = until
            return
        self.now = self.ahead[0][0]
        while self.ahead and self.ahead[0][0] <= self.now:
            _, _, handle, event = heapq.heappop(self.ahead)
            if handle in self.handles:
                if not isinstance(event, Said):
                    self._over(handle, warm=isinstance(event, Ended))
                yield handle, event

    def lack(self) -> str | None:
        return "each needs 1 GPU, and 0 are free"

    def kill(self, handle: object) -> None:
        if handle in self.handles:
            self._over(handle, warm=False)  # type: ignore[arg-type]  # it is one of ours

    def _over(self, handle: int, warm: bool) -> None:
        worker, began = self.handles.pop(handle)
        (self.warm.add if warm else self.warm.discard)(worker)
        self.spent += self.now - began
        heapq.heappush(self.free, worker)

    def close(self) -> None: ...
