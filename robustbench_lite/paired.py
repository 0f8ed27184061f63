"""Tests for two sets of verdicts on the same images: which of the images that changed were gained, and which lost.

`gained` are wrong before and right now, `lost` the other way; images that did not change count in n only. None of the numbers needs to be
whole: where images come in groups, they are those of the fewer independent images that carry the same information.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from scipy.special import betainc, ndtri


def mcnemar(gained: float, lost: float, *, two_sided: bool = False) -> float:
    """p of the exact McNemar test: the chance that so many of the changed images are lost, if each is as likely to be gained.

    Args:
        two_sided: the chance of a difference as large in either direction.

    Raises:
        ValueError: a number is negative.
    """
    if min(gained, lost) < 0:
        raise ValueError(f"need counts of 0 or more, got {gained} gained and {lost} lost")
    more, fewer = (max(gained, lost), min(gained, lost)) if two_sided else (lost, gained)
    one_sided = 1.0 if more == 0 else float(betainc(more, fewer + 1, 0.5))  # the binomial tail P(X >= more) at one half
    return min(1.0, 2 * one_sided) if two_sided else one_sided


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted so that the chance of any false rejection among them stays at the level (Holm, Scand. J. Statist. 1979)."""
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = highest
    return adjusted


def score(gained: float, lost: float, n: float, difference: float) -> float:
    """Tango's statistic (Stat. Med. 17:891, 1998) for the hypothesis that the shares differ by `difference`: standard normal under it.

    The number that was gained beyond n * difference, over its standard deviation at the likeliest shares with that difference.

    Args:
        difference: now minus before, in (-1, 1).

    Raises:
        ValueError: counts that are negative or more than n, or a difference outside (-1, 1).
    """
    if min(gained, lost) < 0 or gained + lost > n * (1 + 1e-12) or n <= 0 or not -1 < difference < 1:
        raise ValueError(f"need {gained} gained and {lost} lost among {n}, and a difference in (-1, 1), got {difference}")
    linear = (2 * n - gained + lost) * difference - gained - lost
    likeliest = (sqrt(max(linear**2 + 8 * n * lost * difference * (1 - difference), 0.0)) - linear) / (4 * n)  # share of the lost
    variance = n * (2 * likeliest + difference * (1 - difference))
    beyond = gained - lost - n * difference
    if variance <= 0:  # at no difference where nothing changed
        return 0.0 if beyond == 0 else float("inf") * beyond
    return beyond / sqrt(variance)


def tango(gained: float, lost: float, n: float, alpha: float = 0.025) -> tuple[float, float]:
    """Tango's score limits for a paired difference of shares, now minus before.

    Each limit is one-sided at level `alpha`; both are an interval of 1 - 2 alpha.

    Raises:
        ValueError: counts that are negative or more than n.
    """
    limit, estimate = -float(ndtri(alpha)), (gained - lost) / n

    def beyond(inside: float, outside: float, sign: float) -> float:
        """Where the statistic leaves the limit, between the estimate and the end of the scale."""
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if sign * score(gained, lost, n, middle) < limit else (inside, middle)
        return (inside + outside) / 2

    low = -1.0 if lost == n else beyond(estimate, -1.0, 1)
    high = 1.0 if gained == n else beyond(estimate, 1.0, -1)
    return low, high
