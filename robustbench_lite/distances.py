"""What the distances of a search for the nearest broken image say: the accuracy at any eps, and how soon it came how near."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from .results import Condition, Result, Verdict, reach

ALL_TOGETHER = "worst case"


@dataclass(frozen=True)
class Curve:
    """Accuracy against eps, of one attack or of all of them together, in one norm.

    Args:
        name: the attack as it was asked for, or `worst case`.
        conditions: the rows that it is made of, one for each eps that was asked for.
        scaled: every image has an eps of its own, and distances are multiples of it.
        judged: the eps of the rows, rising.
        nearest: of every image, by sample id: how far the nearest image lies that is known to be broken. 0 where it was wrong without an
            attack; infinite where none is known. An image that a row could not decide has 0 too: it is correct at no eps.
    """

    name: str
    conditions: tuple[str, ...]
    norm: str
    scaled: bool
    judged: tuple[float, ...]
    nearest: Mapping[str, float]

    @cached_property
    def distances(self) -> tuple[float, ...]:
        """The distances of `nearest`, rising."""
        return tuple(sorted(self.nearest.values()))

    @property
    def n(self) -> int:
        return len(self.distances)

    @property
    def end(self) -> float:
        """The last image that was found, or the largest eps that was asked for: nobody knows of anything beyond."""
        return max([*self.judged, *(d for d in self.distances if d < math.inf)])

    def correct(self, eps: float) -> int:
        """Images of which nothing broken is known within eps."""
        return self.n - bisect_right(self.distances, reach(eps))

    def at(self, eps: float) -> float:
        """Accuracy at this eps, an upper bound as that of any attack.

        Raises:
            ValueError: eps is negative or no number.
        """
        if not eps >= 0:
            raise ValueError(f"eps must be 0 or more, got {eps}")
        return self.correct(eps) / self.n


def curves(result: Result) -> list[Curve]:
    """One curve for every attack and norm that was asked for the nearest, in the order of the conditions; the worst cases last.

    The rows of one attack at several eps share a curve: an image's distance is the least that any of them found.
    """
    rows: dict[tuple[str | None, bool, str], list[Condition]] = {}
    for c in result.conditions:
        if c.goal == "closest" and c.kind in ("attack", "worst"):
            name = ALL_TOGETHER if c.kind == "worst" else c.attack or c.name
            rows.setdefault((c.norm, c.scaled, name), []).append(c)
    return [_curve(result, name, conditions) for (_, _, name), conditions in rows.items()]


def broken_after(verdict: Verdict, eps: float) -> int | None:
    """Passes, forward and backward, after which a broken image was found within eps, or within the image's own; None: it never was.

    Args:
        eps: of the verdict's condition.
    """
    if not verdict.broken:
        return None
    within, spent = reach(verdict.radius or eps), verdict.forwards + verdict.backwards
    return next((int(passes) for passes, distance in verdict.approach or () if distance <= within), spent)


def medians(verdicts: Sequence[Verdict]) -> list[tuple[int, float]]:
    """After how many passes per image the median over all images of the nearest so far came down to what, as (passes, distance), falling.

    It begins where at least half of the images have one; the last pair stands at the most passes that any image was given.
    """
    nearest = [0.0 if v.broken_by == "clean" or v.broken is None else math.inf for v in verdicts]
    ordered, found = sorted(nearest), []
    steps = [(int(passes), row, distance) for row, v in enumerate(verdicts) for passes, distance in _steps(v)]
    for passes, row, distance in sorted(steps):
        if distance < nearest[row]:
            ordered.pop(bisect_left(ordered, nearest[row]))
            insort(ordered, distance)
            nearest[row] = distance
            median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
            if median < math.inf:
                found.append((passes, median))
    if found:
        found.append((max(v.forwards + v.backwards for v in verdicts), found[-1][1]))
    return list(dict(found).items())  # of several at one number of passes the last


def _steps(verdict: Verdict) -> Sequence[Sequence[float]]:
    if verdict.broken_by == "clean" or verdict.broken is None or verdict.nearest == math.inf:
        return ()
    return verdict.approach or [(verdict.forwards + verdict.backwards, verdict.distance)]


def _curve(result: Result, name: str, conditions: Sequence[Condition]) -> Curve:
    distances: dict[str, float] = {}
    undecided: set[str] = set()
    for c in conditions:
        for v in result.of(c.name):
            eps = float(c.eps or 0)
            size = v.nearest if v.radius is None else v.nearest / v.radius * eps
            # what a row counts as broken is so on its curve, however the two are rounded
            distances[v.sample_id] = min(size, distances.get(v.sample_id, math.inf), eps if v.broken else math.inf)
            undecided |= {v.sample_id} if v.cut_short else set()
    return Curve(
        name,
        tuple(c.name for c in conditions),
        str(conditions[0].norm),
        conditions[0].scaled,
        tuple(sorted(float(c.eps or 0) for c in conditions)),
        {key: 0.0 if key in undecided else distance for key, distance in distances.items()},
    )
