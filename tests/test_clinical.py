"""Clinical figures: AUROC, operating points, intervals by patients, and which images a condition's figures are over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from handmade_runs import attack, verdict
from hypothesis import given, settings
from hypothesis import strategies as some
from sklearn import metrics

from robustbench_lite.calibration import ece
from robustbench_lite.clinical import Figure, Figures, OperatingPoint, figures, needed_to_attack, operating_point
from robustbench_lite.clinical_statistics import (
    auroc,
    independent_pairs,
    percentiles,
    probabilities,
    resampled,
    roc_curve,
    share,
    t_interval,
    threshold,
    weighted_auroc,
)
from robustbench_lite.errors import InvalidEvaluation, UsageError
from robustbench_lite.results import LEARNT_FROM, NOTHING_TO_GAIN, Condition, Result, Verdict
from robustbench_lite.stats import wilson

PGD = attack("pgd")
CLEAN = Condition("clean", "clean")


def said(condition: Condition, labels: Sequence[Any], outputs: Sequence[Sequence[float] | None], **more: Any) -> list[Verdict]:
    """Verdicts of a model that gave these outputs; None is undecided."""
    made = []
    for number, (label, answer) in enumerate(zip(labels, outputs, strict=True)):
        wrong = None if answer is None else not right(label, answer)
        made.append(replace(verdict(condition, f"image {number}", wrong, label=label), outputs=answer))
    return [replace(v, group=group) for v, group in zip(made, more.get("groups") or [None] * len(made), strict=True)]


def right(label: Any, outputs: Sequence[float]) -> bool:
    if isinstance(label, list):
        return [float(value > 0) for value in outputs] == label
    return bool((outputs[0] > 0) == label if len(outputs) == 1 else np.argmax(outputs) == label)


def run(*rows: list[Verdict], condition: Condition = PGD, left_out: dict[str, str] | None = None, **data: Any) -> Result:
    conditions = [CLEAN, condition][: len(rows)]
    config = {"data": {"name": "by hand", "class_names": None, **data}}
    return Result(config, conditions, [v for row in rows for v in row], {}, lambda *_: None, left_out={condition.name: left_out or {}})


def lean(*values: float) -> list[list[float]]:
    """Two outputs with these differences."""
    return [[0.0, value] for value in values]


def few(result: Result, condition: str, point: OperatingPoint | None = None) -> Figures:
    return figures(result, condition, point, resamples=50)


# ---------------------------------------------------------------------- against scikit-learn

TIED = some.lists(some.tuples(some.booleans(), some.integers(0, 6)), min_size=2, max_size=40)


@given(TIED)
@settings(max_examples=150, deadline=None)
def test_auroc_and_roc_are_scikit_learns_with_ties(cases: list[tuple[bool, int]]) -> None:
    truth, score = np.array([case[0] for case in cases]), np.array([case[1] for case in cases]) / 7
    if truth.all() or not truth.any():
        assert auroc(truth, score) is None
        assert roc_curve(truth, score) is None
        return
    assert auroc(truth, score) == pytest.approx(metrics.roc_auc_score(truth, score), abs=1e-12)
    x, y = roc_curve(truth, score)
    assert np.trapezoid(y, x) == pytest.approx(auroc(truth, score), abs=1e-12)
    theirs = metrics.roc_curve(truth, score, drop_intermediate=False)
    whole = {(round(a, 9), round(b, 9)) for a, b in zip(*theirs[:2], strict=True)}
    assert {(round(a, 9), round(b, 9)) for a, b in zip(x, y, strict=True)} <= whole
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    slopes = np.arctan2(np.diff(y), np.diff(x))
    assert (np.abs(np.diff(slopes)) > 1e-9).all()  # corners only


@pytest.mark.parametrize("kind", ["logit", "binary", "classes", "findings"])
@pytest.mark.parametrize("tied", [False, True])
def test_figures_are_scikit_learns(kind: str, tied: bool) -> None:
    draw = np.random.default_rng(3)
    n, width = 120, {"logit": 1, "binary": 2, "classes": 5, "findings": 4}[kind]
    labels: list[Any] = draw.integers(0, max(2, width), n).tolist()
    if kind == "findings":
        labels = draw.integers(0, 2, (n, width)).astype(float).tolist()
    outputs = draw.normal(0.1, 2, (n, width))
    outputs = (outputs.round() if tied else outputs) + 0.25
    result = run(said(CLEAN, labels, outputs.tolist()), task=None)
    point = operating_point(result, 0.8)
    assert point is not None
    found = few(result, "clean", point)
    chance = probabilities(outputs, kind == "findings")
    truth = np.array(labels)
    if kind in ("logit", "binary"):
        expected, called = metrics.roc_auc_score(truth, chance[:, -1]), chance[:, -1] > 0.5
        sides = [(truth == 1, chance[:, 1])]
    elif kind == "classes":
        expected, called = metrics.roc_auc_score(truth, chance, multi_class="ovr", average="macro"), chance.argmax(1)
        sides = [(truth == k, chance[:, k]) for k in range(width)]
    else:
        expected, called = metrics.roc_auc_score(truth, chance, average="macro"), chance > 0.5
        sides = [(truth[:, k] == 1, chance[:, k]) for k in range(width)]
    assert found.auroc.value == pytest.approx(expected, abs=1e-9)
    assert found.accuracy.value == pytest.approx((called == truth).mean(), abs=1e-9)
    at = [(positive, score >= t) for (positive, score), t in zip(sides, point.thresholds, strict=True)]
    for figure, theirs in (
        (found.sensitivity, [metrics.recall_score(positive, above) for positive, above in at]),
        (found.specificity, [metrics.recall_score(~positive, ~above) for positive, above in at]),
        (found.balanced_accuracy, [metrics.balanced_accuracy_score(positive, above) for positive, above in at]),
    ):
        assert figure.value == pytest.approx(np.mean(theirs), abs=1e-9)
    sure = np.maximum(chance, 1 - chance) if kind == "findings" else chance.max(1)
    assert found.confidence.value == pytest.approx(sure.mean(), abs=1e-9)
    assert found.ece.value == pytest.approx(ece(sure.ravel(), (called == truth).ravel()), abs=1e-9)


def test_probabilities_neither_overflow_nor_lose_what_is_small() -> None:
    assert probabilities([[-800.0], [800.0]], False).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert probabilities([[-60.0]], False)[0, 1] == pytest.approx(math.exp(-60), rel=1e-12)
    assert probabilities([[1000.0, 0.0, 999.0]], False)[0] == pytest.approx([1 / (1 + math.exp(-1)), 0, 1 / (1 + math.e)])
    assert probabilities([[0.0, 60.0]], True)[0].tolist() == [0.5, 1.0]


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        auroc([True, False], [0.1, math.nan])
    with pytest.raises(ValueError, match="one score an image"):
        roc_curve([True, False], [0.1])


# ---------------------------------------------------------------------- operating point


@given(TIED, some.sampled_from([0.1, 0.5, 0.7, 0.85, 0.9, 1.0]))
@settings(max_examples=100, deadline=None)
def test_the_threshold_is_the_largest_that_reaches_the_sensitivity(cases: list[tuple[bool, int]], asked: float) -> None:
    truth, score = np.array([case[0] for case in cases]), np.array([float(case[1]) for case in cases])
    reaching = [t for t in score if truth.any() and (score[truth] >= t).mean() >= asked]
    assert threshold(truth, score, asked) == (max(reaching) if reaching else None)


def test_an_operating_point_is_set_on_clean_images_and_then_fixed() -> None:
    labels = [0, 0, 1, 1]
    result = run(said(CLEAN, labels, lean(-3, 1, -1, 3)), said(PGD, labels, lean(4, 4, -4, 4)))
    point = operating_point(result, 0.5)
    assert point is not None
    assert point.thresholds == pytest.approx([1 / (1 + math.exp(-3))])
    assert "at least 50 % on the 4 clean images" in point.how
    clean, broken = few(result, "clean", point), few(result, PGD.name, point)
    assert (clean.sensitivity.value, clean.specificity.value, clean.balanced_accuracy.value) == (0.5, 1.0, 0.75)
    assert (broken.sensitivity.value, broken.specificity.value, broken.balanced_accuracy.value) == (0.5, 0.0, 0.25)
    with pytest.raises(UsageError, match=r"must lie in \(0, 1\], got 1.5"):
        operating_point(result, 1.5)


def test_where_class_0_is_the_disease_its_images_are_the_positive_ones() -> None:
    """Four of class 0, of which three lean to it, and four of class 1, of which all do not."""
    labels, leaning = [0, 0, 0, 0, 1, 1, 1, 1], lean(-3, -2, -1, 2, 1, 1, 3, 3)
    usual, turned = (run(said(CLEAN, labels, leaning), **data) for data in ({}, {"disease": [0]}))
    points = [operating_point(result, 0.75) for result in (usual, turned)]
    found = [few(result, "clean", point) for result, point in zip((usual, turned), points, strict=True)]
    assert found[1].sensitivity.value == 0.75
    assert found[1].specificity.value == 1.0
    assert found[0].auroc.value == found[1].auroc.value
    assert list(found[1].aurocs) == ["class 0"]


def test_undecided_images_are_wrong_and_have_no_score() -> None:
    labels = [0, 0, 0, 1, 1, 1]
    clean = said(CLEAN, labels, [*lean(-3, -2, -1, 1, 2), None])
    outputs = [None, [0.0, math.nan], *lean(-1, 1, 2, 3)]
    broken = [replace(v, broken=None) if number == 1 else v for number, v in enumerate(said(PGD, labels, outputs))]
    result = run(clean, broken)
    point = OperatingPoint([0.5], "by hand")
    found = few(result, PGD.name, point)
    assert found.accuracy.value == 3 / 6  # the last image was undecided when clean, and stays so
    assert found.accuracy.reason is not None
    assert "3 undecided images count as wrong" in found.accuracy.reason
    assert found.auroc.value == 1
    assert "without 3 undecided images" in str(found.auroc.reason)
    assert found.sensitivity.value == 2 / 3
    assert found.specificity.value == 1 / 3
    assert found.attacked == 3
    assert "2 undecided images are left out" in str(found.success.reason)
    # what is not found counts against the sensitivity that a threshold reaches
    assert operating_point(result, 0.9) is None or operating_point(result, 0.9).thresholds == [None]
    nothing = few(run(clean, said(PGD, labels, [None] * 6)), PGD.name)
    assert nothing.accuracy.value == 0
    assert nothing.auroc.value is None
    assert nothing.confidence.value is None
    assert nothing.ece.value is None
    with pytest.raises(InvalidEvaluation, match="decided none of the clean images"):
        figures(run(said(CLEAN, labels, [None] * 6)), "clean")


def test_one_class_only_has_no_auroc_and_no_operating_point() -> None:
    result = run(said(CLEAN, [1, 1, 1], lean(1, -1, 2)))
    assert operating_point(result, 0.9) is None
    found = few(result, "clean")
    assert found.auroc == Figure(None, reason="AUROC is undefined: all 3 images are of one class")
    assert found.sensitivity.value is None
    assert "no operating point" in str(found.sensitivity.reason)
    assert found.accuracy.value == 2 / 3


def test_findings_without_both_sides_are_left_out_and_named() -> None:
    labels = [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    result = run(said(CLEAN, labels, [[-1.0, -2.0], [1.0, -1.0], [2.0, 3.0]]), class_names=["mass", "hernia"])
    point = operating_point(result, 0.9)
    assert point is not None
    assert point.thresholds[1] is None
    found = few(result, "clean", point)
    assert found.auroc.value == found.aurocs["mass"].value == 1
    assert "without hernia" in str(found.auroc.reason)
    assert found.aurocs["hernia"].value is None
    assert found.sensitivity.value == found.specificity.value == 1
    assert "without hernia" in str(found.specificity.reason)
    assert found.accuracy.value == 5 / 6


def test_a_single_image() -> None:
    found = few(run(said(CLEAN, [1], lean(2))), "clean")
    assert found.n == 1
    assert found.accuracy.value == 1
    assert found.accuracy.low == pytest.approx(0.025)
    assert "rests on few images (1)" in str(found.accuracy.reason)
    assert found.confidence.low is None
    assert "one image has no spread" in str(found.confidence.reason)


# ---------------------------------------------------------------------- which images, and which successes


def test_where_the_attacker_gains_nothing_the_clean_answer_stands() -> None:
    labels, aimed = [0, 0, 1, 1], replace(PGD, target="missed-disease")
    clean, broken = said(CLEAN, labels, lean(-2, 1, 1, 2)), said(aimed, labels, lean(-2, 1, -1, 2))[2:]
    found = few(run(clean, broken, condition=aimed, left_out=dict.fromkeys(["image 0", "image 1"], NOTHING_TO_GAIN)), PGD.name)
    assert found.n == 4
    assert found.accuracy.value == 0.5
    assert found.auroc.value == 0.75
    assert found.attacked == 2
    assert found.success is not None
    assert found.success.value == 0.5
    assert found.successes is not None
    assert list(found.successes) == ["class 1"]
    assert found.change["accuracy"].value == -0.25
    assert found.change["auroc"].value == pytest.approx(0.75 - 0.875)


def test_what_an_attack_learnt_from_is_left_out_before_and_after() -> None:
    labels = [0, 0, 1, 1]
    clean, broken = said(CLEAN, labels, lean(1, -1, 1, 1)), said(PGD, labels, lean(1, 1, 1, 1))[1:]
    found = few(run(clean, broken, left_out={"image 0": LEARNT_FROM}), PGD.name)
    assert found.n == 3
    assert found.accuracy.value == pytest.approx(2 / 3)
    assert found.change["accuracy"].value == pytest.approx(-1 / 3)


def test_a_condition_that_is_not_finished_is_refused() -> None:
    labels = [0, 1]
    clean, broken = said(CLEAN, labels, lean(-1, 1)), said(PGD, labels, lean(-1, 1))
    with pytest.raises(InvalidEvaluation, match="no verdict yet on 1 of 2 images"):
        figures(run(clean, broken[:1]), PGD.name)
    with pytest.raises(InvalidEvaluation, match="evaluate both"):
        figures(run(clean), PGD.name)
    with pytest.raises(InvalidEvaluation, match="keep_outputs=True"):
        figures(run([replace(v, outputs=None) for v in clean]), "clean")
    with pytest.raises(UsageError, match="one class an image"):
        figures(run([replace(v, label=frozenset([0, 1])) for v in clean]), "clean")


def test_a_change_in_another_direction_is_no_success_and_what_was_wrong_stays_so() -> None:
    labels = [1, 1, 1]
    clean = said(CLEAN, labels, [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    upcoding = replace(PGD, target="upcoding")
    turned = said(upcoding, labels, [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    judged = [replace(turned[0], broken=False), turned[1], replace(turned[2], broken=True, broken_by="clean")]
    found = few(run(clean, judged, condition=upcoding), PGD.name)
    assert found.attacked == 2
    assert found.success is not None
    assert found.success.value == 0.5
    assert found.accuracy.value == 0  # and is wrong all the same; the third was wrong before


def test_of_findings_those_count_that_the_attacker_wanted_turned() -> None:
    labels = [[1.0, 0.0], [1.0, 1.0]]
    missed = replace(PGD, target="missed-disease")
    clean = said(CLEAN, labels, [[1.0, -1.0], [1.0, 1.0]])
    broken = said(missed, labels, [[-1.0, 1.0], [1.0, -1.0]])
    found = few(run(clean, broken, condition=missed), PGD.name)
    assert found.successes is not None
    assert {name: figure.value for name, figure in found.successes.items()} == {"finding 0": 0.5, "finding 1": 1.0}
    assert found.attacked == 2
    assert found.success is not None
    assert found.success.value == 1


def test_an_accident_has_no_success_and_may_mend_an_image() -> None:
    fog = Condition("fog[3]", "corruption", severity=3, corruption="fog")
    labels = [0, 1, 1]
    found = few(run(said(CLEAN, labels, lean(1, 1, 1)), said(fog, labels, lean(-1, 1, -1)), condition=fog), "fog[3]")
    assert found.success is found.successes is found.needed is None
    assert found.accuracy.value == 2 / 3
    assert found.change["accuracy"].value == 0


def test_number_needed_to_attack_by_hand() -> None:
    assert needed_to_attack(Figure(0.25, 0.2, 0.5)) == Figure(4.0, 2.0, 5.0, None)
    assert needed_to_attack(Figure(0.25, 0.0, 0.5)) == Figure(4.0, 2.0, math.inf, None)
    assert needed_to_attack(Figure(0.0, 0.0, 0.1)) == Figure(None, 10.0, math.inf, "no attack succeeded")
    assert needed_to_attack(Figure(None, reason="none")) == Figure(None, reason="none")


# ---------------------------------------------------------------------- intervals


def test_the_bootstrap_is_a_loop_over_resampled_patients() -> None:
    draw = np.random.default_rng(5)
    groups = draw.permutation(np.repeat(np.arange(12), [1, 2, 3] * 4))
    truth, score = draw.random(24) < 0.4, draw.normal(size=24).round(1)
    found = resampled([weighted_auroc(truth, score), share(truth, score > 0)], groups, 40, seed=9)
    times = np.random.default_rng(9).multinomial(12, np.full(12, 1 / 12), 40)
    for row, counts in zip(found[1:], times, strict=True):
        images = [i for patient, count in enumerate(counts) for _ in range(count) for i in np.flatnonzero(groups == patient)]
        assert row[0] == pytest.approx(metrics.roc_auc_score(truth[images], score[images]), abs=1e-12)
        assert row[1] == pytest.approx(truth[images][score[images] > 0].mean(), abs=1e-12)
    assert found[0, 0] == pytest.approx(metrics.roc_auc_score(truth, score), abs=1e-12)


def test_resamples_do_not_depend_on_how_many_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    measures = [share(np.arange(10) < 4, np.ones(10, bool))]
    whole = resampled(measures, np.arange(10), 30, 1)
    monkeypatch.setattr("robustbench_lite.clinical_statistics.AT_A_TIME", 70)
    assert (resampled(measures, np.arange(10), 30, 1) == whole).all()


def test_resamples_of_one_class_are_dropped_and_counted() -> None:
    labels = [1] + [0] * 29
    found = figures(run(said(CLEAN, labels, lean(0.5, *np.linspace(-2, 1, 29)))), "clean", resamples=200)
    assert "of 200 resamples had no value and were dropped" in str(found.auroc.reason)
    dropped = int(str(found.auroc.reason).split(" of 200")[0])
    assert 40 < dropped < 110  # each lacks the only positive image with a chance of 1/e


def test_an_interval_is_never_certain_where_all_images_agree() -> None:
    labels = [0, 1] * 30
    clean, broken = said(CLEAN, labels, lean(*[-1, 1] * 30)), said(PGD, labels, lean(*[1, -1] * 30))
    found = few(run(clean, broken), PGD.name)
    exact = 1 - 0.025 ** (1 / 60)
    assert (found.accuracy.value, found.accuracy.low) == (0, 0)
    assert found.accuracy.high == pytest.approx(exact)
    assert found.auroc.high == pytest.approx(1 - 0.025 ** (1 / 30))
    assert found.change["accuracy"] == Figure(-1.0, -1.0, pytest.approx(exact - 1))
    assert found.needed is not None
    assert found.needed.value == 1
    assert found.needed.high == pytest.approx(1 / (1 - exact))


def test_limits_of_few_errors_are_not_too_close() -> None:
    """Where one in 40 is wrong, the resamples' lower limit alone is 0.925, and flatters."""
    labels = [0, 1] * 20
    found = figures(run(said(CLEAN, labels, lean(*[-1, 1] * 19, -1, -0.5))), "clean")
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx(wilson(39, 40), abs=0.01)
    # what holds of images holds of patients
    groups = [f"patient {i // 2}" for i in range(40)]
    outputs = lean(*[-1, 1] * 18, -1, 1, 1, -1)
    found = figures(run(said(CLEAN, labels, outputs, groups=groups)), "clean")
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx(wilson(19, 20), abs=0.01)


