"""Noise and blur: parity with the published functions, statistics of the draws, and the same pixels in every batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from replayed import Replayed, differences, photograph, reference
from scipy import ndimage, stats
from torch import Tensor

from robustbench_lite.corrupting import Member, draws
from robustbench_lite.filters import clipped_zoom, gaussian, motion_blur
from robustbench_lite.poisson import LARGEST, counts
from robustbench_lite.registry import CORRUPTIONS
from robustbench_lite.streams import generator

NOISES = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")
BLURS = ("gaussian_blur", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur")
SEVERITIES = range(1, 6)

# The share of values that may be one level off; the others have to be equal.
OFF_BY_ONE = {"gaussian_blur": 0.0005, "defocus_blur": 0.05, "glass_blur": 0.0005, "motion_blur": 0.005, "zoom_blur": 0.001}


def member(name: str) -> Member:
    return Member(name, CORRUPTIONS.build(name))


def corrupted(name: str, images: Tensor, severity: int, seed: int = 0) -> Tensor:
    ids = [str(index) for index in range(len(images))]
    return member(name)(images, severity, draws(seed, name, severity, ids, images.device))


def channels_first(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(values, -1, 0))


def one_number(moves: np.ndarray, reach: int) -> np.ndarray:
    """Glass blur's stream, of (..., 2) offsets to the right and down."""
    return (moves[..., 0] + reach) * 2 * reach + moves[..., 1] + reach


def published_draws(name: str, size: int, severity: int) -> dict[str, np.ndarray]:
    """What the published function consumes, in its order."""
    source = np.random.RandomState(100 * severity)  # what the goldens were made with
    x, setting = reference(size)["input"] / 255.0, member(name).setting(severity, size, size)
    if name in ("gaussian_noise", "speckle_noise"):
        return {"noise": channels_first(source.normal(size=x.shape))}
    if name == "shot_noise":
        return {"counts": channels_first(source.poisson(x * setting).astype(float))}
    if name == "motion_blur":
        return {"angle": np.array(source.uniform(-45, 45))}
    if name == "glass_blur":
        _, reach, times = setting
        return {"moves": one_number(source.randint(-reach, reach, size=(times, size - 2 * reach, size - 2 * reach, 2)), reach)}
    return {}


@pytest.mark.parametrize("size", [224, 32])
@pytest.mark.parametrize("name", [*BLURS, "gaussian_noise", "shot_noise", "speckle_noise"])
def test_the_same_draws_give_the_published_pixels(name: str, size: int) -> None:
    for severity in SEVERITIES:
        pixels = member(name)(photograph(size), severity, Replayed(**published_draws(name, size, severity)))
        most, share = differences(size, name, severity, pixels)
        assert most <= 1, f"severity {severity}"
        assert share <= OFF_BY_ONE.get(name, 0), f"severity {severity}"


def test_impulses_are_where_scikit_image_puts_them() -> None:
    from skimage import util

    image, amount = reference(32)["input"], 0.07
    expected = (util.random_noise(image / 255.0, mode="s&p", amount=amount, rng=5) * 255).astype(np.uint8)
    source = np.random.default_rng(5)
    struck, salted = source.random(image.shape) <= amount, source.random(image.shape) <= 0.5
    chance = np.where(struck, np.where(salted, amount / 4, amount * 3 / 4), 1.0)
    pixels = member("impulse_noise")(photograph(32), 5, Replayed(chance=channels_first(chance)))
    assert np.array_equal(pixels[0].permute(1, 2, 0).numpy(), expected)


def flat(level: int, side: int = 299) -> Tensor:
    """One image of one value; at 299 pixels it has 268,203 values to take statistics of."""
    return torch.full((1, 3, side, side), level / 255)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", ["gaussian_noise", "speckle_noise"])
