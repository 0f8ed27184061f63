"""Figures that are no accuracies, with one-sided limits: errors over corruptions, and how well confidences fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calibration import aurra, ece, rms_calibration_error
from ..corruption_metrics import corruptions
from ..errors import UsageError, did_you_mean
from ..results import Condition, Result, Verdict
from ..stats import clopper_pearson
from .groups import effective_size
from .rules import LARGEST, Bound, row_of

RESAMPLES = 1000
LEVEL = 0.025
"""Of each limit of a figure over corruptions: they are the ends of a 95 % interval."""
CALIBRATION: dict[str, Callable[[NDArray[Any], NDArray[Any]], float]] = {"rms": rms_calibration_error, "ece": ece, "aurra": aurra}


@dataclass(frozen=True)
class Limited:
    """A figure and its limits.

    Args:
        about: conditions that it is made of.
        meaning: what exactly it is.
        n: images that it is over; `undecided` ones are in no calibration figure, and wrong in all others.
    """

    value: float
    low: float
    high: float
    n: int
    undecided: int
    about: Sequence[str]
    meaning: str


def limited(rule: Bound, result: Result, alpha: float) -> Limited:
    """The figure that a rule is about, as a share.

    Raises:
        UsageError: the run does not have it, or it has no limits.
    """
    if rule.metric == "certified":
        return _certified(rule, result, alpha)
    return _calibration(rule, result, alpha) if rule.row == "calibration" else _corruptions(rule, result, alpha)


def _certified(rule: Bound, result: Result, alpha: float) -> Limited:
    """Of all images that a certificate was asked about, whether an attack has met them or not: those proven up to the row's size."""
    condition = row_of(rule, result.conditions)
    known = result.known
    asked = known.asked(condition)
    if not asked:
        raise UsageError(f"{rule.text}: nothing was to be proven in {condition.norm} of this model: add certify = ['crown']")
    safe = known.safe(condition) - {v.sample_id for v in result.of(condition.name) if v.broken is None}
    proven = [key in safe for key in asked]
    groups = {v.sample_id: v.group or f"\0{v.sample_id}" for v in result.of("clean")}
    size = effective_size([float(each) for each in proven], [groups.get(key, key) for key in asked])
    share = float(np.mean(proven))
    low, high = clopper_pearson(share * size, size, alpha)
    return Limited(share, low, high, len(asked), 0, [condition.name], f"certified accuracy under {condition.name}")


def _corruptions(rule: Bound, result: Result, alpha: float) -> Limited:
    """Limits are those of `corruption_metrics`, each at LEVEL, stricter than the usual alpha; wider where images are grouped."""
    found = {_word(figure.name): figure for figure in corruptions(result).figures}
    rows = [c for c in result.conditions if c.kind == "corruption"]
    if not rows:
        raise UsageError(f"{rule.text}: the gate evaluates no corruption: add some, such as corruptions = ['fog']")
    if rule.metric not in found:
        reason = corruptions(result).reason or ""
        raise UsageError(
            f"{rule.text}: these corruptions have no figure {rule.metric!r}{did_you_mean(rule.metric, found)} {reason}".strip()
        )
    figure = found[rule.metric]
    if figure.estimate.low is None or figure.estimate.high is None:
        raise UsageError(f"{rule.text}: {figure.name} has no interval, so that nothing can be decided by it: use corruptions.mean_error")
    check_level(rule, alpha)
    verdicts = [v for c in rows for v in result.of(c.name)]
    value, low, high = (share / 100 for share in (figure.estimate.value, figure.estimate.low, figure.estimate.high))
    wider = _widened(rows, result)
    return Limited(
        value,
        max(value - wider * (value - low), 0.0),
        value + wider * (high - value),
        min(len(result.of(c.name)) for c in rows),
        sum(v.broken is None for v in verdicts),
        [c.name for c in rows],
        f"{figure.name}, {figure.meaning}",
    )


def check_level(rule: Bound, alpha: float) -> None:
    """Refuse a level that the limits of a figure over corruptions do not have.

    Raises:
        UsageError: it is below LEVEL.
    """
    if rule.row == "corruptions" and alpha < LEVEL:
        raise UsageError(f"{rule.text}: limits over corruptions are at the level {LEVEL:g}, and alpha = {alpha:g} is below it")


