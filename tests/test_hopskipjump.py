"""HopSkipJump: near the optimum where it is known, within its budget to the query, and beside foolbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import distances
import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.criteria import Binary, Misclassified, MultiLabel, Targeted
from robustbench_lite.plan import Finding
from robustbench_lite.starting import MOST_QUERIES

Run = Callable[..., list[Finding]]
WEIGHT = torch.randn(12, generator=torch.Generator().manual_seed(3))
LENGTH = {"l2": WEIGHT.norm(), "linf": WEIGHT.abs().sum()}  # in the dual norm


class Plane(nn.Module):
    """Two classes, or one logit, parted by a plane at a chosen distance from the grey image."""

    def __init__(self, offset: float, logits: int = 2) -> None:
        super().__init__()
        self.offset, self.logits = offset, logits

    def forward(self, x: Tensor) -> Tensor:
        height = (x - 0.5).flatten(1) @ WEIGHT + self.offset
        return torch.stack([height, -height], 1) if self.logits == 2 else height[:, None]


@pytest.mark.parametrize(("norm", "distance", "within"), [("l2", 0.3, 1.05), ("linf", 0.1, 1.15)])
def test_on_a_linear_model_it_comes_near_the_optimum(attack: Run, norm: str, distance: float, within: float) -> None:
    found = attack(Plane(float(distance * LENGTH[norm])), "hopskipjump:queries=2000", torch.full((4, 3, 2, 2), 0.5), norm=norm)
    for f in found:
        assert f.met
        assert distance * (1 - 1e-4) <= f.distance <= within * distance


@pytest.mark.slow
def test_on_large_images_rounding_does_not_drown_the_answers() -> None:
    draw = torch.Generator().manual_seed(1)
    x, weight = 0.1 + 0.8 * torch.rand(1, 3, 224, 224, generator=draw), 0.05 + torch.randn(3 * 224**2, generator=draw)
    offset = -float(x.flatten(1) @ weight) - 2 * float(weight.norm())

    class Tilted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            height = x.flatten(1) @ weight + offset
            return torch.stack([-height, height], 1)

    (found,) = distances.findings(Tilted(), "hopskipjump:queries=400", x, Misclassified(torch.tensor([0])), "l2")
    assert found.distance < 0.97 * found.approach[0][1]


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("queries", [100, 137, 500])
def test_the_budget_is_kept_to_the_query(counting: Any, net: Any, pictures: Any, norm: str, queries: int) -> None:
    model, x = counting(net()), pictures(5)
    rules = Misclassified(model(x).argmax(1))
    for row in range(5):
        model.rows = 0
        (found,) = distances.findings(model, f"hopskipjump:queries={queries}", x[row : row + 1], rules.take(slice(row, row + 1)), norm)
        settled = model.rows - 1 - found.forwards  # the clean logits, and the judge's word on every witness
        assert 0 < settled <= len(found.approach) + 40
        assert found.forwards <= queries
        assert queries < 500 or found.forwards > 400


def test_more_queries_come_nearer_and_the_batch_does_not_matter(net: Any, pictures: Any) -> None:
    model, x = net(), pictures(6)
    labels = model(x).argmax(1)
    few, many = (distances.nearest(model, f"hopskipjump:queries={queries}", x, labels, "l2") for queries in (150, 900))
    assert (many <= few).all()
    assert many.median() < 0.8 * few.median()
    alone = distances.nearest(model, "hopskipjump:queries=150", x[:1], labels[:1], "l2")
    assert torch.allclose(alone, few[:1], atol=1e-4)


@pytest.mark.parametrize("rule", ["one logit", "findings", "target"])
def test_other_criteria(net: Any, pictures: Any, rule: str) -> None:
    x = 0.25 + 0.5 * pictures(4)
    model = {"one logit": Plane(0.1, 1), "findings": net(5), "target": net(3)}[rule]
    x = x[..., :2, :2] if rule == "one logit" else x
    logits = model(x)
    rules = {
        "one logit": lambda: Binary((logits[:, 0] > 0).long()),
        "findings": lambda: MultiLabel((logits > 0).long()),
        "target": lambda: Targeted(logits.argmax(1), logits.topk(2, 1).indices[:, 1]),
    }[rule]()
    found = distances.findings(model, "hopskipjump:queries=300", x, rules, "l2")
    assert sum(f.met for f in found) >= 3
    assert all(rules.take(slice(i, i + 1)).margin(model(f.image[None])) > 0 for i, f in enumerate(found) if f.met)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0.0, 0.0])


@pytest.mark.parametrize("spec", ["hopskipjump", "boundary"])
def test_where_nothing_is_broken_it_says_so_and_stops(attack: Run, pictures: Any, spec: str) -> None:
    found = attack(Constant(), spec, pictures(3), norm="l2")
    assert [(f.met, f.broken) for f in found] == [(False, False)] * 3
    assert [f.forwards for f in found] == [MOST_QUERIES + 1] * 3  # and the last image


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # foolbox's, as it is imported
@pytest.mark.timeout(600)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_with_as_many_queries_it_comes_as_near_as_foolbox(norm: str) -> None:
    """foolbox is run one image at a time, as its norms see the whole batch, and judged by every image it asks about."""
    import foolbox

    model, x, labels = distances.digits("digits_pgd_at", 6)
    queries, theirs = 1000, []
    for image, label in zip(x.split(1), labels.split(1), strict=True):
        asked: list[Tensor] = []

        class Heard(nn.Module):
            def forward(self, tried: Tensor, asked: list[Tensor] = asked) -> Tensor:
                if sum(map(len, asked)) > queries:
                    raise StopIteration
                asked.append(tried.clone())
                return model(tried)

        search = foolbox.attacks.HopSkipJumpAttack(constraint=norm)
        torch.manual_seed(0)
        with pytest.raises(StopIteration):
            search.run(foolbox.PyTorchModel(Heard().eval(), (0, 1), device="cpu"), image, foolbox.criteria.Misclassification(label))
        tried = torch.cat(asked)[:queries]
        theirs.append(distances.of_images(model, tried, image.expand_as(tried), label.expand(len(tried)), norm).min())
    ours = distances.nearest(model, f"hopskipjump:queries={queries}", x, labels, norm)
    print(norm, float(ours.median()), float(torch.stack(theirs).median()))
    assert ours.median() <= torch.stack(theirs).median()
