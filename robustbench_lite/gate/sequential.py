"""Evidence against a floor that may be looked at after every image (Ville 1939; Howard et al., Annals of Statistics 2021)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaln

from ..samples import drawn


def e_values(right: Iterable[bool], floor: float) -> NDArray[np.float64]:
    """The likelihood of what was seen under the shares below the floor, each alike, over that under the floor, after each image.

    Where the true share is at or above the floor, each of these is a supermartingale that starts at 1, so that the chance that their mean
    ever reaches 1 / alpha is at most alpha, however often one looks.

    Args:
        right: in an order that was fixed before.
        floor: in (0, 1].
    """
    seen = np.fromiter(right, float)
    hits = np.cumsum(seen)
    misses = np.arange(1, len(seen) + 1) - hits
    if floor >= 1:
        return np.where(misses > 0, np.inf, 1.0 / (hits + 1))
    # the integral of q^hits (1 - q)^misses over q in [0, floor], divided by floor
    with np.errstate(divide="ignore"):  # so unlikely that it is 0: then there is no evidence
        mixed = betaln(hits + 1, misses + 1) + np.log(betainc(hits + 1, misses + 1, floor)) - np.log(floor)
    return np.asarray(np.exp(np.minimum(mixed - hits * np.log(floor) - misses * np.log1p(-floor), 700.0)))


def fails_early(right: Iterable[bool], floor: float, alpha: float) -> bool:
    """Whether the evidence against the floor ever reached 1 / alpha."""
    return floor > 0 and bool((e_values(right, floor) >= 1 / alpha).any())


def decided_first(ids: Sequence[str], fates: Mapping[str, bool | None], shuffle_seed: int) -> list[bool]:
    """Whether images are right, in the order in which a run takes them, up to the first that was not asked about yet.

    Images are done out of order, the broken ones sooner, so that those behind a gap are a biased choice. What is undecided speaks for the
    model here.
    """
    right = []
    for key in sorted(ids, key=lambda key: drawn(shuffle_seed, "order", key)):
        if key not in fates:
            break
        right.append(not fates[key])
    return right
