"""The command line's options on where work is done. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Group, Parameter

from .engines.opening import EngineName, Workers

GROUP = Group("Workers", sort_key=7)


def opt(text: str) -> Parameter:
    return Parameter(group=GROUP, help=text)


@Parameter(name="*")
@dataclass(frozen=True)
class WorkerOptions:
    engine: Annotated[EngineName, opt("local: processes of this machine; ray: those of a cluster.")] = "local"
    workers: Annotated[int | None, opt("How many. Default: this process alone, or all that the cluster has room for.")] = None
    ray_address: Annotated[
        str | None, opt("Of a running cluster: auto or HOST:PORT. Default: one is started here, for this machine alone.")
    ] = None
    gpus_per_worker: Annotated[float, opt("Accelerators of a Ray worker, such as 0.5.")] = 0
    hang_after: Annotated[float | None, opt("Seconds without a step after which a run is given up, and its model named.")] = None
    shard_size: Annotated[int | None, opt("Images that a worker is given at a time; verdicts do not depend on it.")] = None

    def asked(self, alone: int | None = None) -> Workers:
        """Args:
        alone: how many workers there are where nothing was said.

        Raises:
            UsageError: they do not go together.
        """
        count = self.workers if self.workers is not None or self.engine == "ray" else alone
        return Workers(self.engine, count, self.ray_address, self.gpus_per_worker, self.hang_after, self.shard_size)


USUAL = WorkerOptions()