def test_normal_noise_is_normal(name: str, severity: int) -> None:
    level = 128
    sigma = member(name).setting(severity, 299, 299) * (level / 255 if name == "speckle_noise" else 1)
    values = corrupted(name, flat(level), severity).flatten().numpy().astype(int)
    edges = np.arange(257)
    below = stats.norm.cdf(edges / 255, level / 255, sigma)  # truncated: k holds [k, k + 1), 0 and 255 hold what lies beyond as well
    expected = np.diff(below)
    expected[0], expected[254] = below[1], below[255] - below[254]
    expected[255] = 1 - below[255]
    found = np.bincount(values, minlength=256) / values.size
    # Kolmogorov and Smirnov's distance, at a level of 1e-6 for as many values.
    assert np.abs(np.cumsum(found) - np.cumsum(expected)).max() < 2.7 / values.size**0.5
    mean = (expected * edges[:-1]).sum()
    variance = (expected * (edges[:-1] - mean) ** 2).sum()
    assert values.mean() == pytest.approx(mean, abs=5 * (variance / values.size) ** 0.5)
    assert values.var() == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulses_strike_values_of_channels_one_by_one(severity: int) -> None:
    chance = member("impulse_noise").setting(severity, 299, 299)
    values = corrupted("impulse_noise", flat(128), severity)[0]
    struck = values != 128
    spread = (chance / 2 * (1 - chance / 2) / values.numel()) ** 0.5
    assert (values == 0).double().mean().item() == pytest.approx(chance / 2, abs=5 * spread)
    assert (values == 255).double().mean().item() == pytest.approx(chance / 2, abs=5 * spread)
    together = (struck[0] & struck[1]).double().mean().item()  # as often as two that know nothing of each other
    assert together == pytest.approx(chance**2, abs=5 * chance / values[0].numel() ** 0.5)


@pytest.mark.parametrize("rate", [0.004, 0.8, 3.0, 17.0, 60.0, 250.0, 500.0, float(LARGEST)])
def test_counts_are_poisson(rate: float) -> None:
    rates = np.array([0.0, rate / 3, rate])
    drawn = counts(np.full(200_000, 2), rates, generator("counts", rate))
    assert drawn.mean() == pytest.approx(rate, abs=5 * (rate / drawn.size) ** 0.5)
    assert drawn.var() == pytest.approx(rate, abs=5 * ((rate + 2 * rate**2) / drawn.size) ** 0.5)
    found = np.cumsum(np.bincount(drawn)) / drawn.size
    assert np.abs(found - stats.poisson.cdf(np.arange(found.size), rate)).max() < 2.7 / drawn.size**0.5
    assert not counts(np.zeros(1000, dtype=int), rates, generator("none")).any()


def test_counts_refuse_rates_that_their_tables_cannot_hold() -> None:
    for wrong in (-1.0, LARGEST + 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"rates must be in 0\.\.1400"):
            counts(np.zeros(3, dtype=int), np.array([wrong]), generator("wrong"))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_shot_noise_is_grainier_where_it_is_brighter(severity: int) -> None:
    photons = member("shot_noise").setting(severity, 64, 64)
    for level in (0, 20, 90):
        values = corrupted("shot_noise", flat(level, 64).repeat(8, 1, 1, 1), severity).double().flatten() / 255
        expected = np.minimum(np.arange(400) / photons, 1)
        chances = stats.poisson.pmf(np.arange(400), level / 255 * photons)
        mean = (chances * np.floor(expected * 255) / 255).sum()
        variance = (chances * (np.floor(expected * 255) / 255 - mean) ** 2).sum()
        assert values.mean().item() == pytest.approx(mean, abs=5 * (variance / values.numel()) ** 0.5 + 1e-12)
        assert values.var().item() == pytest.approx(variance, rel=0.03, abs=1e-12)


@pytest.mark.parametrize("name", [*NOISES, *BLURS])
def test_pixels_do_not_depend_on_the_batch(name: str) -> None:
    """Also where it is white: there a sum that is rounded down would be 254."""
    side = 40
    picture = photograph(224)[0]
    images = torch.stack([picture[:, i : i + side, 2 * i : 2 * i + side] for i in range(62)] + [torch.ones(3, side, side)] * 2)
    ids = [f"image {index}" for index in range(64)]
    for severity in (1, 5):
        whole = member(name)(images, severity, draws(0, name, severity, ids, images.device))
        order = torch.randperm(64, generator=torch.Generator().manual_seed(severity))
        for size in (1, 7):
            for part in (*order.split(size)[:9], torch.tensor([63])):
                alone = member(name)(images[part], severity, draws(0, name, severity, [ids[i] for i in part], images.device))
                assert torch.equal(alone, whole[part])
        if name in BLURS:
            assert (whole[62:] == 255).all()


