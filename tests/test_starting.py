"""Where decision-based attacks start, and the way back to the boundary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.criteria import Criterion, Misclassified, Targeted
from robustbench_lite.oracle import Case, Labels, Ledger
from robustbench_lite.passes import Passes
from robustbench_lite.starting import MOST_QUERIES, bisected, broken_start
from robustbench_lite.threat import ball


class Bright(nn.Module):
    """Class 1 where the mean is above a level."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def forward(self, x: Tensor) -> Tensor:
        over = x.flatten(1).mean(1) - self.level
        return torch.stack([-over, over], 1)


def door(model: nn.Module, x: Tensor, rule: Criterion, norm: str = "l2") -> Labels:
    case = Case(x, ball(norm, 1.0), rule, rule, torch.full((len(x),), -1), torch.zeros(len(x), dtype=torch.long))
    return Labels(Passes(model), case, Ledger.opened(x, model(x)), "closest")


def labelled(model: nn.Module, x: Tensor) -> Criterion:
    return Misclassified(model(x).argmax(1))


def test_a_start_is_an_image_that_is_broken_and_each_row_pays_for_itself(counting: Any, net: Any, pictures: Any, streams: Any) -> None:
    model, x = counting(net()), pictures(12)
    rule = labelled(model, x)
    oracle = door(model, x, rule)
    model.rows = 0
    start, found = broken_start(oracle, streams(12))
    assert found.all()
    assert ((start >= 0) & (start <= 1)).all()
    assert (rule.margin(model.model(start)) > 0).all()
    assert int(oracle.ledger.forwards.sum()) == model.rows
    assert len(set(oracle.ledger.forwards.tolist())) > 1
    for row in range(12):
        one = door(model, x[row : row + 1], rule.take(slice(row, row + 1)))
        alone, _ = broken_start(one, streams(1, first=row))
        assert torch.equal(alone, start[row : row + 1])
        assert one.ledger.forwards[0] == oracle.ledger.forwards[row]


def test_without_a_start_the_origin_is_kept_after_every_candidate(pictures: Any, streams: Any) -> None:
    model, x = Bright(2.0), pictures(3)
    oracle = door(model, x, labelled(model, x))
    start, found = broken_start(oracle, streams(3))
    assert not found.any()
    assert torch.equal(start, x)
    assert oracle.ledger.forwards.tolist() == [MOST_QUERIES] * 3


def test_a_target_that_some_image_has_is_found(pictures: Any, streams: Any) -> None:
    model, x = Bright(0.9), pictures(3)
    start, found = broken_start(door(model, x, Targeted(torch.zeros(3).long(), torch.ones(3).long())), streams(3))
    assert found.all()
    assert (model(start).argmax(1) == 1).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_way_back_ends_broken_and_within_the_tolerance(net: Any, pictures: Any, norm: str) -> None:
    model, x = Bright(0.6), 0.2 + 0.1 * pictures(4)
    oracle = door(model, x, labelled(model, x), norm)
    far = torch.ones_like(x)
    tolerance = torch.tensor([0.1, 0.01, 0.001, 0.0001]) * oracle.threat.distance(far, x)
    end = bisected(oracle, x, far, tolerance)
    assert (model(end).argmax(1) == 1).all()
    reached = oracle.threat.distance(end, x)
    before = type(oracle.threat)(reached - tolerance).project(far, x)
    assert (model(before).argmax(1) == 0).all()
    assert oracle.ledger.forwards.tolist() == [4, 7, 10, 14]
    if norm == "l2":  # a straight line
        heading = (end - x) / (far - x)
        assert torch.allclose(heading, heading[:, :1, :1, :1].expand_as(heading), atol=1e-5)
    else:
        assert torch.allclose(end, torch.minimum(far, x + reached[:, None, None, None]), atol=1e-6)


def test_the_way_back_asks_no_more_than_a_row_has_left(pictures: Any) -> None:
    model, x = Bright(0.6), 0.3 * pictures(3)
    oracle = door(model, x, labelled(model, x))
    end = bisected(oracle, x, torch.ones_like(x), 0.0, torch.tensor([0, 3, 7]))
    assert oracle.ledger.forwards.tolist() == [0, 3, 7]
    assert torch.equal(end[0], torch.ones_like(end[0]))
    assert (model(end).argmax(1) == 1).all()
