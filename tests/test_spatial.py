"""Pictures turned, moved and tinted in the ways of a list: what is done, when an image came about by it, and the attacks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.errors import UsageError
from robustbench_lite.handling import DEGREES, MOVED, SHIFT, TINTED, moved, strength, tinted
from robustbench_lite.hsv import to_hsv
from robustbench_lite.listed import SAMPLE, Colour, Handling, Listed, Spatial
from robustbench_lite.threat import ball

Run = Callable[..., Any]


def whole(x: Tensor) -> Tensor:
    return torch.arange(x[0, 0].numel())


def shares(*values: float, count: int = 2) -> list[Tensor]:
    return [torch.full((count, 1), value) for value in values]


# --- what is done ----------------------------------------------------------------------------------------------------------


def test_the_lists_are_the_papers_and_begin_with_the_picture_as_it_is() -> None:
    assert (len(MOVED), len(TINTED), MOVED[0], TINTED[0]) == (775, 153, (0, 0, 0), (0, 0))
    assert (SHIFT * 28, SHIFT * 224) == (3, 24)
    for settings in (MOVED, TINTED):
        strengths = [strength(each) for each in settings]
        assert strengths == sorted(strengths)
        assert len(set(settings)) == len(settings)


@pytest.mark.parametrize(("right", "down"), [(1.0, 0.0), (0.0, -1.0), (-1 / 3, 2 / 3)])
def test_a_move_by_whole_pixels_brings_in_black(right: float, down: float) -> None:
    x = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    columns, rows = round(3 * right), round(3 * down)
    expected = torch.zeros_like(x)
    expected[..., max(rows, 0) : 28 + min(rows, 0), max(columns, 0) : 28 + min(columns, 0)] = x[
        ..., max(-rows, 0) : 28 + min(-rows, 0), max(-columns, 0) : 28 + min(-columns, 0)
    ]
    assert torch.allclose(moved(x, *shares(0.0, right, down), whole(x)).view_as(x), expected, atol=1e-5)


def test_a_turn_is_scipys_then_the_move() -> None:
    x = torch.from_numpy(
        ndimage.gaussian_filter(torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(5)).numpy(), (0, 0, 2, 2))
    )
    turned = torch.from_numpy(ndimage.rotate(x.numpy(), DEGREES * 0.4, axes=(3, 2), reshape=False, order=1, mode="constant"))
    made = moved(x, *shares(0.4, 1.0, 0.0), whole(x)).view_as(x)
    assert (made[..., 6:-6, 9:-3] - turned[..., 6:-6, 6:-6]).abs().max() < 1e-4


def test_some_pixels_are_those_of_the_whole() -> None:
    x = torch.rand(2, 3, 9, 12, generator=torch.Generator().manual_seed(1))
    some = torch.tensor([0, 5, 77, 107])
    for made in (lambda pixels: moved(x, *shares(0.3, -0.4, 1.0), pixels), lambda pixels: tinted(x, *shares(0.3, -0.4), pixels)):
        assert torch.equal(made(some), made(whole(x))[..., some])


def test_a_tint_turns_the_hues_and_leaves_value() -> None:
    x = 0.2 + 0.6 * torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    hue, saturation, value = to_hsv(x)
    new_hue, new_saturation, new_value = to_hsv(tinted(x, *shares(0.5, 0.1), whole(x)).view_as(x))
    turn = (new_hue - hue).remainder(1)
    assert torch.allclose(turn, torch.full_like(turn, 0.25), atol=1e-4)
    assert torch.allclose(new_saturation, (saturation + 0.1).clamp(0, 1), atol=1e-4)
    assert torch.allclose(new_value, value, atol=1e-5)


# --- the threats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["spatial", "colour"])
@pytest.mark.parametrize("eps", [1.0, 0.4])
def test_a_setting_is_inside_at_its_strength_and_nothing_else_is(norm: str, eps: float) -> None:
    threat = ball(norm, eps)
    assert isinstance(threat, Listed)
    numbers = torch.arange(0, len(threat.settings), len(threat.settings) // 11)
    x = torch.rand(len(numbers), 3, 12, 10, generator=torch.Generator().manual_seed(3))
    made = threat.made(x, numbers)
    distance = threat.distance(made, x)
    # two settings may give one picture (hues once round either way), and the weaker counts
    assert (distance <= torch.tensor([eps * strength(threat.settings[number]) for number in numbers]) + 1e-6).all()
    assert threat.contains(made, x).all()
    assert threat.contains(made.double(), x.double()).all()
    brute = torch.stack(
        [(threat.made(x, torch.full_like(numbers, n)) - made).abs().flatten(1).amax(1) for n in range(len(threat.settings))], 1
    )
    weakest = [eps * strength(threat.settings[int((row <= 1e-4).nonzero()[0])]) for row in brute]
    assert distance.tolist() == pytest.approx(weakest)
    spot = made.clone()
    spot[:, :, 4, 4] = (spot[:, :, 4, 4] + 0.5) % 1
    for other in (spot, torch.rand_like(x), made + 1.5):
        assert not threat.contains(other, x).any()
    assert torch.equal(threat.made(x[:2], torch.tensor([[3, 7], [1, 0]]))[1, 1], x[1])


def test_a_picture_with_any_one_pixel_changed_is_outside() -> None:
    side = 15
    assert side**2 > SAMPLE, "else the pixels that are looked at first are all there are"
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(6)).expand(side**2, -1, -1, -1)
    threat = Handling(torch.tensor(1.0))
    made = threat.made(x, torch.full((side**2,), 20))
    assert threat.contains(made, x).all()
    spot = torch.eye(side**2, dtype=torch.bool).view(-1, 1, side, side)
    assert not threat.contains(torch.where(spot, (made + 0.5) % 1, made), x).any()


def test_every_image_has_ranges_of_its_own(pictures: Any) -> None:
    x, numbers = pictures(2), torch.tensor([700, 700])
    threat = Spatial(torch.tensor([1.0, 0.5]))
    made = threat.made(x, numbers)
    assert torch.equal(made[1:], Spatial(torch.tensor(0.5)).made(x[1:], numbers[1:]))
    assert threat.contains(made, x).all()
    assert not threat.contains(Spatial(torch.tensor(1.0)).made(x, numbers), x)[1]


@pytest.mark.parametrize("norm", ["spatial", "colour"])
def test_more_than_the_whole_range_and_grey_pictures_are_refused(norm: str) -> None:
    with pytest.raises(UsageError, match=f"the whole range of {norm}"):
        ball(norm, 1.5)
    if norm == "colour":
        with pytest.raises(UsageError, match="no colours"):
            Colour(torch.tensor(1.0)).made(torch.rand(1, 1, 4, 4), torch.tensor([3]))


# --- the attacks -----------------------------------------------------------------------------------------------------------


class Fussy(nn.Module):
    """Wrong for a few pictures, found by their fingerprints."""

    def __init__(self, wrong: Tensor) -> None:
        super().__init__()
        self.wrong = wrong
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        apart = (x[:, None] - self.wrong).abs().flatten(2).amax(2).amin(1)
        return torch.stack([apart - 1e-3, 1e-3 - apart], 1)


@pytest.mark.parametrize(("spec", "norm"), [("spatial", "spatial"), ("colour", "colour")])
def test_all_of_the_list_is_tried(attack: Run, spec: str, norm: str) -> None:
    threat = ball(norm, 1.0)
    assert isinstance(threat, Listed)
    x = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(4))
    for number in (1, 25, len(threat.settings) // 2, len(threat.settings) - 1):
        wrong = threat.made(x, torch.tensor([number]))
        found = attack(Fussy(wrong), spec, x, norm=norm, eps=1.0, labels=torch.tensor([0]))[0]
        assert found.broken
        assert (found.image - wrong[0]).abs().max() < 1e-3
    never = attack(Fussy(torch.full_like(x, 2.0)), spec, x, norm=norm, eps=1.0, labels=torch.tensor([0]))[0]
    assert never.broken is False
    assert never.forwards >= len(threat.settings) - 1


def test_random_tries_are_so_many_and_keyed(attack: Run, net: Any, pictures: Any) -> None:
    x = pictures(12)
    runs = [attack(net(), "spatial:method=random,tries=4", x, norm="spatial", eps=1.0, batch_size=size) for size in (12, 1)]
    assert [f.broken for f in runs[0]] == [f.broken for f in runs[1]]
    assert max(f.steps for f in runs[0]) <= 4


@pytest.mark.slow
def test_what_tries_everything_leaves_nothing_to_doubt_and_a_few_tries_do() -> None:
    def trust(spec: str) -> Any:
        result = rb.evaluate("digits_standard", spec, "digits", limit=3, eps=0.1)
        (row,) = (c.name for c in result.conditions if c.kind == "attack")
        assert any(v.broken is False for v in result.of(row))
        return result.trust[row]

    assert not trust("spatial").missing
    assert trust("spatial:method=random,tries=2").missing


def test_a_run_finds_rotations_and_its_witnesses_hold(tmp_path: Path) -> None:
    result = rb.evaluate("digits_standard", ["spatial", "colour"], "digits", limit=4, out=tmp_path / "run", witnesses="all")
    assert [(c.norm, c.eps) for c in result.conditions if c.kind == "attack"] == [("spatial", 1.0), ("colour", 1.0)]
    assert any(v.broken and v.distance > 0 for v in result.of("spatial[spatial,1]"))
    assert rb.verify(tmp_path / "run").failures == []


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_what_foolbox_makes_of_the_settings_is_the_same_and_breaks_the_same_images(attack: Run) -> None:
    """Foolbox's own list is another one: it moves before it turns, so that at half of the range either breaks what the other leaves."""
    from distances import digits
    from eagerpy import astensor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its imports
        from foolbox.attacks.spatial_attack_transformations import rotate_and_shift

    model, x, labels = digits("digits_pgd_at", 10)
    eps, side = 0.5, x.shape[-1]  # at the whole range every image breaks
    threat, margins = Spatial(torch.tensor(eps)), []
    for number, (rotation, right, down) in enumerate(MOVED):
        angle = math.radians(DEGREES * eps * rotation)
        across, below = right * SHIFT * eps * side, down * SHIFT * eps * side
        back = (-across * math.cos(angle) + below * math.sin(angle), -across * math.sin(angle) - below * math.cos(angle))
        # its pixels are 1 / side of the distance between the middles of the outermost two
        peer = rotate_and_shift(astensor(x), tuple(each * side / (side - 1) for each in back), math.degrees(angle)).raw
        assert (threat.made(x, torch.full((len(x),), number)) - peer).abs().max() < 1e-4
        logits = model(peer)
        others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        margins.append(others - logits.gather(1, labels[:, None])[:, 0])
    most = torch.stack(margins).amax(0)
    ours = torch.tensor([f.broken is True for f in attack(model, "spatial", x, norm="spatial", eps=eps, labels=labels, batch_size=10)])
    assert most.abs().min() > 1e-3, "which are broken must not hang on rounding"
    assert torch.equal(ours, most > 0)
    assert 0 < int(ours.sum()) < len(x)
