"""FAB, and the steps to planes that it takes: against linear programs, closed forms and pyautoattack."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.criteria import Binary, Criterion, Misclassified, MultiLabel, OrdinalShift, Targeted
from robustbench_lite.judge import Judge
from robustbench_lite.oracle import Case, Ledger, WhiteBox
from robustbench_lite.passes import Passes
from robustbench_lite.plan import Finding, Plan, Subject
from robustbench_lite.planes import length, step_to_plane
from robustbench_lite.registry import ATTACKS
from robustbench_lite.scheduler import run
from robustbench_lite.threat import ball

Run = Callable[..., list[Finding]]
NORMS = ("linf", "l2", "l1")
each_norm = pytest.mark.parametrize("norm", NORMS)


# --- steps to planes -------------------------------------------------------------------------------------------------------


def least_length(x: np.ndarray, weight: np.ndarray, height: float, norm: str) -> float:
    """How long the shortest step from x to the plane is, by a linear program or, in l2, by the root of its dual."""
    count = len(x)
    if norm == "l2":
        moved = lambda rate: np.clip(-rate * weight, -x, 1 - x)  # noqa: E731
        edge = 1e9 * -np.sign(-height)
        return float(np.linalg.norm(moved(brentq(lambda rate: height + weight @ moved(rate), -edge, edge, xtol=1e-300, maxiter=10_000))))
    bounds = [(-a, 1 - a) for a in x]
    if norm == "linf":  # minimise s where every |step| <= s
        eye, one = np.eye(count), np.ones((count, 1))
        solved = linprog(
            [0.0] * count + [1.0],
            np.block([[eye, -one], [-eye, -one]]),
            np.zeros(2 * count),
            [[*weight, 0.0]],
            [-height],
            [*bounds, (0, 1)],
        )
    else:  # step = up - down
        solved = linprog(
            [1.0] * (2 * count), None, None, [[*weight, *-weight]], [-height], [(0, b) for _, b in bounds] + [(0, -a) for a, _ in bounds]
        )
    assert solved.success
    return float(solved.fun)


VALUES = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1, width=16))
WEIGHTS = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-2, 2, width=16))
PLANES = st.lists(st.tuples(VALUES, WEIGHTS), min_size=1, max_size=12)


@each_norm
@given(plane=PLANES, share=st.floats(0.01, 0.98), side=st.sampled_from([-1.0, 1.0]), scale=st.sampled_from([1e-12, 1.0, 1e6]))
def test_no_step_to_the_plane_is_shorter(norm: str, plane: list[tuple[float, float]], share: float, side: float, scale: float) -> None:
    x, weight = (torch.tensor(column, dtype=torch.float64) for column in zip(*plane, strict=True))
    room = torch.where(side * weight > 0, x, torch.where(weight == 0, 0.0, 1 - x))
    reach = float((weight.abs() * room).sum())
    for height in (share * reach, 1.5 * reach):  # the plane meets the box, and does not
        step = step_to_plane(
            x.view(1, 1, 1, -1), scale * weight.view(1, 1, 1, -1), torch.tensor([side * scale * height], dtype=torch.float64), norm
        )[0, 0, 0]
        assert ((x + step >= 0) & (x + step <= 1)).all()
        assert (step[weight == 0] == 0).all()
        if height > reach or reach == 0:
            assert torch.allclose(step, -side * weight.sign() * room if height > 0 else torch.zeros_like(step), atol=1e-12)
        else:
            assert side * height + float(weight @ step) == pytest.approx(0, abs=1e-9)
            assert float(length(step, norm)) == pytest.approx(least_length(x.numpy(), weight.numpy(), side * height, norm), abs=1e-7)


def planes(count: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images, normals with a tenth of zeros, and heights on both sides, from near to nearly out of reach."""
    draw = torch.Generator().manual_seed(seed)
    x = (torch.rand(count, 3, 16, 16, generator=draw) * 1.25 - 0.125).clamp(0, 1).to(dtype)
    normal = torch.randn(x.shape, generator=draw).to(dtype) * (torch.rand(x.shape, generator=draw) > 0.1)
    share = torch.linspace(-0.8, 0.8, count).to(dtype)
    return x, normal, share * 0.5 * normal.abs().flatten(1).sum(1)


