"""A gate's rulings: pass, fail, inconclusive and invalid, each for its reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judged_run import NOTHING, PGD, judged_run, some

from robustbench_lite.diagnostics import Finding
from robustbench_lite.errors import RunMismatch, UsageError
from robustbench_lite.gate import baseline as baselines
from robustbench_lite.gate.decisions import decide
from robustbench_lite.gate.rules import parse
from robustbench_lite.gate.rulings import Judgement, Ruling
from robustbench_lite.results import Result
from robustbench_lite.stats import clopper_pearson

FLOOR = "pgd.accuracy >= 0.4"
NO_WORSE = "pgd.accuracy no_worse_than baseline by 0.02"


def ruled(text: str, result: Result, **options: Any) -> Ruling:
    (ruling,) = decide([parse(text, 3)], result, **options)
    return ruling


def finding(check: str, weight: Any, samples: Sequence[str] = (), row: str = PGD) -> Finding:
    return Finding(check, weight, (row,), f"{check} was seen", "it means something", samples=tuple(samples))


# ---------------------------------------------------------------------- floors and ceilings


@pytest.mark.parametrize(("right", "outcome"), [(480, "pass"), (420, "inconclusive"), (330, "fail")])
def test_a_floor_is_held_against_one_sided_limits(right: int, outcome: str) -> None:
    ruling = ruled(FLOOR, judged_run({PGD: some(right, 1000)}))
    assert (ruling.outcome, ruling.condition, ruling.n, ruling.of, ruling.line) == (outcome, PGD, 1000, 1000, 3)
    assert (ruling.estimate, ruling.threshold, ruling.blocking) == (right / 1000, 0.4, True)
    assert f"{right / 1000:.4f} on 1,000 images [{ruling.low:.4f}, {ruling.high:.4f}]" in ruling.message


@pytest.mark.parametrize(("rule", "outcome"), [("<= 0.4", "fail"), ("<= 0.5", "pass"), ("< 0.45", "inconclusive"), ("> 0.4", "pass")])
def test_every_comparison_has_its_direction(rule: str, outcome: str) -> None:
    assert ruled(f"pgd.accuracy {rule}", judged_run({PGD: some(450, 1000)})).outcome == outcome


def test_the_limit_that_decides_is_that_of_alpha() -> None:
    result = judged_run({PGD: some(430, 1000)})  # lower limits: 0.404 at 5 %, 0.394 at 1 %
    assert ruled(FLOOR, result).outcome == "pass"
    assert ruled(FLOOR, result, alpha=0.01).outcome == "inconclusive"
    with pytest.raises(UsageError, match=r"alpha must lie between 0 and 0\.5, got 0\.6"):
        ruled(FLOOR, result, alpha=0.6)


def test_the_images_that_would_decide_do_so_four_times_in_five() -> None:
    ruling = ruled(FLOOR, judged_run({PGD: some(45, 100)}))
    assert ruling.outcome == "inconclusive"
    assert 590 <= (ruling.needed or 0) <= 680
    assert f"about {ruling.needed:,} images would probably decide it" in ruling.message
    draw = np.random.default_rng(0).binomial(ruling.needed or 0, 0.45, 1000)
    assert 0.77 <= np.mean([clopper_pearson(int(k), ruling.needed or 0, 0.05)[0] >= 0.4 for k in draw]) <= 0.86


def test_at_the_threshold_itself_no_number_of_images_decides() -> None:
    ruling = ruled(FLOOR, judged_run({PGD: some(40, 100)}))
    assert ruling.needed is None
    assert "no number of images is likely to decide it" in ruling.message


@pytest.mark.parametrize(("policy", "words"), [(None, "failure"), ("fail", "failure"), ("warn", "warning"), ("pass", "let pass")])
def test_what_an_open_rule_counts_as_is_said(policy: Any, words: str) -> None:
    ruling = ruled(FLOOR, judged_run({PGD: some(42, 100)}), on_inconclusive=policy)
    assert ruling.blocking == (policy in (None, "fail"))
    assert words in ruling.message


def test_undecided_images_count_as_not_correct_and_invalidate_where_they_could_turn_it() -> None:
    few = judged_run({PGD: [None] * 5 + some(480, 995)})
    assert ruled(FLOOR, few).outcome == "pass"
    assert ruled(FLOOR, few).estimate == 0.48
    many = ruled(FLOOR, judged_run({PGD: [None] * 200 + some(300, 800)}))
    assert many.outcome == "invalid"
    assert "the 200 undecided images could turn it" in many.message
    assert ruled("pgd.accuracy <= 0.3", judged_run({PGD: [None] * 300 + [False] * 700})).outcome == "invalid"


def test_a_row_that_was_ended_early_is_never_judged_by_its_biased_share() -> None:
    survivors_last = judged_run({PGD: [False] * 100 + [NOTHING] * 900})
    ruling = ruled(FLOOR, survivors_last)
    assert (ruling.outcome, ruling.n, ruling.of, ruling.estimate) == ("inconclusive", 100, 1000, None)
    assert "the 900 images that are left could turn it" in ruling.message
    settled = ruled(FLOOR, judged_run({PGD: [False] * 640 + [NOTHING] * 360}))
    assert (settled.outcome, settled.n, settled.of) == ("fail", 640, 1000)
    assert ruled(FLOOR, judged_run({PGD: [True] * 440 + [NOTHING] * 560})).outcome == "pass"


def test_grouped_images_count_for_less() -> None:
    patients = [i // 20 for i in range(1000)]
    right = [p % 50 < 23 for p in patients]  # 46 %, and all images of a patient alike
    assert ruled(FLOOR, judged_run({PGD: right})).outcome == "pass"
    ruling = ruled(FLOOR, judged_run({PGD: right}, groups=[f"patient {p}" for p in patients]))
    assert ruling.outcome == "inconclusive"
    assert ruling.figures["independent_images"] < 51
    assert ruled(FLOOR, judged_run({PGD: right}, groups=[f"patient {i}" for i in range(1000)])).outcome == "pass"


# ---------------------------------------------------------------------- can the figure be believed


def test_a_pass_on_a_doubted_figure_is_invalid_and_a_fail_stays_one() -> None:
    doubted = [finding("zero-gradients", "doubts")]
    good, bad = judged_run({PGD: some(600, 1000)}, findings=doubted), judged_run({PGD: some(200, 1000)}, findings=doubted)
    assert ruled(FLOOR, good).outcome == "invalid"
    assert "cannot be believed (zero-gradients: zero-gradients was seen)" in ruled(FLOOR, good).message
    assert ruled(FLOOR, bad).outcome == "fail"


@pytest.mark.parametrize(
    "harmless", [finding("few-images", "doubts"), finding("remark", "notes"), finding("x", "doubts", row="fgsm[linf,0.1]")]
)
def test_what_says_nothing_of_the_figure_leaves_a_pass(harmless: Finding) -> None:
    assert ruled(FLOOR, judged_run({PGD: some(600, 1000)}, findings=[harmless])).outcome == "pass"


def test_a_refuted_row_passes_only_if_it_does_without_the_images_that_others_broke() -> None:
    right = [True] * 600 + [False] * 400
    few, many = ([finding("witnessed", "refutes", [f"image {i}" for i in range(k)])] for k in (50, 190))
    ruling = ruled(FLOOR, judged_run({PGD: right}, findings=few))
    assert ruling.outcome == "pass"
    assert "also without the 50 images" in ruling.message
    assert ruled(FLOOR, judged_run({PGD: right}, findings=many)).outcome == "invalid"
    assert ruled(FLOOR, judged_run({PGD: right}, findings=[*few, finding("zero-gradients", "doubts")])).outcome == "invalid"
    assert ruled(FLOOR, judged_run({PGD: right}, findings=[finding("witnessed", "refutes")])).outcome == "invalid"


def test_what_every_attack_asked_for_left_and_another_broke_is_refuted() -> None:
    tried = judged_run({PGD: some(60, 100), "square[linf,0.1]": some(50, 100)})
    doubt = replace(tried, conditions=[replace(c, kind="doubt") if c.name.startswith("square") else c for c in tried.conditions])
    vars(doubt)["findings"] = []
    assert ruled("findings: none of [refuted]", tried).outcome == "pass"
    ruling = ruled("findings: none of [refuted]", doubt)
    assert ruling.outcome == "fail"
    assert "images that the attacks at linf 0.1 left have a witness of another" in ruling.message


def test_a_check_that_had_less_to_look_at_says_so_where_it_found_nothing() -> None:
    run = judged_run({PGD: some(60, 100)})
    words = "only with doubt = true there is all that large-eps can look at"
    assert words in ruled("findings: none of [large-eps, stated-accuracy]", run).message
    assert words not in ruled("findings: none of [stated-accuracy]", run).message
    doubted = replace(run, conditions=[*run.conditions, replace(run.conditions[1], name="square[linf,0.1]", kind="doubt")])
    vars(doubted)["findings"] = []
    assert words not in ruled("findings: none of [large-eps]", doubted).message


def test_a_gate_without_rulings_has_not_passed() -> None:
    judgement = Judgement([], judged_run({PGD: some(60, 100)}))
    assert (judgement.outcome, judgement.exit_code) == ("invalid", 4)


def test_what_was_not_tried_is_said_beside_a_pass() -> None:
    assert "not tried: no attack without gradients was tried" in ruled(FLOOR, judged_run({PGD: some(600, 1000)})).message


def test_findings_are_looked_for_in_the_worst_case() -> None:
    rows = {PGD: some(60, 100), "square[linf,0.1]": some(50, 100)}
    weaker = judged_run(rows, findings=[finding("witnessed", "refutes", ["image 1"])])
    assert ruled("findings: none of [refuted]", weaker).outcome == "pass"
    assert ruled("findings: none of [witnessed]", weaker).outcome == "fail"
    worst = judged_run(rows, findings=[finding("noise", "refutes", ["image 1"], row="worst[linf,0.1]")])
    ruling = ruled("findings: none of [refuted]", worst)
    assert ruling.outcome == "fail"
    assert "worst[linf,0.1] is refuted: noise was seen" in ruling.message
    assert "not tried: no attack without gradients" in ruled("findings: none of [refuted]", judged_run({PGD: some(60, 100)})).message
    assert ruled("findings: none of [doubtful]", worst).outcome == "fail"
    assert ruled("findings: none of [doubtful]", weaker).outcome == "fail"  # for want of evidence


# ---------------------------------------------------------------------- against a baseline


def changed(gained: int, lost: int, both: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Verdicts before and now."""
    before = [False] * gained + [True] * (lost + both) + [False] * neither
    return before, [True] * gained + [False] * lost + [True] * both + [False] * neither