def test_independent_pairs_share_no_patient() -> None:
    truth = np.array([True, False, True, False, False])
    assert independent_pairs(truth, np.arange(5)) == 2
    assert independent_pairs(truth, np.array([0, 0, 1, 1, 1])) == 1
    assert independent_pairs(truth, np.zeros(5, np.intp)) == 1


def test_few_patients_are_said_and_widen_the_interval() -> None:
    labels, outputs = [0, 1] * 40, lean(*np.tile([-1.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0, 1.0], 10))
    alone = figures(run(said(CLEAN, labels, outputs)), "clean", resamples=300)
    groups = [f"patient {i % 8 // 2}" for i in range(80)]  # a patient's images are all right or all wrong
    grouped = figures(run(said(CLEAN, labels, outputs, groups=groups)), "clean", resamples=300)
    assert alone.patients is None
    assert alone.accuracy.reason is None
    assert grouped.patients == 4
    assert grouped.accuracy.reason == "the interval rests on few patients (4) and may be too narrow"
    width = [figure.high - figure.low for figure in (alone.accuracy, grouped.accuracy)]
    assert width[1] > 2 * width[0]
    assert grouped.confidence.value == alone.confidence.value


def test_the_t_interval_is_the_textbooks_and_knows_patients() -> None:
    from scipy import stats

    values = np.random.default_rng(2).normal(0.8, 0.1, 30)
    low, high = stats.t.interval(0.95, 29, values.mean(), stats.sem(values))
    assert t_interval(values, np.arange(30)) == pytest.approx((low, high), abs=1e-12)
    twice = t_interval(np.repeat(values, 2), np.repeat(np.arange(30), 2))
    assert twice == pytest.approx((low, high), abs=1e-12)  # a second picture of the same says nothing new
    assert t_interval(values, np.zeros(30, np.intp)) is None


