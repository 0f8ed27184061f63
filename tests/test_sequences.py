"""Perturbation sequences: frames against independent implementations, and the metrics against slow ones and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from replayed import Replayed, photograph
from scipy.ndimage import affine_transform
from skimage.color import hsv2rgb, rgb2hsv
from skimage.filters import gaussian
from skimage.transform import ProjectiveTransform, warp

from robustbench_lite.errors import BadSpec, DataError, InvalidEvaluation, UnknownName, UsageError
from robustbench_lite.registry import CORRUPTIONS, PERTURBATIONS
from robustbench_lite.sequences import (
    CIFAR_P,
    EXTRA,
    IMAGENET_P,
    Rates,
    SequenceRow,
    SequenceVerdict,
    facts,
    frames,
    mean_flip_rate,
    mean_t5d,
    named,
    read_cifar_p,
    read_rates,
    sequence_rows,
)
from robustbench_lite.streams import Streams

CPU = torch.device("cpu")
ALL = (*IMAGENET_P, *EXTRA)
NOISES = ("gaussian_noise", "shot_noise", "speckle_noise")
LARGE = photograph(224)[0][:, 60:156, 50:162]  # 96 x 112: ImageNet-P's parameters
SMALL = photograph(32)[0]


def draw(sample: str = "a", name: str = "p:x") -> Streams:
    return Streams(0, name, [(sample, 0)], None, CPU)


def made(name: str, picture: torch.Tensor, size: tuple[int, int] | None = None, difficulty: int = 1, sample: str = "a") -> torch.Tensor:
    """The frames in whole grey levels, (T, C, H, W) int32."""
    return (frames(PERTURBATIONS.build(name), picture, size, draw(sample), difficulty) * 255).round().int()


def grey_levels(picture: torch.Tensor) -> torch.Tensor:
    return (picture * 255).round().int()


# ---------------------------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize(
    ("picture", "longer"), [(LARGE, {"translate": 41}), (SMALL, {"translate": 16, "motion_blur": 21})], ids=["224", "32"]
)
@pytest.mark.parametrize("name", ALL)
def test_frames_are_as_many_as_published_of_8_bits_and_the_same_again(name: str, picture: torch.Tensor, longer: dict[str, int]) -> None:
    size = tuple(side - 6 if side > 32 else side for side in picture.shape[1:])
    found = frames(PERTURBATIONS.build(name), picture, size, draw())
    assert found.shape == (longer.get(name, 31), 3, *size)
    assert found.dtype == torch.float32
    assert torch.equal((found * 255).round() / 255, found)
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(found, frames(PERTURBATIONS.build(name), picture, size, draw()))
    random = name in (*NOISES, "snow", "spatter")
    assert torch.equal(found, frames(PERTURBATIONS.build(name), picture, size, draw("b"))) is not random
    assert (found[1:] != found[:-1]).flatten(1).any(1).float().mean() > 0.5  # it moves


@pytest.mark.parametrize(
    ("name", "large", "small"),
    [
        ("translate", 20, 7),
        ("rotate", 15, 15),
        ("shear", 15, 15),
        ("scale", 24, 15),
        ("zoom_blur", 0, 0),
        *((noise, 0, 0) for noise in NOISES),
    ],
)
def test_one_frame_is_the_picture_itself(name: str, large: int, small: int) -> None:
    for picture, at in ((LARGE, large), (SMALL, small)):
        found = made(name, picture)
        same = [i for i, frame in enumerate(found) if torch.equal(frame, grey_levels(picture))]
        assert same == [at]


@pytest.mark.parametrize("name", ALL)
def test_grey_pictures_are_treated_as_three_equal_channels(name: str) -> None:
    if name in (*NOISES, "spatter"):
        pytest.skip("its channels differ")
    grey = LARGE[:1]
    assert torch.equal(made(name, grey), made(name, grey.expand(3, -1, -1))[:, :1])


@pytest.mark.parametrize("name", [*NOISES, "spatter"])
def test_grey_pictures_stay_grey(name: str) -> None:
    assert made(name, SMALL[:1]).shape == (31, 1, 32, 32)


def test_translating_is_slicing_and_borders_are_of_the_picture() -> None:
    height, width = 90, 72  # margins of 3 and 20 pixels
    found = made("translate", LARGE, (height, width))
    levels = grey_levels(LARGE)
    for i, right in enumerate(range(-20, 21)):
        assert torch.equal(found[i], levels[:, 3 : 3 + height, 20 - right : 20 - right + width])


def test_other_sizes_take_the_parameters_of_the_nearer_benchmark() -> None:
    assert len(made("translate", torch.zeros(3, 84, 300))) == 16
    assert len(made("translate", torch.zeros(3, 300, 85))) == 41


@pytest.mark.parametrize("name", ["motion_blur", "gaussian_blur"])
def test_blurs_are_of_the_crop_as_published(name: str) -> None:
    assert torch.equal(made(name, LARGE, (90, 90)), made(name, LARGE[:, 3:93, 11:101]))


def test_what_no_picture_covers_is_black() -> None:
    found = made("translate", LARGE.clamp(min=0.1))
    assert (found[0, :, :, -20:] == 0).all()
    assert (found[0, :, :, :-20] > 0).all()
    assert (made("scale", LARGE.clamp(min=0.1))[0, :, :28] == 0).all()  # 40 % of 96 pixels are the middle 38


def about_centre(matrix: np.ndarray) -> list[torch.Tensor]:
    """The photograph under a linear map of (row, column) from frame to picture, by SciPy, both sets' sizes."""
    warped = []
    for picture in (LARGE, SMALL):
        middle = (np.array(picture.shape[1:]) - 1) / 2
        channels = [
            affine_transform(channel, matrix, middle - matrix @ middle, order=1, mode="constant")
            for channel in picture.double().numpy() * 255
        ]
        warped.append(torch.from_numpy(np.array(channels)))
    return warped


