"""Clinical figures of classifiers: AUROC, sensitivity and specificity at a fixed operating point, confidence, attack success.

Intervals are 95 %, by a bootstrap over images or, where images are grouped, over patients; differences to the clean images are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A value with its interval; None where it is undefined, for the `reason`."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds on probabilities, one a class or finding, that were set on clean images: positive is at or above."""

    thresholds: Sequence[float]
    how: str


@dataclass(frozen=True)
class Figures:
    """What a model does on some images, over all n of them.

    Args:
        n, patients: images, and groups of them; None where they are not grouped.
        accuracy: predictions (argmax, or above one half for single logits and findings) that are the label; of findings, the share of them.
        auroc: one against the rest, the mean over classes or findings; of two classes that of class 1. `aurocs`: each by name.
        sensitivity, specificity, balanced_accuracy: at the operating point; means over classes or findings where there are several.
        confidence: mean probability of the prediction, with a t interval.
        ece: expected calibration error.
        change: accuracy and AUROC (by these names) minus those of the clean images, paired.
        success: of the images that were right when clean and offer the attacker something, the share that he turned his way; None without
            an attack. `successes`: by class.
        needed: number needed to attack for one success.
        attacked: images that success is over.
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
