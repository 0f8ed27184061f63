"""Operations on batches of 8-bit images, held to PIL on real pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from robustbench_lite.defenses.operations import (
    Levels,
    autocontrast,
    brightness,
    color,
    contrast,
    equalize,
    looked_up,
    moved,
    posterize,
    sharpness,
    sheared,
    shifted,
    solarize,
    turned,
)
from torch import Tensor

from robustbench_lite.classifier import Preprocess
from robustbench_lite.data import load_data

Picture = Image.Image
AFFINE, BILINEAR = Image.Transform.AFFINE, Image.Resampling.BILINEAR


def levels_of(pictures: list[Picture]) -> Levels:
    arrays = [np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).float()


def pictures_of(x: Levels) -> list[Picture]:
    arrays = [image.permute(1, 2, 0).byte().numpy() for image in x]
    return [Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0]) for array in arrays]


@pytest.fixture(scope="module", params=["32 pixels", "wide", "grey", "few levels"])
def x(request: pytest.FixtureRequest) -> Levels:
    """Real pictures: CIFAR-10's, photographs that are wider than high, in grey, and with channels of one, two and three levels."""
    if request.param == "32 pixels":
        return torch.stack([(image * 255).round() for image, _ in load_data("cifar10", limit=10)])
    photographs = load_data("imagenet", limit=4, preprocess=Preprocess(size=(96, 128), resize=140))
    wide = torch.stack([(image * 255).round() for image, _ in photographs])
    if request.param == "grey":
        return levels_of([picture.convert("L") for picture in pictures_of(wide)])
    if request.param == "few levels":
        step = torch.tensor([256.0, 128.0, 100.0]).view(3, 1, 1)
        return (wide / step).floor() * step + 7
    return wide


def strengths(count: int, *values: float) -> Tensor:
    """(count,) these values in turn, so that a batch has several."""
    return torch.tensor(values).repeat(count)[:count]


def by_pil(x: Levels, operation: Callable[[Picture, float], Picture], values: Tensor) -> Levels:
    return levels_of([operation(picture, value) for picture, value in zip(pictures_of(x), values.tolist(), strict=True)])


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (lambda x, v: looked_up(x, autocontrast(x)), lambda p, v: ImageOps.autocontrast(p), (0,)),
        (lambda x, v: looked_up(x, equalize(x)), lambda p, v: ImageOps.equalize(p), (0,)),
        (lambda x, v: looked_up(x, posterize(x, v)), lambda p, v: ImageOps.posterize(p, int(v)), (4, 3, 1, 8)),
        (lambda x, v: looked_up(x, solarize(x, v)), lambda p, v: ImageOps.solarize(p, int(v)), (256, 180, 77, 0)),
        (lambda x, v: looked_up(x, brightness(x, v)), lambda p, v: ImageEnhance.Brightness(p).enhance(v), (0.118, 0.64, 1.37, 1.9)),
        (lambda x, v: looked_up(x, contrast(x, v)), lambda p, v: ImageEnhance.Contrast(p).enhance(v), (0.118, 0.64, 1.37, 1.9)),
        (color, lambda p, v: ImageEnhance.Color(p).enhance(v), (0.118, 0.64, 1.37, 1.9)),
        (sharpness, lambda p, v: ImageEnhance.Sharpness(p).enhance(v), (0.118, 0.64, 1.37, 1.9)),
    ],
    ids=["autocontrast", "equalize", "posterize", "solarize", "brightness", "contrast", "color", "sharpness"],
)
def test_levels_become_what_pil_makes_of_them(
    x: Levels, ours: Callable[[Levels, Tensor], Levels], theirs: Callable[[Picture, float], Picture], values: tuple[float, ...]
) -> None:
    values_of_each, before = strengths(len(x), *values), x.clone()
    assert torch.equal(ours(x, values_of_each), by_pil(x, theirs, values_of_each))
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("matrices", "theirs", "values"),
    [
        (lambda v: sheared(v, 0 * v), lambda p, v: p.transform(p.size, AFFINE, (1, v, 0, 0, 1, 0), BILINEAR), (0.01, -0.09, 0.3, 0.05)),
        (lambda v: sheared(0 * v, v), lambda p, v: p.transform(p.size, AFFINE, (1, 0, 0, v, 1, 0), BILINEAR), (0.01, -0.09, 0.3, 0.05)),
    ],
    ids=["shear_x", "shear_y"],
)
def test_shears_are_pils_but_for_a_level_here_and_there(
    x: Levels, matrices: Callable[[Tensor], Tensor], theirs: Callable[[Picture, float], Picture], values: tuple[float, ...]
) -> None:
    each = strengths(len(x), *values)
    near(moved(x, matrices(each)), by_pil(x, theirs, each))


def test_turns_are_pils_but_for_a_level_here_and_there(x: Levels) -> None:
    each = strengths(len(x), 1, -3, 8, 30)
    near(moved(x, turned(each, *x.shape[2:])), by_pil(x, lambda p, v: p.rotate(v, BILINEAR), each))


def near(ours: Levels, theirs: Levels) -> None:
    """Measured: 1.1 values in a hundred are one level off, none more, borders included."""
    apart = (ours - theirs).abs()
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 0.015


def test_whole_pixels_and_no_move_are_pils_exactly(x: Levels) -> None:
    each = strengths(len(x), 1, -3, 22, 0)
    right = by_pil(x, lambda p, v: p.transform(p.size, AFFINE, (1, 0, v, 0, 1, 0), BILINEAR), each)
    down = by_pil(x, lambda p, v: p.transform(p.size, AFFINE, (1, 0, 0, 0, 1, v), BILINEAR), each)
    assert torch.equal(moved(x, shifted(each, 0 * each)), right)
    assert torch.equal(moved(x, shifted(0 * each, each)), down)
    assert torch.equal(moved(x, turned(0 * each, *x.shape[2:])), x)


def test_a_white_image_stays_white_inside_and_is_black_outside() -> None:
    white = torch.full((1, 3, 224, 224), 255.0)
    found = moved(white, turned(torch.tensor([7.0]), 224, 224))
    assert set(found.unique().tolist()) == {0.0, 255.0}
    assert found[..., 0, 0].max() == 0


def test_results_are_the_same_in_whatever_batch(x: Levels) -> None:
    each = strengths(len(x), 5, -7, 3, 1)
    together = moved(x, turned(each, *x.shape[2:]))
    assert torch.equal(together[1:2], moved(x[1:2], turned(each[1:2], *x.shape[2:])))
    assert torch.equal(looked_up(x, equalize(x))[1:2], looked_up(x[1:2], equalize(x[1:2])))