def compared(gained: int, lost: int, both: int, neither: int, text: str = NO_WORSE, **options: Any) -> Ruling:
    before, now = changed(gained, lost, both, neither)
    return ruled(text, judged_run({PGD: now}), baseline=baselines.of(judged_run({PGD: before})), **options)


@pytest.mark.parametrize(
    ("table", "outcome"),
    [
        ((30, 30, 640, 300), "pass"), ((60, 30, 610, 300), "pass"),  # no change, better
        ((10, 60, 630, 300), "fail"),
        ((45, 55, 600, 300), "inconclusive"), ((75, 75, 550, 300), "inconclusive"),
        ((0, 15, 685, 300), "inconclusive"),  # significant, and within the margin: no fail
        ((0, 4, 26, 70), "inconclusive"),  # fewer than five changed images are never significant
    ],
)  # fmt: skip
def test_a_comparison_needs_both_to_fail_and_evidence_to_pass(table: tuple[int, int, int, int], outcome: str) -> None:
    ruling = compared(*table)
    assert ruling.outcome == outcome
    assert (ruling.threshold, ruling.blocking) == (-0.02, False)
    assert f"{table[0]} gained and {table[1]} lost" in ruling.message


def test_a_comparison_with_itself_needs_images_too() -> None:
    many, few = compared(0, 0, 100, 100), compared(0, 0, 15, 15)
    assert many.outcome == "pass"
    assert (few.outcome, few.needed) == ("inconclusive", 133)
    assert compared(0, 0, 100, 33).outcome == "pass"


