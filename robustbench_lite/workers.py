"""Tasks that do not need each other, over the workers of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from .attacking import Progress
from .engines.engine import Failed, Job, Send
from .engines.opening import Workers
from .errors import RobustEvalError
from .spreading import Spread


class Task(Protocol):
    """Something with a name for people, that can be pickled and leaves what it finds in files, so that it can be begun again."""

    @property
    def name(self) -> str: ...

    def run(self, progress: Progress, /) -> None: ...


@dataclass(frozen=True)
class Whole:
    """A task in one piece."""

    task: Task
    size: int = 1

    @property
    def name(self) -> str:
        return self.task.name

    def job(self, deaths: int) -> Job:
        return partial(run_task, self.task)

    def parts(self) -> Sequence[Whole]:
        return ()


def run_all(tasks: Sequence[Task], workers: Workers, progress: Progress) -> None:
    """Run every task, each by a worker; a single worker of this machine is this process.

    Raises:
        UsageError, InvalidEvaluation: what a task raised, with its name; or its workers died. The other tasks are ended.
    """
    if workers.engine == "local" and workers.count == 1:
        for task in tasks:
            run_task(task, lambda said: progress(*said))
        return

    def heard(_: Whole, said: Any) -> None:
        progress(*said)

    with closing(workers.open()) as engine:
        Spread(engine, heard, workers.hang_after, slow=float("inf")).run(map(Whole, tasks))  # two of one task would write the same files


def run_task(task: Task, send: Send) -> None:
    try:
        task.run(lambda *said: send(said))
    except RobustEvalError as error:
        raise Failed(error.exit_code, f"{task.name}: {error}").error(task.name) from error
