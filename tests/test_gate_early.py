"""Stopping early changes no decision, saves images, and is wrong no more often than a gate says it may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged_run import NOTHING, PGD, condition, judged_run
from numpy.typing import NDArray

from robustbench_lite.gate import baseline as baselines
from robustbench_lite.gate.baseline import Baseline
from robustbench_lite.gate.decisions import decide
from robustbench_lite.gate.early import Watch
from robustbench_lite.gate.outcomes import Change, Levels, held
from robustbench_lite.gate.rules import Bound, NoWorse, Rule, parse
from robustbench_lite.gate.sequential import decided_first, e_values
from robustbench_lite.samples import drawn

RUNS, ALPHA = 2000, 0.05
CHANCE = 3 * np.sqrt(ALPHA * (1 - ALPHA) / RUNS)  # how far the share of wrong decisions may lie above its true rate
SQUARE = "square[linf,0.1]"


def ids(count: int) -> list[str]:
    return [f"image {i}" for i in range(count)]


def watched(watch: Watch, name: str, right: Sequence[bool | None], order: Sequence[int]) -> dict[str, bool | None]:
    """What is known of a condition when the watch has seen enough, or all; images are done one after the other."""
    fates: dict[str, bool | None] = {}
    for i in order:
        if watch(name, fates):
            break
        fates[f"image {i}"] = None if right[i] is None else not right[i]
    return fates


def decided(rules: Sequence[Rule], rows: Mapping[str, Any], baseline: Baseline | None, **options: Any) -> list[str]:
    return [ruling.outcome for ruling in decide(rules, judged_run(rows), baseline, **options)]


def cut(right: Sequence[bool | None], fates: Mapping[str, Any]) -> list[Any]:
    return [right[i] if f"image {i}" in fates else NOTHING for i in range(len(right))]


# ---------------------------------------------------------------------- the same decision

texts = st.sampled_from([
    "pgd.accuracy >= 0.5", "pgd.accuracy > 0.2", "pgd.accuracy >= 0.85", "pgd.accuracy <= 0.4", "pgd.accuracy < 0.75",
    "pgd.accuracy no_worse_than baseline by 0.1", "pgd.accuracy no_worse_than baseline by 0.3",
])  # fmt: skip


@given(st.lists(texts, min_size=1, max_size=2, unique=True), st.integers(8, 60), st.floats(0, 1), st.floats(0, 1), st.integers(0, 10**6))
def test_a_decision_made_early_is_the_one_made_late(texts: list[str], n: int, share: float, alike: float, seed: int) -> None:
    draw, rules = np.random.default_rng(seed), [parse(text) for text in texts]
    right = [bool(x) for x in draw.random(n) < share]
    before = [r if same else bool(other) for r, same, other in zip(right, draw.random(n) < alike, draw.random(n) < share, strict=True)]
    baseline = baselines.of(judged_run({PGD: before}))
    watch = Watch(rules, [condition(PGD)], ids(n), baseline=baseline)
    fates = watched(watch, PGD, right, [int(i) for i in draw.permutation(n)])
    late, early = decided(rules, {PGD: right}, baseline), decided(rules, {PGD: cut(right, fates)}, baseline)
    assert early == late or ("fail" in early and "fail" in late)
    assert all(now in (was, "inconclusive") for now, was in zip(early, late, strict=True))


@given(st.integers(8, 40), st.floats(0, 1), st.floats(0, 1), st.integers(0, 10**6))
def test_comparisons_that_share_holms_adjustment_are_ended_early_with_the_same_outcome(
    n: int, first: float, second: float, seed: int
) -> None:
    draw, rows = np.random.default_rng(seed), {PGD: first, SQUARE: second}
    rules = [parse(f"{name}.accuracy no_worse_than baseline by 0.1") for name in rows]
    before = {name: [bool(x) for x in draw.random(n) < 0.8] for name in rows}
    right = {name: [b and bool(draw.random() < share) for b in before[name]] for name, share in rows.items()}
    baseline = baselines.of(judged_run(before))
    watch = Watch(rules, [condition(name) for name in rows], ids(n), baseline=baseline)
    seen = {name: cut(right[name], watched(watch, name, right[name], [int(i) for i in draw.permutation(n)])) for name in rows}
    late, early = decided(rules, right, baseline), decided(rules, seen, baseline)
    for name, was, now in zip(rows, late, early, strict=True):
        assert now == was or NOTHING in seen[name] or "fail" in early
        assert now != "fail" or was == "fail"
        assert now != "pass" or was == "pass"
    assert ("fail" in late) == ("fail" in early)


def test_undecided_images_end_nothing_that_they_could_turn() -> None:
    watch = Watch([parse("pgd.accuracy >= 0.5")], [condition(PGD)], ids(100))
    broken = {f"image {i}": True for i in range(80)}
    assert watch(PGD, broken)
    assert not watch(PGD, dict.fromkeys(broken, None))


# ---------------------------------------------------------------------- what is never ended

FAILED, PASSED = {f"image {i}": True for i in range(70)}, {f"image {i}": False for i in range(70)}


def watch_of(*texts: str, rows: Sequence[str] = (PGD,), **more: Any) -> Watch:
    return Watch([parse(text) for text in texts], [condition(name) for name in rows], ids(100), **more)


def test_what_no_rule_names_is_attacked_to_its_end() -> None:
    watch = watch_of("pgd.accuracy >= 0.5", rows=(PGD, SQUARE))
    assert watch(PGD, FAILED)
    assert not watch(SQUARE, FAILED)
    assert not watch("doubt[linf,0.1]", FAILED)


def test_an_attack_that_passes_goes_on_where_others_rest_on_what_it_finds() -> None:
    assert watch_of("pgd.accuracy >= 0.5")(PGD, PASSED)
    for watch in (
        watch_of("pgd.accuracy >= 0.5", rows=(PGD, SQUARE)),
        watch_of("pgd.accuracy >= 0.5", "findings: none of [refuted]"),
        watch_of("pgd.accuracy >= 0.5", "worst.accuracy >= 0.4"),
    ):
        assert not watch(PGD, PASSED)
        assert watch(PGD, FAILED)


def test_grouped_and_targeted_images_are_all_attacked() -> None:
    assert not watch_of("pgd.accuracy >= 0.5", groups=["one"] * 100)(PGD, FAILED)
    assert watch_of("pgd.accuracy >= 0.5", groups=ids(100))(PGD, FAILED)
    watch = watch_of("pgd.accuracy >= 0.5")
    aimed = replace(watch, conditions=[replace(watch.conditions[0], target=3)])
    assert not aimed(PGD, FAILED)


def test_a_comparison_goes_on_while_another_hangs_on_its_p() -> None:
    """By Holm: whether the other may be held to all of alpha is said by this one's p, however sure it is of its own margin."""
    baseline = baselines.of(judged_run({PGD: [True] * 60 + [False] * 40}))
    six_lost = {f"image {i}": i < 6 for i in range(60)}  # p 0.016, and up to 1 where those that are left are gained
    own = "pgd.accuracy no_worse_than baseline by 0.3"
    assert watch_of(own, rows=("clean", PGD), baseline=baseline)(PGD, six_lost)
    assert not watch_of(own, "clean.accuracy no_worse_than baseline", rows=("clean", PGD), baseline=baseline)(PGD, six_lost)