def test_the_images_a_comparison_needs() -> None:
    ruling = compared(9, 9, 117, 65)  # nine in a hundred changed, as many either way
    assert 1300 < (ruling.needed or 0) < 1450
    assert "McNemar p 0.593" in ruling.message
    assert 230 < (compared(6, 13, 116, 65).needed or 0) < 1200  # a loss of 0.035


def test_comparisons_share_alpha_by_holm() -> None:
    rows = {f"pgd:steps={k}[linf,0.1]": changed(8, 20, 300, 72) for k in range(2)}  # p 0.018, drop 0.03
    before, now = ({name: pair[i] for name, pair in rows.items()} for i in (0, 1))
    rules = [parse(f"{name}.accuracy no_worse_than baseline by 0.02") for name in rows]
    alone = decide(rules[:1], judged_run(now), baselines.of(judged_run(before)), alpha=0.03)
    both = decide(rules, judged_run(now), baselines.of(judged_run(before)), alpha=0.03)
    assert alone[0].outcome == "fail"
    assert [ruling.outcome for ruling in both] == ["inconclusive"] * 2
    assert both[0].figures["p"] == pytest.approx(2 * alone[0].figures["p"])
    assert "by Holm over 2 comparisons" in both[0].message


def test_a_comparison_without_a_baseline_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no baseline"):
        ruled(NO_WORSE, judged_run({PGD: some(5, 10)}))


