"""The engine for many machines: Ray finds a place for every job, and says so when its worker or its machine is gone.

Jobs go out and events come back through Ray's own channels, small ones; nothing is put into its object store. Workers read models and data
themselves, so that these must be found on every machine.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .engine import Died, Ended, Event, Failed, Job, told

if TYPE_CHECKING:
    from ray import ObjectRefGenerator

STORE_BYTES = 200 * 2**20
"""Of the object store of a Ray that is started here; 75 MB is the least that Ray accepts."""


class Ray:
    """Workers of a Ray cluster.

    Args:
        address: of a running cluster, `auto` for the one of this machine; None starts one here that listens on the loopback alone.
        workers: None: as many as the cluster has processors for, or accelerators where some are asked for.
        gpus: accelerators of each worker, such as 0.5.
        threads: of each, for arithmetic on a CPU; so many processors are reserved.

    Raises:
        UsageError: Ray is not installed or was imported too early, there is no cluster at the address, or it lacks what a worker needs.
    """

    def __init__(self, address: str | None = None, workers: int | None = None, *, gpus: float = 0, threads: int = 1) -> None:
        ray = _imported(alone=address is None or _on_loopback(address))
        self.ray, self.gpus, self.threads, self.workers = ray, gpus, threads, workers
        self.ours = not ray.is_initialized()
        if self.ours:
            _connect(ray, address, (workers or os.cpu_count() or 1) * threads)
        self.running: set[ObjectRefGenerator] = set()
        self.asked, self.there = -math.inf, list[Mapping[str, float]]()
        environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        self.remote = ray.remote(
            num_cpus=threads,
            num_gpus=gpus,
            max_retries=0,  # the driver takes a job up again where it stopped; Ray would begin it anew
            num_returns="streaming",
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": environment},
        )(_streamed)
        if not self.size:
            there = "; ".join(sorted({_amounts(node) for node in self.there})) or "none"
            self.close()
            raise UsageError(
                f"no machine of the Ray cluster has the {_amounts({'CPU': threads, 'GPU': gpus})} of a worker (there are: {there}): "
                "ask for less, or add machines"
            )

    @property
    def size(self) -> int:
        if time.monotonic() - self.asked > 1:  # machines come and go
            self.there = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
            self.asked = time.monotonic()
        fitting = sum(map(self._fitting, self.there))
        return fitting if self.workers is None else min(fitting, self.workers)

    def _fitting(self, node: Mapping[str, float]) -> int:
        """Workers that a machine has room for."""
        fitting = int(node.get("CPU", 0) // self.threads)
        return min(fitting, int(node.get("GPU", 0) / self.gpus)) if self.gpus else fitting

    def lack(self) -> str:
        there, free = self.ray.cluster_resources(), self.ray.available_resources()
        return (
            f"each needs {_amounts({'CPU': self.threads, 'GPU': self.gpus})}, and of the Ray cluster's {_amounts(there)} "
            f"{_amounts(free)} are free; where that suffices, its machines and this one do not reach each other"
        )

    def start(self, job: Job) -> object:
        handle = self.remote.remote(job)
        self.running.add(handle)
        return handle

    def events(self, seconds: float) -> Iterator[tuple[object, Event]]:
        if not self.running:
            return
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        more, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        for handle in dict.fromkeys([*ready, *more]):
            if handle not in self.running:
                continue  # killed by whoever took the event before this one
            event = self._next(handle)
            if isinstance(event, (Ended, Failed, Died)):
                self.running.discard(handle)
            yield handle, event

    def _next(self, handle: ObjectRefGenerator) -> Event:
        errors = self.ray.exceptions
        try:
            event: Event = self.ray.get(next(handle))
        except StopIteration:
            return Died("its worker stopped without a word")
        except errors.RayTaskError as error:  # the task's own frame failed, before the job began
            return Failed(None, str(error))
        except errors.RayError as error:
            return Died(" ".join(str(error).split())[:200])
        return event

    def kill(self, handle: object) -> None:
        if handle in self.running:
            self.running.discard(handle)
            self.ray.cancel(handle, force=True)

    def close(self) -> None:
        for handle in list(self.running):
            self.kill(handle)
        if self.ours:
            self.ray.shutdown()


def _amounts(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{(count := resources.get(kind, 0)):g} {kind}{'' if count == 1 else 's'}" for kind in ("CPU", "GPU"))


def _streamed(job: Job) -> Iterator[Event]:
    """In the worker: the events of a job, as they come."""
    events: SimpleQueue[Event | None] = SimpleQueue()

    def run() -> None:
        try:
            told(job, events.put)
        finally:
            events.put(None)

    threading.Thread(target=run, daemon=True).start()
    while (event := events.get()) is not None:
        yield event


def _imported(*, alone: bool) -> Any:
    """Ray, without reports to its makers; `alone` it binds to the loopback, which it decides when it is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if alone:
        before = sys.modules.get("ray")
        if before is not None and not before.is_initialized() and os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") != "0":
            raise UsageError(
                "Ray was imported before, and would not keep to the loopback: set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 before that, "
                "or begin with ray.init() yourself"
            )
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs Ray: pip install 'robustbench-lite[ray]', or --engine local") from error
    return ray


GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""With which a client of gRPC, which Ray speaks, begins; the server's begins with a frame of the same kind."""


def _greet(address: str) -> None:
    """Raise OSError where nobody answers as Ray would, for which Ray itself waits minutes."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        if os.environ.get("RAY_USE_TLS", "0") == "0":
            connection.sendall(GREETING)
            answer = connection.recv(9)
            if answer[3:4] != b"\x04":
                raise ConnectionError("what answers there is not Ray")


def _on_loopback(address: str) -> bool:
    """Whether nobody is at this machine's own address, by which Ray replaces 127.0.0.1 unless it is told to stay on the loopback."""
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost") or not port.isdecimal():
        return False
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
            route.connect(("198.51.100.1", 9))  # which sends nothing: it only looks for the way
            own = route.getsockname()[0]
        with socket.create_connection((own, int(port)), timeout=5):
            return False
    except (OSError, OverflowError):
        return True


def _connect(ray: Any, address: str | None, cpus: int) -> None:
    usual: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init("local", num_cpus=cpus, include_dashboard=False, object_store_memory=STORE_BYTES, **usual)
        return
    try:
        if ":" in address and "://" not in address:
            _greet(address)
        ray.init(address, **usual)
    except (OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"no Ray cluster at {address} ({reason}): `ray start --head` starts one, or leave --ray-address out") from error
