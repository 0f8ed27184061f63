"""The scheduler, with attacks and models made so that what must come out is known: cheats, liars, late and passing successes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_lite.criteria import Misclassified
from robustbench_lite.judge import Judge
from robustbench_lite.oracle import Scores, WhiteBox
from robustbench_lite.passes import Passes
from robustbench_lite.plan import Finding, Plan, State, Subject
from robustbench_lite.scheduler import run
from robustbench_lite.streams import Streams
from robustbench_lite.threat import ball

Run = Callable[..., list[Finding]]


class Brightness(nn.Module):
    """Class 0 below a mean of one half, class 1 above it."""

    def forward(self, x: Tensor) -> Tensor:
        over = x.flatten(1).mean(1) - 0.5
        return torch.stack([-over, over], 1)


class Biased(Brightness):
    """Brightness that favours class 1 by `bias`."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.tensor([0.0, self.bias])


def greys(count: int, value: float = 0.4) -> Tensor:
    return torch.full((count, 1, 2, 2), value)


@dataclass(frozen=True)
class Scripted:
    """Visits images of these grey values, one a step. It asks about other images, about its own, or not at all."""

    values: tuple[float, ...]
    asks: str = "nothing"
    restarts: int = 1
    needed: int = 0  # the restart in which it does so; the others stay where they are
    access = Scores
    norms = ("linf",)

    @property
    def steps(self) -> int:
        return len(self.values)

    def start(self, oracle: Scores, draw: Streams) -> State:
        return State.at(oracle.origin)

    def step(self, oracle: Scores, state: State, draw: Streams) -> State:
        if self.asks == "its own":
            oracle.logits(state.x)
        elif self.asks == "others":
            oracle.logits(oracle.origin)
        value = torch.tensor(self.values)[state.t].view(-1, 1, 1, 1)
        does = torch.tensor([restart >= self.needed for _, restart in draw.rows]).view(-1, 1, 1, 1)
        return state.moved(torch.where(does, torch.zeros_like(state.x) + value, state.x))


# --- what is judged --------------------------------------------------------------------------------------------------------


def test_an_attack_that_leaves_the_ball_breaks_nothing(attack: Run) -> None:
    for asks in ("nothing", "its own", "others"):
        cheat = Scripted((0.9, 0.9, 0.9), asks)
        assert [f.broken for f in attack(Brightness(), cheat, greys(3), eps=0.2)] == [False] * 3
        assert [f.broken for f in attack(Brightness(), cheat, greys(3), eps=0.5)] == [True] * 3


@pytest.mark.parametrize("asks", ["nothing", "its own", "others"])
def test_an_image_that_only_the_last_step_breaks_is_counted(attack: Run, asks: str) -> None:
    (found,) = attack(Brightness(), Scripted((0.4, 0.4, 0.55), asks), greys(1), eps=0.2)
    assert found.broken
    assert found.steps == 3
    assert (found.image == 0.55).all()
    assert found.distance == pytest.approx(0.15)
    assert found.margin == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("asks", ["nothing", "its own"])
def test_an_attack_that_passes_through_a_witness_and_comes_back_is_counted(attack: Run, asks: str) -> None:
    for goal in ("first", "closest", "full"):
        (found,) = attack(Brightness(), Scripted((0.4, 0.55, 0.4, 0.3), asks), greys(1), eps=0.2, goal=goal)
        assert found.broken
        assert (found.image == 0.55).all()


def test_an_image_that_stands_keeps_what_came_nearest_to_breaking_it(attack: Run) -> None:
    (found,) = attack(Brightness(), Scripted((0.41, 0.48, 0.45)), greys(1), eps=0.2)
    assert found.broken is False
    assert (found.image == 0.48).all()
    assert found.margin == pytest.approx(-0.04, abs=1e-6)


def test_goals(attack: Run) -> None:
    path = Scripted((0.45, 0.58, 0.52, 0.55, 0.4), "its own")
    got = {goal: attack(Brightness(), path, greys(2), eps=0.2, goal=goal)[1] for goal in ("first", "closest", "full")}
    assert {goal: round(float(f.image.mean()), 3) for goal, f in got.items()} == {"first": 0.58, "closest": 0.52, "full": 0.58}
    assert {goal: f.steps for goal, f in got.items()} == {"first": 3, "closest": 5, "full": 5}
    late = Scripted((0.52, 0.58, 0.4), "its own")
    got = {goal: attack(Brightness(), late, greys(1), eps=0.2, goal=goal)[0] for goal in ("first", "closest", "full")}
    assert {goal: round(float(f.image.mean()), 3) for goal, f in got.items()} == {"first": 0.52, "closest": 0.52, "full": 0.58}


# --- settling --------------------------------------------------------------------------------------------------------------


