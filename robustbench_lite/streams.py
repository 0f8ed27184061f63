"""Random numbers keyed by what they are for, so that they never depend on batch, worker, order or resume."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from . import poisson


def generator(*key: object) -> np.random.Generator:
    """numpy's Philox generator under a 128-bit blake2b of the key's parts: the same values on every machine."""
    text = "\x1f".join(map(str, key))
    return np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")))


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """Global random state of torch, numpy and Python set by the key for as long as this lasts, and put back afterwards.

    For code that draws from it and is not ours: randomised models, other libraries' attacks.
    """
    seed = int(generator(*key).integers(2**63))
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what such code draws from
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


@dataclass(frozen=True)
class Streams:
    """Draws for the rows of one batch, each row under its own key: (seed, sample id, condition, restart, stream, step).

    Args:
        seed: of the whole run.
        condition: its name.
        rows: (sample id, restart) per row.
        steps: (B,) steps done per row, None before the first.
        device: where the draws are wanted; they are made on the CPU and are equal on all devices.
    """

    seed: int
    condition: str
    rows: Sequence[tuple[str, int]]
    steps: Tensor | None
    device: torch.device

    def take(self, rows: slice) -> Streams:
        """The draws of some rows."""
        return replace(self, rows=self.rows[rows], steps=None if self.steps is None else self.steps[rows])

    def uniform(self, stream: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B, *shape) float32, uniform in [low, high)."""
        return self._each(stream, lambda g: g.random(shape, dtype=np.float32)) * (high - low) + low

    def normal(self, stream: str, *shape: int) -> Tensor:
        """(B, *shape) float32, standard normal."""
        return self._each(stream, lambda g: g.standard_normal(shape, dtype=np.float32))

    def gamma(self, stream: str, alpha: float, *shape: int) -> Tensor:
        """(B, *shape) float64, of the gamma distribution with this shape parameter and scale 1."""
        return self._each(stream, lambda g: g.standard_gamma(alpha, shape))

    def integers(self, stream: str, low: int, high: int, *shape: int) -> Tensor:
        """(B, *shape) int64, uniform in low..high - 1."""
        small = np.uint8 if low >= 0 and high <= 256 else np.int64  # eight times as many from the same random bits
        return self._each(stream, lambda g: g.integers(low, high, shape, dtype=small).astype(np.int64))

    def poisson(self, stream: str, levels: Tensor, rates: Tensor) -> Tensor:
        """Counts at the rates `rates[levels]`.

        Args:
            levels: (B, ...) int64, which of the rates holds at a place.
            rates: (L,) float64, in 0..1400.

        Returns:
            (B, ...) float64 whole numbers.
        """
        table = rates.cpu().numpy()
        drawn = [poisson.counts(row, table, g) for g, row in zip(self._generators(stream), levels.cpu().numpy(), strict=True)]
        return torch.from_numpy(np.stack(drawn)).to(self.device, torch.float64)

    def seeds(self, stream: str) -> list[int]:
        """One 63-bit seed a row, for code that has a generator of its own."""
        return [int(g.integers(2**63)) for g in self._generators(stream)]

    def _generators(self, stream: str) -> list[np.random.Generator]:
        steps = [-1] * len(self.rows) if self.steps is None else self.steps.tolist()
        keyed = zip(self.rows, steps, strict=True)
        return [generator(self.seed, sample, self.condition, restart, stream, step) for (sample, restart), step in keyed]

    def _each(self, stream: str, draw: Callable[[np.random.Generator], np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack([draw(g) for g in self._generators(stream)])).to(self.device)
