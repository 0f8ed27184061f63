"""RayS and SurFree, which see decisions only: near the optimum on planes, to the query, and whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.criteria import Binary, Criterion, Misclassified, MultiLabel, Targeted
from robustbench_lite.judge import Judge
from robustbench_lite.passes import Passes
from robustbench_lite.plan import Finding, Plan, Subject
from robustbench_lite.registry import ATTACKS
from robustbench_lite.scheduler import run
from robustbench_lite.threat import ball

Run = Callable[..., list[Finding]]
NORMS = {"rays": "linf", "surfree": "l2"}
each = pytest.mark.parametrize(("name", "norm"), NORMS.items())
WEIGHT = torch.randn(48, generator=torch.Generator().manual_seed(3))


class Plane(nn.Module):
    """Two classes, parted by a plane; its answers are whole numbers, so that it has no gradient."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        first = ((x - 0.5).flatten(1) @ WEIGHT + self.offset > 0).long()
        return torch.stack([first, 1 - first], 1).float()


@pytest.mark.parametrize(
    ("spec", "norm", "share"),
    [
        ("rays:queries=300", "linf", 1.03),
        ("rays:queries=600", "linf", 1.002),
        ("surfree:queries=250", "l2", 1.25),
        pytest.param("surfree:queries=1500", "l2", 1.03, marks=pytest.mark.slow),
    ],
)
def test_it_comes_near_to_a_plane_that_has_no_gradient(attack: Run, spec: str, norm: str, share: float) -> None:
    dual = float(WEIGHT.abs().sum() if norm == "linf" else WEIGHT.norm())
    found = attack(Plane(0.1 * dual), spec, torch.full((3, 3, 4, 4), 0.5), norm=norm, eps=1.0)
    assert all(0.0999 < f.distance <= 0.1 * share for f in found), [f.distance for f in found]


@pytest.mark.parametrize(("name", "queries"), [("rays", 1), ("rays", 3), ("rays", 60), ("surfree", 60), ("surfree", 83)])
def test_it_asks_as_often_as_it_was_told_and_once_at_the_end(attack: Run, net: Any, pictures: Any, name: str, queries: int) -> None:
    asked: list[Tensor] = []

    class Listening(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(x)
            return network(x)

    network, x, plain = net(), pictures(3), Passes(net())
    found = attack(Listening().eval(), f"{name}:queries={queries}", x, norm=NORMS[name], eps=1.0, judge=Judge(plain))
    assert [f.forwards for f in found] == [queries + 1] * 3
    # besides, the clean images once; the last word is the judge's
    assert sum(map(len, asked)) == 3 * (queries + 1)
    assert all(((image >= 0) & (image <= 1)).all() for image in asked)


@each
def test_an_image_is_not_touched_by_others_in_its_batch(attack: Run, net: Any, pictures: Any, name: str, norm: str) -> None:
    x = pictures(6)
    runs = [attack(net(), f"{name}:queries=80", x, norm=norm, eps=1.0, batch_size=size) for size in (6, 4, 1)]
    for found in runs[1:]:
        assert [f.distance for f in found] == pytest.approx([f.distance for f in runs[0]], rel=1e-3)
        assert [f.forwards for f in found] == [f.forwards for f in runs[0]]


class Centred(nn.Module):
    """Every class is predicted somewhere."""

    def __init__(self, network: nn.Module, middle: Tensor) -> None:
        super().__init__()
        self.network, self.middle = network, middle

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) - self.middle


RULES: dict[str, tuple[int, Callable[[Tensor], Criterion]]] = {
    "two classes": (2, lambda logits: Misclassified(logits.argmax(1))),
    "one logit": (1, lambda logits: Binary((logits[:, 0] > 0).long())),
    "findings": (5, lambda logits: MultiLabel((logits > 0).long())),
    "a target": (3, lambda logits: Targeted(logits.argmax(1), logits.topk(2).indices[:, 1])),
}


@each
@pytest.mark.parametrize("rule", RULES)
def test_other_criteria_are_met_and_more_queries_come_nearer(net: Any, pictures: Any, name: str, norm: str, rule: str) -> None:
    classes, made = RULES[rule]
    network, x = net(classes), 0.25 + 0.5 * pictures(4)
    middle = network(x).mean(0)
    model = Centred(network, middle)
    logits = model(x)
    criterion, passes = made(logits), Passes(model)
    waiting = [Subject(str(i), lambda i=i: x[i], criterion.take(slice(i, i + 1)), logits[i : i + 1]) for i in range(4)]
    plan = Plan(ATTACKS.build(f"{name}:queries=200"), ball(norm, 1.0), "c", passes, Judge(passes), "closest")
    found = [f for part in run(plan, waiting, 4) for f in part]
    met = [f for f in found if f.met]
    assert len(met) >= 2
    for f in met:
        assert criterion.take(slice(int(f.id), int(f.id) + 1)).margin(model(f.image[None])) > 0
        assert f.approach[-1][1] < 0.7 * f.approach[0][1]


@each
@pytest.mark.parametrize("broken", [0.0, float("nan")])
def test_a_constant_model_is_not_broken(attack: Run, pictures: Any, name: str, norm: str, broken: float) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            clean = torch.tensor([1.0, 0.0]).expand(len(x), 2)
            return clean if broken == 0 else torch.where((x == images[0]).flatten(1).all(1)[:, None], clean, broken)

    images = pictures(1)
    (found,) = attack(Constant().eval(), f"{name}:queries=60", images, norm=norm, eps=1.0)
    assert not found.met
    assert found.image.isfinite().all()
    assert (found.reason is None) == (broken == 0)
