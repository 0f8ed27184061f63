"""Few pixels: the threat `pixels`, and the two black boxes that use it."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.errors import UsageError
from robustbench_lite.labelled import from_arrays
from robustbench_lite.registry import ATTACKS
from robustbench_lite.threat import BALLS, ball


def changed(images: Tensor, x: Tensor) -> list[int]:
    return (images != x).any(1).flatten(1).sum(1).tolist()  # type: ignore[no-any-return]  # torch's


def test_a_pixel_counts_once_and_those_that_moved_most_are_kept(pictures: Any, streams: Any) -> None:
    origin = torch.full((1, 3, 2, 2), 0.5)
    x = origin.clone()
    x[0, :, 0, 0] += 0.2  # three values, 0.6 together
    x[0, 1, 1, 1] += 0.4
    x[0, 2, 0, 1] += 9  # the box leaves 0.5 of it
    threat = ball("pixels", 2)
    assert threat.distance(x, origin).tolist() == [3]
    made = threat.project(x, origin)
    assert torch.equal(made, x.clamp(0, 1).where(torch.tensor([[True, True], [False, False]]), origin))
    assert threat.contains(made, origin).tolist() == [True]
    assert threat.contains(x.clamp(0, 1), origin).tolist() == [False]
    assert torch.equal(threat.project(made, origin), made)

    many = pictures(20)
    each = BALLS["pixels"](torch.arange(20) % 5 + 1.0)
    noise = many + torch.randn(many.shape, generator=torch.Generator().manual_seed(0))
    for images in (each.project(noise, many), each.random_point(many, streams(20))):
        assert changed(images, many) == (torch.arange(20) % 5 + 1).tolist()
    step = each.ascent(noise, 1.0, torch.full_like(many, 0.5))
    assert changed(step, torch.zeros_like(step)) == (torch.arange(20) % 5 + 1).tolist()
    assert set(step.unique().tolist()) == {-1, 0, 1}


def test_half_a_pixel_is_refused() -> None:
    with pytest.raises(UsageError, match=r"eps of pixels counts pixels and must be whole, got 1\.5"):
        ball("pixels", 1.5)


class Tilted(nn.Module):
    """Two classes by one weight a value; grey images are the first by `height`."""

    def __init__(self, height: float, side: int = 4) -> None:
        super().__init__()
        self.weight, self.height = torch.randn(3, side, side, generator=torch.Generator().manual_seed(2)), height
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        gap = self.height - ((x - 0.5) * self.weight).flatten(1).sum(1)
        return torch.stack([gap, -gap], 1)


@pytest.mark.parametrize("spec", ["sparse-rs:queries=600", "one-pixel:population=100,at_once=100,generations=40"])
@pytest.mark.parametrize("count", [1, 3])
def test_on_a_linear_model_they_reach_the_optimum_and_not_more(attack: Any, spec: str, count: int) -> None:
    best = 0.5 * float(Tilted(0).weight.abs().sum(0).flatten().topk(count).values.sum())
    x = torch.full((4, 3, 4, 4), 0.5)
    for share, expected in ((0.97 if count == 1 or "sparse" in spec else 0.8, True), (1.001, False)):
        found = attack(Tilted(share * best), spec, x, norm="pixels", eps=float(count))
        assert [f.broken for f in found] == [expected] * 4


def exhaustively(model: nn.Module, x: Tensor, labels: Tensor) -> list[bool]:
    """Whether some pixel, set to some corner of the colours, breaks an image: all of them are tried."""
    broken = []
    for image, label in zip(x, labels, strict=True):
        tried = []
        for row, column, colour in product(range(x.shape[2]), range(x.shape[3]), product((0.0, 1.0), repeat=3)):
            made = image.clone()
            made[:, row, column] = torch.tensor(colour)
            tried.append(made)
        broken.append(bool((model(torch.stack(tried)).argmax(1) != label).any()))
    return broken


@pytest.mark.parametrize("spec", ["sparse-rs:queries=700", "one-pixel:population=60,at_once=60,generations=24"])
def test_one_pixel_is_found_nearly_wherever_there_is_one(attack: Any, net: Any, pictures: Any, spec: str) -> None:
    model, x = net(), pictures(20)
    there = exhaustively(model, x, model(x).argmax(1))
    found = [bool(f.broken) for f in attack(model, spec, x, norm="pixels", eps=1.0)]
    assert 0 < sum(there) < 20
    assert sum(found) >= 0.9 * sum(there)


def test_they_ask_as_often_as_they_say(attack: Any, net: Any, pictures: Any) -> None:
    for spec, forwards in (("sparse-rs:queries=9,restarts=2", 22), ("one-pixel:population=7,at_once=3,generations=2", 28)):
        (found,) = attack(lambda x: 9 * torch.eye(4)[0] + 0 * x.sum((1, 2, 3))[:, None], spec, pictures(1), norm="pixels", eps=2.0)
        assert (found.broken, found.forwards) == (False, forwards)


def test_every_pixel_may_change() -> None:
    x, labels = torch.full((6, 3, 4, 4), 0.5), torch.zeros(6, dtype=torch.long)
    for spec in ("sparse-rs:queries=40", "one-pixel:population=8,at_once=8,generations=3"):
        assert rb.evaluate(Tilted(0.1), spec, from_arrays(x, labels, "grey"), norm="pixels", eps=99).table.accuracy.min() == 0


def test_one_pixel_wants_as_many_pixels_in_every_image(pictures: Any) -> None:
    class Door:
        origin, threat = pictures(2), BALLS["pixels"](torch.tensor([1.0, 2.0]))

    with pytest.raises(UsageError, match="use sparse-rs"):
        ATTACKS.build("one-pixel").start(Door(), None)


@pytest.mark.peers
@pytest.mark.parametrize("count", [1, 3])
def test_they_break_as_many_as_torchattacks_with_as_many_queries(attack: Any, net: Any, pictures: Any, count: int) -> None:
    peers = pytest.importorskip("torchattacks")
    np.random.seed(0)  # noqa: NPY002  # what the peer draws from
    model, x = net(), pictures(120)
    labels = model(x).argmax(1)
    made = peers.OnePixel(model, pixels=count, steps=10, popsize=40, inf_batch=500)(x, labels)
    theirs = int((model(made).argmax(1) != labels).sum())
    queries = 40 // (5 * count) * 5 * count * 11  # that it may spend on an image: of members a multiple of the values of one
    for spec in (f"one-pixel:population=100,at_once=100,generations={queries // 100 - 1}", f"sparse-rs:queries={queries}"):
        assert sum(bool(f.broken) for f in attack(model, spec, x, norm="pixels", eps=float(count))) >= theirs