def test_changes_are_paired() -> None:
    draw = np.random.default_rng(8)
    labels = draw.integers(0, 2, 150).tolist()
    first = draw.normal(np.array(labels) * 1.2 - 0.6, 1)
    second = first - np.where(np.array(labels) == 1, 0.1, -0.1) * draw.random(150)
    result = run(said(CLEAN, labels, lean(*first)), said(PGD, labels, lean(*second)))
    after, before = figures(result, PGD.name, resamples=300), figures(result, "clean", resamples=300)
    assert before.change == {}
    for name, one, other in (("auroc", after.auroc, before.auroc), ("accuracy", after.accuracy, before.accuracy)):
        change = after.change[name]
        assert change.value == pytest.approx(one.value - other.value, abs=1e-12)
        assert change.high - change.low < 0.5 * (one.high - one.low)


@pytest.mark.slow
def test_intervals_cover_what_is_true_with_correlated_images_of_patients() -> None:
    """200 images of 80 patients who share much of their luck; what is true is measured on very many."""
    draw = np.random.default_rng(11)

    def sample(patients: int) -> tuple[Any, ...]:
        groups = np.repeat(np.arange(patients), draw.integers(1, 5, patients))
        sick = (draw.random(patients) < 0.4)[groups]
        score = np.where(sick, 1.0, 0.0) + draw.normal(0, 0.8, patients)[groups] + draw.normal(0, 0.6, len(groups))
        return groups, sick, score, score - np.where(sick, 0.3, 0) + draw.normal(0, 0.3, len(groups))

    def measures(groups: Any, sick: Any, before: Any, after: Any) -> list[Any]:
        everyone = np.ones(len(sick), bool)
        return [weighted_auroc(sick, before), weighted_auroc(sick, after), share((before > 0.5) == sick, everyone)]

    _, *rest = sample(400_000)
    auroc_before, auroc_after = auroc(rest[0], rest[1]), auroc(rest[0], rest[2])
    true = np.array([auroc_before, auroc_after - auroc_before, ((rest[1] > 0.5) == rest[0]).mean()])
    covered = np.zeros(3)
    trials = 600
    for trial in range(trials):
        groups, *values = sample(80)
        drawn = resampled(measures(groups, *values), groups, 800, trial)
        figures_drawn = np.stack([drawn[:, 0], drawn[:, 1] - drawn[:, 0], drawn[:, 2]], 1)
        for k in range(3):
            low, high = percentiles(figures_drawn[1:, k], 80)
            covered[k] += low <= true[k] <= high
    assert ((covered / trials > 0.92) & (covered / trials < 0.98)).all(), covered / trials
