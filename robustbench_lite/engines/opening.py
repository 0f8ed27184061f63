"""Which engine was asked for, and with how many workers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import UsageError
from .engine import Engine

EngineName = Literal["local", "ray"]


@dataclass(frozen=True)
class Workers:
    """Where work is done.

    Args:
        engine: `local`, processes of this machine, or `ray`, those of a cluster.
        count: workers. None: this process alone, or with Ray as many as the cluster has room for.
        ray_address: of a running cluster, `auto` or HOST:PORT; None starts one here, for this machine alone.
        gpus: accelerators of a Ray worker, such as 0.5.
        hang_after: seconds without a step after which a worker is given up. None: never.
        shard: images that a worker is given at a time. None: by their number.
    """

    engine: EngineName = "local"
    count: int | None = None
    ray_address: str | None = None
    gpus: float = 0
    hang_after: float | None = None
    shard: int | None = None

    def __post_init__(self) -> None:
        if self.engine not in get_args(EngineName):
            raise UsageError(f"unknown engine {self.engine!r}: use {' or '.join(get_args(EngineName))}")
        if self.engine == "local" and (self.ray_address is not None or self.gpus):
            raise UsageError("--ray-address and --gpus-per-worker are of Ray: add --engine ray, or leave them out")
        for name, value in (("--workers", self.count), ("--shard-size", self.shard)):
            if value is not None and value < 1:
                raise UsageError(f"{name} must be 1 or more, got {value}")
        if self.alone and self.shard is not None:
            raise UsageError("--shard-size is of workers: add --workers or --engine ray, or leave it out")
        if self.gpus < 0 or (self.hang_after is not None and self.hang_after <= 0):
            raise UsageError(f"--gpus-per-worker and --hang-after cannot be negative, got {self.gpus:g} and {self.hang_after}")

    @property
    def alone(self) -> bool:
        """Whether this process does the work."""
        return self.engine == "local" and self.count is None

    def open(self, device: str = "cpu") -> Engine:
        """Begin with the workers.

        Args:
            device: that was asked for; `auto` and `cuda` share out the accelerators of this machine.

        Raises:
            UsageError: they cannot be had.
        """
        if self.engine == "ray":
            from .ray import Ray

            return Ray(self.ray_address, self.count, gpus=self.gpus)
        import torch

        from .processes import Processes

        count = self.count or os.cpu_count() or 1
        devices = torch.cuda.device_count() if device in ("auto", "cuda") else 0
        return Processes(count, threads=max(1, (os.cpu_count() or 1) // count), devices=devices)
