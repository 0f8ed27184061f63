"""A model that does not answer any more: named, instead of waited for."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .attacking import Progress
from .errors import InvalidEvaluation, UsageError
from .store import Store


@contextmanager
def watched(store: Store, progress: Progress, seconds: float | None) -> Iterator[Progress]:
    """End the run where no step comes to its end for so many seconds; a progress to be used in the place of the one given.

    By a signal, which Python looks at between two operations: what hangs inside one of torch's has to be ended from outside, as a driver
    does with a worker.

    Raises:
        UsageError: this is not the main thread, or a system without such signals.
    """
    if seconds is None:
        yield progress
        return
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        raise UsageError("--hang-after needs a process that can be watched: add --workers 1")
    doing = "the first image"

    def said(name: str, *counts: Any) -> None:
        nonlocal doing
        doing = name
        progress(name, *counts)

    def hung(*_: object) -> None:
        raise InvalidEvaluation(
            f"{doing} has not moved for {seconds:g} s: the model hangs, or is slower than --hang-after allows; "
            "the same command goes on where it stopped"
        )

    before = signal.signal(signal.SIGALRM, hung)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    store.ticked = lambda: signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield said
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, before)
