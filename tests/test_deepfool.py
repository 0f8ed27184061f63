"""DeepFool, SuperDeepFool, DDN and ALMA: against the nearest broken image where it is known, and beside other libraries."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from distances import MODELS, digits, findings, nearest, of_images
from torch import Tensor, nn

from robustbench_lite.criteria import Binary, Criterion, Misclassified, MultiLabel, Targeted
from robustbench_lite.planes import length, step_to_plane

EXACT = [("deepfool", "l2"), ("deepfool", "linf"), ("deepfool", "l1"), ("superdeepfool", "l2"), ("superdeepfool", "linf"),
         ("superdeepfool", "l1"), ("ddn", "l2"), ("alma", "l2")]  # fmt: skip
exact = pytest.mark.parametrize(("spec", "norm"), EXACT)


def linear(classes: int, seed: int = 0) -> nn.Linear:
    """Logits of 1x6x6 images: each class weighs every value in its own way."""
    layer = nn.Linear(36, classes)
    draw = torch.Generator().manual_seed(seed)
    layer.weight.data, layer.bias.data = torch.randn(classes, 36, generator=draw), torch.zeros(classes)
    return layer.requires_grad_(False)


def flattened(layer: nn.Linear) -> nn.Module:
    return nn.Sequential(nn.Flatten(), layer)


def images(edge: bool) -> Tensor:
    """Six images about grey; or with two thirds of their values so near to the ends of the box that the nearest image lies at its edge."""
    draw = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    if not edge:
        return 0.45 + 0.1 * draw
    return torch.where(draw < 0.33, 0.0, torch.where(draw > 0.66, 1.0, draw))


def shortest(layer: nn.Linear, x: Tensor, labels: Tensor, others: Tensor, norm: str) -> Tensor:
    """(N,) the way within the box to the nearest of the boundaries between the labels and the others (N, M)."""
    logits, ways = layer(x.flatten(1)), []
    for other in others.unbind(1):
        normal = (layer.weight[other] - layer.weight[labels]).view_as(x)
        height = (logits.gather(1, other[:, None]) - logits.gather(1, labels[:, None]))[:, 0]
        step = step_to_plane(x, normal, height, norm)
        reached = (height + (normal * step).flatten(1).sum(1)).abs() < 1e-3
        ways.append(length(step.flatten(1), norm).where(reached, torch.inf))
    return torch.stack(ways).amin(0)


def found_at(model: nn.Module, spec: str, x: Tensor, rules: Criterion, norm: str) -> Tensor:
    return torch.tensor([f.distance if f.met else torch.inf for f in findings(model, spec, x, rules, norm)])


@exact
@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("classes", [2, 12])
def test_the_nearest_boundary_of_a_linear_model_is_reached_to_one_per_cent(spec: str, norm: str, edge: bool, classes: int) -> None:
    layer, x = linear(classes), images(edge)
    labels = layer(x.flatten(1)).argmax(1)
    every = torch.arange(classes).expand(len(x), -1)
    others = every[every != labels[:, None]].view(len(x), -1)
    best = shortest(layer, x, labels, others, norm)
    shifted = linear(classes)
    shifted.bias.data += 300
    for model in (layer, shifted):
        ratio = found_at(flattened(model), spec, x, Misclassified(labels), norm) / best
        assert (ratio > 0.999).all()
        # of many boundaries, DDN may end at one that is not the nearest; ALMA takes more than 300 steps for an image next to its boundary
        hard = edge and classes > 2 and spec in ("ddn", "alma")
        assert (ratio.sort().values[: -2 if hard else None] < (1.1 if edge and classes > 2 else 1.01)).all(), ratio


@exact
def test_other_criteria_need_no_more_than_their_margin(spec: str, norm: str) -> None:
    layer, x = linear(1), images(False)
    labels = (layer(x.flatten(1))[:, 0] > 0).long()
    step = step_to_plane(x, layer.weight.view(1, 1, 6, 6).expand_as(x), layer(x.flatten(1))[:, 0], norm)
    best = length(step.flatten(1), norm)
    for rules in (Binary(labels), MultiLabel(labels[:, None])):
        assert (found_at(flattened(layer), spec, x, rules, norm) / best < 1.01).all()


@exact
def test_a_target_is_reached_by_the_shortest_way(spec: str, norm: str) -> None:
    """Of three classes, the third is out of the way."""
    layer, x = linear(3), images(False)
    layer.bias.data[2] = -100
    labels = layer(x.flatten(1)).argmax(1)
    best = shortest(layer, x, labels, (1 - labels)[:, None], norm)
    assert (found_at(flattened(layer), spec, x, Targeted(labels, 1 - labels), norm) / best < 1.01).all()


@exact
@pytest.mark.parametrize("unit", [1e-4, 1e4])
def test_the_unit_of_the_logits_plays_no_part(spec: str, norm: str, unit: float) -> None:
    """Where there are no three classes whose logits could be compared."""
    layer, x = linear(2), images(False)
    labels = layer(x.flatten(1)).argmax(1)
    best = shortest(layer, x, labels, (1 - labels)[:, None], norm)
    layer.weight.data *= unit
    assert (found_at(flattened(layer), spec, x, Misclassified(labels), norm) / best < 1.01).all()


def test_deepfool_ends_where_it_meets_the_boundary(attack: Any, net: Any, pictures: Any) -> None:
    for f in attack(net(), "deepfool:halvings=3", pictures(6), norm="l2"):
        assert f.steps < 20
        assert (f.forwards, f.backwards) == (2 * f.steps + 3 + 4, 10 * f.steps + 1)


def test_superdeepfool_is_nearer_than_deepfool() -> None:
    model, x, labels = digits("digits_standard", 20)
    once, again = (nearest(model, spec, x, labels, "l2") for spec in ("deepfool", "superdeepfool"))
    assert again.median() < 0.95 * once.median()


# --- beside other libraries ------------------------------------------------------------------------------------------------


@pytest.fixture
def adv_lib(monkeypatch: pytest.MonkeyPatch) -> Any:
    plotting = ModuleType("visdom")  # its plotting tool is a hard import that cannot be installed; the attacks do not use it
    plotting.__spec__, plotting.Visdom = ModuleSpec("visdom", None), object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "visdom", plotting)
    pytest.importorskip("adv_lib")
    from adv_lib import attacks

    return attacks


@pytest.mark.peers
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("ours", "theirs", "norm", "options"),
    [("deepfool", "df", "l2", {"norm": 2}), ("deepfool", "df", "linf", {"norm": float("inf")}), ("superdeepfool", "sdf", "l2", {}),
     ("ddn:steps=100", "ddn", "l2", {"steps": 100, "levels": None}), ("alma:steps=100", "alma", "l2", {"num_steps": 100})],
)  # fmt: skip
def test_the_median_is_no_farther_than_that_of_adv_lib(
    adv_lib: Any, name: str, ours: str, theirs: str, norm: str, options: dict[str, Any]
) -> None:
    model, x, labels = digits(name)
    peer = of_images(model, getattr(adv_lib, theirs)(model, x, labels, **options), x, labels, norm)
    own = nearest(model, ours, x, labels, norm)
    print(f"{name} {ours} {norm}: {float(own.median()):.4f}, adv-lib {float(peer.median()):.4f}")
    assert own.isfinite().sum() >= peer.isfinite().sum()
    # where a round no longer helps, the peer goes on for a hundred steps
    assert own.median() <= (1.03 if ours == "superdeepfool" else 1.02) * peer.median()
