"""Intervals, names and the rows of the table."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from robustbench_lite.results import TABLE_COLUMNS, VERDICT_FIELDS, Condition, Result, Verdict, eps_text, table_row
from robustbench_lite.stats import wilson
from robustbench_lite.worst import worst_case

PGD, FGSM = Condition("pgd[linf,0.1]", "attack", "pgd", "linf", 0.1), Condition("fgsm[linf,0.1]", "attack", "fgsm", "linf", 0.1)
CLEAN = Condition("clean", "clean")


def verdict(sample: str, broken: bool | None, condition: Condition = PGD, **more: Any) -> Verdict:
    blank: dict[str, Any] = dict.fromkeys(VERDICT_FIELDS)
    known = {
        "label": 1,
        "clean_prediction": 1,
        "restart": 0,
        "distance": condition.eps or 0.0,
        "confidence": 0.5,
        "steps": 3,
        "forwards": 4,
        "backwards": 3,
    }
    return Verdict(
        **blank | known | {"precision": "fp32", "seed": 0, "sample_id": sample, "broken": broken, "condition": condition.name} | more
    )


def row(verdicts: list[Verdict], condition: Condition = PGD) -> dict[str, Any]:
    return table_row(condition, verdicts, "m", "d", 2.0)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilsons(counts: tuple[int, int]) -> None:
    successes, n = counts
    expected = binomtest(successes, n).proportion_ci(0.95, "wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (1, 0), (-1, 5), (6, 5), (0, -3)])
def test_what_is_no_proportion_has_no_interval(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got {successes} of {n}"):
        wilson(successes, n)


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        (8 / 255, "8/255"), (4 / 255, "4/255"), (0.5 / 255, "0.5/255"), (0.3, "0.3"), (0.15, "0.15"), (1.0, "1"), (0.1, "0.1"),
        (51 / 255, "0.2"),
        (100.0, "100"), (0.031, "0.031"), (1e-5, "1e-05"), (3.0, "3"),
    ],
)  # fmt: skip
def test_eps_is_named_as_people_write_it(eps: float, text: str) -> None:
    assert eps_text(eps) == text


@given(st.integers(1, 510))
def test_the_name_of_an_eps_is_that_eps(halves: int) -> None:
    top, _, bottom = eps_text(halves / 2 / 255).partition("/")
    assert float(top) / float(bottom or 1) == pytest.approx(halves / 2 / 255, rel=1e-5)


# --- the worst case --------------------------------------------------------------------------------------------------------


def test_the_worst_case_is_broken_by_any_and_robust_only_under_all() -> None:
    outcomes = {"a": (True, False), "b": (False, True), "c": (False, False), "d": (False, None), "e": (None, True), "f": (None, None)}
    verdicts = [verdict(s, broken[0], PGD, broken_by="pgd", prediction=1) for s, broken in outcomes.items()]
    verdicts += [verdict(s, broken[1], FGSM, broken_by="fgsm", prediction=2, forwards=2) for s, broken in outcomes.items()]
    conditions, worst = worst_case([CLEAN, PGD, FGSM], verdicts)
    assert [(c.name, c.kind, c.norm, c.eps) for c in conditions] == [("worst[linf,0.1]", "worst", "linf", 0.1)]
    assert {v.sample_id: v.broken for v in worst} == {"a": True, "b": True, "c": False, "d": None, "e": True, "f": None}
    assert {v.sample_id: (v.broken_by, v.prediction) for v in worst if v.broken} == {"a": ("pgd", 1), "b": ("fgsm", 2), "e": ("fgsm", 2)}
    assert {(v.forwards, v.steps, v.condition) for v in worst} == {(6, 6, "worst[linf,0.1]")}


def test_the_worst_case_is_per_norm_and_eps() -> None:
    wide = Condition("pgd[linf,0.2]", "attack", "pgd", "linf", 0.2)
    round_one = Condition("pgd[l2,0.1]", "attack", "pgd", "l2", 0.1)
    each = ((False, PGD), (True, wide), (None, round_one))
    verdicts = [verdict("a", broken, c, distance=0.2) for broken, c in each] + [verdict("a", True, CLEAN)]
    conditions, worst = worst_case([CLEAN, PGD, wide, round_one], verdicts)
    assert [c.name for c in conditions] == ["worst[linf,0.1]", "worst[linf,0.2]", "worst[l2,0.1]"]
    assert [v.broken for v in worst] == [False, True, None]


def test_the_worst_case_holds_what_another_size_found_within_this_one() -> None:
    wide = Condition("pgd[linf,0.2]", "attack", "pgd", "linf", 0.2)
    verdicts = [verdict("a", False, PGD), verdict("a", True, wide, distance=0.09)]
    _, worst = worst_case([CLEAN, PGD, wide], verdicts)
    assert [v.broken for v in worst] == [True, True]


# --- the table -------------------------------------------------------------------------------------------------------------


def test_an_undecided_image_is_in_n_and_is_not_correct() -> None:
    got = row([verdict("a", True), verdict("b", False), verdict("c", None), verdict("d", None), verdict("e", False)])
    assert (got["n"], got["correct"], got["accuracy"], got["undecided"]) == (5, 2, 0.4, 2)
    assert (got["ci_low"], got["ci_high"]) == wilson(2, 5)
    assert (got["success_all"], got["seconds"], got["kind"], got["eps"]) == (0.2, 2.0, "attack", 0.1)


def test_success_has_both_denominators_and_costs_are_of_the_attacked() -> None:
    clean = [verdict(s, True, broken_by="clean", forwards=0, backwards=0, clean_prediction=2) for s in "ab"]
    got = row([*clean, verdict("c", True, forwards=2, backwards=1), verdict("d", False, forwards=10, backwards=9), verdict("e", False)])
    assert got["success_all"] == 3 / 5
    assert got["success_correct"] == 1 / 3
    assert got["mean_forwards"] == pytest.approx((2 + 10 + 4) / 3)
    assert got["mean_backwards"] == pytest.approx((1 + 9 + 3) / 3)
    assert row(clean)["success_correct"] is None
    assert row(clean)["mean_forwards"] == 0


def test_an_image_without_a_clean_answer_is_not_counted_as_correct_at_first() -> None:
    got = row([verdict("a", None, clean_prediction=None, forwards=0, backwards=0), verdict("b", True), verdict("c", False)])
    assert got["success_correct"] == 1 / 2
    assert got["success_all"] == 1 / 3
    assert got["mean_forwards"] == 4


def test_the_clean_row_has_no_success() -> None:
    got = row([verdict("a", True, CLEAN, broken_by="clean", forwards=1), verdict("b", False, CLEAN, forwards=1)], CLEAN)
    assert (got["accuracy"], got["success_all"], got["success_correct"], got["mean_forwards"]) == (0.5, None, None, 1)


def test_the_median_distance_counts_survivors_as_far() -> None:
    closest = Condition("pgd[l2,1]", "attack", "pgd", "l2", 1.0, goal="closest")
    two = [verdict("a", True, closest, distance=0.3), verdict("b", True, closest, distance=0.5)]
    assert row(two, closest)["median_distance"] == 0.4
    assert (
        row([*two, verdict("c", False, closest, distance=0.1), verdict("d", False, closest, distance=0.1)], closest)["median_distance"]
        == math.inf
    )
    # what could not be decided is not robust
    assert row([*two, verdict("c", None, closest), verdict("d", None, closest)], closest)["median_distance"] == 0.15
    assert row(two)["median_distance"] is None


def test_both_precisions_of_a_search_are_named() -> None:
    assert row([verdict("a", True, precision="bf16"), verdict("b", False)])["search"] == "bf16+fp32"


def test_an_empty_evaluation_has_no_accuracy() -> None:
    with pytest.raises(ValueError, match=r"no verdicts under pgd\[linf,0.1\]"):
        row([])


def test_the_table_has_its_columns_and_a_row_per_condition() -> None:
    verdicts = [verdict("a", False, CLEAN, forwards=1), verdict("a", True)]
    config = {"model": {"name": "m"}, "data": {"name": "d", "n": 1}}
    result = Result(config, [CLEAN, PGD], verdicts, {"clean": 1.0}, lambda *_: None)
    assert tuple(result.table.columns) == TABLE_COLUMNS
    assert result.table["condition"].tolist() == ["clean", "pgd[linf,0.1]"]
    assert result.table["accuracy"].tolist() == [1.0, 0.0]
    assert result.table["seconds"].tolist() == [1.0, 0.0]
    assert result.of("clean") == verdicts[:1]
