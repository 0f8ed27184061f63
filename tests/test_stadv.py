"""Flows: what they do to a picture, when an image came about by one, and StAdv, which looks for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distances import MODELS, digits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import robustbench_lite as rb
from robustbench_lite.errors import UsageError
from robustbench_lite.flows import LATTICE, Flow
from robustbench_lite.registry import ATTACKS
from robustbench_lite.threat import ball

Run = Callable[..., Any]
roughness = __import__("robustbench_lite.attacks.stadv", fromlist=["roughness"]).roughness


def flows(count: int, side: int, farthest: float, seed: int = 0) -> Tensor:
    """On the lattice."""
    drawn = torch.rand(count, 2, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return (drawn * farthest * LATTICE).round() / LATTICE


# --- the threat ------------------------------------------------------------------------------------------------------------


def test_a_warp_is_grid_samples(pictures: Any) -> None:
    x, flow = pictures(3), flows(3, 8, 2.0)
    row, column = torch.arange(8)[:, None] + flow[:, 0], torch.arange(8) + flow[:, 1]
    grid = torch.stack([(2 * column + 1) / 8 - 1, (2 * row + 1) / 8 - 1], -1)
    expected = functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    assert torch.allclose(ball("flow", 2.0).warped(x, flow), expected, atol=1e-5)  # type: ignore[attr-defined]


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), eighths=st.integers(1, 16))
def test_every_flow_of_the_lattice_is_inside_at_its_size_at_most(seed: int, eighths: int) -> None:
    x = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    size = eighths / LATTICE
    flow = flows(2, 6, size, seed)[..., :5, :]
    threat = Flow(torch.tensor(size))
    made = threat.warped(x, flow)
    distance = threat.distance(made, x)
    assert (distance <= flow.abs().flatten(1).amax(1) + 1e-6).all()
    assert threat.contains(made, x).all()
    assert threat.contains(made.double(), x.double()).all()


def test_the_distance_is_that_of_the_pixel_that_needs_most(pictures: Any) -> None:
    x, flow = pictures(2), torch.zeros(2, 2, 8, 8)
    flow[0, 0, 3, 4], flow[1, 1, 2, 2] = 1.25, -0.5
    made = ball("flow", 2.0).warped(x, flow)  # type: ignore[attr-defined]
    assert ball("flow", 2.0).distance(made, x).tolist() == [1.25, 0.5]
    assert ball("flow", 1.0).contains(made, x).tolist() == [False, True]
    own = Flow(torch.tensor([1.25, 0.25]))
    assert own.contains(made, x).tolist() == [True, False]
    assert own.distance(made, x).tolist() == [1.25, torch.inf]
    with pytest.raises(UsageError, match="eighths of a pixel"):
        Flow(torch.tensor([1.25, 0.1])).distance(made, x)


def test_other_images_are_outside(pictures: Any) -> None:
    x = pictures(4)
    assert not ball("flow", 2.0).contains(torch.rand_like(x), x).any()
    brighter = (x + 0.3).clamp(0, 1)
    assert not ball("flow", 2.0).contains(brighter, x).any()


def test_random_flows_are_inside_and_keyed(pictures: Any, streams: Any) -> None:
    x, threat = pictures(4), ball("flow", 1.5)
    for made in (threat.random_point(x, streams(4)), threat.edge_point(x, streams(4))):
        assert threat.contains(made, x).all()
        assert (threat.distance(made, x) > 1).all()
    assert torch.equal(threat.random_point(x[:2], streams(2)), threat.random_point(x, streams(4))[:2])


@pytest.mark.parametrize(("eps", "words"), [(9.0, "at most 8"), (0.0, "must be positive"), (0.1, "at least 0.125")])
def test_an_eps_that_is_none(eps: float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ball("flow", eps)


# --- the attack ------------------------------------------------------------------------------------------------------------


class Middle(nn.Module):
    """Class 1 where the middle column is brighter than `limit`."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        over = x[..., 4].mean((1, 2)) - self.limit
        return torch.stack([-over, over], 1)


def test_it_moves_what_can_be_moved_and_no_farther(attack: Run) -> None:
    x = torch.zeros(1, 1, 9, 9)
    x[..., 3] = 1.0  # beside the middle: half of it is reached by half a pixel
    assert attack(Middle(0.45), "stadv:steps=30", x, norm="flow", eps=0.5)[0].broken
    found = attack(Middle(0.55), "stadv:steps=30", x, norm="flow", eps=0.5)[0]
    assert (found.broken, found.margin > -0.2) == (False, True)