@pytest.mark.parametrize("name", [*NOISES, *BLURS])
def test_grey_and_oblong_images(name: str) -> None:
    """A grey image is treated as one channel is; an oblong one as its mirror along the diagonal, where nothing is drawn."""
    oblong = photograph(224)[:, :, :96, :60]
    assert corrupted(name, oblong, 3).shape == oblong.shape
    grey = corrupted(name, oblong[:, :1], 3)
    assert grey.shape == (1, 1, 96, 60)
    assert not torch.equal(grey, (oblong[:, :1] * 255).to(torch.uint8))
    if name in BLURS:  # these treat channels alike, and draw for pixels and not for values
        assert torch.equal(grey, corrupted(name, oblong[:, :1].expand(-1, 3, -1, -1), 3)[:, :1])
    if name in ("gaussian_blur", "defocus_blur", "zoom_blur"):
        assert torch.equal(grey, corrupted(name, oblong[:, :1].mT, 3).mT)


def test_glass_copies_pixels_one_after_the_other() -> None:
    """Against the published loops, on an oblong image."""
    height, width, reach, times = 23, 31, 2, 3
    moves = np.random.default_rng(0).integers(-reach, reach, (times, height - 2 * reach, width - 2 * reach, 2))
    pixels = np.random.default_rng(1).integers(0, 256, (height, width), dtype=np.uint8)
    expected = pixels.copy()
    for turn in range(times):
        for i, h in enumerate(range(height - reach, reach, -1)):
            for j, w in enumerate(range(width - reach, reach, -1)):
                right, down = moves[turn, i, j]
                expected[h, w] = expected[h + down, w + right]
    x = torch.from_numpy(pixels)[None, None].double() / 255
    mine = CORRUPTIONS.build("glass_blur")(x, (0.0, reach, times), Replayed(moves=one_number(moves, reach)))
    assert torch.equal((mine * 255).to(torch.uint8)[0, 0], torch.from_numpy(expected))


@pytest.mark.parametrize(("border", "scipys"), [("nearest", "nearest"), ("symmetric", "reflect")])
def test_gaussian_is_scipys(border: str, scipys: str) -> None:
    x = np.random.default_rng(0).random((2, 3, 24, 17))
    for sigma, truncate in ((0.3, 4.0), (2.5, 3.0), (30.0, 3.0)):
        expected = ndimage.gaussian_filter(x, sigma, truncate=truncate, mode=scipys, axes=(2, 3))
        mine = gaussian(torch.from_numpy(x), sigma, truncate=truncate, border=border)  # type: ignore[arg-type]
        assert np.abs(mine.numpy() - expected).max() < 1e-13


@pytest.mark.parametrize("factor", [1.0, 1.07, 2.5, 4.5])
def test_clipped_zoom_is_scipys_zoom_of_the_middle(factor: float) -> None:
    x = np.random.default_rng(0).random((1, 1, 45, 32))
    middle = x[0, 0]
    for axis, size in enumerate(middle.shape):
        crop = int(np.ceil(size / factor))
        middle = np.take(middle, range((size - crop) // 2, (size - crop) // 2 + crop), axis)
    grown = ndimage.zoom(middle, factor, order=1, mode="nearest")
    top, left = (grown.shape[0] - 45) // 2, (grown.shape[1] - 32) // 2
    mine = clipped_zoom(torch.from_numpy(x), factor)[0, 0].numpy()
    assert np.abs(mine - grown[top : top + 45, left : left + 32]).max() < 1e-13


def test_motion_follows_its_angle() -> None:
    """A point is drawn out to where the blur reads from: at 0 degrees to the left of it, at 90 above; never to the other side."""
    x = torch.zeros(2, 1, 33, 33)
    x[:, :, 16, 16] = 1
    level, upright = motion_blur(x, 5, 50, torch.tensor([0.0, 90.0]))[:, 0]
    assert level.nonzero().tolist() == [[16, column] for column in range(6, 17)]
    assert torch.equal(upright, level.mT)


def test_lengths_follow_the_image_size() -> None:
    """Without parameters of its own, a size has those of the nearest that has them, the lengths among them in proportion."""
    assert member("gaussian_blur").setting(3, 168, 200) == 2.25
    assert member("defocus_blur").setting(5, 168, 168) == (7.5, 0.375)
    assert member("motion_blur").setting(1, 448, 448) == (20, 6)
    assert member("glass_blur").setting(5, 168, 168) == (1.125, 3, 2)
    assert member("glass_blur").setting(1, 16, 16)[1] == 1
    assert member("zoom_blur").setting(5, 168, 168) == (11, 0.03)
    assert member("gaussian_noise").setting(5, 168, 168) == 0.38
    odd = replace(member("defocus_blur"), settings={224: [(21.3, 0.5)] * 5})
    assert odd(photograph(224)[:, :, :60, :90], 1, Replayed()).shape == (1, 3, 60, 90)
