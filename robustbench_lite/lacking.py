"""Which images of a run lack what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .doubting import Doubt
from .proofs import Certified
from .shifts import Perturbed
from .store import Store


def undecided(store: Store, order: Sequence[str], conditions: Sequence[str]) -> list[str]:
    """Ids of the images that lack a verdict under any of these conditions, which may not be for all of them."""
    complete = store.decided(conditions[0])
    for name in conditions[1:]:
        complete &= store.decided(name) | store.left_out(name)
    return [key for key in order if key not in complete]


def undoubted(store: Store, order: Sequence[str], doubts: Sequence[Doubt]) -> list[str]:
    """Ids of the images that doubts have still to be tried on."""
    if not doubts:
        return []
    result, lacking = store.result(), set[str]()
    for each in doubts:
        lacking |= set(each.left(result)) - store.decided(each.job.condition.name)
    return [key for key in order if key in lacking]


def unasked(store: Store, order: Sequence[str], perturbed: Iterable[Perturbed], certified: Iterable[Certified]) -> set[str]:
    """Ids of the images that lack frames of a perturbation or a proof."""
    lacking = set[str]()
    for sequence in perturbed:
        lacking |= set(order) - store.sequenced(sequence.condition.name)
    for each in certified:
        lacking |= set(order) - store.proofs(each.condition.name).keys()
    return lacking
