"""What is counted along sequences of frames: flips, top-5 distances, rates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustbench_lite.errors import DataError, InvalidEvaluation, UsageError
from robustbench_lite.sequences import (
    IMAGENET_P,
    Rates,
    SequenceRow,
    SequenceVerdict,
    facts,
    mean_flip_rate,
    mean_t5d,
    read_rates,
    sequence_figures,
    sequence_rows,
)

# --------------------------------------------------------------------------------------------------------------- metrics


def logits(*rankings: list[int]) -> torch.Tensor:
    """Logits under which the classes rank so, best first."""
    found = torch.empty(len(rankings), len(rankings[0]))
    for row, ranking in zip(found, rankings, strict=True):
        row[torch.tensor(ranking)] = torch.arange(len(ranking), 0, -1.0)
    return found


@pytest.mark.parametrize(
    ("after", "distance"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 0),
        ([1, 0, 2, 3, 4, 5, 6, 7, 8, 9], 2),  # two of them change places: 1 + 1
        ([0, 1, 2, 3, 5, 4, 6, 7, 8, 9], 1),  # the fifth leaves by one place
        ([0, 1, 2, 3, 5, 6, 7, 8, 9, 4], 1),  # and it does not matter how far it falls
        ([1, 2, 3, 4, 5, 0, 6, 7, 8, 9], 9),  # the first leaves (5), four move up (1 each)
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], 15),  # all leave: 5 + 4 + 3 + 2 + 1
        ([0, 1, 2, 3, 4, 9, 8, 7, 6, 5], 0),  # below the fifth, order means nothing
    ],
)
def test_top_5_distance_by_hand(after: list[int], distance: float) -> None:
    flips, pairs, t5d, predictions = facts(logits(list(range(10)), after), False, 1)
    assert (flips, pairs, t5d, predictions) == (int(after[0] != 0), 1, distance, [0, after[0]])


def test_predecessor_first_frame_and_frames_apart_by_hand() -> None:
    a, b = [0, 1, 2, 3, 4, 5], [1, 0, 2, 3, 4, 5]
    sequence = logits(a, b, a, b, b)
    assert facts(sequence, False, 1) == (3, 4, 1.5, [0, 1, 0, 1, 1])  # ab, ba, ab flip; bb does not
    assert facts(sequence, False, 2) == (1, 3, 2 / 3, [0, 1, 0, 1, 1])  # aa, bb do not; ab flips
    assert facts(sequence, True, 1) == (3, 4, 1.5, [0, 1, 0, 1, 1])  # a with b, a, b, b
    assert facts(sequence, True, 2) == facts(sequence, True, 1)  # noise is compared with the first whatever the difficulty


def slow(scores: list[list[float]], against_first: bool, apart: int) -> tuple[int, int, float]:
    """The definition, a rank at a time: sigma(i) is the new rank of what was ranked i, all from 1."""
    rankings = [sorted(range(len(row)), key=lambda k, row=row: (-row[k], k)) for row in scores]  # type: ignore[misc]
    pairs = [(0, j) for j in range(1, len(scores))] if against_first else [(j - apart, j) for j in range(apart, len(scores))]
    total = 0
    for first, second in pairs:
        for i in range(1, 6):
            sigma = rankings[second].index(rankings[first][i - 1]) + 1
            total += abs(min(i - 1, 5) - min(sigma - 1, 5))
    return sum(rankings[i][0] != rankings[j][0] for i, j in pairs), len(pairs), total / len(pairs)


@given(st.integers(0, 10**6), st.integers(4, 12), st.sampled_from([5, 6, 7, 40]), st.booleans(), st.integers(1, 3))
def test_facts_are_those_of_a_slow_loop_also_with_ties(seed: int, count: int, classes: int, against_first: bool, apart: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 8, (count, classes)).astype(np.float32)
    flips, pairs, t5d, predictions = facts(torch.from_numpy(scores), against_first, apart)
    assert (flips, pairs, t5d) == pytest.approx(slow(scores.tolist(), against_first, 1 if against_first else apart))
    assert predictions == scores.argmax(1).tolist()


def test_few_classes_have_no_top_5() -> None:
    assert facts(logits([0, 1, 2, 3], [1, 0, 2, 3]), False, 1) == (1, 1, None, [0, 1])


def test_logits_that_mean_nothing_are_an_error() -> None:
    with pytest.raises(InvalidEvaluation, match="NaN"):
        facts(torch.tensor([[0.0, 1], [float("nan"), 1]]), False, 1)
    with pytest.raises(InvalidEvaluation, match="2 frames has no two that are 2 apart"):
        facts(torch.zeros(2, 5), False, 2)


def verdict(condition: str, flips: int, t5d: float | None = 1.0, pairs: int = 30) -> SequenceVerdict:
    return SequenceVerdict(condition, f"{condition}-{flips}", flips, pairs, t5d, [0] * (pairs + 1))


def test_rows_are_means_over_images_with_an_interval_over_images() -> None:
    rows = sequence_rows([verdict("p:tilt", 0, 1.0), verdict("p:scale", 3, None), verdict("p:tilt", 3, 2.0), verdict("p:tilt", 9, 6.0)])
    tilt, scale = rows
    assert (tilt.condition, tilt.name, tilt.n) == ("p:tilt", "tilt", 3)
    assert (tilt.flip_probability, tilt.t5d) == (pytest.approx(0.4 / 3), 3.0)
    half = 4.302653 * np.std([0, 0.1, 0.3], ddof=1) / 3**0.5  # the 97.5 % point of Student's t with 2 degrees of freedom
    assert (tilt.ci_low, tilt.ci_high) == (0.0, pytest.approx(0.4 / 3 + half))
    assert scale.t5d is None
    assert scale.ci_low < scale.flip_probability < scale.ci_high


def test_no_flip_in_few_images_does_not_prove_that_there_is_none() -> None:
    [row] = sequence_rows([verdict("p:tilt", 0)] * 10)
    assert (row.flip_probability, row.ci_low) == (0, 0)
    assert row.ci_high == pytest.approx(0.2775, abs=1e-4)  # Wilson's, 0 of 10 images


def test_intervals_hold_what_they_say() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        # images whose rates differ: the mean of Beta(1, 9) is 0.1
        flips = random.binomial(30, random.beta(1, 9, 100))
        [row] = sequence_rows([verdict("p:tilt", int(f)) for f in flips])
        held += row.ci_low <= 0.1 <= row.ci_high
    assert 0.91 <= held / 200 <= 0.98


def row(condition: str, flip_probability: float, t5d: float | None = None) -> SequenceRow:
    return SequenceRow(condition, 10, flip_probability, 0, 1, t5d)


def test_mean_flip_rate_and_mean_t5d() -> None:
    rows = [row("p:tilt", 0.1, 1.0), row("p:gaussian_noise@2", 0.3, 3.0)]
    rates = {"tilt": 0.2, "gaussian_noise@2": 0.3, "scale": 0.9}
    assert mean_flip_rate(rows, rates) == pytest.approx((0.5 + 1) / 2)
    assert mean_t5d(rows, rates) == pytest.approx((5 + 10) / 2)
    assert mean_flip_rate(rows) == pytest.approx(0.2)
    assert mean_t5d(rows) == pytest.approx(2)
    assert mean_t5d([*rows, row("p:scale", 0.1)]) is None
    with pytest.raises(UsageError, match="no figure for rotate: add it"):
        mean_flip_rate([*rows, row("p:rotate", 0.1)], rates)
    with pytest.raises(UsageError, match="no perturbation sequences"):
        mean_flip_rate([])


def test_rates_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "alexnet.json"
    path.write_text(json.dumps({"flip_probability": {"tilt": 0.07, "scale": 1}}))
    assert read_rates(path) == Rates({"tilt": 0.07, "scale": 1}, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "cannot be read as JSON"),
        ("[]", 'write {"flip_probability"'),
        ("{}", 'write {"flip_probability"'),
        ({"tilt": 0.1}, 'write {"flip_probability"'),
        ({"flip_probability": [0.1]}, 'write {"flip_probability"'),
        ({"flip_probability": {"tilt": 7.05}}, "flip_probability of tilt must be above 0 and at most 1, got 7.05"),
        ({"t5d": {"tilt": 0}}, "t5d of tilt must be above 0, got 0"),
        ({"t5d": {"tilt": "1"}}, "t5d of tilt must be above 0, got '1'"),
        ('{"t5d": {"tilt": NaN}}', "t5d of tilt must be above 0, got nan"),
    ],
)
def test_rates_that_cannot_be_used(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "alexnet.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_rates(path)


def test_figures_over_the_ten_of_a_benchmark() -> None:
    ten = [row(f"p:{name}", 0.1, 2.0) for name in IMAGENET_P]
    assert sequence_figures(ten[:9], None) == []
    assert sequence_figures([*ten, row("p:shear", 0.9)], None) == [
        "mean flip probability 10.00 %, over the ten of ImageNet-P",
        "mean T5D 2.000, over the ten of ImageNet-P",
    ]
    rates = Rates(dict.fromkeys(IMAGENET_P, 0.2), {})
    assert sequence_figures(ten, rates)[-1] == "mFR 50.0 %: flip probabilities / those of the baseline, over the ten of ImageNet-P"
    harder = [row(f"p:{name}@2", 0.3) for name in IMAGENET_P]
    assert sequence_figures(harder, None) == ["mean flip probability 30.00 %, over the ten of ImageNet-P, difficulty 2"]