@each_norm
def test_a_row_takes_the_same_step_whoever_is_beside_it(norm: str) -> None:
    x, normal, height = planes(9, torch.float32)
    together = step_to_plane(x, normal, height, norm)
    alone = [step_to_plane(x[i : i + 1], normal[i : i + 1], height[i : i + 1], norm) for i in range(9)]
    assert torch.equal(together, torch.cat(alone))


@each_norm
def test_a_gradient_of_zero_and_a_plane_through_the_image_move_nothing(norm: str) -> None:
    x, normal, height = planes(3, torch.float32)
    assert torch.equal(step_to_plane(x, torch.zeros_like(x), height + 1, norm), torch.zeros_like(x))
    assert torch.equal(step_to_plane(x, normal, torch.zeros_like(height), norm), torch.zeros_like(x))
    small = 2.0**-100  # as from a saturated model
    assert torch.equal(step_to_plane(x, small * normal, small * height, norm), step_to_plane(x, normal, height, norm))


@pytest.mark.peers
@each_norm
def test_the_steps_are_those_of_pyautoattack(norm: str) -> None:
    from pyautoattack import fab_projections

    x, normal, height = planes(40, torch.float64)
    offset = (normal * x).flatten(1).sum(1) - height
    theirs = getattr(fab_projections, f"projection_{norm}")(x.flatten(1), normal.flatten(1), offset)
    assert (step_to_plane(x, normal, height, norm).flatten(1) - theirs).abs().max() < 1e-5


# --- on linear models ------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Logits that are linear in the image; for grey images class 0 is ahead of every other one by its entry in `lead`."""

    def __init__(self, classes: int, lead: float) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(classes)
        self.weight = torch.randn(classes, 27, generator=draw)
        self.bias = -(self.weight * 0.5).sum(1) - lead * torch.linspace(1, 1.5, classes) * (torch.arange(classes) > 0)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T.to(x) + self.bias.to(x)

    def distance(self, image: Tensor, norm: str) -> float:
        """To the nearest image of another class than 0."""
        weight, (logits,) = (self.weight[1:] - self.weight[0]).double().numpy(), self(image[None]).double()
        x, found = image.flatten().double().numpy(), []
        for normal, height in zip(weight, (logits[1:] - logits[0]).tolist(), strict=True):
            if np.abs(normal) @ np.where(normal > 0, 1 - x, x) > -height:
                found.append(least_length(x, normal, height, norm))
        return min(found)


