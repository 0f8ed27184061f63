"""The four balls: projections against references of another make, containment, steps and draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustbench_lite.errors import UsageError
from robustbench_lite.streams import Streams
from robustbench_lite.threat import BALLS, L0, L1, L2, Ball, Linf, ball

SIZES = {"linf": (1e-6, 0.03, 0.3, 1.0), "l2": (1e-5, 0.1, 2.0, 1e4), "l1": (1e-5, 0.5, 10.0, 1e5), "l0": (1.0, 3.0, 11.0, 1e6)}
NORMS = ("linf", "l2", "l1", "l0")  # the others: test_patches.py, test_pixels.py, test_clumsy.py
LENGTH = {
    "linf": lambda d: np.abs(d).max(1),
    "l2": lambda d: np.sqrt((d**2).sum(1)),
    "l1": lambda d: np.abs(d).sum(1),
    "l0": lambda d: (d != 0).sum(1),
}


def flat(x: Tensor) -> np.ndarray:
    return x.flatten(1).double().numpy()


def lengths(norm: str, delta: Tensor) -> np.ndarray:
    return LENGTH[norm](flat(delta))


@st.composite
def situations(draw: st.DrawFn, norm: str) -> tuple[Ball, Tensor, Tensor]:
    """A ball with an eps for all rows or one per row, origins with saturated pixels, and points near, far and outside the box."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows = draw(st.integers(1, 3))
    shape = (rows, draw(st.integers(1, 3)), draw(st.integers(1, 4)), 3)
    origin = (torch.rand(shape, generator=generator) * 1.6 - 0.3).clamp(0, 1)
    sizes = st.sampled_from(SIZES[norm])
    eps = torch.tensor([draw(sizes) for _ in range(rows)]) if draw(st.booleans()) else torch.tensor(draw(sizes))
    far = draw(st.sampled_from((0.0, 1e-6, 0.1, 1.0, 30.0)))
    # l1: a soft threshold in float32 is good to some 1e-7 of how far x is off, so that is bounded in eps, as it is in an attack
    scale = far * eps.expand(rows).view(-1, 1, 1, 1) if norm == "l1" else far
    x = origin + scale * torch.randn(shape, generator=generator)
    return BALLS[norm](eps), x, origin


def with_situations(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("norm", NORMS)(given(st.data())(test))


@with_situations
def test_a_projection_lies_in_the_ball_and_in_the_box_and_stays(norm: str, data: st.DataObject) -> None:
    threat, x, origin = data.draw(situations(norm))
    before = x.clone(), origin.clone()
    projected = threat.project(x, origin)
    assert torch.equal(x, before[0])
    assert torch.equal(origin, before[1])
    assert projected.min() >= 0
    assert projected.max() <= 1
    assert (
        lengths(norm, projected.double() - origin.double()) <= np.broadcast_to(threat.eps.double().numpy() * 1.00001 + 1e-7, len(x))
    ).all()
    assert threat.contains(projected, origin).all()
    assert (threat.project(projected, origin) - projected).abs().max() <= 1e-6


@with_situations
def test_a_member_of_ball_and_box_is_left_alone(norm: str, data: st.DataObject) -> None:
    threat, x, origin = data.draw(situations(norm))
    delta = x.clamp(0, 1) - origin
    size = torch.as_tensor(lengths(norm, delta)).clamp(min=1e-30)
    if norm == "l0":
        keep = torch.arange(delta[0].numel()) < threat.eps.expand(len(x))[:, None]
        delta = (delta.flatten(1) * keep).view_as(delta)
    else:
        delta = delta * (0.99 * threat.eps.expand(len(x)).double() / size).clamp(max=1).float().view(-1, 1, 1, 1)
    member = (origin + delta).clamp(0, 1)
    assert (threat.project(member, origin) - member).abs().max() <= 1e-6


def nearest_in_l1_ball_and_box(x: np.ndarray, origin: np.ndarray, eps: float) -> np.ndarray:
    """By halving, in float64: every value gives up the same amount of its move, and keeps at most its room in the box."""
    delta = x.astype(float) - origin.astype(float)
    room = np.where(delta > 0, 1 - origin, origin)
    low, high = 0.0, float(np.abs(delta).max())

    def kept(amount: float) -> np.ndarray:
        return np.minimum(np.maximum(np.abs(delta) - amount, 0), room)

    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle).sum() > eps else (low, middle)
    return origin + np.sign(delta) * kept(0.0 if kept(0.0).sum() <= eps else high)


