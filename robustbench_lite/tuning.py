"""The batch size that is fastest here, measured: a forward and a backward at sizes that double."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from .classifier import Images
from .conditions import Job
from .engines import local
from .errors import InvalidEvaluation
from .oracle import WhiteBox
from .passes import Passes

SECONDS = 5.0
"""For all sizes together; the first passes of a model that needs longer are made all the same."""

NOTABLY = 1.05
"""What is not faster by this factor is not worth its memory."""

LARGER = 8
"""Than a guess, by this factor, no size is tried."""

PASSES = 3
"""Timed at each size, after one that warms up; the fastest counts, since others share the machine."""


@dataclass(frozen=True)
class Tuned:
    """The smallest size that is within 5 % of the fastest, and the images a second at every size that was tried."""

    size: int
    speeds: Mapping[int, float]

    def in_words(self) -> str:
        tried = f"of 1 to {max(self.speeds)}" if self.speeds else "and found no memory for one image"
        return f"tuned the batch size {tried}: went on with batches of {self.size}"


def pass_of(search: Passes, planned: Sequence[Job], alive: Callable[[], None]) -> Callable[[Images], object]:
    """A forward of what is searched on, and a backward where an attack makes one; its end is waited for.

    Args:
        alive: called after each, for whoever ends runs that do not move.
    """
    slopes = any(issubclass(part.access, WhiteBox) for job in planned for part in job.parts.values())

    def once(x: Images) -> None:
        first = torch.zeros(len(x), 1, dtype=torch.long, device=x.device)
        answer = search.jacobian(x, first)[1] if slopes else search.logits(x)
        answer.flatten()[:1].cpu()
        alive()

    return once


def tuned(
    once: Callable[[Images], object],
    probe: Images,
    *,
    guess: int,
    images: int,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Tuned:
    """Measure sizes until two doublings have brought nothing, memory or time runs out, or there are no more images.

    Args:
        once: a pass over images, after which the device has nothing left to do.
        probe: (B, C, H, W) a few images, which are repeated.
        guess: the size to take where time ran out before larger batches ceased to be faster.
        images: that there are.
    """
    speeds: dict[int, float] = {}
    until, size, took, late = clock() + seconds, 1, 0.0, False
    while size <= min(images, LARGER * guess) and not _settled(speeds):
        late = clock() + 2 * took > until  # twice the images take about twice as long
        if late:
            break
        try:
            took = _fastest(once, probe[torch.arange(size) % len(probe)], clock, until)
        except (RuntimeError, MemoryError) as error:
            if not local.out_of_memory(error):
                raise
            local.forget_memory()
            break
        except InvalidEvaluation:  # the model takes no batch that large
            if not speeds:
                raise
            break
        speeds[size] = size / max(took, 1e-9)
        size *= 2
    if not speeds:
        return Tuned(1, speeds)
    best = max(speeds.values())
    chosen = min(each for each, speed in speeds.items() if speed * NOTABLY >= best)
    return Tuned(max(chosen, guess) if late and chosen == max(speeds) else chosen, speeds)


def _settled(speeds: Mapping[int, float]) -> bool:
    """Whether the last two sizes were no faster than one before them."""
    *before, one, other = [0.0, 0.0, *speeds.values()]
    return len(speeds) > 2 and max(one, other) < NOTABLY * max(before)


def _fastest(once: Callable[[Images], object], x: Images, clock: Callable[[], float], until: float) -> float:
    """Seconds of the fastest of a few passes, fewer where they take long."""
    times: list[float] = []
    while len(times) <= PASSES and (not times or clock() + times[-1] <= until):
        begun = clock()
        once(x)
        times.append(clock() - begun)
    return min(times)