def _widened(rows: Sequence[Condition], result: Result) -> float:
    """By how much grouping widens an interval over images: the root of n over the images that are as good as independent."""
    wrong: dict[str, list[bool]] = {}
    groups: dict[str, str] = {}
    for verdict in (v for c in rows for v in result.of(c.name)):
        wrong.setdefault(verdict.sample_id, []).append(verdict.broken is not False)
        groups[verdict.sample_id] = verdict.group or f"\0{verdict.sample_id}"
    return float(np.sqrt(len(wrong) / effective_size([float(np.mean(each)) for each in wrong.values()], list(groups.values()))))


def _word(name: str) -> str:
    """`mean error` as it is written in a rule: `mean_error`; the star that marks a caveat is in the figure's meaning."""
    return name.lower().replace(" ", "_").replace("-", "_").removesuffix("*")


def _calibration(rule: Bound, result: Result, alpha: float) -> Limited:
    """Limits by a bootstrap over images, seeded: the wider of the percentile's and its reflection at the estimate, each at level alpha.

    Calibration errors come out larger in a resample than in the sample, as they do in a sample than in truth. The wider of the two limits
    is right whichever way that goes. Neither limit is nearer than that of the accuracy of the same images, on which all these figures hang:
    resamples of a few images that are all right know of no wrong ones, and would shrink to a point.
    """
    verdicts = result.of("clean")
    likely = [v for v in verdicts if v.broken is not None and v.nll is not None and v.brier is not None]
    if not likely:
        raise UsageError(f"{rule.text}: calibration is of clean images whose label is one class, and this run has none")
    figure = _of_images(rule.metric, likely)
    draw = np.random.Generator(np.random.Philox(0))
    members = _members(likely)
    resampled = np.sort(
        [figure(np.concatenate([members[g] for g in draw.integers(len(members), size=len(members))])) for _ in range(RESAMPLES)]
    )
    value = figure(np.arange(len(likely)))
    below, above = (float(np.quantile(resampled, share)) for share in (alpha, 1 - alpha))
    reach = _reach(likely, members, alpha)
    low, high = min(below, 2 * value - above, value - reach), max(above, 2 * value - below, value + reach)
    return Limited(
        value,
        max(low, 0.0),
        min(high, LARGEST[rule.metric]),
        len(likely),
        len(verdicts) - len(likely),
        ["clean"],
        f"calibration {rule.metric} of clean images",
    )


def _reach(verdicts: Sequence[Verdict], members: Sequence[NDArray[np.intp]], alpha: float) -> float:
    """How far the true accuracy may lie from that of these images, by the farther of its Clopper-Pearson limits."""
    right = [not v.broken for v in verdicts]
    group = {int(place): number for number, places in enumerate(members) for place in places}
    size, share = effective_size(right, [group[place] for place in range(len(right))]), float(np.mean(right))
    low, high = clopper_pearson(share * size, size, alpha)
    return max(share - low, high - share)


def _members(verdicts: Sequence[Verdict]) -> list[NDArray[np.intp]]:
    """Places of the images of each group, which are drawn together; an image without one is its own."""
    if all(v.group is None for v in verdicts):
        return list(np.arange(len(verdicts))[:, None])
    places: dict[str, list[int]] = {}
    for place, v in enumerate(verdicts):
        places.setdefault(v.group or f"\0{v.sample_id}", []).append(place)
    return [np.asarray(group) for group in places.values()]


def _of_images(metric: str, verdicts: Sequence[Verdict]) -> Callable[[NDArray[np.intp]], float]:
    """The figure of the images at given places."""
    if metric in ("nll", "brier"):
        scores = np.array([getattr(v, metric) for v in verdicts], float)
        return lambda places: float(scores[places].mean())
    confidence, correct = np.array([v.confidence for v in verdicts]), np.array([not v.broken for v in verdicts])
    return lambda places: CALIBRATION[metric](confidence[places], correct[places])