def rotation(degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s], [s, c]])


@pytest.mark.parametrize(
    ("name", "frame", "maps"),
    [
        ("rotate", 0, [rotation(-15)] * 2),
        ("rotate", 27, [rotation(12)] * 2),
        ("scale", 0, [np.eye(2) / 0.4, np.eye(2) / 0.7]),
        ("scale", 30, [np.eye(2) / 1.15, np.eye(2) / 1.3]),
        ("shear", 0, [np.array([[1, 0], [np.tan(np.deg2rad(-15)), 1]])] * 2),
        ("shear", 22, [np.array([[1, 0], [np.tan(np.deg2rad(7)), 1]])] * 2),
    ],
)
def test_views_are_scipys(name: str, frame: int, maps: list[np.ndarray]) -> None:
    for which, picture in enumerate((LARGE, SMALL)):
        expected = about_centre(maps[which])[which]
        apart = (made(name, picture)[frame] - expected).abs()
        inside = expected > 0  # along the black border the two blend differently
        assert apart[inside].quantile(0.97) <= 1.01
        assert apart[inside].mean() < 1


def test_zoom_blur_is_the_running_mean_of_enlargements() -> None:
    zoomed = [about_centre(np.eye(2) / (1 + 0.004 * i))[0] for i in range(31)]
    found = made("zoom_blur", LARGE)
    for i in (1, 9, 30):
        assert (found[i] - torch.stack(zoomed[: i + 1]).mean(0)).abs()[:, 2:-2, 2:-2].max() < 2


