"""What numbers say of one rule: pass, fail or inconclusive, and the images it would take to be sure.

With every image that turns out right instead of wrong an outcome can only move one way: from fail over inconclusive to pass for floors and
comparisons, the other way for ceilings. So where it is the same with all open images wrong and with all of them right, it is settled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Literal

from scipy.special import ndtri
from scipy.stats import binom

from ..paired import mcnemar, score, tango
from ..stats import clopper_pearson
from .rules import Bound, NoWorse

Decided = Literal["pass", "fail", "inconclusive"]
POWER = 0.8
"""Chance with which the number of images that is asked for would decide, if the estimate were the truth."""
MOST = 10_000_000
"""Images beyond which nobody need be told how many it would take."""


@dataclass(frozen=True)
class Levels:
    """One-sided levels: of a pass that should not be, and of a fail that should not be."""

    passing: float
    failing: float

    @classmethod
    def of(cls, rule: Bound, alpha: float, sequential: bool) -> Levels:
        """Where a floor may also fail early, each of the two ways to fail has half of alpha."""
        return cls(alpha, alpha / 2 if sequential and rule.is_floor else alpha)


def by_bounds(rule: Bound, low: float, high: float) -> Decided:
    """Pass or fail where the whole interval is on one side of the threshold."""
    at = rule.threshold
    shown, excluded = {
        ">=": (low >= at, high < at),
        ">": (low > at, high <= at),
        "<=": (high <= at, low > at),
        "<": (high < at, low >= at),
    }[rule.comparison]
    return "pass" if shown else "fail" if excluded else "inconclusive"


def limits(rule: Bound, right: float, n: float, levels: Levels) -> tuple[float, float]:
    """Clopper-Pearson limits of a share, each at the level of the decision that it is for."""
    below, above = (levels.passing, levels.failing) if rule.is_floor else (levels.failing, levels.passing)
    return clopper_pearson(right, n, below)[0], clopper_pearson(right, n, above)[1]


def held(rule: Bound, right: float, n: float, levels: Levels) -> Decided:
    """Whether a share is on the right side of a rule's threshold."""
    return by_bounds(rule, *limits(rule, right, n, levels))


@dataclass(frozen=True)
class Change:
    """Images that were gained and lost against a baseline, among n; of grouped images, as many as carry the same information alone."""

    gained: float
    lost: float
    n: float

    @property
    def difference(self) -> float:
        """Accuracy now minus before."""
        return (self.gained - self.lost) / self.n

    @property
    def p(self) -> float:
        """Of the exact one-sided McNemar test."""
        return mcnemar(self.gained, self.lost)

    def limits(self, alpha: float) -> tuple[float, float]:
        """Tango's limits of the difference, each at level alpha."""
        return tango(self.gained, self.lost, self.n, alpha)

    def outcome(self, rule: NoWorse, alpha: float, p: float) -> Decided:
        """Fail where p is small and the loss beyond the margin, pass where Tango's test excludes a loss of the margin.

        Args:
            p: of the McNemar test, adjusted for the other comparisons of the gate.
        """
        if p <= alpha and -self.difference > rule.margin:
            return "fail"
        return "pass" if score(self.gained, self.lost, self.n, -rule.margin) >= -ndtri(alpha) else "inconclusive"


def needed_to_hold(rule: Bound, share: float, n: int, levels: Levels) -> int | None:
    """Images that would probably decide about a share, if the estimate were the truth; None where no number would.

    Args:
        n: images by now, which did not suffice.
    """
    # the count that is worse than expected, so that with the chance POWER it comes out no worse
    unlucky = 1 - POWER if (share >= rule.threshold) else POWER
    return _first(n, lambda more: held(rule, float(binom.ppf(unlucky, more, share)), more, levels) != "inconclusive")


def _first(n: int, suffices: Callable[[int], bool]) -> int | None:
    """The smallest number of images above n that suffices, to one per cent; None where it is beyond MOST."""
    enough = n + 1
    while not suffices(enough):
        enough *= 2
        if enough > MOST:
            return None
    fewest = max(n, enough // 2)
    while enough - fewest > max(1, enough // 100):
        middle = (fewest + enough) // 2
        fewest, enough = (fewest, middle) if suffices(middle) else (middle, enough)
    return enough


def needed_to_compare(rule: NoWorse, change: Change, n: int, alpha: float) -> int | None:
    """Images that would probably decide a comparison, if the estimate were the truth; None where no number would."""
    sure, likely, difference = -float(ndtri(alpha)), float(ndtri(POWER)), change.difference
    changed = (change.gained + change.lost) / change.n
    spread, beyond = sqrt(max(changed - difference**2, 0.0)), abs(difference + rule.margin)
    if beyond < 1e-12:
        return None
    if difference > -rule.margin:
        # with no image changed at all, Tango's limit is -z^2 / (n + z^2)
        wanted = max(((sure + likely) * spread / beyond) ** 2, sure**2 * (1 - rule.margin) / rule.margin)
    else:
        wanted = max(((sure * sqrt(changed) + likely * spread) / difference) ** 2, (likely * spread / beyond) ** 2)
    return max(ceil(wanted), n + 1) if wanted <= MOST else None


def needed_to_narrow(limited: tuple[float, float, float], threshold: float, n: int, alpha: float) -> int | None:
    """Images at which an interval that narrows with their root would probably leave the threshold out; None where no number would.

    Args:
        limited: low limit, estimate, high limit.
    """
    low, value, high = limited
    sure, likely = -float(ndtri(alpha)), float(ndtri(POWER))
    reach = high - value if threshold > value else value - low
    if abs(threshold - value) < 1e-12:
        return None
    wanted = n * (reach / (threshold - value) * (sure + likely) / sure) ** 2
    return max(ceil(wanted), n + 1) if wanted <= MOST else None