@each_norm
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_on_a_linear_model_it_finds_the_optimum(attack: Run, norm: str, classes: int) -> None:
    """Images whose values are partly at the edges of the box, which stop them on the way: so the closed form without a box is not met."""
    model = Linear(classes, 6.0)
    x = 0.5 + 0.5 * torch.randn(40, 3, 3, 3, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    x = x[model(x).argmax(1) == 0][:4]
    optimum = [model.distance(image, norm) for image in x]
    for spec in ("fab:steps=15", "fab-t:steps=15"):
        found = attack(model, spec, x, norm=norm, eps=1.0 if norm == "linf" else 30.0, goal="closest")
        ratios = [f.distance / o for f, o in zip(found, optimum, strict=True)]
        # fab chooses the class by the distance that there were without the box, and may miss the nearest one
        missed = 1 if spec.startswith("fab:") and classes > 2 else 0
        assert all(1 - 1e-5 <= ratio <= 1.1 for ratio in ratios), ratios
        assert sum(ratio > 1.01 for ratio in ratios) <= missed, ratios
    verdicts = [attack(model, "fab-t:steps=10", x[:1], norm=norm, eps=share * optimum[0])[0].broken for share in (0.99, 1.01)]
    assert verdicts == [False, True]


# --- the search ------------------------------------------------------------------------------------------------------------


def door(model: nn.Module, x: Tensor, norm: str, eps: float) -> WhiteBox:
    with torch.no_grad():
        logits = model(x)
    rule = Misclassified(logits.argmax(1))
    case = Case(x, ball(norm, eps), rule, rule, torch.full((len(x),), -1), torch.zeros(len(x), dtype=torch.long))
    return WhiteBox(Passes(model), case, Ledger.opened(x, logits), "closest")


EDGE = {"linf": 0.008, "l2": 0.1, "l1": 0.3}  # some of the images of the next test have their nearest broken point within it


@each_norm
def test_it_keeps_the_nearest_broken_point_whether_or_not_it_is_in_the_ball(net: Any, pictures: Any, streams: Any, norm: str) -> None:
    model, x, made = net(), pictures(8), ATTACKS.build("fab:steps=12,beta=0.5")
    wide, narrow = door(model, x, norm, 1.0 if norm == "linf" else 100.0), door(model, x, norm, EDGE[norm])
    near, far = made.start(wide, streams(8)), made.start(narrow, streams(8))
    for step in range(12):
        near, far = made.step(wide, near, streams(8, step=step)), made.step(narrow, far, streams(8, step=step))
        assert torch.equal(near.point, far.point)  # the ball plays no part in the search
    assert near.nearest.isfinite().all()
    assert torch.equal(near.nearest, far.nearest)
    assert torch.allclose(wide.threat.distance(near.x, x), near.nearest, atol=1e-6)
    assert (model(near.x).argmax(1) != model(x).argmax(1)).all()
    # the oracle saw where the search backed off to as well, which may be broken still
    assert (wide.ledger.distance <= near.nearest + 1e-6).all()
    share = (EDGE[norm] / near.nearest).clamp(max=1)
    assert 0 < (share < 1).sum() < 8
    assert torch.allclose(far.x - x, (near.x - x) * share[:, None, None, None], atol=1e-6)


@each_norm
def test_only_later_restarts_begin_elsewhere(net: Any, pictures: Any, streams: Any, norm: str) -> None:
    x, made = 0.25 + 0.5 * pictures(8), ATTACKS.build("fab:restarts=2")
    oracle = door(net(), x, norm, 0.1)
    assert torch.equal(made.start(oracle, streams(8)).point, x)
    state = made.start(oracle, streams(8, restart=1))
    assert torch.allclose(oracle.threat.distance(state.point, x), torch.full((8,), 0.05), atol=1e-6)
    mixed = streams(8)
    mixed = type(mixed)(mixed.seed, mixed.condition, [(key, row % 2) for row, (key, _) in enumerate(mixed.rows)], None, mixed.device)
    assert [bool((point != image).any()) for point, image in zip(made.start(oracle, mixed).point, x, strict=True)] == [False, True] * 4


@pytest.mark.parametrize(
    ("spec", "classes", "forwards", "backwards"),
    [("fab:steps=5", 10, 11, 50), ("fab:steps=5", 2, 11, 5), ("fab:steps=5,restarts=2", 3, 22, 30), ("fab-t:steps=5,targets=3", 10, 33, 15),
     ("fab-t:steps=5", 3, 22, 10), ("fab-t:steps=5,restarts=2", 2, 22, 10)],
)  # fmt: skip
def test_costs_are_as_documented(attack: Run, net: Any, pictures: Any, spec: str, classes: int, forwards: int, backwards: int) -> None:
    (found,) = attack(net(classes), spec, pictures(1), eps=1e-5)
    assert (found.broken, found.forwards, found.backwards) == (False, forwards, backwards)


def test_fab_t_is_fab_with_targets(attack: Run, net: Any, pictures: Any) -> None:
    x = pictures(6)
    one, other = (attack(net(), spec, x, eps=0.05, goal="closest") for spec in ("fab-t:steps=4", "fab:steps=4,targets=9"))
    assert all(torch.equal(a.image, b.image) and a.target == b.target for a, b in zip(one, other, strict=True))
    assert len({f.target for f in one}) > 1


RULES: dict[str, tuple[int, Callable[[Tensor], Criterion]]] = {
    "binary": (1, lambda logits: Binary((logits[:, 0] > 0).long())),
    "any finding": (5, lambda logits: MultiLabel((logits > 0).long())),
    "these findings": (5, lambda logits: MultiLabel((logits > 0).long(), "all", (0, 3))),
    "grades": (5, lambda logits: OrdinalShift(logits.argmax(1), 2)),
    "the farthest of three classes": (3, lambda logits: Targeted(logits.argmax(1), logits.argmin(1))),
}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("spec", "rule"),
    [("fab:steps=15", rule) for rule in RULES] + [("fab-t:steps=15", r) for r in RULES if r not in ("these findings", "grades")],
)
def test_other_criteria_are_searched_by_their_margin(net: Any, pictures: Any, spec: str, rule: str, norm: str) -> None:
    """What it finds is broken by the criterion's own word, and not farther than what projected gradient descent finds."""
    classes, made = RULES[rule]
    model, x = net(classes), 0.25 + 0.5 * pictures(5)
    logits = model(x)
    criterion, passes = made(logits), Passes(model)
    waiting = [Subject(str(i), lambda i=i: x[i], criterion.take(slice(i, i + 1)), logits[i : i + 1]) for i in range(5)]

    def found(attack: str, eps: float) -> dict[str, Finding]:
        plan = Plan(ATTACKS.build(attack), ball(norm, eps), "c", passes, Judge(passes), "closest")
        return {f.id: f for part in run(plan, waiting, 5) for f in part}

    fab = found(spec, 1.0 if norm == "linf" else 20.0)
    assert sum(bool(f.broken) for f in fab.values()) >= 3
    for key, f in fab.items():
        assert not f.broken or criterion.take(slice(int(key), int(key) + 1)).margin(model(f.image[None])) > 0
    near = 0.8 * float(np.median([f.distance for f in fab.values() if f.broken]))
    pgd = found("pgd:steps=50,loss=margin", near)
    assert sum(bool(f.broken) for f in pgd.values()) <= sum(bool(f.broken) and f.distance <= near for f in fab.values()) + 1