@pytest.mark.parametrize(("picture", "step"), [(LARGE, 1.0), (SMALL, 0.75)], ids=["224", "32"])
def test_tilt_is_the_published_projection(picture: torch.Tensor, step: float) -> None:
    found = made("tilt", picture)
    height, width = picture.shape[1:]
    diagonal = np.sqrt(width**2 + height**2)
    for i in (0, 15, 30):
        angle = np.deg2rad(step * (i - 15))
        c, s = np.cos(angle), np.sin(angle)
        matrix = (
            np.array([[diagonal, 0, width / 2, 0], [0, diagonal, height / 2, 0], [0, 0, 1, 0]])
            @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, diagonal], [0, 0, 0, 1]])
            @ np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]])
            @ np.array([[c, 0, -s, 0], [0, 1, 0, 0], [s, 0, c, 0], [0, 0, 0, 1]])
            @ np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1], [0, 0, 1]])
        )
        expected = warp(picture.permute(1, 2, 0).double().numpy(), ProjectiveTransform(matrix).inverse, order=1) * 255
        apart = (found[i] - torch.from_numpy(expected).permute(2, 0, 1)).abs()[:, 1:-1, 1:-1]
        assert apart.mean() < 0.6  # coordinates are whole 32nds of a pixel
        assert apart.quantile(0.99) < 4


def test_motion_is_half_a_gaussian_along_a_line_that_turns() -> None:
    for picture, sigma, taps, turned in ((LARGE, 3.0, 21, 22), (SMALL, 1.8, 13, 10)):
        weights = np.exp(-(np.arange(taps) ** 2) / (2 * sigma**2))
        x = grey_levels(picture).double().numpy()
        right = sum(w * np.take(x, np.minimum(np.arange(x.shape[2]) + i, x.shape[2] - 1), 2) for i, w in enumerate(weights / weights.sum()))
        up = sum(w * np.take(x, np.maximum(np.arange(x.shape[1]) - i, 0), 1) for i, w in enumerate(weights / weights.sum()))
        found = made("motion_blur", picture)
        assert np.abs(found[-1].numpy() - np.floor(right + 1e-3)).max() <= 1
        if picture is LARGE:  # frame 7 is -92 degrees, frame 8 is -88: nearest to straight up
            assert np.abs(found[8].numpy() - up).mean() < 2
        else:
            assert np.abs(found[turned].numpy() - np.floor(up + 1e-3)).max() <= 1


def test_brightness_is_scikit_images() -> None:
    for picture, percent in ((LARGE, 2), (SMALL, 1.5)):
        hsv = rgb2hsv(grey_levels(picture).permute(1, 2, 0).numpy() / 255.0)
        found = made("brightness", picture)
        for i in (0, 10, 15, 30):
            lit = np.dstack([hsv[..., :2], np.clip(hsv[..., 2] + (i - 15) * percent / 100, 0, 1)])
            assert np.array_equal(found[i].permute(1, 2, 0).numpy(), (hsv2rgb(lit) * 255).astype(np.uint8))


def test_gaussian_blur_is_scikit_images() -> None:
    for picture, first, step, truncate in ((LARGE, 0.25, 0.035, 6.0), (SMALL, 0.3, 0.015, 7.0)):
        x = grey_levels(picture).permute(1, 2, 0).numpy() / 255.0
        found = made("gaussian_blur", picture)
        for i in (0, 17, 30):
            expected = (gaussian(x, sigma=first + step * i, truncate=truncate, channel_axis=-1) * 255).astype(np.uint8)
            apart = np.abs(found[i].permute(1, 2, 0).numpy() - expected.astype(int))
            assert apart.max() <= 1
            assert (apart > 0).mean() < 0.005  # where the picture is flat, rounding errors decide what truncation makes of the reference


@pytest.mark.parametrize(("picture", "zoom", "radius", "sigma"), [(LARGE, 3, 14, 4), (SMALL, 2, 10, 2)], ids=["224", "32"])
def test_snow_is_the_corruption_with_an_angle_that_turns(picture: torch.Tensor, zoom: float, radius: float, sigma: float) -> None:
    flakes = np.random.default_rng(0).normal(size=picture.shape[1:])
    corruption = CORRUPTIONS.get("snow")()
    setting = corruption.settings[224][0]._replace(
        mean=0.05, deviation=0.3, zoom=zoom, threshold=0.5, radius=radius, sigma=sigma, kept=0.85
    )
    found = frames(PERTURBATIONS.build("snow"), picture, None, Replayed(flakes=flakes))
    for i in (0, 11, 30):
        replayed = Replayed(flakes=flakes, angle=np.array(4.0 * i - 150))
        expected = (corruption(grey_levels(picture)[None].double() / 255, setting, replayed).clamp(0, 1) * 255).byte()[0]
        assert torch.equal((found[i] * 255).round().byte(), expected)


