"""Figures on corruptions: those of published models come out as published, and what is not the published measure is not called so."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from robustbench_lite.baselines import (
    ALEXNET,
    ALEXNET_ERRORS,
    CIFAR10,
    PNEUMONIA,
    PUBLISHED,
    THE_15,
    Baseline,
    read_baseline,
)
from robustbench_lite.corruption_metrics import (
    balanced_error,
    corruption_error,
    corruption_rows,
    corruptions,
    mean_corruption_error,
    relative_corruption_error,
    relative_mean_corruption_error,
    weighted_error,
)
from robustbench_lite.errors import UsageError
from robustbench_lite.results import VERDICT_FIELDS, Condition, Result, Verdict
from robustbench_lite.stats import wilson

GOLDENS = Path(__file__).parent / "goldens"

MCE = {  # from accuracies on 5,000 images and AlexNet's published means
    "AlexNet": 99.97, "Standard_R50": 76.37, "Hendrycks2020AugMix": 64.17, "Geirhos2018_SIN": 76.65, "Geirhos2018_SIN_IN_IN": 73.18,
    "Erichson2022NoisyMix": 60.46, "Erichson2022NoisyMix_new": 59.43, "Tian2022Deeper_DeiT-B": 41.70,
}  # fmt: skip
RELATIVE = {  # clean accuracy on the leaderboard (RobustBench), relative mCE
    "Standard_R50": (0.7672, 106.27), "Hendrycks2020AugMix": (0.7734, 80.48),
    "Geirhos2018_SIN": (0.6008, 57.22), "Geirhos2018_SIN_IN_IN": (0.7756, 101.28),
}  # fmt: skip
CIFAR_MEANS = {
    "Gowal2020Uncovering_70_16_Linf": 23.63, "Gowal2020Uncovering_70_16_extra_Linf": 18.17, "Gowal2020Uncovering_70_16_L2": 15.10,
    "Gowal2020Uncovering_70_16_extra_L2": 12.32, "Hendrycks2020AugMixWRN": 11.18, "Hendrycks2020AugMixResNeXt": 10.91,
    "Kireev2021Effectiveness_Gauss50percent": 14.96, "Kireev2021Effectiveness_AugMixNoJSD": 13.40,
    "Kireev2021Effectiveness_RLATAugMixNoJSD": 11.47, "Kireev2021Effectiveness_RLAT": 15.90, "Kireev2021Effectiveness_RLATAugMix": 10.40,
    "Rebuffi2021Fixing_70_16_cutmix_extra_L2": 11.77, "Diffenderfer2021Winning_LRR": 9.06, "Diffenderfer2021Winning_Binary": 11.68,
    "Diffenderfer2021Winning_LRR_CARD_Deck": 7.21, "Diffenderfer2021Winning_Binary_CARD_Deck": 9.84, "Addepalli2021Towards_WRN34": 23.22,
    "Modas2021PRIMEResNet18": 10.95, "Erichson2022NoisyMix": 7.22, "Addepalli2022Efficient_WRN_34_10": 19.89,
}  # fmt: skip


def golden(name: str) -> dict[str, dict[str, list[float]]]:
    models: dict[str, dict[str, list[float]]] = json.loads((GOLDENS / name).read_text(encoding="utf-8"))["models"]
    return models


def errors(accuracies: dict[str, list[float]]) -> dict[str, float]:
    return {name: 1 - statistics.fmean(at) for name, at in accuracies.items()}


def run(
    accuracies: dict[str, list[float]], n: int = 100, *, data: dict[str, Any] | None = None, about: dict[str, Any] | None = None,
    clean: float | None = 0.75, severities: tuple[int, ...] = (1, 2, 3, 4, 5), classes: int = 2,
) -> Result:  # fmt: skip
    """A run in which, under every condition, the first images are right."""
    conditions = [] if clean is None else [(Condition("clean", "clean"), clean)]
    for name, at in accuracies.items():
        conditions += [(Condition(f"{name}[{s}]", "corruption", corruption=name, severity=s), at[s - 1]) for s in severities]
    verdicts = []
    for condition, share in conditions:
        for i in range(n):
            known: dict[str, Any] = dict.fromkeys(VERDICT_FIELDS) | {"sample_id": str(i), "label": i % classes, "stages": {}}
            verdicts.append(Verdict(**known | {"condition": condition.name, "broken": i >= round(share * n)}))
    published = {"published": None, "storage_jpeg": 85, "frost": "pictures", "scaled_from": None, "size": [224, 224]}
    config = {
        "model": {"name": "m"},
        "data": {"name": "imagenet", "classes": 1000, "n": 50_000} | (data or {}),
        "corruptions": published | (about or {}),
    }
    return Result(config, [c for c, _ in conditions], verdicts, {}, lambda *_: None)


def figures(result: Result) -> dict[str, float]:
    return {figure.name: figure.estimate.value for figure in corruptions(result).figures}


# --- published figures -------------------------------------------------------------------------------------------------------


def test_alexnets_severities_have_the_published_means() -> None:
    means = (0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816, 0.826572, 0.819324, 0.564592, 0.853204,
             0.646056, 0.717840, 0.606500)  # fmt: skip
    assert [ALEXNET.errors[name] for name in ALEXNET_ERRORS] == pytest.approx(means, abs=1e-9)


@pytest.mark.parametrize("model", MCE)
def test_the_mce_of_published_models_comes_out_as_published(model: str) -> None:
    found = 100 * mean_corruption_error(ALEXNET, errors(golden("imagenet_c_accuracy.json")[model]))
    assert found == pytest.approx(MCE[model], abs=0.02)


@pytest.mark.parametrize("model", RELATIVE)
def test_the_relative_mce_of_published_models_comes_out_as_published(model: str) -> None:
    clean, expected = RELATIVE[model]
    found = 100 * relative_mean_corruption_error(ALEXNET, errors(golden("imagenet_c_accuracy.json")[model]), 1 - clean)
    assert found == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("model", CIFAR_MEANS)
def test_the_cifar_mean_error_of_published_models_comes_out_as_published(model: str) -> None:
    found = errors(golden("cifar10_c_accuracy.json")[model])
    cells = [cell([True] * round(10000 * error) + [False] * round(10000 * (1 - error))) for error in found.values()]
    assert len(cells) == 15
    assert 100 * weighted_error(cells, [1 / 15] * 15).value == pytest.approx(CIFAR_MEANS[model], abs=0.01)


def test_a_run_on_cifar_10_c_has_the_unnormalised_and_the_normalised_error() -> None:
    accuracies = golden("cifar10_c_accuracy.json")["Hendrycks2020AugMixWRN"]
    found = figures(run(accuracies, 500, data={"name": "cifar10", "classes": 10}, about={"published": "cifar-c"}))
    assert set(found) == {"mean error", "normalised error"}
    assert found["mean error"] == pytest.approx(11.18, abs=0.1)
    assert found["normalised error"] == pytest.approx(100 * mean_corruption_error(CIFAR10, errors(accuracies)), abs=1)


def test_a_run_with_the_accuracies_of_a_published_model_has_its_mce() -> None:
    result = run(golden("imagenet_c_accuracy.json")["Standard_R50"], 500, clean=0.768)
    found = corruptions(result)
    assert (found.comparable, found.reason) == (True, None)
    assert figures(result)["mCE"] == pytest.approx(76.37, abs=0.1)
    assert figures(result)["relative mCE"] == pytest.approx(106.27 + 100 * (0.768 - 0.7672) / 0.31, abs=0.3)
    (fog,) = [row for row in found.rows if row.corruption == "fog"]
    assert fog.accuracies == pytest.approx((0.61, 0.56, 0.468, 0.402, 0.236))
    assert fog.ce == pytest.approx((1 - 0.4552) / 0.819324)
    assert fog.relative_ce == pytest.approx((1 - 0.4552 - 0.232) / (0.819324 - 0.4348))


def test_published_models_are_named_once_and_hardest_first() -> None:
    assert len({p.name for p in PUBLISHED}) == len(PUBLISHED)
    assert [p.mce for p in PUBLISHED] == sorted((p.mce for p in PUBLISHED), reverse=True)
    for p in PUBLISHED:
        assert p.mce in [*MCE.values(), 79.99, 68.67, 60.05, 47.63, 74.3, 63.0, 56.5]


# --- what is not the published measure ---------------------------------------------------------------------------------------

ALL = {name: [0.7, 0.6, 0.5, 0.4, 0.3] for name in THE_15}
PROCEDURAL = {f"{name}(procedural)" if name == "frost" else name: at for name, at in ALL.items()}


def test_procedural_frost_gives_14_without_it_and_15_with_a_star() -> None:
    accuracies = PROCEDURAL | {"frost(procedural)": [0.1] * 5}
    result = run(accuracies)
    found = figures(result)
    assert set(found) == {"mean error", "mCE-14", "mCE-15*", "relative mCE-15*"}
    assert found["mCE-14"] == pytest.approx(100 * statistics.fmean(0.5 / ALEXNET.errors[name] for name in THE_15 if name != "frost"))
    assert found["mCE-15*"] == pytest.approx((14 * found["mCE-14"] + 100 * 0.9 / ALEXNET.errors["frost"]) / 15)
    assert not corruptions(result).comparable
    assert "frost is procedural" in str(corruptions(result).reason)
    caveats = {row.corruption: row.caveat for row in corruptions(result).rows}
    assert caveats["fog"] is None
    assert "procedural" in str(caveats["frost(procedural)"])


@pytest.mark.parametrize(
    ("about", "words"),
    [({"storage_jpeg": None}, "not stored as JPEG 85"), ({"storage_jpeg": 50}, "not stored"), ({"size": [240, 240]}, "240 x 240")],
)
def test_images_that_differ_from_the_published_ones_have_a_star(about: dict[str, Any], words: str) -> None:
    result = run(ALL, about=about)
    assert set(figures(result)) == {"mean error", "mCE*", "relative mCE*"}
    found = corruptions(result)
    assert not found.comparable
    assert words in str(found.reason)
    assert all(words in figure.meaning for figure in found.figures[1:])
    assert all(words in str(row.caveat) for row in found.rows)
    both = corruptions(run(PROCEDURAL, about=about)).figures
    assert [figure.name for figure in both] == ["mean error", "mCE-14*", "mCE-15*", "relative mCE-15*"]
    assert "procedural" not in both[1].meaning
    assert "procedural" in both[2].meaning


@pytest.mark.parametrize(("name", "words"), [("imagenet-real", "ReaL labels"), ("imagenet-v2", "V2"), ("imagenet-sketch", "sketches")])
def test_images_and_labels_that_imagenet_c_was_not_made_from_have_a_star(name: str, words: str) -> None:
    result = run(ALL, data={"name": name})
    assert set(figures(result)) == {"mean error", "mCE*", "relative mCE*"}
    assert words in str(corruptions(result).reason)
    assert not corruptions(result).comparable


def test_a_baseline_of_the_users_own_gives_no_mce() -> None:
    about = {"baseline": {"name": "ours", "clean": 0.1, "errors": dict.fromkeys(THE_15, 0.4)}}
    for chosen in (about, {"baseline": about["baseline"] | {"errors": {"fog": 0.4}}}):
        found = corruptions(run(ALL, about=chosen))
        assert not found.comparable
        assert "divided by those of ours" in str(found.reason)
    assert figures(run(ALL, about=about)) == pytest.approx({"mean error": 50, "mean CE": 125, "mean relative CE": 250 / 3})


def test_the_published_files_need_no_storage() -> None:
    assert corruptions(run(ALL, about={"published": "imagenet-c", "storage_jpeg": None, "size": None}, data={"classes": None})).comparable


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (run({name: ALL[name] for name in THE_15[:-1]}), "jpeg_compression was not run"),
        (run({"fog": ALL["fog"]}), "14 of them were not run"),
        (run(ALL, severities=(1, 3)), "all five severities"),
        (run(ALL, data={"classes": 10}), "these are other images"),
        (run(ALL, data={"classes": 10}, about={"published": "cifar-c"}, severities=(5,)), "these are other images"),
    ],
)
def test_without_all_of_it_there_is_no_mce(result: Result, words: str) -> None:
    found = corruptions(result)
    assert [figure.name for figure in found.figures] == ["mean error"]
    assert not found.comparable
    assert words in str(found.reason)


def test_other_images_and_single_severities_have_no_ce() -> None:
    assert all(row.ce is None and row.baseline is None for row in corruption_rows(run(ALL, data={"classes": 10})))
    (row,) = corruption_rows(run({"fog": ALL["fog"]}, severities=(2, 3)))
    assert (row.ce, row.relative_ce, row.accuracy_1, row.accuracy_2, row.accuracy_3) == (None, None, None, 0.6, 0.5)
    assert row.mean_error == pytest.approx(0.45)


def test_a_run_without_clean_images_has_no_relative_figures() -> None:
    result = run(ALL, clean=None, about={"published": "imagenet-c"})
    assert set(figures(result)) == {"mean error", "mCE"}
    assert all(row.relative_ce is None and row.ce is not None for row in corruption_rows(result))


def test_a_run_without_corruptions_has_nothing_to_say() -> None:
    assert corruption_rows(run({})) == []
    assert corruptions(run({})).reason is None


def test_an_undecided_image_is_wrong() -> None:
    result = run({"fog": [1.0] * 5}, 4)
    undecided = replace(result, verdicts=[replace(v, broken=None) if v.sample_id == "0" else v for v in result.verdicts])
    assert corruption_rows(undecided)[0].mean_error == pytest.approx(0.25)


# --- medical sets ------------------------------------------------------------------------------------------------------------


def test_balanced_error_is_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    labels, predictions = draw.choice(5, 300, p=[0.6, 0.2, 0.1, 0.05, 0.05]), draw.integers(0, 5, 300)
    assert balanced_error(labels.tolist(), (labels != predictions).tolist()) == pytest.approx(
        1 - balanced_accuracy_score(labels, predictions)
    )


def test_medical_corruptions_are_divided_by_their_baseline_in_balanced_errors() -> None:
    accuracies = {
        "pneumonia/gaussian_noise": [0.9, 0.8, 0.7, 0.6, 0.5],
        "pneumonia/contrast_up": [0.9] * 5,
        "pneumonia/pixelate": [0.5] * 5,
    }
    result = run(accuracies, 100, data={"name": "pneumonia", "classes": 2})
    result = replace(result, verdicts=[replace(v, label=int(int(v.sample_id) >= 80)) for v in result.verdicts])  # an unbalanced set
    noise, contrast, pixelate = corruption_rows(result)
    balanced = statistics.fmean(((80 - min(80, k)) / 80 + (20 - max(0, k - 80)) / 20) / 2 for k in (90, 80, 70, 60, 50))
    assert noise.balanced_error == pytest.approx(balanced)
    assert noise.ce == pytest.approx(balanced / 0.4415)
    before = (5 / 80 + 1) / 2  # the first 75 are right
    assert noise.relative_ce == pytest.approx((balanced - before) / (0.4415 - 0.1009))
    assert contrast.ce == pytest.approx(0.25 / 0.0953)
    assert contrast.relative_ce is None  # it does AlexNet no harm
    assert (pixelate.ce, pixelate.baseline) == (None, None)


def test_published_medical_files_have_balanced_errors_and_other_images_no_medical_baseline() -> None:
    accuracies = {"gaussian_noise": [0.9, 0.8, 0.7, 0.6, 0.5]}
    result = run(accuracies, 100, data={"name": "pneumoniamnist-c", "classes": None}, about={"published": "medmnist-c"})
    result = replace(result, verdicts=[replace(v, label=int(int(v.sample_id) >= 80)) for v in result.verdicts])  # an unbalanced set
    (row,) = corruption_rows(result)
    assert row.balanced_error != pytest.approx(row.mean_error)
    assert row.ce == pytest.approx((row.balanced_error or 0) / 0.4415)
    others = run({f"pneumonia/{name}": at for name, at in accuracies.items()}, data={"name": "digits", "classes": 10})
    assert [(row.ce, row.baseline) for row in corruption_rows(others)] == [(None, None)]


def test_a_users_baseline_gives_be_and_rbe(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps({"name": "AlexNet, ours", "clean": 0.1, "errors": {"fog": 0.4, "contrast_up": 0.2}}))
    given = read_baseline(path)
    assert given == Baseline("AlexNet, ours", 0.1, {"fog": 0.4, "contrast_up": 0.2})
    about = {"baseline": {"name": given.name, "clean": given.clean, "errors": given.errors}}
    accuracies = {"derma/fog": [0.5] * 5, "derma/contrast_up": [0.6] * 5}
    found = figures(run(accuracies, data={"name": "derma", "classes": 7}, about=about, clean=0.8))
    assert found["BE"] == pytest.approx((0.5 / 0.4 + 0.4 / 0.2) / 2 * 100)
    assert found["rBE"] == pytest.approx((0.3 / 0.3 + 0.2 / 0.1) / 2 * 100)


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "a", "clean": 0.1}', '{"name": "a", "clean": 0.1, "errors": {"fog": 82}}', "null"])
def test_a_file_that_is_no_baseline_is_one_clear_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(UsageError, match=r"b\.json") as caught:
        read_baseline(tmp_path / "b.json")
    assert "\n" not in str(caught.value)


def test_nothing_is_divided_by_what_is_not_known() -> None:
    assert corruption_error(PNEUMONIA, "fog", 0.5) is None
    assert relative_corruption_error(PNEUMONIA, "contrast_up", 0.5, 0.1) is None
    with pytest.raises(ValueError, match="nothing to divide by for fog"):
        mean_corruption_error(PNEUMONIA, {"fog": 0.5, "gaussian_noise": 0.5})
    with pytest.raises(ValueError, match="any corruption"):
        mean_corruption_error(ALEXNET, {})


# --- intervals ---------------------------------------------------------------------------------------------------------------


def cell(wrong: list[bool]) -> dict[str, bool]:
    return {str(i): w for i, w in enumerate(wrong)}


def test_of_one_condition_the_interval_is_wilsons() -> None:
    got = weighted_error([cell([True] * 3 + [False] * 7)], [1.0])
    assert (got.value, got.low, got.high) == pytest.approx((0.3, *wilson(3, 10)))


def test_the_same_images_five_times_say_no_more_than_once() -> None:
    wrong = cell([True] * 30 + [False] * 70)
    got = weighted_error([wrong] * 5, [0.2] * 5)
    assert (got.value, got.low, got.high) == pytest.approx((0.3, *wilson(30, 100)), abs=2e-3)


def test_independent_errors_narrow_the_interval_as_so_many_images_would() -> None:
    draw = np.random.default_rng(1)
    got = weighted_error([cell((draw.random(2000) < 0.3).tolist()) for _ in range(5)], [0.2] * 5)
    low, high = wilson(3000, 10000)
    assert got.low is not None
    assert got.high is not None
    assert (got.high - got.low) / (high - low) == pytest.approx(1, abs=0.07)


def test_all_right_is_no_more_certain_than_that_many_images() -> None:
    got = weighted_error([cell([False] * 20)] * 75, [1 / 75] * 75)
    assert (got.value, got.low, got.high) == pytest.approx((0, *wilson(0, 20)))
    got = weighted_error([cell([True] * 20)] * 75, [1 / 75] * 75)
    assert (got.value, got.low, got.high) == pytest.approx((1, *wilson(20, 20)))


def test_intervals_hold_what_they_promise() -> None:
    """Images of different hardness: the share of runs whose interval has the true mean error in it."""
    draw = np.random.default_rng(2)
    weights, shares, hits, runs = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.45]), 0, 400
    for _ in range(runs):
        hard = draw.random(60) < 0.5
        got = weighted_error([cell((draw.random(60) < np.where(hard, 2 * p, 0)).tolist()) for p in shares], weights.tolist())
        hits += got.low is not None and got.high is not None and got.low <= weights @ shares <= got.high
    assert 0.92 <= hits / runs <= 0.99


def test_intervals_hold_with_few_images() -> None:
    draw = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        share = draw.beta(2, 2, 5)
        got = weighted_error([cell((draw.random(5) < share).tolist()) for _ in range(75)], [1 / 75] * 75)
        hits += got.low is not None and got.high is not None and got.low <= 0.5 <= got.high
    assert hits / 400 >= 0.92


def test_conditions_with_other_images_fall_back_on_the_fewest() -> None:
    got = weighted_error([{"a": True, "b": False}, {"c": False, "d": False, "e": False}], [0.5, 0.5])
    assert (got.value, got.low, got.high) == pytest.approx((0.25, *wilson(0.5, 2)))


def test_an_mce_has_an_interval_in_its_own_unit() -> None:
    (_, mce, relative) = corruptions(run(ALL)).figures
    assert mce.estimate.low is not None
    assert mce.estimate.high is not None
    assert 0 < mce.estimate.low < mce.estimate.value < mce.estimate.high < 200
    assert relative.estimate.low is None
    assert math.isfinite(relative.estimate.value)
