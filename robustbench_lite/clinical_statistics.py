"""The numbers behind clinical figures: AUROC, ROC curves, thresholds, the bootstrap over patients, t intervals.

A resample is a row of weights, how often each image was drawn; every measure is a function of such rows, so that all of them, before and
after an attack, are of the same resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .stats import wilson

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]
Measure = Callable[[Floats], Floats]
"""(R, N) weights -> (R,) values, NaN where a resample has none."""

AT_A_TIME = 4_000_000
"""Weights that are in memory at once."""


def probabilities(outputs: ArrayLike, findings: bool) -> Floats:
    """(N, K) from a model's raw outputs: softmax over classes; of one logit that of class 1, in two columns; of findings, one sigmoid each.

    Args:
        outputs: (N, K); rows that hold NaN stay NaN.
    """
    logits = np.asarray(outputs, np.float64)
    if findings:
        return np.exp(-np.logaddexp(0, -logits))
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], 1)
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True))


def auroc(positive: ArrayLike, score: ArrayLike) -> float | None:
    """Area under the ROC curve: the chance that a positive image has a higher score than a negative one, ties counting half.

    Args:
        positive: (N,) bool.
        score: (N,) numbers.

    Returns:
        None where all images are of one class.

    Raises:
        ValueError: a score is NaN, or there is not one score an image.
    """
    truth, scores = _pairs(positive, score)
    if truth.all() or not truth.any():
        return None
    return float(weighted_auroc(truth, scores)(np.ones((1, len(truth))))[0])


def weighted_auroc(positive: Bools, score: Floats) -> Measure:
    """The AUROC of resamples; NaN where one holds one class only. Images without a score (NaN) are not among those compared."""
    positives, negatives = np.flatnonzero(positive & ~np.isnan(score)), np.flatnonzero(~positive & ~np.isnan(score))
    negatives = negatives[np.argsort(score[negatives])]
    below = np.searchsorted(score[negatives], score[positives], "left")
    up_to = np.searchsorted(score[negatives], score[positives], "right")

    def measure(weights: Floats) -> Floats:
        passed = np.zeros((len(weights), len(negatives) + 1))
        np.cumsum(weights[:, negatives], 1, out=passed[:, 1:])
        each = weights[:, positives]
        return _over(np.einsum("rp,rp->r", each, passed[:, below] + passed[:, up_to]) / 2, each.sum(1) * passed[:, -1])

    return measure


def share(hit: Bools | Floats, among: Bools) -> Measure:
    """The share of hits (N,) among some images, of resamples; NaN where one holds none of them."""
    places = np.flatnonzero(among)
    hits = hit[places].astype(np.float64)
    return lambda weights: _over(weights[:, places] @ hits, weights[:, places].sum(1))


def roc_curve(positive: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats] | None:
    """False and true positive rates from (0, 0) to (1, 1), the corners of the curve only.

    Returns:
        None where all images are of one class.

    Raises:
        ValueError: a score is NaN, or there is not one score an image.
    """
    truth, scores = _pairs(positive, score)
    if truth.all() or not truth.any():
        return None
    order = np.argsort(-scores)
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # of the images that have one score
    found = np.concatenate([[0], np.cumsum(truth[order])[last]])
    alarms = np.concatenate([[0], np.cumsum(~truth[order])[last]])
    x, y = np.diff(alarms), np.diff(found)
    corner = np.concatenate([[True], x[1:] * y[:-1] != x[:-1] * y[1:], [True]])
    return alarms[corner] / alarms[-1], found[corner] / found[-1]


def threshold(positive: Bools, score: Floats, sensitivity: float) -> float | None:
    """The largest score such that the share of positive images at or above it is at least the sensitivity.

    Images without a score (NaN) are never found. None where no threshold reaches so far.
    """
    scores = -np.sort(-score[positive])  # NaN comes last
    reached = (np.arange(1, len(scores) + 1) / max(1, len(scores)) >= sensitivity) & ~np.isnan(scores)
    return float(scores[reached.argmax()]) if reached.any() else None


def resampled(measures: Sequence[Measure], groups: Indices, resamples: int, seed: int) -> Floats:
    """(1 + resamples, M): every measure of the images as they are, and then of bootstrap resamples of whole groups.

    Args:
        groups: (N,) which group an image is of, 0..G-1; each its own for a bootstrap over images.
    """
    count = int(groups.max()) + 1
    draw, rows = np.random.default_rng(seed), max(1, AT_A_TIME // len(groups))
    found = [np.stack([measure(np.ones((1, len(groups)))) for measure in measures], 1)]
    for start in range(0, resamples, rows):
        times = draw.multinomial(count, np.full(count, 1 / count), min(rows, resamples - start)).astype(np.float64)
        weights = times[:, groups]
        found.append(np.stack([measure(weights) for measure in measures], 1))
    return np.concatenate(found)


def unseen(units: int) -> float:
    """The largest share, at 97.5 %, of what none of so many independent units showed (Clopper and Pearson, Biometrika 1934)."""
    return 1 - float(0.025 ** (1 / units))


def percentiles(drawn: Floats, units: int) -> tuple[float, float]:
    """95 % limits from the values of resamples, which are numbers.

    Where all of them agree (nothing was right, or all was), resampling cannot see what other images might show: then the limits lie as far
    from the value as so many independent units allow.
    """
    low, high = np.percentile(drawn, [2.5, 97.5])
    beyond = unseen(units) if np.ptp(drawn) < 1e-12 else 0.0
    return float(low) - beyond, float(high) + beyond


def limits(value: float, drawn: Floats, units: int) -> tuple[float, float]:
    """95 % limits of a share or an AUROC: those of the resamples or, where they lie farther out, Wilson's for so many independent images
    that their share would vary as much.

    Near 0 and 1 the resamples' alone come too close: of 100 images whose true AUROC is 0.98, every tenth set had its lower one above that.
    """
    low, high = percentiles(drawn, units)
    spread = float(drawn.var())
    if spread < 1e-24 or not 0 < value < 1:
        return low, high
    count = value * (1 - value) / spread
    least, most = wilson(value * count, count)
    return min(low, least), max(high, most)


def t_interval(values: Floats, groups: Indices) -> tuple[float, float] | None:
    """95 % t interval for a mean of images that come in groups; with every image its own group, the textbook's.

    The variance is that of the groups' sums of deviations, on G - 1 degrees of freedom (Liang and Zeger, Biometrika 1986).

    Returns:
        None for a single group.
    """
    from scipy.special import stdtrit

    count = len(np.unique(groups))
    if count < 2:
        return None
    sums = np.bincount(groups, values - values.mean())
    half = float(stdtrit(count - 1, 0.975)) * float(np.sqrt(count / (count - 1) * (sums**2).sum())) / len(values)
    return float(values.mean()) - half, float(values.mean()) + half


def independent_pairs(positive: Bools, groups: Indices) -> int:
    """How many pairs of a positive and a negative image there are such that no group is in two of them, or on both sides of one; 1 for a
    single group."""
    sick, well = set(groups[positive].tolist()), set(groups[~positive].tolist())
    return max(1, min(len(sick), len(well), len(sick | well) // 2))


def _pairs(positive: ArrayLike, score: ArrayLike) -> tuple[Bools, Floats]:
    truth, scores = np.asarray(positive, np.bool_), np.asarray(score, np.float64)
    if truth.shape != scores.shape or truth.ndim != 1:
        raise ValueError(f"need one score an image, got {truth.shape} and {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN")
    return truth, scores


def _over(part: Floats, whole: Floats) -> Floats:
    """part / whole, NaN where the whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0))
