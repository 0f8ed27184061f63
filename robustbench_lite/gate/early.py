"""When the images that are left cannot change a gate's verdict any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..results import Condition
from .baseline import Baseline
from .decisions import ALPHA
from .outcomes import Decided, Levels, held
from .rules import Bound, NoneOf, NoWorse, Rule, fitting
from .sequential import decided_first, fails_early
from .standing import Standing


@dataclass(frozen=True)
class Watch:
    """Says of an attack whether enough of its images are decided; an `Enough` for `evaluate(enough=...)`.

    An attack is ended where one of its rules has failed for certain, whatever the images that are left would say; with `sequential` also
    where the evidence is strong enough by then. It is ended as well where all its rules are settled, if it is the only attack and no rule
    is about findings or the worst case: what an attack finds is evidence for the rows of others.

    Args:
        rules: of the gate.
        conditions: that will be evaluated (`conditions.jobs`); worst cases need not be among them.
        ids: of the images, as `LabelledImages.ids`.
        groups: of the images; where several share one, nothing is ended early.
        baseline, alpha, sequential: as `decide` will get them.
        shuffle_seed: as `evaluate` will get it.
    """

    rules: Sequence[Rule]
    conditions: Sequence[Condition]
    ids: Sequence[str]
    groups: Sequence[str] | None = None
    baseline: Baseline | None = None
    alpha: float = ALPHA
    sequential: bool = False
    shuffle_seed: int = 0

    def __call__(self, condition: str, fates: Mapping[str, bool | None]) -> bool:
        """Whether no rule needs the images of the condition that are not among `fates`, which say which are broken (None: undecided)."""
        about = [rule for rule in self.rules if not isinstance(rule, NoneOf) and self._is_about(rule, condition)]
        if not about or not self._may_end or not fates:  # a row without any verdict would be none
            return False
        row = Standing(self.ids, fates)
        settled = [self._settled(rule, condition, row) for rule in about]
        return "fail" in settled or (None not in settled and self._stands_alone)

    def _is_about(self, rule: Bound | NoWorse, condition: str) -> bool:
        if isinstance(rule, Bound) and rule.metric != "accuracy":
            return False
        found = fitting(rule, self.conditions)
        return len(found) == 1 and found[0].name == condition and found[0].target is None

    @property
    def _may_end(self) -> bool:
        return self.groups is None or len(set(self.groups)) == len(self.groups)

    @property
    def _stands_alone(self) -> bool:
        """Whether no other row and no other rule rests on what an attack finds."""
        others = any(isinstance(rule, NoneOf) or rule.row.startswith("worst") for rule in self.rules)
        return not others and sum(c.kind == "attack" for c in self.conditions) == 1

    def _settled(self, rule: Bound | NoWorse, condition: str, row: Standing) -> Decided | None:
        """What comes of a rule whatever the open images would say; None where that hangs on them."""
        return self._held(rule, row) if isinstance(rule, Bound) else self._no_worse(rule, condition, row)

    def _held(self, rule: Bound, row: Standing) -> Decided | None:
        levels = Levels.of(rule, self.alpha, self.sequential)
        worst, best = (held(rule, *row.counted(best=best), levels) for best in (False, True))
        early = self.sequential and rule.is_floor
        if early and fails_early(decided_first(row.ids, row.fates, self.shuffle_seed), rule.threshold, levels.failing):
            return "fail"
        return worst if worst == best else None

    def _no_worse(self, rule: NoWorse, condition: str, row: Standing) -> Decided | None:
        """A loss is certain if it is one with p as large as Holm could make it; where several comparisons share Holm's adjustment, it must
        also be settled whether this one takes part in it."""
        before = self.baseline.rows.get(condition) if self.baseline else None
        if before is None or not any(key in before for key in row.ids):
            return None  # `decide` says what is wrong
        comparisons = sum(isinstance(each, NoWorse) for each in self.rules)
        worst, best = (row.change(before, best=best) for best in (False, True))
        least, most = worst.outcome(rule, self.alpha, worst.p), best.outcome(rule, self.alpha, min(1.0, comparisons * best.p))
        counts = comparisons == 1 or comparisons * best.p <= self.alpha or worst.p > self.alpha
        return least if least == most and counts else None
