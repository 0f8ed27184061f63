"""The doors to a model: what each one lets through, what is judged, what is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.criteria import Misclassified
from robustbench_lite.judge import Judge
from robustbench_lite.oracle import BAD_GRADIENT, BAD_LOGITS, FINE, Case, Labels, Ledger, Scores, WhiteBox, WholeModel
from robustbench_lite.passes import Passes
from robustbench_lite.threat import ball

CENTRE = 0.5


class Brightness(nn.Module):
    """Class 0 below a mean of one half, class 1 above it, by the size of the difference."""

    def forward(self, x: Tensor) -> Tensor:
        over = x.flatten(1).mean(1) - CENTRE
        return torch.stack([-over, over], 1)


def door(
    kind: type[Labels] = WhiteBox, model: nn.Module | None = None, rows: int = 3, eps: float = 0.2, origin: float = 0.4, **more: Any
) -> Any:
    """Grey images of class 0, which Brightness lets be broken within 0.1."""
    model = (model or Brightness()).eval()
    images = torch.full((rows, 1, 2, 2), origin)
    rule = Misclassified(torch.zeros(rows, dtype=torch.long))
    case = Case(images, ball("linf", eps), rule, rule, torch.full((rows,), -1), torch.zeros(rows, dtype=torch.long))
    return kind(Passes(model), case, Ledger.opened(images, torch.zeros(rows, 2)), **more)


def grey(*values: float) -> Tensor:
    return torch.stack([torch.full((1, 2, 2), v) for v in values])


# --- what a door lets through ----------------------------------------------------------------------------------------------


def test_a_door_that_was_not_granted_does_not_exist() -> None:
    methods = {"predict", "logits", "gradient", "jacobian", "answer"}
    granted = {Labels: {"predict"}, Scores: {"predict", "logits"}, WhiteBox: methods - {"answer"}, WholeModel: methods}
    for kind, expected in granted.items():
        assert {name for name in methods if hasattr(door(kind), name)} == expected
        assert not any(hasattr(door(kind), name) for name in ("model", "passes", "labels"))


def test_the_doors_answer_as_the_model_does(net: Callable[..., nn.Module], pictures: Callable[..., Tensor]) -> None:
    model, x = net(5), pictures(6)
    rule = Misclassified(torch.arange(6) % 5)
    case = Case(x, ball("linf", 1.0), rule, rule, torch.full((6,), -1), torch.zeros(6, dtype=torch.long))
    for micro in (None, 4):
        asked = WhiteBox(Passes(model, micro), case, Ledger.opened(x, model(x)))
        assert torch.allclose(asked.logits(x), model(x), atol=1e-5)
        assert asked.predict(x).tolist() == model(x).argmax(1).tolist()
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), rule.labels, reduction="sum"), leaf)
        logits, gradient = asked.gradient(x, "ce")
        assert torch.allclose(gradient, expected, atol=1e-5)
        assert torch.allclose(logits, model(x), atol=1e-5)
        assert not logits.requires_grad
        assert not gradient.requires_grad


@pytest.mark.parametrize("micro", [None, 4])
def test_the_jacobian_equals_autograds(net: Callable[..., nn.Module], pictures: Callable[..., Tensor], micro: int | None) -> None:
    model, x = net(5), pictures(6)
    classes = torch.tensor([[0, 3], [1, 1], [4, 2], [0, 1], [2, 3], [4, 0]])
    rule = Misclassified(torch.zeros(6, dtype=torch.long))
    case = Case(x, ball("linf", 1.0), rule, rule, torch.full((6,), -1), torch.zeros(6, dtype=torch.long))
    asked = WhiteBox(Passes(model, micro), case, Ledger.opened(x, model(x)))
    logits, slopes = asked.jacobian(x, classes)
    for row in range(6):
        whole = torch.autograd.functional.jacobian(lambda image: model(image[None])[0], x[row])
        assert torch.allclose(slopes[row], whole[classes[row]], atol=1e-5)
    assert torch.allclose(logits, model(x), atol=1e-5)
    assert asked.ledger.forwards.tolist() == [1] * 6
    assert asked.ledger.backwards.tolist() == [2] * 6


# --- what is judged --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [Labels.predict, Scores.logits, lambda d, x: d.gradient(x, "ce"), Labels.look])
def test_only_an_image_that_the_attacker_may_reach_is_a_witness(ask: Callable[[Any, Tensor], object]) -> None:
    asked = door()
    images = grey(0.55, 0.45, 0.65)  # a witness, not enough, and too far
    ask(asked, images)
    assert (asked.ledger.margin > 0).tolist() == [True, False, False]
    assert asked.ledger.fresh.tolist() == [True, True, False]
    assert torch.equal(asked.ledger.best[:2], images[:2])
    assert torch.equal(asked.ledger.best[2], asked.origin[2])
    assert asked.ledger.distance[0].item() == pytest.approx(0.15)
    assert asked.judged


def test_what_lies_outside_the_box_is_no_witness() -> None:
    asked = door(eps=1.0, origin=0.45, rows=2)
    asked.look(torch.tensor([[1.001, 0.3, 0.5, 0.5], [1.0, 0.3, 0.5, 0.5]]).view(2, 1, 2, 2))
    assert (asked.ledger.margin > 0).tolist() == [False, True]


def test_every_query_of_a_row_is_judged_and_counted() -> None:
    asked = door(Scores)
    queries = torch.stack([grey(0.41, 0.55, 0.45), grey(0.52, 0.58, 0.9), grey(0.45, 0.53, 0.44)], 1)
    logits = asked.logits(queries)
    assert logits.shape == (3, 3, 2)
    assert torch.equal(logits[:, 1], Brightness()(queries[:, 1]))
    assert asked.predict(queries).tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    assert asked.ledger.forwards.tolist() == [6, 6, 6]
    assert (asked.ledger.margin > 0).tolist() == [True, True, False]
    assert asked.ledger.best[:, 0, 0, 0].tolist() == pytest.approx([0.52, 0.58, 0.45])


def test_the_image_of_highest_margin_is_kept_and_with_closest_the_nearest() -> None:
    for goal, expected in (("first", 0.58), ("full", 0.58), ("closest", 0.52)):
        asked = door(Scores, rows=1, goal=goal)
        for value in (0.45, 0.55, 0.52, 0.58, 0.53, 0.48):
            asked.logits(grey(value))
        assert asked.ledger.best[0, 0, 0, 0].item() == pytest.approx(expected)
        assert asked.ledger.distance[0].item() == pytest.approx(expected - 0.4)
        assert asked.ledger.margin[0].item() == pytest.approx(2 * (expected - CENTRE), abs=1e-6)
        assert torch.equal(asked.ledger.logits, Brightness()(asked.ledger.best))


def test_a_witness_is_a_copy_that_the_attack_cannot_change() -> None:
    asked, x = door(rows=1), grey(0.55)
    asked.look(x)
    x.zero_()
    assert (asked.ledger.best == 0.55).all()


# --- what is counted -------------------------------------------------------------------------------------------------------


def test_passes_are_counted_per_row_and_survive_taking_and_joining() -> None:
    asked = door()
    asked.gradient(grey(0.41, 0.41, 0.41), "ce")
    asked.jacobian(grey(0.41, 0.41, 0.41), torch.zeros(3, 4, dtype=torch.long))
    assert (asked.ledger.forwards.tolist(), asked.ledger.backwards.tolist()) == ([2] * 3, [5] * 3)
    part = asked.take(torch.tensor([False, True, False]))
    part.predict(grey(0.41))
    both = part.join(asked.take(torch.tensor([True, False, False])))
    assert both.ledger.forwards.tolist() == [3, 2]
    assert len(both.origin) == 2
    assert isinstance(both, WhiteBox)


def test_what_is_asked_beyond_the_budget_is_not_judged() -> None:
    asked = door(Scores, rows=2, budget=2)
    asked.logits(grey(0.41, 0.41))
    assert asked.spent().tolist() == [False, False]
    asked.logits(grey(0.42, 0.55))
    assert asked.spent().tolist() == [True, True]
    asked.logits(grey(0.55, 0.58))
    assert (asked.ledger.margin > 0).tolist() == [False, True]
    assert asked.ledger.best[1, 0, 0, 0].item() == pytest.approx(0.55)
    many = door(Scores, rows=1, budget=2)
    many.logits(torch.stack([grey(0.41), grey(0.42), grey(0.55)], 1))
    assert many.ledger.margin[0] < 0
    dear = door(rows=1, budget=3)
    dear.jacobian(grey(0.41), torch.zeros(1, 2, dtype=torch.long))
    assert dear.spent().tolist() == [True]
    assert not door(rows=1).spent().any()


# --- what cannot be believed -----------------------------------------------------------------------------------------------


class NanWhereBright(Brightness):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return torch.where(x.amax((1, 2, 3))[:, None] > 0.56, torch.nan, logits)


class NanGradient(Brightness):
    def forward(self, x: Tensor) -> Tensor:
        # the square root of zero has an infinite slope, and a factor of zero makes it NaN
        brightest = x.amax((1, 2, 3))
        return super().forward(x) + 0 * (brightest * (brightest < 0.56)).sqrt()[:, None]


def test_a_nan_makes_its_row_undecided_and_no_witness() -> None:
    asked = door(model=NanWhereBright())
    asked.logits(grey(0.45, 0.58, 0.55))
    assert asked.ledger.trouble.tolist() == [FINE, BAD_LOGITS, FINE]
    assert (asked.ledger.margin > 0).tolist() == [False, False, True]
    asked.logits(grey(0.41, 0.42, 0.43))
    assert asked.ledger.trouble.tolist() == [FINE, BAD_LOGITS, FINE]


def test_an_infinite_logit_is_no_witness_either() -> None:
    class Infinite(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([torch.zeros(len(x)), torch.full((len(x),), torch.inf)], 1)

    asked = door(model=Infinite(), rows=1)
    asked.look(grey(0.45))
    assert asked.ledger.trouble.tolist() == [BAD_LOGITS]
    assert not asked.ledger.fresh.any()


@pytest.mark.parametrize("ask", [lambda d, x: d.gradient(x, "margin"), lambda d, x: d.jacobian(x, torch.tensor([[0, 1]] * 3))])
def test_a_nan_gradient_is_zeroed_and_noted(ask: Callable[[Any, Tensor], tuple[Tensor, Tensor]]) -> None:
    asked = door(model=NanGradient())
    _, gradient = ask(asked, grey(0.45, 0.58, 0.55))
    assert asked.ledger.trouble.tolist() == [FINE, BAD_GRADIENT, FINE]
    assert gradient.isfinite().all()
    assert not gradient[1].any()
    assert gradient[0].any()


def test_settling_asks_alone_about_what_is_not_clear(counting: Callable[[nn.Module], Any]) -> None:
    class NoisyInCompany(Brightness):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (torch.tensor([0.0, 2e-6]) if len(x) > 1 else 0.0)

    model = counting(NoisyInCompany())
    x = grey(0.4999999, 0.3, 0.7)
    logits = Judge(Passes(model)).logits(x, Misclassified(torch.zeros(3, dtype=torch.long)), ["a", "b", "c"])
    assert (logits[:, 1] > logits[:, 0]).tolist() == [True, False, True]  # noise of 1e-6 is not small beside these logits: asked once
    assert model.calls == 1
    offset = counting(nn.Sequential(NoisyInCompany(), Plus(1.0)))
    logits = Judge(Passes(offset)).logits(x, Misclassified(torch.zeros(3, dtype=torch.long)), ["a", "b", "c"])
    assert (logits[:, 1] > logits[:, 0]).tolist() == [False, False, True]
    assert offset.calls == 2


class Plus(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value


# --- a foreign attack ------------------------------------------------------------------------------------------------------


def test_the_whole_model_is_differentiable_judged_and_counted() -> None:
    asked = door(WholeModel, rows=1)
    x = torch.cat([grey(0.45), grey(0.55), grey(0.65)]).requires_grad_()
    logits = asked.answer(x)
    (slope,) = torch.autograd.grad(logits[:, 1].sum(), x)
    assert torch.allclose(slope, torch.full_like(slope, 0.25))
    assert (asked.ledger.forwards.tolist(), asked.ledger.backwards.tolist()) == ([3], [1])
    assert asked.ledger.best[0, 0, 0, 0].item() == pytest.approx(0.55)
    assert not asked.ledger.best.requires_grad