@given(st.integers(0, 2**31), st.floats(1e-4, 40), st.integers(1, 60), st.sampled_from((0.01, 1.0, 30.0)))
def test_the_l1_projection_is_the_nearest_point_of_ball_and_box(seed: int, eps: float, size: int, far: float) -> None:
    random = np.random.default_rng(seed)
    origin = (random.random(size) * 1.6 - 0.3).clip(0, 1).astype(np.float32)
    x = (origin + far * random.normal(size=size)).astype(np.float32)
    expected = nearest_in_l1_ball_and_box(x, origin, float(np.float32(eps)))
    projected = L1(torch.tensor(eps)).project(torch.from_numpy(x).view(1, 1, 1, -1), torch.from_numpy(origin).view(1, 1, 1, -1))
    assert np.abs(projected.numpy().ravel() - expected).max() <= 2e-6 * max(1, far)


@pytest.mark.parametrize("far", [0.1, 1.0, 30.0])
def test_the_l1_projection_uses_the_whole_ball_at_the_size_of_real_images(far: float) -> None:
    generator = torch.Generator().manual_seed(0)
    origin = torch.rand(2, 3, 224, 224, generator=generator)
    x = origin + far * torch.randn(origin.shape, generator=generator)
    for eps in (12.0, 3000.0):
        projected = ball("l1", eps).project(x, origin)
        assert lengths("l1", projected - origin) == pytest.approx(eps, rel=1e-5)
        assert ball("l1", eps).contains(projected, origin).all()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5), ("l1", 3.0), ("l0", 9.0)])
def test_surface_points_differ_and_lie_at_the_edge_of_the_ball(norm: str, eps: float, streams: Callable[..., Streams]) -> None:
    origin = torch.full((50, 3, 6, 6), 0.5)
    points = ball(norm, eps).surface_point(origin, streams(50))
    assert lengths(norm, points - origin) == pytest.approx(eps, rel=1e-5)
    assert len(np.unique(flat(points), axis=0)) == 50
    assert abs(float((points - origin).mean())) < 0.02 * eps
    assert torch.equal(ball(norm, eps).surface_point(origin[:3], streams(3)), points[:3])


@given(st.integers(0, 2**31), st.floats(1e-3, 20))
def test_the_other_projections_equal_their_closed_forms(seed: int, eps: float) -> None:
    random = np.random.default_rng(seed)
    delta = random.normal(size=(2, 12))
    x, origin = torch.tensor(0.5 + 0.01 * delta).view(2, 1, 3, 4).float(), torch.full((2, 1, 3, 4), 0.5)
    radius = torch.tensor(eps / 1000)
    norm = np.linalg.norm(0.01 * delta, axis=1, keepdims=True)
    expected = 0.5 + 0.01 * delta * np.minimum(1, float(radius) / norm)
    assert np.abs(flat(L2(radius).project(x, origin)) - expected).max() <= 1e-6
    assert np.abs(flat(Linf(radius).project(x, origin)) - (0.5 + np.clip(0.01 * delta, -float(radius), float(radius)))).max() <= 1e-6
    count = random.integers(1, 12)
    kept = np.argsort(np.argsort(-np.abs(delta), axis=1), axis=1) < count
    assert np.abs(flat(L0(torch.tensor(float(count))).project(x, origin)) - (0.5 + 0.01 * delta * kept)).max() <= 1e-6


def test_l0_spends_nothing_on_values_that_the_box_holds_back() -> None:
    origin = torch.tensor([1.0, 0.0, 0.4, 0.6]).view(1, 1, 2, 2)
    x = torch.tensor([3.0, -2.0, 0.5, 0.9]).view(1, 1, 2, 2)
    assert L0(torch.tensor(1.0)).project(x, origin).flatten().tolist() == pytest.approx([1.0, 0.0, 0.4, 0.9])


