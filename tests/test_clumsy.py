"""The clumsy attacker: what handling does to a picture, when an image came about by it, and the attack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite import handling
from robustbench_lite.errors import UsageError
from robustbench_lite.handling import HANDLED as SETTINGS
from robustbench_lite.handling import strength
from robustbench_lite.threat import Handling, ball


def smooth(count: int, *shape: int) -> Tensor:
    """Pictures without edges, on which two ways of resampling agree."""
    noise = torch.rand(count, *shape, generator=torch.Generator().manual_seed(5)).numpy()
    blurred = ndimage.gaussian_filter(noise, (0, 0, 2, 2))
    return torch.from_numpy((blurred - blurred.min()) / (blurred.max() - blurred.min()))


def handled(x: Tensor, rotation: Tensor, brightness: Tensor) -> Tensor:
    return handling.handled(x, rotation[:, None], brightness[:, None], torch.arange(x[0, 0].numel())).view_as(x)


@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 20, 30), (3, 30, 20)])
@pytest.mark.parametrize("share", [-1.0, 0.25, 1.0])
def test_a_rotation_is_scipys_and_brings_in_black(shape: tuple[int, ...], share: float) -> None:
    x = smooth(2, *shape)
    turned = handled(x, torch.full((2,), share), torch.zeros(2))
    expected = ndimage.rotate(x.numpy(), 30 * share, axes=(3, 2), reshape=False, order=1, mode="constant")
    ones = ndimage.rotate(torch.ones(shape[1:]).numpy(), 30 * share, reshape=False, order=1, mode="constant")
    inside = torch.from_numpy(ndimage.binary_erosion(ones > 0.99))
    assert inside.float().mean() > 0.4
    assert (turned - torch.from_numpy(expected))[..., inside].abs().max() < 1e-4
    if abs(share) == 1:
        assert (turned[..., 0, 0] == 0).all()


def test_brightness_is_added_and_stays_in_the_box_and_the_first_setting_is_the_picture_itself() -> None:
    x = smooth(2, 1, 8, 8)
    brighter = handled(x, torch.zeros(2), torch.tensor([1.0, -0.5]))
    assert torch.allclose(brighter[0], (x[0] + 0.2).clamp(0, 1))
    assert torch.allclose(brighter[1], (x[1] - 0.1).clamp(0, 1))
    assert SETTINGS[0] == (0, 0)
    assert len(set(SETTINGS)) == 45
    assert torch.equal(Handling(torch.tensor(1.0)).made(x, torch.zeros(2, dtype=torch.long)), x)


@pytest.mark.parametrize("eps", [1.0, 0.3])
def test_every_setting_is_contained_at_its_strength_and_nothing_else_is(eps: float, pictures: Callable[..., Tensor]) -> None:
    x, threat = pictures(len(SETTINGS)), ball("handling", eps)
    made = threat.made(x, torch.arange(len(SETTINGS)))  # type: ignore[attr-defined]
    assert threat.contains(made, x).all()
    assert threat.contains(made.double(), x.double()).all()
    assert threat.distance(made, x).tolist() == pytest.approx([eps * strength(each) for each in SETTINGS])
    between = handled(x, torch.full((45,), 0.9 * eps), torch.zeros(45))
    one_pixel = made.clone()
    one_pixel[:, 0, 3, 3] = (one_pixel[:, 0, 3, 3] + 0.5) % 1
    for other in (between, one_pixel, torch.rand_like(x), made + 1.5):
        assert not threat.contains(other, x).any()
    assert not ball("handling", eps / 2).contains(made[-1:], x[-1:]).any()


def test_projection_and_random_points_are_settings(pictures: Callable[..., Tensor], streams: Any) -> None:
    x, threat = pictures(20), ball("handling", 1.0)
    for point in (threat.random_point(x, streams(20)), threat.project(torch.rand_like(x), x)):
        assert threat.contains(point, x).all()
    made = threat.random_point(x, streams(20))
    noisy = made + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(threat.project(noisy, x), made)
    assert len(set(threat.distance(made, x).tolist())) > 2
    assert torch.equal(threat.random_point(x[:3], streams(3)), made[:3])


@pytest.mark.parametrize(("eps", "message"), [(1.5, "whole range of handling"), (0.0, "must be positive")])
def test_more_than_the_whole_range_is_refused(eps: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ball("handling", eps)


class Dark(nn.Module):
    """Class 1 where the image's middle is darker than `limit`."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        away = self.limit - x[:, :, 3:5, 3:5].flatten(1).mean(1)
        return torch.stack([-away, away], 1) * 10


def test_it_finds_exactly_what_the_list_of_settings_holds(attack: Any) -> None:
    x = torch.full((3, 1, 8, 8), 0.5)
    for limit, eps, broken in ((0.31, 1.0, True), (0.29, 1.0, False), (0.41, 0.5, True), (0.39, 0.5, False)):
        found = attack(Dark(limit), "clumsy", x, norm="handling", eps=eps)
        assert [f.broken for f in found] == [broken] * 3
        if not broken:
            assert {f.forwards for f in found} == {45}
    (weakest, *_) = attack(Dark(0.41), "clumsy", x, norm="handling", eps=1.0)
    assert weakest.distance == pytest.approx(0.5)


def test_on_digits_witnesses_hold_and_a_smaller_range_breaks_less(tmp_path: Path) -> None:
    result = rb.evaluate("digits_standard", "clumsy", data="digits", limit=20, eps=[0.25, 1.0], out=tmp_path, witnesses="all")
    small, large = (row.accuracy for row in result.table.itertuples() if row.kind == "attack")
    assert large < small - 0.2
    checked = rb.verify(tmp_path)
    assert checked.holding > 10
    assert not checked.failures
