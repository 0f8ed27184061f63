"""Losses against formulas written again in NumPy; criteria against their definitions in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustbench_lite.criteria import Binary, Criterion, Misclassified, MultiLabel, OrdinalShift, Targeted, Towards
from robustbench_lite.errors import BadSpec
from robustbench_lite.losses import LOSSES, cross_entropy, dlr, margin, targeted_dlr

# few values, so that ties are common, next to ones that a careless nudge of a tie would swallow
VALUES = st.sampled_from((-2.0, -1.0, 0.0, 1.0, 1e-7, 1e-38, 3.0)) | st.floats(-50, 50, width=32)


@st.composite
def answers(draw: st.DrawFn, least: int = 2) -> tuple[list[float], int, int]:
    """Logits of one image, its label and another class."""
    classes = draw(st.integers(least, 6))
    logits = draw(st.lists(VALUES, min_size=classes, max_size=classes))
    return [float(np.float32(v)) for v in logits], draw(st.integers(0, classes - 1)), draw(st.integers(0, classes - 1))


def first_of_largest(logits: list[float]) -> int:
    return logits.index(max(logits))


def as_rows(logits: list[float]) -> Tensor:
    return torch.tensor([logits], dtype=torch.float32)


# --- losses ----------------------------------------------------------------------------------------------------------------


def written_again(logits: np.ndarray, label: int, target: int | None = None) -> float:
    """DLR of equations 6 and 7, by sorting; below four classes the plain difference."""
    ranked = np.sort(logits)[::-1]
    if target is None:
        best_other = max(v for i, v in enumerate(logits) if i != label)
        gap, scale = best_other - logits[label], ranked[0] - ranked[2] if len(logits) >= 4 else 1.0
    else:
        gap, scale = logits[target] - logits[label], ranked[0] - (ranked[2] + ranked[3]) / 2 if len(logits) >= 4 else 1.0
    return float(gap / scale)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_dlr_equals_its_formula(classes: int) -> None:
    random = np.random.default_rng(classes)
    logits = random.normal(size=(50, classes)) * 5
    labels = random.integers(0, classes, 50)
    targets = (labels + random.integers(1, classes, 50)) % classes
    rows, y, t = torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(targets)
    assert dlr(rows, y).tolist() == pytest.approx([written_again(z, c) for z, c in zip(logits, labels, strict=True)])
    expected = [written_again(z, c, d) for z, c, d in zip(logits, labels, targets, strict=True)]
    assert targeted_dlr(rows, y, t).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_every_loss_has_a_gradient_that_climbs_towards_misclassification(classes: int) -> None:
    logits = torch.randn(8, classes, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = logits.argmax(1)
    for loss in LOSSES.values():
        (slope,) = torch.autograd.grad(loss(logits, labels).sum(), logits)
        assert (slope.gather(1, labels[:, None]) < 0).all()


def test_cross_entropy_and_margin_equal_their_formulas() -> None:
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(20) % 5
    rows = logits.numpy()
    expected = np.log(np.exp(rows).sum(1)) - rows[range(20), labels]
    assert cross_entropy(logits, labels).numpy() == pytest.approx(expected)
    expected = [max(np.delete(row, label)) - row[label] for row, label in zip(rows, labels.tolist(), strict=True)]
    assert margin(logits, labels).numpy() == pytest.approx(np.array(expected))


@given(answers(), st.sampled_from((-512.0, 16.0, 2048.0)))
def test_a_constant_added_to_the_logits_changes_nothing(answer: tuple[list[float], int, int], shift: float) -> None:
    logits, label, target = answer
    rows, y, t = torch.tensor([logits], dtype=torch.float64), torch.tensor([label]), torch.tensor([target])
    rows = (rows * 1024).round() / 1024  # so that the sums are exact
    for loss in LOSSES.values():
        assert loss(rows + shift, y).tolist() == pytest.approx(loss(rows, y).tolist(), abs=1e-9)
    for rule in (Misclassified(y), Targeted(y, t), OrdinalShift(y, 2), Towards(torch.arange(len(logits))[None] == t)):
        assert rule.margin(rows + shift).tolist() == rule.margin(rows).tolist()


# --- criteria --------------------------------------------------------------------------------------------------------------


def judged(rule: Criterion, logits: list[float]) -> bool:
    value = rule.margin(as_rows(logits))
    assert value.shape == (1,)
    assert value[0] != 0  # whichever side a tie falls on, it falls on one
    return bool(value[0] > 0)


@given(answers())
def test_misclassified_and_targeted(answer: tuple[list[float], int, int]) -> None:
    logits, label, target = answer
    rule, aimed = Misclassified(torch.tensor([label])), Targeted(torch.tensor([label]), torch.tensor([target]))
    assert judged(rule, logits) == (first_of_largest(logits) != label)
    assert judged(aimed, logits) == (first_of_largest(logits) == target)
    assert rule.predict(as_rows(logits)).tolist() == [first_of_largest(logits)]


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_constant_logits_break_by_argmax_and_not_by_chance(classes: int) -> None:
    constant = torch.zeros(classes, classes)
    labels = torch.arange(classes)
    assert (Misclassified(labels).margin(constant) > 0).tolist() == [False] + [True] * (classes - 1)
    assert (Targeted(labels, labels).margin(constant) > 0).tolist() == [True] + [False] * (classes - 1)


@given(answers(), st.data())
def test_towards_and_ordinal_shift(answer: tuple[list[float], int, int], data: st.DataObject) -> None:
    logits, label, _ = answer
    chosen = data.draw(st.lists(st.booleans(), min_size=len(logits), max_size=len(logits)))
    steps = data.draw(st.integers(1, 3))
    predicted = first_of_largest(logits)
    assert judged(Towards(torch.tensor([chosen])), logits) == chosen[predicted]
    assert judged(OrdinalShift(torch.tensor([label]), steps), logits) == (abs(predicted - label) >= steps)


@given(VALUES, st.integers(0, 1), st.sampled_from((0.0, 1.0, -2.0, 0.1)))
def test_binary(logit: float, label: int, threshold: float) -> None:
    logit, rule = float(np.float32(logit)), Binary(torch.tensor([label]), threshold)
    predicted = int(np.float32(logit) > np.float32(threshold))
    assert judged(rule, [logit]) == (predicted != label)
    assert rule.predict(as_rows([logit])).tolist() == [predicted]
    assert 0.5 <= rule.confidence(as_rows([logit])).item() <= 1


@given(answers(least=1), st.data())
def test_multi_label(answer: tuple[list[float], int, int], data: st.DataObject) -> None:
    logits = answer[0]
    labels = data.draw(st.lists(st.integers(0, 1), min_size=len(logits), max_size=len(logits)))
    named = tuple(sorted(data.draw(st.sets(st.integers(0, len(logits) - 1), min_size=1))))
    wrong = [(value > 0) != bool(label) for value, label in zip(logits, labels, strict=True)]
    rows = torch.tensor([labels], dtype=torch.float32)
    assert judged(MultiLabel(rows), logits) == any(wrong)
    assert judged(MultiLabel(rows, "all"), logits) == all(wrong)
    assert judged(MultiLabel(rows, "any", named), logits) == any(wrong[i] for i in named)
    assert judged(MultiLabel(rows, "all", named), logits) == all(wrong[i] for i in named)
    assert MultiLabel(rows).predict(as_rows(logits)).tolist() == [[int(value > 0) for value in logits]]


def test_the_loss_of_several_findings_is_of_the_named_ones_only() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5]], requires_grad=True)
    labels = torch.tensor([[1.0, 0.0, 0.0]])
    (slope,) = torch.autograd.grad(MultiLabel(labels, "any", (1,)).loss(logits, "ce").sum(), logits)
    assert (slope != 0).tolist() == [[False, True, False]]
    all_of_them = MultiLabel(labels).loss(logits, "ce").item()
    assert all_of_them == pytest.approx(np.log1p(np.exp(-1)) + np.log1p(np.exp(-2)) + np.log1p(np.exp(0.5)))


def test_a_targeted_loss_climbs_towards_the_target() -> None:
    labels, target = torch.tensor([0]), torch.tensor([3])
    for loss in (*LOSSES, cross_entropy):
        logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]], requires_grad=True)
        (slope,) = torch.autograd.grad(Targeted(labels, target).loss(logits, loss).sum(), logits)
        assert slope[0, 3] > 0


def test_a_loss_of_the_callers_own_sees_the_labels() -> None:
    logits, labels = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    assert torch.equal(Misclassified(labels).loss(logits, margin), margin(logits, labels))
    assert torch.equal(Targeted(labels, labels).loss(logits, margin), -margin(logits, labels))


@pytest.mark.parametrize("rule", [Towards(torch.ones(1, 3, dtype=torch.bool)), OrdinalShift(torch.tensor([1])), Binary(torch.tensor([1]))])
def test_what_has_no_such_loss_says_which_to_use(rule: Criterion) -> None:
    for loss in (cross_entropy,):
        with pytest.raises(BadSpec, match="use loss=margin"):
            rule.loss(torch.zeros(1, 3), loss)
    assert torch.equal(rule.loss(torch.ones(1, 3), "margin"), rule.margin(torch.ones(1, 3)))


@pytest.mark.parametrize(
    "rule",
    [
        Misclassified(torch.tensor([0, 1, 2])),
        Targeted(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])),
        Towards(torch.tensor([[True, False, False], [False, True, True], [False, False, False]])),
        OrdinalShift(torch.tensor([0, 1, 2]), 2),
        Binary(torch.tensor([0, 1, 1]), 0.3),
        MultiLabel(torch.eye(3), "all", (0, 2)),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_rows_taken_apart_and_joined_again_say_the_same(rule: Any) -> None:
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    alone = [rule.take(slice(i, i + 1)) for i in range(3)]
    assert torch.cat([part.margin(logits[i : i + 1]) for i, part in enumerate(alone)]).tolist() == rule.margin(logits).tolist()
    assert alone[0].join(*alone[1:]).margin(logits).tolist() == rule.margin(logits).tolist()
    mask, order = torch.tensor([True, False, True]), torch.tensor([2, 0])
    assert rule.take(mask).margin(logits[mask]).tolist() == rule.margin(logits)[mask].tolist()
    assert rule.take(order).margin(logits[order]).tolist() == rule.margin(logits)[order].tolist()
    assert rule.take(mask).join(rule.take(~mask)).margin(logits[[0, 2, 1]]).tolist() == rule.margin(logits)[[0, 2, 1]].tolist()
