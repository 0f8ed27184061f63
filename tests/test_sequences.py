"""Perturbation sequences: frames against independent implementations, and the metrics against slow ones and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from replayed import Replayed, photograph
from scipy.ndimage import affine_transform
from skimage.color import hsv2rgb, rgb2hsv
from skimage.filters import gaussian
from skimage.transform import ProjectiveTransform, warp

from robustbench_lite.errors import BadSpec, DataError, UnknownName, UsageError
from robustbench_lite.registry import CORRUPTIONS, PERTURBATIONS
from robustbench_lite.sequences import (
    CIFAR_P,
    EXTRA,
    IMAGENET_P,
    frames,
    named,
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


@pytest.mark.parametrize("name", [name for name in ALL if name not in (*NOISES, "spatter")])  # whose channels differ
def test_grey_pictures_are_treated_as_three_equal_channels(name: str) -> None:
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
