"""The corruptions of ImageNet-C-bar and CIFAR-10-C-bar.

`goldens/c_bar.npz` does not come from a run of the published code. It comes from a second implementation of its formulas, pixel by pixel in
plain Python with NumPy 2.4.6, SciPy 1.17.1 (gaussian_filter, rotate, zoom) and scikit-image 0.26 (line_aa), written from a reading of the
published functions (facebookresearch/augmentation-corruption, imagenet_c_bar) and not kept here. The image is that of `replayed.reference`;
the draws come from numpy.random.RandomState(100 * severity) in the published order, in the units of the streams, and are stored beside
the outputs: `<corruption>/<size>/<severity>` is (32, 32, 3) uint8, at 224 pixels rows and columns 96 to 127, and
`<corruption>/<size>/<severity>/<stream>` a draw. Where a corruption was not published for a size, the other size's parameters are used.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from replayed import GOLDENS, Replayed, photograph, reference

from robustbench_lite.corrupting import Member, draws
from robustbench_lite.registry import CORRUPTIONS, SUITES

WINDOW = slice(96, 128)
EXACT_BUT_FOR = {
    "perlin_noise": 1e-3,  # the published code blends in float32
    "pinch_and_twirl": 2e-3,  # likewise, and its flat areas end on whole numbers
    "transverse_chromatic_abberation": 1e-2,  # sums of 36ths that end on a half
}
NAMES = sorted({member.name for suite in ("c-bar", "cifar-c-bar") for member in SUITES.get(suite)()})


def member(name: str) -> Member:
    return Member(name, CORRUPTIONS.build(name))


def corrupted(name: str, images: torch.Tensor, severity: int, seed: int = 0) -> torch.Tensor:
    ids = [str(row) for row in range(len(images))]
    return member(name)(images, severity, draws(seed, name, severity, ids, images.device))


@cache
def goldens() -> dict[str, np.ndarray]:
    with np.load(GOLDENS / "c_bar.npz") as archive:
        return dict(archive)


@pytest.mark.parametrize("key", [key for key in goldens() if key.count("/") == 2])
def test_same_draws_give_the_published_pixels(key: str) -> None:
    name, size, severity = key.split("/")
    given = {stream.split("/")[3]: values for stream, values in goldens().items() if stream.startswith(key + "/")}
    given = {stream: values.astype(np.int64) if values.dtype == np.int16 else values for stream, values in given.items()}
    pixels = member(name)(photograph(int(size)), int(severity), Replayed(**given))[0].permute(1, 2, 0).numpy()
    apart = np.abs((pixels[WINDOW, WINDOW] if size == "224" else pixels).astype(int) - goldens()[key])
    assert apart.max() <= 1
    assert (apart > 0).mean() <= EXACT_BUT_FOR.get(name, 0)


def test_each_suite_has_its_ten_with_parameters_of_its_own() -> None:
    for suite, size in (("c-bar", 224), ("cifar-c-bar", 32)):
        members = SUITES.get(suite)()
        assert len({each.name for each in members}) == 10
        assert all(each.scaled_from(size, size) is None for each in members)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_comes_out_the_same_in_any_batch(name: str) -> None:
    photo = photograph(32)
    images = torch.cat([photo, photo.flip(3), torch.ones_like(photo), torch.full_like(photo, 0.5)]).repeat(16, 1, 1, 1)
    ids = [str(row) for row in range(64)]

    def apply(rows: list[int]) -> torch.Tensor:
        return member(name)(images[rows], 5, draws(0, name, 5, [ids[row] for row in rows], images.device))

    together = apply(list(range(64)))
    backwards = list(range(63, -1, -1))
    sevens = torch.cat([apply(backwards[start : start + 7]) for start in range(0, 64, 7)]).flip(0)
    assert torch.equal(together, sevens)
    for row in range(0, 64, 9):
        assert torch.equal(together[row], apply([row])[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 20, 33), (3, 41, 17), (1, 16, 16)])
def test_grey_and_oblong_images(name: str, shape: tuple[int, int, int]) -> None:
    photo = photograph(224)[:, : shape[0], 40 : 40 + 3 * shape[1] : 3, 60 : 60 + 3 * shape[2] : 3].expand(3, -1, -1, -1)
    pixels = corrupted(name, photo, 5)
    assert pixels.shape == photo.shape
    assert pixels.dtype == torch.uint8
    assert (pixels.float() - photo * 255).abs().mean() > 1
    assert pixels.float().std((1, 2, 3)).min() > 1


@pytest.mark.parametrize(("name", "size"), [(name, size) for name in NAMES for size in CORRUPTIONS.build(name).settings])
def test_stronger_with_severity(name: str, size: int) -> None:
    """Mean absolute change of 24 random ones, under equal draws at all severities, in both lists of parameters."""
    settings = CORRUPTIONS.build(name).settings[size]
    images = photograph(32).repeat(24, 1, 1, 1)
    drawn = draws(0, name, 0, [str(row) for row in range(24)], images.device)
    sized = Member(name, CORRUPTIONS.build(name), {32: settings})
    changes = [(sized(images, severity, drawn).float() / 255 - images).abs().mean().item() for severity in range(1, 6)]
    assert changes == sorted(changes)
    assert changes[4] > 1.1 * changes[0]


def test_blue_noise_has_the_share_and_the_spectrum_of_its_name() -> None:
    white = torch.ones(8, 1, 224, 224)
    for severity, level in ((3, 2.4), (5, 5.6)):
        black = (corrupted("blue_noise_sample", white, severity) == 0).float()
        expected = 0.5 * math.erfc((2.5 - 0.3 * level) / math.sqrt(2))
        assert black.mean().item() == pytest.approx(expected, rel=0.03)
    half = CORRUPTIONS.build("blue_noise_sample")(white, 2.5 / 0.3, draws(0, "half", 1, [str(row) for row in range(8)], white.device))
    low, high = band_power(half[:, 0])
    assert low < 0.5 * high  # of white noise they would be equal


def test_brownish_noise_has_the_strength_and_the_spectrum_of_its_name() -> None:
    noise = corrupted("brownish_noise", torch.full((8, 3, 224, 224), 0.5), 1).float() - 127.5
    assert (noise - noise.mean((2, 3), keepdim=True)).std().item() == pytest.approx(6.4, rel=0.02)
    low, high = band_power(noise[:, 0])
    assert low > 100 * high


def band_power(fields: torch.Tensor) -> tuple[float, float]:
    """Mean power of waves of 4 to 8 and of 64 to 100 periods a side."""
    power = torch.fft.fft2(fields - fields.mean((1, 2), keepdim=True)).abs().square().mean(0)
    frequency = torch.fft.fftfreq(fields.shape[-1]) * fields.shape[-1]
    radius = torch.hypot(frequency[:, None], frequency)
    return tuple(power[(radius >= low) & (radius < high)].mean().item() for low, high in ((4, 8), (64, 100)))  # type: ignore[return-value]


@pytest.mark.parametrize(("severity", "share"), [(1, 0.2), (5, 0.6)])
def test_checkerboard_hides_a_share_of_half_the_image(severity: int, share: float) -> None:
    hidden = corrupted("checkerboard_cutout", torch.ones(150, 1, 96, 96), severity) == 128
    assert hidden.float().mean().item() == pytest.approx(share / 2, rel=0.1)


def test_single_frequency_is_one_frequency_of_either_direction() -> None:
    grey = corrupted("single_frequency_greyscale", torch.full((64, 1, 224, 224), 0.5), 1)[:, 0].float()
    window = torch.hann_window(224)
    spectra = torch.fft.rfft2((grey - grey.mean((1, 2), keepdim=True)) * window[:, None] * window).abs().square()
    peaks = spectra.flatten(1).argmax(1)
    rows, columns = (torch.fft.fftfreq(224) * 224)[peaks // 113], peaks % 113
    for spectrum, row, column in zip(spectra, rows.int().tolist(), columns.tolist(), strict=True):
        around = spectrum.roll((2 - row, 2 - column), (0, 1))[:5, :5].sum()
        assert around > 0.9 * spectrum.sum() or not 3 <= column < 110  # there the peak and its mirror image meet
    assert 16 < int((rows.abs() > columns).sum()) < 48


def test_a_ripple_moves_a_ramp_by_its_amplitude() -> None:
    ramp = (torch.arange(32) * 8 / 255).expand(64, 1, 32, 32).contiguous()
    moved = (corrupted("ripple", ramp, 1).float() - ramp * 255)[:, 0, 16, 4:28] / 8
    assert moved.abs().amax(1).mean().item() == pytest.approx(0.0025 * 5.5 * 32, abs=0.1)


def test_a_twirl_keeps_what_lies_between_its_circles() -> None:
    photo = torch.from_numpy(reference(32)["input"]).permute(2, 0, 1)[None]
    twirled = corrupted("pinch_and_twirl", photo / 255, 5)
    for row in (0, 9, 10, 19, 20, 29):
        for column in (0, 10, 20, 30, 31):
            assert torch.equal(twirled[..., row, column], photo[..., row, column])
    assert torch.equal(twirled[..., 30:, :], photo[..., 30:, :])
    assert (twirled != photo).float().mean() > 0.3


def test_a_line_is_that_of_scikit_image_up_to_its_ends() -> None:
    from skimage import draw

    generator = np.random.default_rng(0)
    for row, column, turn in generator.random((60, 3)):
        reach = 32 * np.cos(2 * np.pi * turn), 32 * np.sin(2 * np.pi * turn)
        middle = 32 * row, 32 * column
        ends = [int(at + sign * by) for sign in (-1, 1) for at, by in zip(middle, reach, strict=True)]
        rows, columns, share = draw.line_aa(*ends)
        seen = (rows >= 0) & (rows < 32) & (columns >= 0) & (columns < 32)
        expected = np.full((32, 32), 255.0)
        expected[rows[seen], columns[seen]] = (1 - share[seen]) * 255 + share[seen] * 128
        given = {"angle": np.array([2 * np.pi * turn]), "variation": np.zeros(1), "lines": np.array([[row, column, 0.5]])}
        drawn = member("lines")(torch.ones(1, 1, 32, 32), 1, Replayed(**given))[0, 0].numpy()
        assert np.abs(drawn - np.floor(expected)).max() <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_an_accelerator_gives_the_same_but_for_rounding(name: str) -> None:
    images = photograph(32).repeat(8, 1, 1, 1)
    there = corrupted(name, images.cuda(), 5).cpu()
    apart = (there.int() - corrupted(name, images, 5).int()).abs()
    assert (apart > 1).float().mean() < 1e-3


@pytest.mark.parametrize("side", [300, 448])
def test_caustics_light_large_images_as_much_as_those_of_the_published_size(side: int) -> None:
    def change(size: int) -> float:
        grey = torch.full((4, 3, size, size), 0.5)
        lit = member("caustic_refraction")(grey, 3, draws(0, "caustic_refraction", 3, list("abcd"), grey.device))
        return (lit - grey * 255).square().mean().sqrt().item()

    assert change(side) == pytest.approx(change(224), rel=0.15)