# ---------------------------------------------------------------------- the baseline


def test_a_baseline_comes_back_from_its_file(tmp_path: Path) -> None:
    draw = np.random.default_rng(0).random((10, 1003)) < 0.5
    rows = {f"pgd:steps={k}[linf,0.1]": list(map(bool, row)) for k, row in enumerate(draw)}
    result = judged_run(rows, ids=[f"{i:016x}" for i in range(1003)])
    path = baselines.write(result, tmp_path / "in" / "baseline.json")
    assert replace(baselines.read(path), source="") == replace(baselines.of(result), source="")
    assert path.stat().st_size < 100_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"name": "other", "digest": "d1", "n": 10}}, "is of other data"),
        ({"identity": {"seed": 1, "goal": "first"}}, "was made with seed 0 and this run with 1"),
        ({"identity": {"seed": 0, "goal": "closest"}}, "was made with goal first and this run with closest"),
    ],
)
def test_what_does_not_compare_is_refused(change: dict[str, Any], words: str) -> None:
    baseline = baselines.of(judged_run({PGD: some(5, 10)}))
    with pytest.raises(RunMismatch, match=words):
        ruled(NO_WORSE, judged_run({PGD: some(5, 10)}, **change), baseline=baseline)


def test_other_attacks_do_not_compare() -> None:
    baseline = baselines.of(judged_run({"pgd:steps=5[linf,0.1]": some(5, 10)}))
    with pytest.raises(RunMismatch, match=r"has no pgd\[linf,0.1\], it has clean, pgd:steps=5"):
        ruled(NO_WORSE, judged_run({PGD: some(5, 10)}), baseline=baseline)
    two = judged_run({PGD: some(5, 10), "square[linf,0.1]": some(5, 10)})
    with pytest.raises(RunMismatch, match=r"worst of pgd:steps=5\[linf,0.1\], and here of pgd\[linf,0.1\], square"):
        ruled("worst.accuracy no_worse_than baseline", two, baseline=baseline)