# --- against pyautoattack --------------------------------------------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.timeout(600)
@pytest.mark.parametrize("targets", [0, 3])
@each_norm
def test_distances_are_those_of_pyautoattack(attack: Run, monkeypatch: pytest.MonkeyPatch, norm: str, targets: int) -> None:
    """In float64 on a trained net: the search is the same, step by step. Ours may be nearer, as it judges where it backs off to as well."""
    from pyautoattack.fab_pt import FABAttack_PT

    steps, classifier = 20, rb.load_model("digits_cnn").double()
    images = rb.load_data(str(classifier.data), limit=16, preprocess=classifier.preprocess)
    x, y = torch.stack([image for image, _ in images]).double(), torch.tensor(list(images.labels))
    with torch.no_grad():
        right = classifier(x).argmax(1) == y
    x, y = x[right], y[right]
    theirs = FABAttack_PT(classifier, norm=norm.capitalize(), n_iter=steps, device="cpu")
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    with monkeypatch.context() as patched:  # it makes float32 of images and of what it calculates with
        patched.setattr(torch.Tensor, "float", torch.Tensor.double)
        patched.setattr(torch, "ones", partial(torch.ones, dtype=torch.float64))
        for rank in range(2, 2 + max(1, targets)):
            theirs.target_class = rank
            step = theirs.attack_single_run(x, y, is_targeted=targets > 0) - x
            moved = length(step.flatten(1), norm)
            best = torch.minimum(best, torch.where(moved > 0, moved, torch.inf))
    found = attack(
        classifier, f"fab:steps={steps},targets={targets}", x, norm=norm, eps=1.0 if norm == "linf" else 1e3, labels=y, goal="closest"
    )
    ratio = torch.tensor([f.distance for f in found]) / best
    print(norm, targets, float(ratio.min()), float(ratio.median()), float(ratio.max()))
    assert best.isfinite().all()
    assert float(ratio.median()) == pytest.approx(1, abs=0.01)
    assert (ratio <= 1.01).all()
    assert (ratio >= 0.99).double().mean() >= 0.8
