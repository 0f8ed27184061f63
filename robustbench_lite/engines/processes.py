"""The engine for several processes of this machine: each waits for jobs, so that what one has loaded serves the next."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from ..errors import UsageError
from .engine import Died, Event, Failed, Job, Said, Send, told

NOT_BEGUN = (
    "a worker could not begin, and what Python said of it stands above; it begins by importing the script that asks for workers: "
    'let that be a file, and ask under `if __name__ == "__main__":`'
)


@dataclass(eq=False)
class Worker:
    """A process and the pipe to it. `devices`: accelerators to share out; 0: none, or the user has named one."""

    number: int
    threads: int
    devices: int
    job: object | None = None
    begun: bool = False

    def __post_init__(self) -> None:
        context = get_context("spawn")
        self.pipe, other = context.Pipe()
        device = str(self.number % self.devices) if self.devices else None
        self.process: SpawnProcess = context.Process(target=serve, args=(other, self.threads, device), daemon=True)
        with uninterrupted():
            self.process.start()
        other.close()  # the process has its end to itself: when it is closed, the process has ended


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What is started here never hears of Ctrl-C, which is the parent's to answer: not while it imports, either."""
    resource_tracker.ensure_running()  # which would end the blocking when it is started
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Processes:
    """So many processes; each begins when it gets its first job.

    Args:
        threads: of each, for arithmetic on a CPU.
        devices: accelerators that are shared out among them.
    """

    def __init__(self, workers: int, *, threads: int = 1, devices: int = 0) -> None:
        self.size, self.threads, self.devices = workers, threads, devices
        self.workers: dict[int, Worker] = {}

    def start(self, job: Job) -> object:
        number = next(n for n in range(self.size) if n not in self.workers or self.workers[n].job is None)
        if number not in self.workers:
            self.workers[number] = Worker(number, self.threads, self.devices)
        worker = self.workers[number]
        worker.job = handle = object()
        with suppress(OSError):  # it died since: its pipe says so among the events
            worker.pipe.send_bytes(pickle.dumps(job))
        return handle

    def events(self, seconds: float) -> Iterator[tuple[object, Event]]:
        busy = {worker.pipe: worker for worker in self.workers.values() if worker.job is not None}
        for ready in connection.wait(list(busy), seconds):
            worker = busy[ready]  # type: ignore[index]  # what was waited for
            handle = worker.job
            if handle is None:
                continue  # killed by whoever took the event before this one
            try:
                event: Event | None = worker.pipe.recv()
            except (EOFError, OSError):
                reason = self._gone(worker)
                # by an error of its own, which the next one would have as well
                hopeless = not worker.begun and worker.process.exitcode == 1
                event = Failed(UsageError.exit_code, NOT_BEGUN) if hopeless else Died(reason)
            if event is None:
                worker.begun = True
                continue
            if not isinstance(event, Said):
                worker.job = None
            yield handle, event

    def lack(self) -> None:
        """A process begins at once."""

    def kill(self, handle: object) -> None:
        for worker in [each for each in self.workers.values() if each.job is handle]:
            worker.process.kill()
            self._gone(worker)

    def _gone(self, worker: Worker) -> str:
        worker.process.join(10)
        worker.process.kill()  # whose pipe is of no use any more, and which lives on
        worker.process.join()
        worker.pipe.close()
        del self.workers[worker.number]
        worker.job, code = None, worker.process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def close(self) -> None:
        for worker in list(self.workers.values()):
            worker.process.kill()
            self._gone(worker)


def serve(pipe: Connection, threads: int, device: str | None) -> None:
    """What a process does: jobs from the pipe, their events into it, and None before the first."""
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    begin(threads)
    from .local import tune_process

    tune_process()
    with suppress(EOFError, OSError):  # the parent has gone
        pipe.send(None)
        while True:
            packed = pipe.recv_bytes()
            told(partial(_unpacked, packed), pipe.send)


def _unpacked(packed: bytes, send: Send) -> None:
    pickle.loads(packed)(send)


def begin(threads: int = 1) -> None:
    """What a worker does first: few threads, since they are many; Ctrl-C is the parent's to answer; no life without it."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """A worker whose parent was killed would go on, or wait for its next job for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
