"""Calibration: by hand, and as scikit-learn has it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from robustbench_lite.calibration import aurra, brier, calibration_rows, ece, negative_log_likelihood, reliability, rms_calibration_error
from robustbench_lite.results import VERDICT_FIELDS, Condition, Result, Verdict

DRAW = np.random.default_rng(0)
SURE = DRAW.uniform(0.2, 1, 1050)
RIGHT = DRAW.random(1050) < SURE**2


def test_ece_by_hand() -> None:
    # bins of a fifteenth: (.9333, 1] holds the first two, (.4667, .5333] the others
    assert ece([0.95, 0.99, 0.5, 0.52], [1, 0, 1, 1]) == pytest.approx((2 * abs(0.5 - 0.97) + 2 * abs(1 - 0.51)) / 4)
    assert ece([1.0, 1.0], [1, 1]) == 0
    assert ece([1.0], [0]) == 1


def test_reliability_is_scikit_learns_curve() -> None:
    found = reliability(SURE, RIGHT)
    accuracy, confidence = calibration_curve(RIGHT, SURE, n_bins=15)
    assert [b.accuracy for b in found] == pytest.approx(accuracy.tolist())
    assert [b.confidence for b in found] == pytest.approx(confidence.tolist())
    assert sum(b.n for b in found) == 1050
    assert all(b.low < b.confidence <= b.high for b in found)


def test_a_confidence_on_an_edge_is_in_the_lower_bin() -> None:
    (lower,) = reliability([0.2], [1])
    assert (lower.low, lower.high) == pytest.approx((2 / 15, 3 / 15))
    (zero,) = reliability([0.0], [1])
    assert zero.low == 0


def test_rms_calibration_error_by_hand() -> None:
    sure, right = [0.9, 0.2, 0.8, 0.4, 0.6], [1, 0, 0, 1, 1]  # bins of two: (.2, .4), (.6, .8, .9)
    first, last = 2 / 5 * (0.5 - 0.3) ** 2, 3 / 5 * (2 / 3 - 2.3 / 3) ** 2
    assert rms_calibration_error(sure, right, in_a_bin=2) == pytest.approx(math.sqrt(first + last))
    assert rms_calibration_error(sure, right, in_a_bin=2, legacy=True) == pytest.approx(math.sqrt(first))


def test_bins_hold_a_hundred_and_the_last_the_rest() -> None:
    order = np.argsort(SURE)
    edges = [*range(0, 1000, 100), 1050]
    parts = [order[a:b] for a, b in pairwise(edges)]
    terms = [len(p) / 1050 * (RIGHT[p].mean() - SURE[p].mean()) ** 2 for p in parts]
    assert rms_calibration_error(SURE, RIGHT) == pytest.approx(math.sqrt(sum(terms)))
    assert rms_calibration_error(SURE, RIGHT, legacy=True) == pytest.approx(math.sqrt(sum(terms[:-1])))
    assert rms_calibration_error(SURE[:99], RIGHT[:99]) == pytest.approx(abs(RIGHT[:99].mean() - SURE[:99].mean()))
    with pytest.raises(ValueError, match="it needs 200"):
        rms_calibration_error(SURE[:199], RIGHT[:199], legacy=True)


def test_aurra_by_hand() -> None:
    assert aurra([0.9, 0.8, 0.7], [1, 0, 1]) == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)
    assert aurra([0.7, 0.9, 0.8], [1, 1, 0]) == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)


def test_the_order_of_images_makes_no_difference_where_confidences_are_equal() -> None:
    sure, right = np.round(SURE, 1), RIGHT
    for _ in range(3):
        order = DRAW.permutation(len(sure))
        assert aurra(sure[order], right[order]) == pytest.approx(aurra(sure, right), abs=1e-12)
        assert rms_calibration_error(sure[order], right[order]) == pytest.approx(rms_calibration_error(sure, right), abs=1e-12)


def test_likelihood_and_brier_are_scikit_learns() -> None:
    logits, labels = torch.from_numpy(DRAW.normal(0, 3, (200, 7))).float(), torch.from_numpy(DRAW.integers(0, 7, 200))
    p = torch.softmax(logits.double(), 1).numpy()
    assert float(negative_log_likelihood(logits, labels).mean()) == pytest.approx(log_loss(labels, p, labels=range(7)))
    assert float(brier(logits, labels).mean()) == pytest.approx(brier_score_loss(labels, p, labels=list(range(7)), scale_by_half=False))
    assert negative_log_likelihood(torch.tensor([[0.0, 1000.0]]), torch.tensor([0])).tolist() == [1000.0]


@pytest.mark.parametrize(("sure", "right"), [([], []), ([0.5], [1, 0]), ([1.5], [1]), ([math.nan], [1])])
def test_what_is_no_confidence_is_refused(sure: list[float], right: list[int]) -> None:
    with pytest.raises(ValueError, match="confidence"):
        ece(sure, right)


def test_rows_are_of_conditions_with_likelihoods_and_name_the_undecided() -> None:
    conditions = [Condition("clean", "clean"), Condition("fog[1]", "corruption", corruption="fog", severity=1), Condition("pgd", "attack")]

    def verdict(condition: str, broken: bool | None, nll: float | None) -> Verdict:
        known: dict[str, Any] = dict.fromkeys(VERDICT_FIELDS) | {"stages": {}, "condition": condition, "broken": broken, "confidence": 0.75}
        return Verdict(**known | {"nll": nll, "brier": None if nll is None else 2 * nll})

    verdicts = [verdict("clean", False, 0.2), verdict("clean", True, 0.4), verdict("clean", None, None)]
    verdicts += [verdict("fog[1]", True, 1.0), verdict("pgd", True, None)]
    clean, fog = calibration_rows(Result({}, conditions, verdicts, {}, lambda *_: None))
    assert (clean.condition, clean.n, clean.undecided) == ("clean", 2, 1)
    assert (clean.nll, clean.brier, clean.ece, clean.aurra) == pytest.approx((0.3, 0.6, 0.25, 0.5))
    assert (fog.condition, fog.n, fog.ece, fog.rms_ce) == ("fog[1]", 1, 0.75, 0.75)