def test_a_loss_is_certain_only_if_holm_cannot_undo_it() -> None:
    baseline = baselines.of(judged_run({PGD: [True] * 100}))
    five_lost = {f"image {i}": i < 5 for i in range(65)}  # p at most 0.031
    own = "pgd.accuracy no_worse_than baseline by 0.02"
    assert watch_of(own, baseline=baseline)(PGD, five_lost)
    assert not watch_of(own, "clean.accuracy no_worse_than baseline", rows=("clean", PGD), baseline=baseline)(PGD, five_lost)


def test_evidence_takes_images_to_be_independent() -> None:
    right = [i // 100 % 2 == 1 for i in range(400)]
    run = {"groups": [f"patient {i // 100}" for i in range(400)], "sessions": [{"complete": True, "shuffle_seed": 0}]}
    rule = parse("pgd.accuracy >= 0.7")
    assert decide([rule], judged_run({PGD: right}), sequential=True)[0].outcome == "fail"
    assert decide([rule], judged_run({PGD: right}, **run), sequential=True)[0].outcome == "inconclusive"  # type: ignore[arg-type]


def test_a_baseline_that_does_not_know_the_row_ends_nothing() -> None:
    other = baselines.of(judged_run({SQUARE: [True] * 100}))
    assert not watch_of("pgd.accuracy no_worse_than baseline", baseline=other)(PGD, FAILED)
    assert not watch_of("pgd.accuracy no_worse_than baseline")(PGD, FAILED)


# ---------------------------------------------------------------------- what it saves


@pytest.mark.parametrize(("floor", "share"), [(0.8, 0.3), (0.05, 0.5)])
def test_a_clear_case_takes_at_most_half_of_the_images(floor: float, share: float) -> None:
    draw = np.random.default_rng(0)
    right = [bool(x) for x in draw.random(900) < share]
    rule = parse(f"pgd.accuracy >= {floor}")
    fates = watched(Watch([rule], [condition(PGD)], ids(900)), PGD, right, range(900))
    assert len(fates) <= 450
    assert decided([rule], {PGD: cut(right, fates)}, None) == decided([rule], {PGD: right}, None)


def test_in_order_of_the_run_evidence_ends_a_bad_case_sooner() -> None:
    n, rule = 600, parse("pgd.accuracy >= 0.5")
    right = [bool(x) for x in np.random.default_rng(0).random(n) < 0.3]
    order = sorted(range(n), key=lambda i: drawn(7, "order", f"image {i}"))
    plain = watched(Watch([rule], [condition(PGD)], ids(n), shuffle_seed=7), PGD, right, order)
    watch = Watch([rule], [condition(PGD)], ids(n), sequential=True, shuffle_seed=7)
    fates = watched(watch, PGD, right, order)
    assert len(fates) < len(plain) / 2
    run = judged_run({PGD: cut(right, fates)}, sessions=[{"complete": True, "shuffle_seed": 7}])
    (ruling,) = decide([rule], run, sequential=True)
    assert (ruling.outcome, ruling.n, ruling.of, ruling.estimate) == ("fail", len(fates), n, None)
    assert decide([rule], run)[0].outcome == "inconclusive"  # it was not agreed on


def test_images_behind_a_gap_are_no_evidence() -> None:
    """The broken ones are done first; they must not be counted before those that they overtook."""
    n = 200
    order = sorted(ids(n), key=lambda key: drawn(0, "order", key))
    early = {key: True for place, key in enumerate(order) if place % 4 == 3}
    assert decided_first(ids(n), early, 0) == []
    assert decided_first(ids(n), {**early, order[0]: False, order[1]: None}, 0) == [True, True]
    assert not watch_of("pgd.accuracy >= 0.6", sequential=True)(PGD, {key: True for key in order[10:45] if key in ids(100)})


# ---------------------------------------------------------------------- how often it is wrong


def outcomes(decide_one: Any, counts: NDArray[np.int64]) -> list[str]:
    """Of every run, each distinct count decided once."""
    distinct, place = np.unique(counts, axis=0, return_inverse=True)
    said = [decide_one(*np.atleast_1d(row).tolist()) for row in distinct]
    return [said[i] for i in place.ravel()]


@pytest.mark.parametrize("n", [100, 900])
@pytest.mark.parametrize("floor", [0.1, 0.45, 0.9])
def test_floors_at_the_boundary_are_wrong_at_most_as_often_as_stated(n: int, floor: float) -> None:
    rule = parse(f"pgd.accuracy >= {floor}")
    assert isinstance(rule, Bound)
    counts = np.random.default_rng(n).binomial(n, floor, RUNS)
    found = outcomes(lambda right: held(rule, right, n, Levels(ALPHA, ALPHA)), counts)
    assert found.count("pass") / RUNS <= ALPHA + CHANCE
    assert found.count("fail") / RUNS <= ALPHA + CHANCE


def compared(gain: float, loss: float, margin: float, n: int) -> list[str]:
    rule = NoWorse("", None, "pgd", margin)
    counts = np.random.default_rng(n).multinomial(n, [gain, loss, 1 - gain - loss], RUNS)

    def one(gained: int, lost: int, _: int) -> str:
        change = Change(gained, lost, n)
        return change.outcome(rule, ALPHA, change.p)

    return outcomes(one, counts)


@pytest.mark.parametrize(("n", "margin"), [(300, 0.05), (900, 0.05), (900, 0.02)])
def test_comparisons_are_wrong_at_most_as_often_as_stated(n: int, margin: float) -> None:
    same, lost = compared(0.045, 0.045, margin, n), compared(0.045 - margin / 2, 0.045 + margin / 2, margin, n)
    assert same.count("fail") / RUNS <= ALPHA + CHANCE
    assert lost.count("pass") / RUNS <= ALPHA + CHANCE


def test_the_operating_characteristics_that_the_docs_state() -> None:
    """At 900 images, nine in a hundred changed; docs/gate_statistics.md has these."""
    same, three, six = compared(0.045, 0.045, 0.02, 900), compared(0.03, 0.06, 0.02, 900), compared(0.015, 0.075, 0.02, 900)
    assert same.count("pass") / RUNS == pytest.approx(0.62, abs=0.05)
    assert three.count("pass") / RUNS < 0.01
    assert six.count("pass") == 0
    assert three.count("fail") / RUNS == pytest.approx(0.84, abs=0.04)
    assert six.count("fail") == RUNS


@pytest.mark.parametrize("floor", [0.1, 0.5, 0.9])
def test_evidence_that_is_looked_at_after_every_image_is_wrong_at_most_as_often_as_stated(floor: float) -> None:
    n, levels = 300, Levels(ALPHA, ALPHA / 2)
    rule = parse(f"pgd.accuracy >= {floor}")
    assert isinstance(rule, Bound)
    images = np.random.default_rng(3).random((RUNS, n)) < floor
    highest = np.array([e_values(run, floor).max() for run in images])
    assert (highest >= 1 / ALPHA).mean() <= ALPHA
    last = np.array(outcomes(lambda right: held(rule, right, n, levels), images.sum(1))) == "fail"
    assert ((highest >= 1 / levels.failing) | last).mean() <= ALPHA  # both ways to fail together, each at half of alpha


@pytest.mark.parametrize(
    ("floor", "share", "most"), [(0.8, 0.5, 0.5), (0.05, 0.3, 0.25), (0.4, 0.7, 0.65), (0.4, 0.1, 0.7), (0.5, 0.5, 1.0), (0.05, 0.0, 0.98)]
)
def test_what_is_ended_early_is_decided_as_all_images_would(floor: float, share: float, most: float) -> None:
    """Over all runs; docs/gate_statistics.md has what it saves."""
    n, rule, levels = 900, parse(f"pgd.accuracy >= {floor}"), Levels(ALPHA, ALPHA)
    assert isinstance(rule, Bound)
    of_count = np.array([held(rule, right, n, levels) for right in range(n + 1)])
    right = np.cumsum(np.random.default_rng(5).random((RUNS, n)) < share, axis=1)
    worst, best = of_count[right], of_count[right + n - np.arange(1, n + 1)]
    first = (worst == best).argmax(1)
    assert (worst[np.arange(RUNS), first] == of_count[right[:, -1]]).all()
    assert (first + 1).mean() / n <= most


def test_two_ways_to_fail_share_alpha_and_nothing_else_does() -> None:
    floor, ceiling = (Bound("", None, "pgd", "accuracy", comparison, 0.5) for comparison in (">=", "<="))
    assert Levels.of(floor, 0.05, True) == Levels(passing=0.05, failing=0.025)
    assert Levels.of(floor, 0.05, False) == Levels.of(ceiling, 0.05, True) == Levels(0.05, 0.05)


def test_e_values_by_hand() -> None:
    """One miss under a floor of f: the mean of (1 - q) / (1 - f) over q in [0, f] is (1 - f / 2) / (1 - f); one hit: 1 / 2."""
    assert e_values([False], 0.4) == pytest.approx([0.8 / 0.6])
    assert e_values([True], 0.4) == pytest.approx([0.5])
    assert e_values([True, False], 1.0)[1] == np.inf
    assert np.isfinite(e_values([False] * 5000, 0.9)).all()
