"""Policies as data: operations held to PIL, cutout and pairing by hand, files that come back the same and others that are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from robustbench_lite.defenses import policies as module
from robustbench_lite.defenses.job import save
from robustbench_lite.defenses.operations import cutout, inverted, looked_up
from robustbench_lite.defenses.policies import NAMES, OPERATIONS, Policies
from torch import Tensor

from robustbench_lite.data import load_data
from robustbench_lite.defending import About, Batch, Defenses
from robustbench_lite.errors import UsageError
from robustbench_lite.evaluation import evaluate
from robustbench_lite.streams import Streams
from robustbench_lite.trained import Made

CPU = torch.device("cpu")
AFFINE, BILINEAR = Image.Transform.AFFINE, Image.Resampling.BILINEAR
GOLDEN = Path(__file__).parent / "goldens" / "policies.json"


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.stack([image for image, _ in load_data("cifar10", limit=12)])


def streams(count: int) -> Streams:
    return Streams(0, "training", [(str(k), 0) for k in range(count)], None, CPU)


def policies(*subs: list[tuple[str, int]]) -> Policies:
    """One policy of these sub-policies."""
    return Policies(torch.tensor([[[[NAMES.index(name), magnitude] for name, magnitude in sub] for sub in subs]]))


def partners(count: int = 3, size: int = 32) -> Tensor:
    """Images of one level each, 0, 100, 200, ..."""
    return (100 * torch.arange(count)).byte().view(-1, 1, 1, 1).expand(-1, 3, size, size)


def levels_under(images: Tensor, *sub: tuple[str, int]) -> Tensor:
    (shown,) = policies(list(sub)).shown(images, streams(len(images)), partners())
    levels: Tensor = (shown * 255).round()
    return levels


# --- operations


def translated(p: Image.Image, right: float, down: float) -> Image.Image:
    return p.transform(p.size, AFFINE, (1, 0, round(right), 0, 1, round(down)), BILINEAR)


BY_PIL: dict[str, Callable[[Image.Image, float, float], Image.Image]] = {  # of magnitude m in 0..9 and a sign, by the paper's ranges
    "shear_x": lambda p, m, s: p.transform(p.size, AFFINE, (1, s * 0.3 * m / 9, 0, 0, 1, 0), BILINEAR),
    "shear_y": lambda p, m, s: p.transform(p.size, AFFINE, (1, 0, 0, s * 0.3 * m / 9, 1, 0), BILINEAR),
    "translate_x": lambda p, m, s: translated(p, s * 0.45 * 32 * m / 9, 0),
    "translate_y": lambda p, m, s: translated(p, 0, s * 0.45 * 32 * m / 9),
    "rotate": lambda p, m, s: p.rotate(s * 30 * m / 9, BILINEAR),
    "autocontrast": lambda p, m, s: ImageOps.autocontrast(p),
    "invert": lambda p, m, s: ImageOps.invert(p),
    "equalize": lambda p, m, s: ImageOps.equalize(p),
    "solarize": lambda p, m, s: ImageOps.solarize(p, math.ceil(256 * m / 9)),
    "posterize": lambda p, m, s: ImageOps.posterize(p, (4, 4, 5, 5, 6, 6, 7, 7, 8, 8)[int(m)]),
    "contrast": lambda p, m, s: ImageEnhance.Contrast(p).enhance(0.1 + 0.2 * m),
    "color": lambda p, m, s: ImageEnhance.Color(p).enhance(0.1 + 0.2 * m),
    "brightness": lambda p, m, s: ImageEnhance.Brightness(p).enhance(0.1 + 0.2 * m),
    "sharpness": lambda p, m, s: ImageEnhance.Sharpness(p).enhance(0.1 + 0.2 * m),
}


def test_the_operations_are_those_of_the_paper() -> None:
    assert set(NAMES) == {*BY_PIL, "cutout", "sample_pairing"}
    assert len(NAMES) == 16
    assert module.MAGNITUDES == 10


@pytest.mark.parametrize("magnitude", [0, 3, 7, 9])
@pytest.mark.parametrize("name", BY_PIL)
def test_an_operation_is_pils_at_the_papers_strength(images: Tensor, name: str, magnitude: int) -> None:
    found = levels_under(images, (name, magnitude))
    signs = torch.where(streams(len(images)).uniform("policies", 1, 4)[:, 0, 1] < 0.5, -1, 1).tolist()
    assert set(signs) == {-1, 1}
    pictures = [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images]
    made = [np.array(BY_PIL[name](picture, magnitude, sign)) for picture, sign in zip(pictures, signs, strict=True)]
    expected = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float()
    apart = (found - expected).abs()
    moves = name[:5] in ("shear", "rotat")
    assert apart.max() <= moves  # interpolation rounds a value in a hundred otherwise
    assert (apart > 0).float().mean() < 0.015


def test_a_square_is_cut_out_where_its_middle_is_as_far_as_it_is_in_the_image() -> None:
    x = torch.full((3, 3, 8, 10), 7.0)
    found = cutout(x, torch.tensor([4.0, 4.0, 0.0]), torch.tensor([[4.0, 5.0], [0.0, 9.5], [4.5, 4.5]]))
    expected = x.clone()
    expected[0, :, 2:6, 3:7] = 128
    expected[1, :, :2, 8:] = 128  # rows -2 to 2, columns 7.5 to 11.5; the middle of column 7 is on its edge
    assert torch.equal(found, expected)


def test_values_between_two_levels_are_rounded_first() -> None:
    assert (levels_under(torch.full((2, 3, 32, 32), 100.6 / 255), ("cutout", 0)) == 101).all()


def test_cutout_has_the_papers_size_and_is_anywhere(images: Tensor) -> None:
    black = torch.zeros(400, 3, 32, 32)
    found = levels_under(black, ("cutout", 9))[:, 0] == 128
    areas = found.flatten(1).sum(1)
    assert 36 <= areas.max() <= 49  # 0.2 * 32 = 6.4 pixels a side
    assert found.any(0).all()
    assert torch.equal(levels_under(images, ("cutout", 0)), (images * 255).round())


def test_a_pair_is_a_weighted_mean_with_a_training_image() -> None:
    grey = torch.full((60, 3, 32, 32), 50 / 255)
    found = levels_under(grey, ("sample_pairing", 9))
    assert (found == found[:, :1, :1, :1]).all()
    chances = streams(60).uniform("policies", 1, 4)[:, 0, 1]
    expected = torch.tensor([30.0, 70.0, 110.0])[(chances * 3).long()]  # 0.6 * 50 + 0.4 * (0, 100 or 200)
    assert torch.equal(found[:, 0, 0, 0], expected)
    assert set(expected.tolist()) == {30.0, 70.0, 110.0}
    assert torch.equal(levels_under(grey, ("sample_pairing", 0)), torch.full_like(grey, 50))


def test_inverting_twice_is_nothing_and_once_is_the_negative(images: Tensor) -> None:
    levels = (images * 255).round()
    assert torch.equal(looked_up(levels, inverted(levels)), 255 - levels)
    assert torch.equal(levels_under(images, ("invert", 2), ("invert", 7)), levels)


def test_operations_follow_one_another_in_their_order(images: Tensor) -> None:
    one, other = ("brightness", 9), ("invert", 0)
    assert torch.equal(levels_under(images, one, other), 255 - levels_under(images, one))
    assert not torch.equal(levels_under(images, one, other), levels_under(images, other, one))


# --- sub-policies


def test_every_image_of_every_copy_has_a_sub_policy_of_its_own() -> None:
    """Five factors of brightness tell the sub-policies apart; the second policy is the same but inverted."""
    plain = policies(*([("brightness", m)] for m in (0, 2, 4, 6, 8))).choices
    dark = torch.cat([plain, torch.full_like(plain, 0)], 2)
    dark[..., 1, :] = torch.tensor([NAMES.index("invert"), 0])
    nothing = dark.clone()
    nothing[..., 1, :] = torch.tensor([NAMES.index("cutout"), 0])
    copies = Policies(torch.cat([nothing, dark])).shown(torch.full((3000, 1, 2, 2), 100 / 255), streams(3000), partners(1, 2)[:, :1])
    expected = torch.tensor([10.0, 50.0, 90.0, 130.0, 170.0])
    which = [torch.bucketize((each[:, 0, 0, 0] * 255).round(), expected - 5) - 1 for each in (copies[0], 1 - copies[1])]
    for chosen in which:
        counts = chosen.bincount(minlength=5)
        assert len(counts) == 5
        assert (counts - 600).abs().max() < 110  # five standard deviations
    assert (which[0] == which[1]).float().mean() == pytest.approx(0.2, abs=0.04)


def test_images_do_not_depend_on_those_beside_them_nor_on_the_parts(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    policies, draw, before = Policies.read(GOLDEN), streams(len(images)), images.clone()
    together = policies.shown(images, draw, partners())
    alone = policies.shown(images[3:5], draw.take(slice(3, 5)), partners())
    assert len(together) == 2
    assert all(torch.equal(one[3:5], other) for one, other in zip(together, alone, strict=True))
    monkeypatch.setattr(module, "PIXELS", 5 * 1024)
    assert all(torch.equal(one, other) for one, other in zip(together, policies.shown(images, draw, partners()), strict=True))
    assert torch.equal(images, before)


choices = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)).flatmap(
    lambda shape: st.lists(
        st.tuples(st.integers(0, 15), st.integers(0, 9)), min_size=shape[0] * shape[1] * shape[2], max_size=shape[0] * shape[1] * shape[2]
    ).map(lambda flat: torch.tensor(flat).view(*shape, 2))
)


@settings(max_examples=40, deadline=None)
@given(chosen=choices, seed=st.integers(0, 999), channels=st.sampled_from([1, 3]))
def test_whatever_the_policy_images_stay_images(chosen: Tensor, seed: int, channels: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(4, channels, 6, 9, generator=random).round(decimals=1)
    others = torch.randint(256, (2, channels, 6, 9), generator=random).byte()
    for shown in Policies(chosen).shown(x, Streams(seed, "t", [(str(k), 0) for k in range(4)], None, CPU), others):
        assert shown.shape == x.shape
        assert shown.dtype == x.dtype
        assert shown.min() >= 0
        assert shown.max() <= 1
        assert torch.equal(shown, (shown * 255).round() / 255)


# --- files


@settings(max_examples=25, deadline=None)
@given(chosen=choices)
def test_what_is_written_is_read_again(chosen: Tensor, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("policies") / "a.json"
    file.write_text(Policies(chosen).written(), encoding="utf-8")
    assert torch.equal(Policies.read(file).choices, chosen)


def test_a_file_can_be_read_by_a_person() -> None:
    assert json.loads(policies([("rotate", 3), ("invert", 0)]).written()) == {
        "format": "robustbench-lite policies",
        "version": 1,
        "policies": [[[["rotate", 3], ["invert", 0]]]],
    }


def test_a_policy_from_a_file_makes_the_same_images_bit_for_bit(images: Tensor, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    made = Policies(torch.stack([torch.randint(top, (4, 5, 2), generator=generator) for top in (16, 10)], -1))
    file = tmp_path / "found.policies.json"
    file.write_text(made.written(), encoding="utf-8")
    others, draw = (load_all(20) * 255).round().byte(), streams(len(images))
    for one, other in zip(made.shown(images, draw, others), Policies.read(file).shown(images, draw, others), strict=True):
        assert torch.equal(one, other)
    defense = Defenses.parse(f"policy:{file}").informed(about())
    batch = defense.augment(Batch(images, torch.eye(10)[:1].expand(12, -1)), draw)
    (expected,) = made.merged.shown(images, draw, (load_all(256) * 255).round().byte())
    assert torch.equal(batch.images, expected)
    assert batch.views == ()
    assert made.merged.choices.shape == (1, 20, 2, 2)


def load_all(count: int) -> Tensor:
    return torch.stack([image for image, _ in load_data("digits", limit=count)])


def about() -> About:
    return About((5,) * 10, {}, CPU, (3, 32, 32), 0, load_all)


def file_with(found: object) -> str:
    return json.dumps({"format": "robustbench-lite policies", "version": 1, "policies": found})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOLDEN.read_text()[:200], "is damaged or no JSON: export the policies again"),
        ("[" * 100_000, "is damaged or no JSON"),
        ("[1, 2]", "holds no policies: name a .policies.json that robust-train wrote"),
        ('{"accuracy": 0.9}', "holds no policies"),
        ('{"format": "robustbench-lite policies", "version": 2, "policies": []}', "of version 2, and version 1 is read here"),
        (file_with(None), "policies must be a list that is not empty, got null"),
        (file_with([]), "policies must be a list that is not empty"),
        (file_with([[]]), "a policy must be a list that is not empty"),
        (file_with([[["rotate", 3]]]), r'an operation must be \["name", magnitude\], got "rotate"'),
        (file_with([[[["rotate"]]]]), "an operation must be"),
        (file_with([[[["spin", 3]]]]), 'there is no operation "spin": take one of shear_x, '),
        (file_with([[[[["rotate"], 3]]]]), "there is no operation"),
        (file_with([[[["rotate", 10]]]]), "the magnitude of rotate must be a whole number in 0..9, got 10"),
        (file_with([[[["rotate", True]]]]), "the magnitude of rotate must be a whole number in 0..9, got true"),
        (file_with([[[["rotate", 3.0]]]]), "whole number in 0..9, got 3.0"),
        (file_with([[[["rotate", 3]], [["rotate", 3], ["invert", 0]]]]), "all sub-policies as many operations, as the first"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_a_line(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=said) as refused:
        Defenses.parse(f"policy:{file}").informed(about())
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_file_and_no_text_are_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the policies in .*/none\.json: No such file"):
        Policies.read(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is damaged or no JSON"):
        Policies.read(tmp_path / "binary.json")


# --- what a checkpoint says


@pytest.mark.parametrize("defense", ["aaa:copies=4", "policy:gone.json"])
@pytest.mark.parametrize("corruption", ["brightness", "contrast", "saturate"])
def test_a_model_trained_on_such_a_corruption_says_so_even_without_the_file(defense: str, corruption: str, tmp_path: Path) -> None:
    made = Made("digits_cnn", defense, "none", 10, 3, 32, None, "bilinear", (0.5,) * 3, (0.5,) * 3, "digits")
    save(made.untrained(), tmp_path / "model.safetensors", made, {})
    result = evaluate(str(tmp_path / "model.safetensors"), data="digits", corruptions=f"{corruption}:severity=1", limit=5)
    (note,) = [note for note in result.config["notes"] if "accuracy there is not on something new" in note]
    assert note.startswith(f"trained on adversarial-autoaugment, which does much the same as {corruption}")


def test_every_operation_that_repeats_a_corruption_is_among_those_warned_of() -> None:
    from robustbench_lite.overlap import NOTHING, POLICIES, SEEN

    known = {name.removesuffix("_x").removesuffix("_y") for name in OPERATIONS}
    assert known & SEEN.keys() == set(POLICIES["adversarial-autoaugment"])
    assert known - SEEN.keys() == {"invert", "sample_pairing", *(known & set(NOTHING))}