class Brighter(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1) - 2.0
        return torch.stack([-mean, mean], 1)


def test_where_the_slope_is_the_same_everywhere_every_step_goes_as_far(streams: Any) -> None:
    from robustbench_lite.criteria import Misclassified
    from robustbench_lite.oracle import Case, Ledger
    from robustbench_lite.passes import Passes

    x = torch.linspace(0, 1, 8).expand(2, 1, 8, 8).contiguous()  # brighter to the right, by as much everywhere
    model, rule, made = Brighter(), Misclassified(torch.zeros(2, dtype=torch.long)), ATTACKS.build("stadv:steps=5,tau=0")
    case = Case(x, Flow(torch.tensor([1.0, 0.5])), rule, rule, torch.full((2,), -1), torch.zeros(2, dtype=torch.long))
    oracle = made.access(Passes(model), case, Ledger.opened(x, model(x)))
    state = begun = made.start(oracle, streams(2))
    for step in range(5):
        state = made.step(oracle, state, streams(2, step=step))
    went = state.flow - begun.flow
    assert torch.equal(went[:, 0], torch.zeros(2, 8, 8))  # up and down, all is the same
    expected = torch.tensor([0.5, 0.25])[:, None, None].expand(2, 8, 6)  # five tenths of eps
    assert torch.allclose(went[:, 1, :, 1:-1], expected, atol=1e-4)


def test_the_same_whatever_the_batch(attack: Run, net: Any, pictures: Any) -> None:
    x = pictures(7)
    together, alone = (attack(net(), "stadv:steps=8", x, norm="flow", eps=0.5, batch_size=size) for size in (7, 1))
    assert [f.broken for f in together] == [f.broken for f in alone]
    assert all(torch.allclose(a.image, b.image, atol=1e-4) for a, b in zip(together, alone, strict=True))


def test_roughness_counts_neighbours_and_its_weight_smooths(net: Any, pictures: Any, streams: Any) -> None:
    flow = torch.zeros(1, 2, 4, 4)
    flow[0, :, 1, 1] = torch.tensor([3.0, 4.0])
    assert float(roughness(flow)) == pytest.approx(4 * 5 / 16, abs=1e-4)

    from robustbench_lite.criteria import Misclassified
    from robustbench_lite.oracle import Case, Ledger
    from robustbench_lite.passes import Passes

    model, x = net(), pictures(6)
    rule, left = Misclassified(model(x).argmax(1)), []
    for tau in (0.0, 50.0):
        made = ATTACKS.build(f"stadv:steps=12,tau={tau}")
        case = Case(x, ball("flow", 1.0), rule, rule, torch.full((6,), -1), torch.zeros(6, dtype=torch.long))
        oracle = made.access(Passes(model), case, Ledger.opened(x, model(x)))
        state = made.start(oracle, streams(6))
        for step in range(made.steps):
            state = made.step(oracle, state, streams(6, step=step))
            assert oracle.threat.contains(state.x, x).all()
        left.append(roughness(state.flow))
    assert (left[1] < 0.5 * left[0]).all()


def test_a_run_and_its_witnesses(tmp_path: Path) -> None:
    result = rb.evaluate("digits_standard", "stadv:steps=25", "digits", limit=4, out=tmp_path / "run")
    assert [(c.norm, c.eps) for c in result.conditions if c.kind == "attack"] == [("flow", 1.0)]
    assert sum(bool(v.broken) for v in result.of("stadv:steps=25[flow,1]")) >= 3
    assert rb.verify(tmp_path / "run").failures == []


@pytest.mark.slow
@pytest.mark.parametrize(("model", "eps", "least"), [(MODELS[0], 0.5, 30), (MODELS[1], 1.0, 30)])
def test_it_breaks_far_more_than_random_flows(attack: Run, streams: Any, model: str, eps: float, least: int) -> None:
    net, x, labels = digits(model, 50)
    found = attack(net, "stadv", x, norm="flow", eps=eps, labels=labels, batch_size=50)
    threat, fallen = ball("flow", eps), torch.zeros(50, dtype=torch.bool)
    for seed in range(20):
        for made in (threat.random_point(x, streams(50, seed)), threat.edge_point(x, streams(50, seed))):
            fallen |= net(made).argmax(1) != labels
    assert sum(bool(f.broken) for f in found) >= max(least, 5 * int(fallen.sum()))