@pytest.mark.parametrize(
    ("picture", "splash", "weights"),
    [(LARGE, (0.65, 0.27, 3.7, 0.69), [0.05, 0.1, 0.15, 0.7]), (SMALL, (0.6, 0.265, 1.75, 0.7), [0.2, 0.8])],
    ids=["224", "32"],
)
def test_spatter_is_the_corruption_whose_water_runs_down(picture: torch.Tensor, splash: tuple[float, ...], weights: list[float]) -> None:
    mean, deviation, sigma, threshold = splash
    noise = np.random.default_rng(3).normal(size=picture.shape[1:])
    layer = gaussian(mean + deviation * noise, sigma=sigma)
    layer[layer < threshold] = 0
    assert (layer > 0).any()
    corruption = CORRUPTIONS.get("spatter")()
    # noise that is not blurred and has no threshold: the layer as it is
    setting = corruption.settings[224][0]._replace(mean=0, deviation=1, sigma=0, threshold=0, strength=0.6)
    found = frames(PERTURBATIONS.build("spatter"), picture, None, Replayed(drops=noise))
    for i in range(5):
        expected = corruption(grey_levels(picture)[None].double() / 255, setting, Replayed(drops=layer)).clamp(0, 1) * 255
        apart = ((found[i] * 255).round() - expected[0].byte()).abs()
        assert apart.max() <= 1
        assert (apart > 0).float().mean() < 1e-3
        layer = np.apply_along_axis(np.convolve, 0, layer, weights, mode="same")


# ----------------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize(
    ("name", "large", "small"),
    [
        # the standard deviation at the grey level g = 128 / 255
        ("gaussian_noise", (0.03, 0.05, 0.08), (0.02, 0.04, 0.06)),
        ("speckle_noise", tuple(128 / 255 * c for c in (0.05, 0.1, 0.15)), tuple(128 / 255 * c for c in (0.05, 0.07, 0.1))),
        ("shot_noise", tuple((128 / 255 / c) ** 0.5 for c in (300, 120, 60)), tuple((128 / 255 / c) ** 0.5 for c in (700, 400, 200))),
    ],
)
def test_noise_has_the_published_spread_and_is_new_in_every_frame(name: str, large: tuple[float, ...], small: tuple[float, ...]) -> None:
    for side, deviations in ((96, large), (32, small)):
        for difficulty, deviation in enumerate(deviations, 1):
            noise = made(name, torch.full((3, side, side), 128 / 255), None, difficulty)[1:].double() / 255 - 128 / 255
            assert noise.std() == pytest.approx(deviation, rel=0.02)
            assert noise.mean() == pytest.approx(-0.5 / 255, abs=0.0006)  # 8 bits are truncated, which takes half a level
            assert torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max() < 0.12


def test_noise_that_depends_on_the_light_leaves_black_alone() -> None:
    for name in ("shot_noise", "speckle_noise"):
        assert made(name, torch.zeros(3, 32, 32), None, 3).max() == 0


# ------------------------------------------------------------------------------------------------------------- bad input


def test_pictures_that_cannot_be_used() -> None:
    rotate = PERTURBATIONS.build("rotate")
    with pytest.raises(DataError, match="no centre of 224x224: resize it first"):
        frames(rotate, LARGE, (224, 224), draw())
    with pytest.raises(DataError, match="15x40 are too small, 16 pixels"):
        frames(rotate, torch.zeros(3, 15, 40), None, draw())
    with pytest.raises(DataError, match="Snow needs colours, and this picture has 4 channels"):
        frames(PERTURBATIONS.build("snow"), torch.zeros(4, 32, 32), None, draw())


