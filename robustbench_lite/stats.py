"""Intervals for proportions and for their differences."""

from __future__ import annotations

from math import sqrt

Z95 = 1.959963984540054  # the 97.5 % point of the standard normal


def wilson(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval (JASA 1927) for a proportion, two-sided, 95 % unless `z` says otherwise.

    Raises:
        ValueError: n is not positive, or successes lies outside 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n > 0, got {successes} of {n}")
    share = successes / n
    centre = share + z * z / (2 * n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # at 0 and at n the bound is exact; the formula misses it by a rounding error
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


def clopper_pearson(successes: float, n: float, alpha: float = 0.025) -> tuple[float, float]:
    """The exact limits for a proportion (Clopper and Pearson, Biometrika 1934).

    Each limit is wrong with a probability of at most `alpha`: alone, it is one-sided at that level; both are an interval of 1 - 2 alpha.

    Args:
        successes, n: need not be whole; an effective number of images (Korn and Graubard, Survey Methodology 1998) is not.

    Raises:
        ValueError: n is not positive, or successes lies outside 0..n.
    """
    from scipy.special import betaincinv

    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n > 0, got {successes} of {n}")
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, alpha))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - alpha))
    return low, high


def paired_interval(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """95 % interval for the difference of two paired proportions, first minus second (Newcombe, Stat. Med. 17:2635, 1998, method 10).

    It combines the Wilson limits of the two shares with the correlation between them, and stays inside [-1, 1].

    Args:
        both, only_first, only_second, neither: how many of the n images both, one and none of the two got right.

    Raises:
        ValueError: a count is negative, or all are 0.
    """
    n = both + only_first + only_second + neither
    if n <= 0 or min(both, only_first, only_second, neither) < 0:
        raise ValueError(f"need counts of 0 or more that are not all 0, got {both}, {only_first}, {only_second} and {neither}")
    first, second = both + only_first, both + only_second
    margins = first * (n - first) * second * (n - second)
    agreement = float(both * neither - only_first * only_second)
    if agreement > 0:
        agreement = max(agreement - n / 2, 0.0)  # the correction for continuity that makes it method 10
    correlation = agreement / sqrt(margins) if margins else 0.0
    (low1, high1), (low2, high2) = wilson(first, n), wilson(second, n)
    below, above = (
        _together(first / n - low1, high2 - second / n, correlation),
        _together(high1 - first / n, second / n - low2, correlation),
    )
    difference = (only_first - only_second) / n
    return difference - below, difference + above


def _together(one: float, other: float, correlation: float) -> float:
    """Length of the difference of two correlated deviations."""
    return sqrt(max(one * one - 2 * correlation * one * other + other * other, 0.0))