def test_what_only_the_search_believes_is_no_witness(attack: Run) -> None:
    for goal in ("first", "closest", "full"):
        liar = Passes(Biased(0.5), prepared=True)
        path = Scripted((0.42, 0.45, 0.47), "its own")
        assert [f.broken for f in attack(Brightness(), path, greys(3), eps=0.2, search=liar, goal=goal)] == [False] * 3
        # a lie does not end the search: the true witness comes after it
        for found in attack(Brightness(), Scripted((0.58, 0.45, 0.55), "its own"), greys(2), eps=0.16, search=liar, goal=goal):
            assert found.broken
            assert (found.image == 0.55).all()
            assert found.margin == pytest.approx(0.1, abs=1e-6)  # the given model's margin, not the search's


@pytest.mark.parametrize("values", [(0.55, 0.4, 0.4), (0.4, 0.4, 0.55)])
def test_what_only_the_search_does_not_see_is_settled_in_the_end(attack: Run, values: tuple[float, ...]) -> None:
    for goal in ("first", "full"):
        hiding = Passes(Biased(-3), prepared=True)
        (found,) = attack(Brightness(), Scripted(values, "its own"), greys(1), eps=0.2, search=hiding, goal=goal)
        assert found.broken
        assert (found.image == 0.55).all()
    (found,) = attack(Brightness(), Scripted((0.4, 0.4, 0.47), "its own"), greys(1), eps=0.2, search=hiding)
    assert found.broken is False
    assert found.margin == pytest.approx(-0.06, abs=1e-6)


def test_a_search_that_was_not_prepared_is_not_asked_twice(attack: Run, counting: Any) -> None:
    model = counting(Brightness())
    attack(model, Scripted((0.4, 0.41, 0.42), "its own"), greys(1), eps=0.2)
    assert model.calls == 1 + 3 + 1  # clean, one a step, the last image


class Crooked(Brightness):
    """A search that sees images of one grey as nearer to class 1 than they are."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        seen = (x.flatten(1).mean(1) - self.value).abs() < 1e-3
        return super().forward(x) + torch.stack([torch.zeros(len(x)), seen * 5.0], 1)


def test_a_lie_does_not_cost_a_better_witness_that_was_settled(attack: Run) -> None:
    liar = Passes(Crooked(0.49), prepared=True)
    (closest,) = attack(Brightness(), Scripted((0.52, 0.49, 0.58, 0.58), "its own"), greys(1), eps=0.2, search=liar, goal="closest")
    assert float(closest.image.mean()) == pytest.approx(0.52)
    (full,) = attack(
        Brightness(), Scripted((0.58, 0.51, 0.4), "its own"), greys(1), eps=0.2, search=Passes(Crooked(0.51), prepared=True), goal="full"
    )
    assert float(full.image.mean()) == pytest.approx(0.58)


# --- what cannot be decided ------------------------------------------------------------------------------------------------


class NanAbove(Brightness):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return torch.where(x.flatten(1).mean(1)[:, None] > 0.45, torch.nan, logits)


class NanGradientAbove(Brightness):
    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return super().forward(x) + 0 * (mean * (mean < 0.45)).sqrt()[:, None]


@pytest.mark.parametrize(("model", "reason"), [(NanAbove(), "logits were NaN"), (NanGradientAbove(), "gradient was NaN")])
def test_nan_after_a_few_steps_is_undecided_and_never_robust(attack: Run, model: nn.Module, reason: str) -> None:
    for more in ({}, {"side_by_side": True}, {"goal": "full"}, {"search": Passes(model, prepared=True)}):
        for found in attack(model, "bim:steps=8,step_size=0.3,loss=margin", greys(5), eps=0.08, **more):
            assert found.broken is None
            assert reason in str(found.reason)
            assert found.steps < 8


def test_one_undecided_restart_is_not_made_good_by_another(attack: Run) -> None:
    for needed in (0, 1, 2):
        sulking = Scripted((0.41, 0.46, 0.42), "its own", restarts=3, needed=needed)
        for side in (False, True):
            assert [f.broken for f in attack(NanAbove(), sulking, greys(3), eps=0.08, side_by_side=side)] == [None] * 3


@dataclass(frozen=True)
class ByRestart:
    """One step, to the grey value of its restart."""

    values: tuple[float, ...]
    steps = 1
    access = Scores
    norms = ("linf",)

    @property
    def restarts(self) -> int:
        return len(self.values)

    def start(self, oracle: Scores, draw: Streams) -> State:
        return State.at(oracle.origin)

    def step(self, oracle: Scores, state: State, draw: Streams) -> State:
        value = torch.tensor([self.values[restart] for _, restart in draw.rows]).view(-1, 1, 1, 1)
        return state.moved(torch.zeros_like(state.x) + value)


def test_no_restart_is_begun_on_an_image_that_is_undecided(attack: Run) -> None:
    for found in attack(NanAt(), ByRestart((0.41, 0.445, 0.55)), greys(4), eps=0.2):
        assert (found.broken, found.steps) == (None, 2)
    for found in attack(NanAt(), ByRestart((0.41, 0.55, 0.445)), greys(4), eps=0.2):
        assert (found.broken, found.restart, found.steps) == (True, 1, 2)


def test_a_nan_in_one_row_leaves_the_others_alone(attack: Run) -> None:
    x = torch.cat([greys(1, 0.44), greys(2, 0.2), greys(1, 0.44)])
    assert [f.broken for f in attack(NanAbove(), "bim:steps=4,loss=margin", x, eps=0.05)] == [None, False, False, None]


# --- restarts and targets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [False, True])
def test_an_image_that_only_one_restart_breaks_is_broken_and_pays_for_all(attack: Run, side: bool) -> None:
    path = Scripted((0.45, 0.55), "its own", restarts=4, needed=2)
    found = attack(Brightness(), path, greys(5), eps=0.2, batch_size=3, side_by_side=side)
    assert [(f.broken, f.restart >= 2) for f in found] == [(True, True)] * 5
    if not side:
        assert [(f.restart, f.steps, f.forwards) for f in found] == [(2, 6, 9)] * 5
    never = attack(Brightness(), replace(path, needed=4), greys(2), eps=0.2, side_by_side=side)
    assert [(f.broken, f.steps, f.forwards) for f in never] == [(False, 8, 12)] * 2


def test_lanes_side_by_side_find_the_same(attack: Run, net: Any, pictures: Any) -> None:
    for goal in ("first", "closest", "full"):
        runs = [
            attack(net(), "pgd:steps=4,restarts=3", pictures(20), eps=0.03, batch_size=64, side_by_side=side, goal=goal)
            for side in (False, True)
        ]
        assert [f.broken for f in runs[0]] == [f.broken for f in runs[1]]
        assert 0 < sum(bool(f.broken) for f in runs[0]) < 20
        if goal != "first":
            assert [f.margin for f in runs[0]] == pytest.approx([f.margin for f in runs[1]], abs=1e-4)
            assert [f.forwards for f in runs[0]] == [f.forwards for f in runs[1]]


class Pixels(nn.Module):
    """The pixels are the logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


