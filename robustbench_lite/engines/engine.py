"""What an engine is: it runs jobs somewhere, one to a worker at a time, and hands on what they say.

A job is a picklable callable `job(send)`; what it sends reaches the driver in order, while it runs. An engine knows nothing of images: who
cuts the work, takes it up again after a death and judges what is slow is `spreading`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import InvalidEvaluation, RobustEvalError, UsageError

Send = Callable[[Any], None]
Job = Callable[[Send], None]


@dataclass(frozen=True)
class Said:
    """A job sent something."""

    what: Any


@dataclass(frozen=True)
class Ended:
    """A job came to its end."""


@dataclass(frozen=True)
class Failed:
    """A job raised something: for the user, with an exit code, or a bug (None), with its traceback."""

    exit_code: int | None
    message: str

    def error(self, name: str) -> Exception:
        """To be raised by the driver."""
        if self.exit_code is None:
            return RuntimeError(f"{name} failed in a worker:\n{self.message}")
        return (UsageError if self.exit_code == UsageError.exit_code else InvalidEvaluation)(self.message)


@dataclass(frozen=True)
class Died:
    """A job's process ended without a word: killed, out of memory, or its machine is gone."""

    reason: str


Event = Said | Ended | Failed | Died


class Engine(Protocol):
    """Workers somewhere. `size` is how many jobs they run at once, which may change while they run."""

    @property
    def size(self) -> int: ...

    def start(self, job: Job) -> object:
        """Begin a job; a handle that its events come with. No more than `size` at a time."""

    def events(self, seconds: float) -> Iterator[tuple[object, Event]]:
        """What happened since, waiting so long for the first of it. After `Ended`, `Failed` or `Died` a handle is over."""

    def lack(self) -> str | None:
        """Where a job may have to wait for a place before it begins: what it needs and what there is, for people."""

    def kill(self, handle: object) -> None:
        """End a job at once, without another event of it."""

    def close(self) -> None:
        """End all workers."""


def told(job: Job, send: Callable[[Event], None]) -> None:
    """Run a job and send its events, the last of which says how it ended."""
    try:
        job(lambda what: send(Said(what)))
    except RobustEvalError as error:
        send(Failed(error.exit_code, str(error)))
    except Exception:
        send(Failed(None, traceback.format_exc()))
    else:
        send(Ended())
