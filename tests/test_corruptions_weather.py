"""Snow, frost, fog, spatter and the elastic transform against the published functions under the same draws, and what holds without them.

`goldens/elastic_opencv_4_10.npz`: the published elastic transform of the same photograph and seeds (`replayed`) with OpenCV 4.10.0, whose
affine coordinates are whole 1/32 pixels; `<size>/<severity>`, at 224 the rows and columns of WINDOW. NumPy 2.4.6, SciPy 1.17.1,
scikit-image 0.26.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from replayed import GOLDENS, WINDOW, Replayed, differences, photograph
from torch import Tensor

from robustbench_lite.corrupting import Member, draws
from robustbench_lite.edges import ONE, canny, chamfer, connected
from robustbench_lite.errors import DataError, UsageError
from robustbench_lite.ice import LOOKS, PHOTOGRAPHS, computed
from robustbench_lite.plasma import plasma
from robustbench_lite.registry import CORRUPTIONS

Draws = dict[str, Any]
SIZES = (224, 32)
LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]


def legacy(severity: int) -> np.random.RandomState:
    return np.random.RandomState(100 * severity)


def fog_draws(generator: np.random.RandomState, size: int, setting: Any) -> Draws:
    return {"wibble": 2 * generator.random_sample((256 if size == 224 else size) ** 2 - 1) - 1}


def snow_draws(generator: np.random.RandomState, size: int, setting: Any) -> Draws:
    return {"flakes": generator.standard_normal((size, size)), "angle": np.float64(generator.uniform(-135, -45))}


def spatter_draws(generator: np.random.RandomState, size: int, setting: Any) -> Draws:
    return {"drops": generator.standard_normal((size, size))}


def elastic_draws(generator: np.random.RandomState, size: int, setting: Any) -> Draws:
    shift = setting[2]
    points = generator.uniform(-shift, shift, (3, 2)).astype(np.float32)
    return {"points": points, "field": generator.uniform(-1, 1, (2, size, size))}


def replayed(spec: str, size: int, severity: int, make: Callable[..., Draws]) -> Tensor:
    built = CORRUPTIONS.build(spec)
    given = make(legacy(severity), size, built.settings[size][severity - 1])
    return Member(spec, built)(photograph(size), severity, Replayed(**given))


def own(spec: str, images: Tensor, severity: int, rows: int | None = None) -> Tensor:
    ids = [str(row) for row in range(rows or len(images))]
    return Member(spec, CORRUPTIONS.build(spec))(images, severity, draws(0, spec, severity, ids, images.device))


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "spec", "make", "share"),
    [
        ("fog", "fog", fog_draws, 0.0),
        ("snow", "snow", snow_draws, 0.005),
        ("spatter", "spatter", spatter_draws, 0.001),
        ("elastic_transform", "elastic_transform:subpixel=0", elastic_draws, 0.0005),
    ],
    ids=["fog", "snow", "spatter", "elastic"],
)
def test_the_same_draws_give_the_published_pixels(
    name: str, spec: str, make: Callable[..., Draws], share: float, size: int, severity: int
) -> None:
    apart, differing = differences(size, name, severity, replayed(spec, size, severity, make))
    assert apart <= 1
    assert differing <= share


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("size", SIZES)
def test_elastic_rounds_coordinates_as_opencv_4_did(size: int, severity: int) -> None:
    with np.load(GOLDENS / "elastic_opencv_4_10.npz") as archive:
        golden = archive[f"{size}/{severity}"].astype(int)
    mine = replayed("elastic_transform", size, severity, elastic_draws)[0].permute(1, 2, 0).numpy().astype(int)
    apart = np.abs((mine[WINDOW, WINDOW] if size == 224 else mine) - golden)
    assert apart.max() <= 1
    assert (apart > 0).mean() <= 0.002
    assert differences(size, "elastic_transform", severity, torch.from_numpy(mine).permute(2, 0, 1)[None])[1] > 0.01  # it does matter


def test_elastic_without_draws_leaves_the_image_as_it_is() -> None:
    x = photograph(32)
    still = {"points": np.zeros((3, 2), np.float32), "field": np.zeros((2, 32, 32))}
    for spec in ("elastic_transform", "elastic_transform:subpixel=0"):
        assert torch.equal(Member(spec, CORRUPTIONS.build(spec))(x, 5, Replayed(**still)), (x * 255).round().byte())


def test_elastic_moves_along_with_the_points() -> None:
    x = torch.rand(1, 1, 40, 56)
    shifted = {"points": np.tile(np.float32([3, -2]), (3, 1)), "field": np.zeros((2, 40, 56))}  # three to the right, two up
    moved = Member("elastic_transform", CORRUPTIONS.build("elastic_transform"))(x, 5, Replayed(**shifted))
    assert torch.equal(moved[..., :-2, 3:], (x * 255).round().byte()[..., 2:, :-3])


def test_lengths_scale_with_the_image_and_nothing_else_does() -> None:
    snow, spatter, elastic, frost = (CORRUPTIONS.build(name) for name in ("snow", "spatter", "elastic_transform", "frost"))
    twice = {name: Member(name, built).setting(4, 448, 448) for name, built in [("snow", snow), ("spatter", spatter), ("frost", frost)]}
    assert twice["snow"] == snow.settings[224][3]._replace(radius=24, sigma=16)
    assert twice["spatter"] == spatter.settings[224][3]._replace(deviation=pytest.approx(0.6, rel=0.001), sigma=2, strength=3)
    assert twice["frost"] == (0.65, 0.7, 2.0)
    assert Member("spatter", spatter).setting(1, 448, 448).strength == 0.6  # of water it is an opacity
    assert Member("elastic", elastic).setting(5, 168, 200) == pytest.approx([183 * share for share in (0.12, 0.01, 0.02)])


def test_plasma_is_the_mean_of_its_neighbours_on_a_torus() -> None:
    noise = torch.zeros(1, 63, dtype=torch.float64)
    noise[:, :3] = torch.tensor([0.5, -0.5, 0.25])  # a torus of 2x2 is given, the rest is interpolated
    field = plasma(noise, 2.0)[0]
    coarse = field[::4, ::4]
    assert field[2, 2].item() == pytest.approx(coarse.mean().item())
    assert (field.amin(), field.amax()) == (0, 1)
    assert field[0, 2].item() == pytest.approx(((coarse[0].sum() + field[2, 2] + field[6, 2]) / 4).item())


def test_fog_keeps_the_brightest_value_possible() -> None:
    x = torch.rand(2, 1, 20, 30)
    for severity in range(1, 6):
        assert (own("fog", x, severity) <= (x.amax((1, 2, 3), keepdim=True) * 255).round()).all()
    assert own("fog", torch.zeros(1, 3, 16, 16), 5).max() == 0


def test_a_spattered_image_without_a_drop_is_unchanged() -> None:
    x = photograph(32)
    dry = Replayed(drops=np.full((32, 32), -1.0))
    for severity in range(1, 6):
        assert torch.equal(Member("spatter", CORRUPTIONS.build("spatter"))(x, severity, dry), (x * 255).round().byte())


@pytest.mark.parametrize(("size", "published"), [(96, 64), (112, 64), (160, 224), (384, 224), (512, 224)])
def test_as_much_is_spattered_at_every_size(size: int, published: int) -> None:
    """Noise that is blurred more widely and not made louder has hardly a drop left: at 512 pixels a third of the change, or less."""

    def change(side: int, severity: int) -> float:
        grey = torch.full((6, 3, side, side), 0.25)
        return (own("spatter", grey, severity) / 255 - grey).square().mean().sqrt().item()

    for severity in range(1, 6):
        assert change(size, severity) == pytest.approx(change(published, severity), rel=0.35), severity


def test_chamfer_distances_are_the_shortest_paths() -> None:
    edges = torch.zeros(1, 30, 41, dtype=torch.bool)
    edges[0, 10, 15] = edges[0, 25, 3] = True
    found = chamfer(edges, 20)[0]
    assert found[10, 15] == 0
    assert found[10, 22] == 7 * ONE
    assert found[14, 19] == 4 * 91750
    assert found[12, 16] == 143976
    assert found[13, 23] == 2 * ONE + 3 * 143976
    assert found[29, 40] == 20 * ONE
    assert chamfer(torch.zeros(1, 30, 41, dtype=torch.bool), 20).min() == 20 * ONE


def test_canny_follows_a_weak_edge_from_a_strong_one() -> None:
    strength = torch.tensor([20, 20, 20, 60, 60, 60, 20, 20]).int()  # Sobel answers with four times the step
    steps = torch.zeros(1, 8, 10, dtype=torch.int32)
    steps[0, :, 5:] = strength[:, None]
    assert canny(steps, 50, 150)[0].any(1).all()
    steps[0, :, 5:] = 20
    assert not canny(steps, 50, 150).any()
    seeds = torch.tensor([[[1, 0, 0, 0]]]).bool()
    assert connected(seeds, torch.tensor([[[1, 1, 0, 1]]]).bool()).tolist() == [[[True, True, False, False]]]


@pytest.fixture(scope="module")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frost")
    generator = np.random.default_rng(0)
    for number, name in enumerate(PHOTOGRAPHS):
        small = generator.integers(0, 256, (12 + number, 15, 3), dtype=np.uint8)
        Image.fromarray(small).resize((420 + 10 * number, 260 + number), Image.Resampling.BICUBIC).save(folder / name)
    return folder


@pytest.mark.parametrize("picture", range(5))
@pytest.mark.parametrize("size", SIZES)
def test_frost_is_the_published_formula_on_pictures_of_a_folder(overlays: Path, size: int, picture: int) -> None:
    image = (photograph(size)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    ice = np.asarray(Image.open(overlays / PHOTOGRAPHS[picture]).convert("RGB"))
    if size == 32:  # at a fifth the middles of the small pixels are middles of large ones
        ice = ice[2::5, 2::5][: round(ice.shape[0] * 0.2), : round(ice.shape[1] * 0.2)]
    row, column = legacy(picture).randint(0, ice.shape[0] - size), legacy(picture + 9).randint(0, ice.shape[1] - size)
    corner = (np.array([row, column]) + 0.5) / (np.array(ice.shape[:2]) - size)
    crop = ice[row : row + size, column : column + size]
    frost = CORRUPTIONS.build(f"frost:{overlays}")
    assert frost.label == "frost"
    for severity in range(1, 6):
        a, b, _ = frost.settings[size][severity - 1]
        expected = np.clip(a * image + b * crop, 0, 255).astype(np.uint8)
        mine = Member("frost", frost)(photograph(size), severity, Replayed(picture=np.int64(picture), corner=corner))
        assert np.array_equal(mine[0].permute(1, 2, 0).numpy(), expected)


def test_frost_without_its_pictures_says_where_they_are(overlays: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no .*frost1\.png; they are in ImageNet-C/create_c of https"):
        CORRUPTIONS.build(f"frost:{tmp_path / 'nowhere'}")
    for name in PHOTOGRAPHS:
        (tmp_path / name).write_bytes((overlays / name).read_bytes())
    (tmp_path / "frost4.jpg").write_text("not a picture")
    with pytest.raises(UsageError, match=r"frost4\.jpg cannot be read as a picture"):
        CORRUPTIONS.build(f"frost:{tmp_path}")
    (tmp_path / "frost4.jpg").unlink()
    with pytest.raises(UsageError, match=r"there is no .*frost4\.jpg"):
        CORRUPTIONS.build(f"frost:{tmp_path}")
    with pytest.raises(DataError, match=r"frost1\.png has 260x420 pixels .* too small for images of 224x640"):
        own(f"frost:{overlays}", torch.rand(1, 3, 224, 640), 1)


@pytest.fixture(scope="module")
def ice() -> tuple[Tensor, Tensor]:
    """Which look, (N,), and the computed luma and colours, (N, 4, 224, 224)."""
    several = draws(0, "frost", 1, [str(k) for k in range(60)], torch.device("cpu"))
    pixels = computed(1.0, 224, 224, several).double()
    return several.integers("picture", 0, len(LOOKS)), torch.cat([(pixels * LUMA).sum(1, keepdim=True), pixels], 1)


@pytest.mark.parametrize("look", [0, 1, 3, 4])
def test_computed_ice_has_the_colours_percentiles_and_slope_of_the_photographs(ice: tuple[Tensor, Tensor], look: int) -> None:
    which, pixels = ice
    some = pixels[(which == look) | ((which == 2) & (look == 1))]
    assert torch.allclose(some[:, 1:].mean((0, 2, 3)), torch.tensor(LOOKS[look].colour).double(), atol=5)
    percentiles = np.percentile(some[:, 0].numpy(), (1, 5, 25, 50, 75, 95, 99))
    assert np.abs(percentiles - LOOKS[look].luma).max() <= 10
    assert slope(some[:, 0]) == pytest.approx(LOOKS[look].slope, abs=0.3)


def slope(luma: Tensor) -> float:
    """Of log power over log frequency, by twelve bands from 2.5 periods an image to two pixels a period."""
    window = torch.hann_window(224, dtype=torch.float64)
    power = torch.fft.fft2((luma - luma.mean((1, 2), keepdim=True)) * window * window[:, None]).abs().square().mean(0)
    frequency = (torch.fft.fftfreq(224)[:, None] ** 2 + torch.fft.fftfreq(224) ** 2).sqrt()
    bounds = torch.logspace(np.log10(2.5 / 224), np.log10(0.5), 13)
    bands = [(frequency >= low) & (frequency < high) for low, high in pairwise(bounds)]
    return float(np.polyfit([frequency[band].log().mean() for band in bands], [power[band].mean().log() for band in bands], 1)[0])


def test_computed_frost_changes_a_photograph_as_much_as_the_published(ice: tuple[Tensor, Tensor]) -> None:
    which, pixels = ice
    x = photograph(224).double() * 255
    frost = CORRUPTIONS.build("frost")
    assert frost.label == "frost(procedural)"
    for severity, published in ((1, 64.6), (5, 91.2)):  # over four other photographs
        image, weight, _ = frost.settings[224][severity - 1]
        change = ((image * x + weight * pixels[:, 1:]).clamp(0, 255) - x).square().mean((1, 2, 3))
        each = torch.stack([change[which == look].mean() for look in range(len(LOOKS))])
        assert each.mean().sqrt().item() == pytest.approx(published, rel=0.12)


@pytest.mark.parametrize("shape", [(1, 16, 40), (3, 50, 33), (1, 64, 64)])
@pytest.mark.parametrize("name", ["snow", "frost", "fog", "spatter", "elastic_transform"])
def test_other_shapes_and_grey_images_are_corrupted_too(name: str, shape: tuple[int, int, int]) -> None:
    x = torch.rand(1, *shape).mul(0.5).expand(3, -1, -1, -1)
    made = own(name, x, 5)
    assert made.shape == x.shape
    assert not torch.equal(made[0], made[1])  # draws are keyed
    assert torch.equal(own(name, x[:1], 5), made[:1])