@dataclass(frozen=True)
class Aiming:
    """Brightens the pixel of the class that it aims at."""

    targets: int
    restarts: int = 1
    steps = 1
    access = Scores
    norms = ("linf",)

    def start(self, oracle: Scores, draw: Streams) -> State:
        return State.at(oracle.origin)

    def step(self, oracle: Scores, state: State, draw: Streams) -> State:
        lift = torch.nn.functional.one_hot(oracle.target, state.x[0].numel()).view_as(state.x)
        return state.moved(oracle.threat.project(state.x + lift, oracle.origin))


@pytest.mark.parametrize("side", [False, True])
def test_targets_are_the_other_classes_by_clean_logit(attack: Run, side: bool) -> None:
    # class 1 leads; class 4 comes next but cannot move far enough, 0 can
    x = torch.tensor([0.84, 0.95, 0.1, 0.2, 0.85]).view(1, 1, 1, 5).repeat(3, 1, 1, 1)
    x[1, 0, 0, 0], x[2, 0, 0, 0] = 0.7, 0.83
    found = attack(Pixels(), Aiming(3), x, eps=0.12, side_by_side=side)
    assert [f.broken for f in found] == [True, True, True]
    assert [f.target for f in found] == [4, 4, 4]
    x[:, 0, 0, 4] = 0.5
    found = attack(Pixels(), Aiming(1), x, eps=0.13, side_by_side=side)
    assert [(f.broken, f.target) for f in found] == [(True, 0), (False, 0), (True, 0)]
    x[0, 0, 0, 2] = 0.9
    found = attack(Pixels(), Aiming(2, restarts=2), x[:1], eps=0.05, goal="full", side_by_side=side)
    assert (found[0].broken, found[0].target, found[0].steps) == (False, 2, 4)


def test_no_target_is_tried_twice_where_there_are_fewer_classes(attack: Run) -> None:
    x = torch.tensor([0.2, 0.9]).view(1, 1, 1, 2)
    (found,) = attack(Pixels(), Aiming(9, restarts=2), x, eps=0.1)
    assert (found.broken, found.steps) == (False, 2)


# --- cost ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [2, 8, 14])
def test_what_lies_beyond_the_budget_breaks_nothing(attack: Run, net: Any, pictures: Any, budget: int) -> None:
    spec, x = "pgd:steps=10,step_size=0.05", pictures(40)
    free = attack(net(), spec, x, eps=0.05)
    bound = attack(net(), spec, x, eps=0.05, budget=budget)
    assert [bool(f.broken) for f in bound] == [bool(f.broken) and f.forwards + f.backwards <= budget for f in free]
    assert max(f.forwards + f.backwards for f in bound) <= budget
    assert sum(bool(f.broken) for f in free) > sum(bool(f.broken) for f in bound)


