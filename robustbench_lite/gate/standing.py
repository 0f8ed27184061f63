"""How the images of a row stand: right, broken, undecided, or not yet asked about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from ..errors import RunMismatch
from ..results import Condition, Result
from .baseline import labels_of
from .groups import effective_size
from .outcomes import Change


@dataclass(frozen=True)
class Standing:
    """Args:
    ids: of the images that the row is over.
    fates: which of them are broken; None where it is undecided, missing where an image was not asked about.
    groups: by id, where several images belong to one thing.
    """

    ids: Sequence[str]
    fates: Mapping[str, bool | None]
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def undecided(self) -> int:
        return sum(broken is None for broken in self.fates.values())

    @property
    def missing(self) -> int:
        return len(self.ids) - len(self.fates)

    def right(self, *, best: bool, without: Set[str] = frozenset()) -> list[bool]:
        """Which images are right, by `ids`, if all open ones are wrong, or (best) right.

        Args:
            without: images that are known to be broken by something else.
        """
        is_right: Callable[[str], bool] = lambda key: self.fates.get(key) is False or (best and self.fates.get(key) is None)  # noqa: E731
        return [is_right(key) and key not in without for key in self.ids]

    def counted(self, *, best: bool, without: Set[str] = frozenset()) -> tuple[float, float]:
        """How many are right, of how many; both in independent images."""
        right = self.right(best=best, without=without)
        size = self._size(right)
        return sum(right) * size / len(right), size

    def change(self, before: Mapping[str, bool], *, best: bool, without: Set[str] = frozenset()) -> Change:
        """Against a baseline, over the images that it has too.

        Raises:
            RunMismatch: it has none of them.
        """
        now = dict(zip(self.ids, self.right(best=best, without=without), strict=True))
        paired = {key: now[key] - before[key] for key in self.ids if key in before}
        if not paired:
            raise RunMismatch("the baseline shares no image with this run: evaluate on the same images, or write it anew")
        size = self._size(list(paired.values()), list(paired))
        each = size / len(paired)
        changes = list(paired.values())
        return Change(changes.count(1) * each, changes.count(-1) * each, size)

    def _size(self, values: Sequence[float], ids: Sequence[str] | None = None) -> float:
        if not self.groups:
            return float(len(values))
        return effective_size(values, [self.groups.get(key, key) for key in ids or self.ids])


def standing(condition: Condition, result: Result) -> Standing:
    """How the images of a condition stand in a run, of those that it is for."""
    verdicts = result.of(condition.name)
    fates = {v.sample_id: v.broken for v in verdicts}
    groups = {v.sample_id: v.group for v in verdicts if v.group is not None}
    shared = groups if len(set(groups.values())) < len(groups) else {}
    left_out = result.left_out.get(condition.name, {})
    return Standing([key for key in labels_of(result) if key not in left_out], fates, shared)
