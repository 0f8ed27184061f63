"""How many independent images grouped ones are worth: several pictures of one patient say less than as many patients."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import ndtri, stdtrit

LEVEL = 0.95


def effective_size(values: Sequence[float], groups: Sequence[Hashable]) -> float:
    """Independent images that would leave the mean as uncertain as these do, at most as many as there are.

    n divided by the design effect, which is the variance of the mean between groups over that of independent images, and made smaller by
    (normal quantile / Student's)^2 because it is itself an estimate from few groups (Korn and Graubard, Survey Methodology 1998). Where all
    values are equal nothing can be estimated, and every group counts as one image.

    Args:
        values: one per image.
        groups: whose image it is, one per image.
    """
    n, found = len(values), np.unique([str(group) for group in groups], return_inverse=True)[1]
    count = int(found.max()) + 1
    if count == n:
        return float(n)
    value = np.asarray(values, float)
    spread = float(value.var())
    if spread == 0 or count == 1:
        return float(count)
    totals = np.bincount(found, value - value.mean())
    between = float((totals**2).sum()) * count / (count - 1) / n**2
    sure = float(ndtri(LEVEL) / stdtrit(count - 1, LEVEL)) ** 2
    return min(n * sure, spread / between * sure) if between > 0 else n * sure