def test_a_budget_does_not_cost_the_best_witness(attack: Run) -> None:
    path = Scripted((0.52, 0.58, 0.51, 0.45), "its own")
    (found,) = attack(Brightness(), path, greys(1), eps=0.2, goal="full", budget=4)
    assert float(found.image.mean()) == pytest.approx(0.58)
    hiding = Passes(Biased(-3), prepared=True)
    (found,) = attack(Brightness(), path, greys(1), eps=0.2, search=hiding, budget=4)
    assert found.broken


def test_a_broken_image_leaves_and_a_waiting_one_takes_its_place(net: Any, pictures: Any, subjects: Any) -> None:
    sizes: list[int] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                sizes.append(len(x))
            return self.inner(x)

    from robustbench_lite.registry import ATTACKS

    model, x = Watched().eval(), pictures(64)
    waiting = subjects(model, x)
    sizes.clear()
    passes = Passes(model)
    plan = Plan(ATTACKS.build("pgd:steps=40"), ball("linf", 0.05), "c", passes, Judge(passes))
    found = [f for part in run(plan, waiting, 8) for f in part]
    broken = sum(bool(f.broken) for f in found)
    assert broken > 48
    assert sum(sizes) < 64 * 40 / 3  # without leaving it is 64 x 40
    assert sum(sizes) == sum(f.backwards for f in found)
    in_full_swing = sizes[: len(sizes) // 3]
    assert min(in_full_swing) >= 7  # no more than a quarter of the places is ever empty
    assert max(sizes) == 8


@dataclass(frozen=True)
class Dice:
    """Goes to a witness, to NaN or to nothing at a step that the row's own draws decide."""

    restarts: int
    targets: int = 0
    steps = 4
    access = WhiteBox
    norms = ("linf",)

    def start(self, oracle: WhiteBox, draw: Streams) -> State:
        return State.at(oracle.origin)

    def step(self, oracle: WhiteBox, state: State, draw: Streams) -> State:
        oracle.gradient(state.x, "margin")
        thrown = draw.uniform("dice", 1, 1, 1)
        value = torch.where(thrown < 0.1, 0.55, torch.where(thrown < 0.13, 0.445, 0.41))
        return state.moved(torch.zeros_like(state.x) + value)


class NanAt(Brightness):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(((x.flatten(1).mean(1) - 0.445).abs() < 1e-3)[:, None], torch.nan, super().forward(x))


@settings(max_examples=15)
@given(st.integers(1, 23), st.integers(1, 30), st.integers(1, 3), st.sampled_from((0, 1, 2)), st.booleans(), st.randoms())
def test_every_image_comes_once_and_the_same_in_whatever_batch(
    attack: Run, count: int, batch_size: int, restarts: int, targets: int, full: bool, order: Any
) -> None:
    x, dice, goal = greys(count), Dice(restarts, targets), "full" if full else "first"
    alone = attack(NanAt(), dice, x, eps=0.2, batch_size=1, goal=goal)
    together = attack(NanAt(), dice, x, eps=0.2, batch_size=batch_size, goal=goal)
    assert [f.id for f in together] == [f"image {i}" for i in range(count)]

    def said(found: list[Finding]) -> list[tuple[object, ...]]:
        return [(f.broken, f.reason, f.restart, f.target, f.steps, f.forwards, f.backwards, f.image.tolist()) for f in found]

    assert said(together) == said(alone)
    if not full:
        beside = attack(NanAt(), dice, x, eps=0.2, batch_size=batch_size, side_by_side=True)
        assert [f.id for f in beside] == [f.id for f in alone]


def test_each_image_is_read_when_its_turn_comes(net: Any, pictures: Any) -> None:
    model, x, read = net(), pictures(12), []
    passes = Passes(model)

    def image(i: int) -> Tensor:
        read.append(i)
        return x[i]

    waiting = [Subject(str(i), lambda i=i: image(i), Misclassified(model(x[i : i + 1]).argmax(1)), model(x[i : i + 1])) for i in range(12)]
    from robustbench_lite.registry import ATTACKS

    going = run(Plan(ATTACKS.build("pgd:steps=3"), ball("linf", 1e-4), "c", passes, Judge(passes)), waiting, 4)
    next(going)
    assert read == [0, 1, 2, 3]
    list(going)
    assert read == list(range(12))


def test_nothing_to_attack_is_nothing_found(net: Any) -> None:
    from robustbench_lite.registry import ATTACKS

    passes = Passes(net())
    assert list(run(Plan(ATTACKS.build("fgsm"), ball("linf", 0.1), "c", passes, Judge(passes)), [], 4)) == []
