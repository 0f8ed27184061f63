"""How far confidences can be believed: ECE, RMS calibration error, AURRA, negative log-likelihood, Brier score.

Confidence is the softmax probability of the prediction, correct whether that is the label. Means do not depend on the order of the images:
images of equal confidence share their mean.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .classifier import Labels, Logits

if TYPE_CHECKING:
    from .results import Result, Verdict

BINS = 15
IN_A_BIN = 100


@dataclass(frozen=True)
class ReliabilityBin:
    """The images whose confidence lies in (low, high]: how many, their mean confidence, the share of them that is correct."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> list[ReliabilityBin]:
    """The bins of equal width that hold an image."""
    sure, right = _arrays(confidence, correct)
    edges = np.linspace(0, 1, bins + 1)
    place = np.searchsorted(edges[1:-1], sure)
    return [
        ReliabilityBin(float(edges[b]), float(edges[b + 1]), int(inside.sum()), float(sure[inside].mean()), float(right[inside].mean()))
        for b in range(bins)
        if (inside := place == b).any()
    ]


def ece(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error, sum_b n_b / n |accuracy_b - confidence_b| (Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599)."""
    found = reliability(confidence, correct, bins)
    return sum(b.n * abs(b.accuracy - b.confidence) for b in found) / sum(b.n for b in found)


def rms_calibration_error(confidence: ArrayLike, correct: ArrayLike, *, in_a_bin: int = IN_A_BIN, legacy: bool = False) -> float:
    """sqrt(sum_b n_b / n (accuracy_b - confidence_b)^2), b over images of successive confidence (Hendrycks et al., ICLR 2019,
    https://arxiv.org/abs/1812.04606).

    Args:
        in_a_bin: images a bin; the last bin has the remainder too, and fewer images than that are one bin.
        legacy: leave out the last bin, that of the surest images, as the code behind published figures does.

    Raises:
        ValueError: legacy with fewer than two bins, or confidences outside [0, 1].
    """
    sure, right = _sorted(confidence, correct)
    count = max(1, len(sure) // in_a_bin)
    edges = [*range(0, count * in_a_bin, in_a_bin), len(sure)]
    pairs = list(pairwise(edges))[: count - legacy]
    if not pairs:
        raise ValueError(f"legacy leaves out the last of the bins, and {len(sure)} images are one: it needs {2 * in_a_bin}")
    apart = [(b - a) * (right[a:b].mean() - sure[a:b].mean()) ** 2 for a, b in pairs]
    return float(np.sqrt(sum(apart) / len(sure)))


def aurra(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under the response rate accuracy curve: the mean over k of the accuracy on the k surest images (Hendrycks et al., CVPR 2021,
    https://arxiv.org/abs/1907.07174)."""
    _, right = _sorted(confidence, correct)
    return float((np.cumsum(right[::-1]) / np.arange(1, len(right) + 1)).mean())


def negative_log_likelihood(logits: Logits, labels: Labels) -> Tensor:
    """(B,) -log p(label), in nats."""
    return -torch.log_softmax(logits.double(), 1).gather(1, labels[:, None])[:, 0]


def brier(logits: Logits, labels: Labels) -> Tensor:
    """(B,) sum over classes of (p - y)^2, from 0 to 2 (Brier, Monthly Weather Review 1950)."""
    p = torch.softmax(logits.double(), 1)
    y = torch.nn.functional.one_hot(labels, logits.shape[1])
    return ((p - y) ** 2).sum(1)


@dataclass(frozen=True)
class CalibrationRow:
    """One condition. n images have a confidence; `undecided` ones have none and are in no figure of the row."""

    condition: str
    n: int
    undecided: int
    ece: float
    rms_ce: float
    aurra: float
    nll: float
    brier: float


def calibration_row(condition: str, verdicts: Sequence[Verdict]) -> CalibrationRow | None:
    """The figures of some verdicts; None where none has a likelihood (an attack's, labels that are not one class)."""
    likely = [(v.nll, v.brier) for v in verdicts if v.broken is not None and v.nll is not None and v.brier is not None]
    if not likely:
        return None
    confidence, correct = answers(verdicts)
    return CalibrationRow(
        condition,
        len(confidence),
        sum(v.broken is None for v in verdicts),
        ece(confidence, correct),
        rms_calibration_error(confidence, correct),
        aurra(confidence, correct),
        statistics.fmean(nll for nll, _ in likely),
        statistics.fmean(score for _, score in likely),
    )


def answers(verdicts: Sequence[Verdict]) -> tuple[list[float], list[bool]]:
    """Confidence and correctness of the verdicts that were decided and have a likelihood."""
    decided = [v for v in verdicts if v.broken is not None and v.nll is not None]
    return [v.confidence for v in decided], [not v.broken for v in decided]


def calibration_rows(result: Result) -> list[CalibrationRow]:
    """One row per condition without an attack, in the run's order."""
    rows = [calibration_row(c.name, result.of(c.name)) for c in result.conditions if c.kind in ("clean", "corruption", "shift")]
    return [row for row in rows if row is not None]


def _arrays(confidence: ArrayLike, correct: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    sure, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if sure.shape != right.shape or sure.ndim != 1 or not len(sure):
        raise ValueError(f"need one confidence and one verdict per image, got {sure.shape} and {right.shape}")
    if not ((sure >= 0) & (sure <= 1 + 1e-6)).all():  # a float32 softmax may end a rounding error above 1
        raise ValueError("confidences must lie in [0, 1]")
    return sure.clip(max=1), right


def _sorted(confidence: ArrayLike, correct: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """By rising confidence; what is equally sure is equally right."""
    sure, right = _arrays(confidence, correct)
    values, place, count = np.unique(sure, return_inverse=True, return_counts=True)
    shared = np.bincount(place, right) / count
    return np.repeat(values, count), np.repeat(shared, count)