def test_names_in_specs() -> None:
    assert [name for name, _, _ in named("imagenet-p")] == [f"p:{name}" for name in IMAGENET_P]
    assert [name for name, _, _ in named("cifar-p")] == [f"p:{name}" for name in CIFAR_P]
    assert set(IMAGENET_P) ^ set(CIFAR_P) == {"snow", "spatter"}
    assert sorted(name for name, _, _ in named("p-all")) == sorted(f"p:{name}" for name in PERTURBATIONS.names())
    [(name, difficulty, perturbation)] = named("p:gaussian_noise@2")
    assert (name, difficulty, perturbation) == ("p:gaussian_noise@2", 2, PERTURBATIONS.build("gaussian_noise"))
    assert named("p:gaussian_noise:difficulty=2") == named("p:gaussian_noise@2") == named("imagenet-p:difficulty=2")[:1]
    assert [p.against_first for _, _, p in named("imagenet-p")] == [True] * 2 + [False] * 8


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("p:rotat", UnknownName, "unknown perturbation 'rotat': did you mean 'rotate'"),
        ("p", UnknownName, "unknown perturbation ''"),
        ("imagenet", UnknownName, "did you mean 'imagenet-p'"),
        ("imagenet-p:rotate", UnknownName, "a single one is written p:translate"),
        ("imagenet-p:severity=2", BadSpec, "difficulty=1, 2 or 3 and nothing else"),
        ("p:tilt@2:difficulty=2", BadSpec, "nothing else"),
        ("cifar-p:difficulty=4", UsageError, "difficulty must be 1..3, got 4"),
        ("p:tilt@0", UsageError, "difficulty must be 1..3, got 0"),
        ("p:tilt@two", UsageError, "difficulty must be 1..3, got two"),
    ],
)
def test_specs_that_cannot_be_read(spec: str, error: type[UsageError], message: str) -> None:
    with pytest.raises(error, match=message):
        named(spec)


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
    half = 1.959964 * np.std([0, 0.1, 0.3], ddof=1) / 3**0.5
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


# --------------------------------------------------------------------------------------------------------------- CIFAR-P


def test_published_frames_are_mapped(tmp_path: Path) -> None:
    published = np.random.default_rng(0).integers(0, 256, (3, 16, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "translate.npy", published)
    np.save(tmp_path / "shot_noise_2.npy", published)
    read = read_cifar_p(tmp_path, "translate", 2)  # frames two apart of the one file
    assert isinstance(read, np.memmap)
    assert np.array_equal(read, published)
    assert np.array_equal(read_cifar_p(tmp_path, "shot_noise", 2), published)
    with pytest.raises(DataError, match=r"shot_noise\.npy: no such file"):
        read_cifar_p(tmp_path, "shot_noise")


@pytest.mark.parametrize(
    ("shape", "dtype", "keep", "message"),
    [
        ((2, 16, 32, 32, 3), np.uint8, 5000, "is not a whole .npy file, download it again"),
        ((2, 16, 32, 32, 3), np.uint8, 20, "is not a whole .npy file, download it again"),
        ((2, 16, 32, 32, 3), np.uint8, 0, "is not a whole .npy file, download it again"),
        ((32, 32, 32, 3), np.uint8, None, r"must hold \(N, T, 32, 32, 3\) uint8"),
        ((2, 1, 32, 32, 3), np.uint8, None, "must hold"),
        ((2, 16, 32, 32, 3), np.float32, None, "float32"),
    ],
)
def test_published_files_that_cannot_be_used(tmp_path: Path, shape: tuple[int, ...], dtype: type, keep: int | None, message: str) -> None:
    path = tmp_path / "tilt.npy"
    np.save(path, np.zeros(shape, dtype))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=message):
        read_cifar_p(tmp_path, "tilt")
