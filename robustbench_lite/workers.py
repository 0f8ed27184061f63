"""Several processes for tasks that do not need each other."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Protocol, cast

import torch

from .attacking import Progress
from .engines.local import tune_process
from .errors import InvalidEvaluation, RobustEvalError, UsageError


class Task(Protocol):
    """Something with a name for people, that can be pickled and leaves what it finds in files."""

    @property
    def name(self) -> str: ...

    def run(self, progress: Progress, /) -> None: ...


def run_all(tasks: Sequence[Task], workers: int, progress: Progress) -> None:
    """Run every task, each in a process of its own, `workers` at a time; a single worker is this process.

    Raises:
        UsageError, InvalidEvaluation: what a task raised, with its name; or a process died. The other tasks are ended.
    """
    if workers == 1:
        for task in tasks:
            try:
                task.run(progress)
            except RobustEvalError as error:
                raise _failed(task, error.exit_code, str(error)) from error
        return
    context, waiting = get_context("spawn"), list(tasks)
    running: dict[Connection, tuple[SpawnProcess, Task]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                receiving, sending = context.Pipe(duplex=False)
                process = context.Process(target=_run, args=(waiting[0], sending), daemon=True)
                process.start()
                sending.close()  # the process has the other end of the pipe to itself: when it is closed, the process has ended
                running[receiving] = process, waiting.pop(0)
            for ready in cast(list[Connection], connection.wait(list(running))):
                process, task = running[ready]
                try:
                    failure, said = ready.recv()
                except EOFError:
                    del running[ready]
                    ready.close()
                    process.join()
                    if process.exitcode:
                        raise _failed(task, InvalidEvaluation.exit_code, DIED) from None
                    continue
                if failure is not None:
                    raise _failed(task, failure, said)
                progress(*said)
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


DIED = "its process died, perhaps for lack of memory: use --workers 1; the same command goes on where it stopped"


def _run(task: Task, sending: Connection) -> None:
    """What a process does: sends (None, arguments of progress) or (exit code, message)."""
    begin()
    tune_process()
    try:
        task.run(lambda *said: sending.send((None, said)))
    except RobustEvalError as error:
        sending.send((error.exit_code, str(error)))


def _failed(task: Task, code: int, message: str) -> RobustEvalError:
    return (UsageError if code == UsageError.exit_code else InvalidEvaluation)(f"{task.name}: {message}")


def begin() -> None:
    """What a worker does first: one thread, since they are as many as the cores; Ctrl-C is the parent's to answer; no life without it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """A worker whose parent was killed would go on, or wait for its next task for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
