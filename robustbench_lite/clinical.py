"""Clinical figures of classifiers: AUROC, sensitivity and specificity at a fixed operating point, confidence, attack success.

Intervals are 95 %, by a bootstrap over images or, where images are grouped, over patients, and never narrower than Wilson's of the same
variance; differences to the clean images are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from .calibration import ece
from .clinical_answers import Answers, answers
from .clinical_statistics import (
    Bools,
    Floats,
    Measure,
    independent_pairs,
    limits,
    percentiles,
    resampled,
    share,
    t_interval,
    threshold,
    weighted_auroc,
)
from .errors import UsageError
from .results import Result

RESAMPLES = 2000
FEWEST_RESAMPLES = 400
WORK = 60_000_000
"""Images x classes x resamples; of more images there are fewer resamples, down to `FEWEST_RESAMPLES`."""

FEW = 10
"""An interval from fewer patients (or images) says so, for it may be too narrow."""

FEWEST_SHARE = 0.1
"""Of the resamples that must have a value, or the limits are as far as limits go."""

Key = tuple[str, int]
"""What is measured, and of which class or finding; WHOLE of all together."""
WHOLE = -1


@dataclass(frozen=True)
class Figure:
    """A value with its interval; `reason` says why it is None, or what limits it."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds on probabilities that were set on clean images: positive is at or above.

    Args:
        thresholds: one a class or finding, of two classes that of the one that means disease; None where there is none.
        how: what they were set on.
    """

    thresholds: Sequence[float | None]
    how: str


@dataclass(frozen=True)
class Figures:
    """What a model does on some images, over all n of them.

    Where a condition offers an attacker nothing by an image, he leaves it and the clean answer stands. Images that an attack learnt from
    are in no figure. An undecided image counts as wrong, and has no score.

    Args:
        n, patients: images, and groups of them; None where they are not grouped.
        accuracy: predictions (argmax, or above one half for single logits and findings) that are the label; of findings, the share of them.
            What is wrong when clean stays so under an attack.
        auroc: one against the rest, the mean over classes or findings; of two classes that of the one that means disease, which is class 1
            unless the data say otherwise. `aurocs`: each by name.
        sensitivity, specificity, balanced_accuracy: at the operating point; means over classes or findings where there are several.
        confidence: mean probability of the prediction, with a t interval.
        ece: expected calibration error; it has no interval, since resampling inflates it.
        change: accuracy and AUROC (by these names) minus those of the clean images, paired; nothing for the clean images themselves.
        success: of the images that were right when clean and offer the attacker something, the share that he turned his way; None without
            an attack. `successes`: by class, or of each finding that he wanted turned.
        needed: number needed to attack for one success; the upper limit is infinite where there may be none.
        attacked: images that success is over.
        resamples: that the intervals come from.
    """

    n: int
    patients: int | None
    accuracy: Figure
    auroc: Figure
    aurocs: Mapping[str, Figure]
    sensitivity: Figure
    specificity: Figure
    balanced_accuracy: Figure
    confidence: Figure
    ece: Figure
    change: Mapping[str, Figure]
    success: Figure | None = None
    successes: Mapping[str, Figure] | None = None
    needed: Figure | None = None
    attacked: int = 0
    resamples: int = RESAMPLES


def operating_point(result: Result, sensitivity: float) -> OperatingPoint | None:
    """Per class or finding the largest threshold at which at least this share of the clean positive images is found.

    Returns:
        None where no class has clean images that are positive and negative.

    Raises:
        UsageError: the sensitivity lies outside (0, 1].
        InvalidEvaluation: the run lacks clean images or their outputs.
    """
    if not 0 < sensitivity <= 1:
        raise UsageError(f"the sensitivity of an operating point must lie in (0, 1], got {sensitivity:g}")
    clean = answers(result, "clean")
    n = len(clean.truth)
    found: list[float | None] = []
    for side in clean.sides:
        positive = clean.truth[:, side]
        both = positive.any() and not positive.all()
        found.append(threshold(positive, clean.before.chances[:, side], sensitivity) if both else None)
    if all(value is None for value in found):
        return None
    each = "" if len(found) == 1 else ", each finding alone" if clean.before.findings else ", each class against the rest"
    return OperatingPoint(
        found, f"the largest threshold with a sensitivity of at least {100 * sensitivity:g} % on the {n} clean images{each}; then fixed"
    )


def figures(result: Result, condition: str, point: OperatingPoint | None = None, *, resamples: int | None = None, seed: int = 0) -> Figures:
    """The figures of one condition of a run that kept the model's outputs; `clean` is one.

    Args:
        point: set on the clean images, from `operating_point`.
        resamples: of the bootstrap; None: 2,000, of more than 30,000 images x classes fewer, down to 400.
        seed: of the bootstrap. All conditions have the same resamples.

    Raises:
        InvalidEvaluation: there is no such condition, it is not finished, or outputs were not kept.
        UsageError: labels with several right classes an image.
    """
    of = answers(result, condition)
    aimed = next(c for c in result.conditions if c.name == condition).kind in ("attack", "worst")
    if resamples is None:
        resamples = max(FEWEST_RESAMPLES, min(RESAMPLES, WORK // (len(of.truth) * len(of.sides))))
    measures = _measures(of, point, aimed=aimed)
    columns = resampled(list(measures.values()), of.groups, resamples, seed).T
    drawn = _Drawn(of, dict(zip(measures, columns, strict=True)))
    success = drawn.success(WHOLE) if aimed else None
    return Figures(
        len(of.truth),
        of.patients,
        drawn.accuracy(),
        drawn.auroc(),
        {of.names[side]: drawn.auroc_of(side) for side in of.sides},
        drawn.at_the_point(["sensitivity"]),
        drawn.at_the_point(["specificity"]),
        drawn.at_the_point(["sensitivity", "specificity"]),
        _confidence(of),
        _calibration(of),
        {} if condition == "clean" else {"accuracy": drawn.accuracy(since_clean=True), "auroc": drawn.auroc(since_clean=True)},
        success,
        {name: drawn.success(k) for k, name in enumerate(of.names) if of.attacked[:, k].any()} if aimed else None,
        None if success is None else needed_to_attack(success),
        int(of.attacked.any(1).sum()),
        resamples,
    )


def needed_to_attack(success: Figure) -> Figure:
    """How many images must be attacked for one success: one over the share of successes."""
    if success.value is None or success.low is None or success.high is None:
        return Figure(None, reason=success.reason)
    low, high = 1 / success.high if success.high else inf, 1 / success.low if success.low > 0 else inf
    if success.value == 0:
        return Figure(None, low, high, "no attack succeeded")
    return Figure(1 / success.value, low, high, success.reason)


def _measures(of: Answers, point: OperatingPoint | None, *, aimed: bool) -> dict[Key, Measure]:
    before, after = of.before.right(of.truth), of.after.right(of.truth)
    if aimed:
        after &= before  # an attack row must not lie above the clean one
    everyone = np.ones(len(of.truth), np.bool_)
    made = {("accuracy", WHOLE): share(after.mean(1), everyone), ("clean accuracy", WHOLE): share(before.mean(1), everyone)}
    for place, side in enumerate(of.sides):
        truth, chance = of.truth[:, side], of.after.chances[:, side]
        made["auroc", side] = weighted_auroc(truth, chance)
        made["clean auroc", side] = weighted_auroc(truth, np.where(of.after.decided, of.before.chances[:, side], np.nan))
        at = None if point is None else point.thresholds[place]
        if at is not None and truth.any() and not truth.all():
            made["sensitivity", side] = share(chance >= at, truth)
            made["specificity", side] = share(chance < at, ~truth)
    if aimed:
        made["success", WHOLE] = share(_some(of.won), _some(of.attacked))
        made |= {("success", k): share(of.won[:, k], of.attacked[:, k]) for k in range(len(of.names))}
    return made


@dataclass(frozen=True)
class _Drawn:
    """Every measure of the images as they are and of resamples, (1 + R,) each, and the figures made of them."""

    of: Answers
    values: Mapping[Key, Floats]

    def accuracy(self, *, since_clean: bool = False) -> Figure:
        values = self.values["accuracy", WHOLE] - (self.values["clean accuracy", WHOLE] if since_clean else 0.0)
        undecided = int((~self.of.after.decided).sum())
        notes = [f"{undecided} undecided images count as wrong"] if undecided else []
        return self._figure(values, self._members(np.ones(len(self.of.truth), np.bool_)), notes, lowest=-1.0 if since_clean else 0.0)

    def auroc(self, *, since_clean: bool = False) -> Figure:
        """The mean over the classes or findings that have one."""
        defined = [side for side in self.of.sides if not np.isnan(self.values["auroc", side][0])]
        if not defined:
            return self.auroc_of(self.of.sides[0])
        values = np.mean([self.values["auroc", side] - (self.values["clean auroc", side] if since_clean else 0.0) for side in defined], 0)
        without = [self.of.names[side] for side in self.of.sides if side not in defined]
        notes = [f"without {', '.join(without)}, of which the images are all positive or all negative"] if without else []
        units = min(self._pairs(side) for side in defined)
        if len(defined) > 1 and not self.of.after.findings:  # half of each class as its own positives, half as negatives of another
            units = max(units, len(defined) * (units // 2))
        return self._figure(values, units, [*notes, *self._unscored()], lowest=-1.0 if since_clean else 0.0, what="pairs of ")

    def auroc_of(self, side: int) -> Figure:
        if np.isnan(self.values["auroc", side][0]):
            decided = int(self.of.after.decided.sum())
            why = f"all {decided} images are of one class" if decided else "all images are undecided"
            return Figure(None, reason=f"AUROC is undefined: {why}")
        return self._figure(self.values["auroc", side], self._pairs(side), self._unscored(), what="pairs of ")

    def at_the_point(self, names: Sequence[str]) -> Figure:
        """The mean of these, over classes or findings."""
        sides = [side for side in self.of.sides if ("sensitivity", side) in self.values]
        if not sides:
            return Figure(None, reason="there is no operating point: it needs clean images that are positive, and some that are negative")
        values = np.mean([self.values[name, side] for name in names for side in sides], 0)
        without = [self.of.names[side] for side in self.of.sides if side not in sides]
        notes = [f"without {', '.join(without)}, for which there is no operating point"] if without else []
        truths = [self.of.truth[:, side] == (name == "sensitivity") for name in names for side in sides]
        return self._figure(values, min(map(self._members, truths)), notes)

    def success(self, k: int) -> Figure:
        among = _some(self.of.attacked) if k == WHOLE else self.of.attacked[:, k]
        notes = [f"{self.of.unclear} undecided images are left out"] if self.of.unclear and k == WHOLE else []
        if not among.any():
            return Figure(None, reason="; ".join(["no image that was right when clean offers the attacker anything", *notes]))
        return self._figure(self.values["success", k], self._members(among), notes)

    def _figure(self, values: Floats, units: int, notes: Sequence[str], *, lowest: float = 0.0, what: str = "") -> Figure:
        """The value with its limits.

        Args:
            units: independent patients, images or pairs of them that it rests on.
        """
        drawn = values[1:][~np.isnan(values[1:])]
        said, who = list(notes), "images" if self.of.patients is None else "patients"
        if len(drawn) < len(values) - 1:
            said.append(f"{len(values) - 1 - len(drawn)} of {len(values) - 1} resamples had no value and were dropped")
        if units < FEW:
            said.append(f"the interval rests on few {what}{who} ({units}) and may be too narrow")
        value, low, high = float(values[0]), lowest, 1.0
        if len(drawn) >= len(values) * FEWEST_SHARE:
            low, high = limits(value, drawn, units) if lowest == 0 else percentiles(drawn, units)  # a difference is no share
        return Figure(value, max(low, lowest), min(high, 1.0), "; ".join(said) or None)

    def _members(self, among: Bools) -> int:
        return len(np.unique(self.of.groups[among]))

    def _pairs(self, side: int) -> int:
        decided = self.of.after.decided
        return independent_pairs(self.of.truth[decided, side], self.of.groups[decided])

    def _unscored(self) -> list[str]:
        undecided = int((~self.of.after.decided).sum())
        return [f"without {undecided} undecided images"] if undecided else []


def _some(cells: Bools) -> Bools:
    """(N,) where any of (N, K) is true."""
    return np.asarray(cells.any(1))


def _confidence(of: Answers) -> Figure:
    decided = of.after.decided
    if not decided.any():
        return Figure(None, reason="all images are undecided")
    values = of.after.confidence[decided].mean(1)
    around = t_interval(values, of.groups[decided])
    undecided = f"without {int((~decided).sum())} undecided images" if not decided.all() else None
    if around is None:
        return Figure(float(values.mean()), reason=f"one {'image' if of.patients is None else 'patient'} has no spread")
    return Figure(float(values.mean()), max(0.0, around[0]), min(1.0, around[1]), undecided)


def _calibration(of: Answers) -> Figure:
    decided = of.after.decided
    if not decided.any():
        return Figure(None, reason="all images are undecided")
    return Figure(ece(of.after.confidence[decided].ravel(), of.after.right(of.truth)[decided].ravel()))