@pytest.mark.parametrize(("norm", "eps"), [("linf", 4 / 255), ("l2", 0.5), ("l1", 12.0), ("l0", 100.0)])
def test_projections_hold_at_the_size_of_real_images(norm: str, eps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    origin = torch.rand(2, 3, 224, 224, generator=generator)
    threat = ball(norm, eps)
    projected = threat.project(origin + torch.randn(origin.shape, generator=generator), origin)
    assert threat.contains(projected, origin).all()
    assert (lengths(norm, projected - origin) >= 0.5 * eps).all()


@with_situations
def test_random_points_are_contained_and_do_not_depend_on_the_batch(norm: str, data: st.DataObject) -> None:
    threat, _, origin = data.draw(situations(norm))
    draw = Streams(data.draw(st.integers(0, 9)), "c", [(str(i), 0) for i in range(len(origin))], None, torch.device("cpu"))
    points = threat.random_point(origin, draw)
    assert threat.contains(points, origin).all()
    alone = Streams(draw.seed, "c", [("0", 0)], None, torch.device("cpu"))
    assert torch.equal(threat.take(slice(0, 1)).random_point(origin[:1], alone), points[:1])


@pytest.mark.parametrize("norm", NORMS)
def test_random_points_differ_and_use_the_ball(norm: str, streams: Callable[..., Streams]) -> None:
    origin = torch.full((200, 3, 6, 6), 0.5)
    eps = {"linf": 0.2, "l2": 0.4, "l1": 0.5, "l0": 9.0}[norm]
    points = ball(norm, eps).random_point(origin, streams(200))
    size = lengths(norm, points - origin)
    assert len(np.unique(flat(points), axis=0)) == 200
    assert size.max() > 0.9 * eps
    if norm in ("l2", "l1"):  # the radius is uniform
        assert abs(size.mean() / eps - 0.5) < 0.07
    assert abs(float((points - origin).mean())) < 0.02 * eps


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_step_has_its_length_and_a_zero_gradient_moves_nothing(norm: str, share: float) -> None:
    eps = torch.tensor([2.0, 8.0])
    gradient = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    step = BALLS[norm](eps).ascent(gradient, share, torch.full_like(gradient, 0.5))
    assert lengths(norm, step) == pytest.approx(share * eps.numpy(), rel=1e-5)
    assert (step * gradient >= 0).all()
    assert not BALLS[norm](eps).ascent(torch.zeros_like(gradient), share, gradient).any()


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-42])
def test_no_step_of_unit_length_climbs_faster(scale: float) -> None:
    gradient = scale * torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(2))
    size = gradient / gradient.abs().amax()
    climbed = {norm: (BALLS[norm](torch.tensor(1.0)).steepest(gradient) * size).flatten(1).sum(1) for norm in ("linf", "l2", "l1", "l0")}
    assert climbed["linf"].tolist() == pytest.approx(size.flatten(1).abs().sum(1).tolist(), rel=1e-3)
    assert climbed["l2"].tolist() == pytest.approx(size.flatten(1).norm(dim=1).tolist(), rel=1e-3)
    assert climbed["l1"].tolist() == pytest.approx(size.flatten(1).abs().amax(1).tolist(), rel=1e-3)
    assert climbed["l0"].tolist() == pytest.approx(size.flatten(1).abs().amax(1).tolist(), rel=1e-3)


@pytest.mark.parametrize(("norm", "inside", "outside"), [("linf", 0.1, 0.1001), ("l2", 0.1, 0.1001), ("l1", 0.1, 0.1001), ("l0", 1, 2)])
def test_what_is_just_outside_is_refused(norm: str, inside: float, outside: float) -> None:
    origin = torch.full((1, 1, 2, 2), 0.5)

    def at(distance: float) -> Tensor:
        x = origin.clone()
        if norm == "l0":
            x.view(-1)[: int(distance)] += 0.3
        else:
            x.view(-1)[0] += distance
        return x

    threat = ball(norm, inside)
    assert threat.contains(at(inside), origin).tolist() == [True]
    assert threat.contains(at(outside), origin).tolist() == [False]
    assert threat.distance(at(inside), origin).tolist() == pytest.approx([inside], rel=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("start", "end"), [(1.0, 1.000001), (0.0, -1e-6), (0.5, float("nan"))])
def test_what_is_no_image_is_refused(norm: str, start: float, end: float) -> None:
    origin = torch.full((1, 1, 2, 2), start)
    x = origin.clone()
    x[0, 0, 0, 0] = end
    assert ball(norm, 1.0).contains(x, origin).tolist() == [False]
    assert ball(norm, 1.0).contains(origin, origin).tolist() == [True]


@pytest.mark.parametrize(
    ("norm", "eps", "message"),
    [
        ("linf", 0.0, "must be positive and finite, got 0"),
        ("l2", -1.0, "must be positive and finite, got -1"),
        ("l1", float("nan"), "must be positive and finite, got nan"),
        ("l0", float("inf"), "must be positive and finite, got inf"),
        ("linf", 8.0, "write 8/255 and not 8"),
        ("l0", 2.5, "must be whole, got 2.5"),
        ("l2 ", 0.5, "unknown norm 'l2 ': did you mean 'l2'"),
        ("Linf", 0.5, "did you mean 'linf'"),
        ("wave", 0.5, "there is: colour, flow, handling, l0, l1, l2, linf, patch, pixels, spatial"),
    ],
)
def test_what_is_no_ball_is_refused_with_what_to_do(norm: str, eps: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ball(norm, eps)