def test_a_subset_of_the_baselines_images_compares_and_says_how_many() -> None:
    baseline = baselines.of(judged_run({PGD: some(600, 1000)}))
    limit = {"name": "d", "digest": "d1", "n": 300}
    ruling = ruled(NO_WORSE, judged_run({PGD: some(180, 300)}, data=limit), baseline=baseline)
    assert (ruling.n, ruling.of, ruling.outcome) == (300, 300, "pass")
    relabelled = judged_run({PGD: some(180, 300)}, data=limit, more=[{"label": 2}] * 300)
    with pytest.raises(RunMismatch, match="it has 0 of 300"):
        ruled(NO_WORSE, relabelled, baseline=baseline)
    replaced = judged_run({PGD: some(600, 1000)}, data={"name": "d", "digest": "d1", "n": 1000})
    with pytest.raises(RunMismatch, match="have the same names here and differ in content or order"):
        ruled(NO_WORSE, replaced, baseline=baseline)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (judged_run({PGD: some(5, 10)}, sessions=[{}]), "was not finished"),
        (judged_run({PGD: [True] * 5 + [NOTHING] * 5}), "which were ended early"),
        (judged_run({PGD: [True] * 5 + [None] * 5}), "undecided"),
    ],
)
def test_what_flatters_as_a_baseline_is_none(run: Result, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        baselines.write(run, tmp_path / "baseline.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no baseline at"), ("{", "is no baseline"), ("[]", "is no baseline"),
        ('{"format": 2}', "has the format 2"), ('{"format": 1}', "'samples'"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_baseline_is_refused_in_one_line(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=words) as raised:
        baselines.read(path)
    assert "robust-eval baseline write" in str(raised.value) or "write it anew" in str(raised.value)


def test_a_baseline_with_bits_missing_is_refused(tmp_path: Path) -> None:
    path = baselines.write(judged_run({PGD: some(5, 10)}), tmp_path / "baseline.json")
    content = json.loads(path.read_text())
    content["conditions"][PGD]["right"] = "f"
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="1 digits for 10 images"):
        baselines.read(path)


# ---------------------------------------------------------------------- other figures


def test_calibration_is_held_by_a_bootstrap() -> None:
    draw = np.random.default_rng(0)
    sure = draw.uniform(0.5, 1, 400)
    right = list(map(bool, draw.random(400) < sure))
    result = judged_run({"clean": right}, more=[{"confidence": float(c), "nll": 0.3, "brier": 0.2} for c in sure])
    ruling = ruled("calibration.rms <= 0.2", result)
    assert (ruling.outcome, ruling.condition, ruling.n) == ("pass", "clean", 400)
    assert ruling.low is not None
    assert ruling.high is not None
    assert 0 <= ruling.low <= (ruling.estimate or 0) <= ruling.high
    assert ruled("calibration.aurra >= 0.99", result).outcome == "fail"
    assert ruled("calibration.nll <= 0.4", result).outcome == "pass"
    assert ruled(f"calibration.rms <= {ruling.estimate}", result).outcome == "inconclusive"
    with pytest.raises(UsageError, match="this run has none"):
        ruled("calibration.rms <= 0.2", judged_run({PGD: some(5, 10)}))


@pytest.mark.parametrize("rule", ["rms <= 0.2", "ece <= 0.2", "nll <= 0.2", "brier <= 0.2", "aurra >= 0.8"])
def test_a_few_sure_and_right_images_show_no_calibration(rule: str) -> None:
    """Every resample of such images is the same."""
    answers = [{"confidence": 0.99, "nll": 0.01, "brier": 0.001}]
    few, many = judged_run({"clean": [True] * 5}, more=answers * 5), judged_run({"clean": [True] * 100}, more=answers * 100)
    ruling = ruled(f"calibration.{rule}", few)
    assert ruling.outcome == "inconclusive"
    assert ruled(f"calibration.{rule}", many).outcome == "pass"
    patients = judged_run({"clean": [True] * 100}, more=answers * 100, groups=[f"patient {i // 25}" for i in range(100)])
    assert ruled(f"calibration.{rule}", patients).outcome == "inconclusive"


def test_errors_over_corruptions_of_grouped_images_have_a_wider_interval() -> None:
    wrong = {"fog[1]": [i // 20 % 5 > 0 for i in range(200)]}  # ten patients, two of them all wrong
    alone, grouped = (
        ruled("corruptions.mean_error <= 0.3", judged_run(wrong, groups=groups)) for groups in (None, [f"p{i // 20}" for i in range(200)])
    )
    assert (alone.outcome, grouped.outcome) == ("pass", "inconclusive")
    assert alone.estimate == grouped.estimate == pytest.approx(0.2)


def test_errors_over_corruptions_are_held_by_their_interval() -> None:
    result = judged_run({"fog[1]": some(80, 100), "fog[5]": some(40, 100)})
    assert ruled("corruptions.mean_error <= 0.5", result).outcome == "pass"
    assert ruled("corruptions.mean_error <= 0.3", result).outcome == "fail"
    ruling = ruled("corruptions.mean_error <= 0.42", result)
    assert (ruling.outcome, ruling.estimate) == ("inconclusive", pytest.approx(0.4))
    assert (ruling.needed or 0) > 100
    with pytest.raises(UsageError, match=r"no figure 'mce'.* There is no mCE"):
        ruled("corruptions.mce <= 0.5", result)
    with pytest.raises(UsageError, match="the gate evaluates no corruption"):
        ruled("corruptions.mce <= 0.5", judged_run({PGD: some(5, 10)}))
