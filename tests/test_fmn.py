"""FMN: closed forms on linear models, its radius, and other libraries."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import distances
import pytest
import torch
from test_fab import Linear
from torch import Tensor, nn

from robustbench_lite.criteria import Targeted
from robustbench_lite.plan import Finding
from robustbench_lite.registry import ATTACKS

Run = Callable[..., list[Finding]]
FAR = {"l2": 30.0, "linf": 1.0, "l1": 100.0, "l0": 27.0}
counted = sys.modules[ATTACKS.get("fmn").__module__].counted
each_norm = pytest.mark.parametrize("norm", FAR)


def images(model: nn.Module, count: int = 6) -> Tensor:
    """Of class 0, about a third of their values at the edges of the box."""
    x = 0.5 + 0.5 * torch.randn(40, 3, 3, 3, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    return x[model(x).argmax(1) == 0][:count]


def fewest(model: Linear, image: Tensor) -> int:
    """The least number of values that must change, each as far as it can, for another of two classes."""
    weight, logits = model.weight[1] - model.weight[0], model(image[None])[0]
    gain = weight.abs() * torch.where(weight > 0, 1 - image.flatten(), image.flatten())
    return 1 + int((gain.sort(descending=True).values.cumsum(0) <= logits[0] - logits[1]).sum())


# --- on linear models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
@pytest.mark.parametrize("classes", [2, 10])
def test_it_finds_the_optimum_within_the_box(attack: Run, norm: str, classes: int) -> None:
    """Of ten classes it climbs towards the one that is ahead at the time, which need not be the nearest."""
    model = Linear(classes, 6.0)
    x = images(model)
    found = attack(model, "fmn", x, norm=norm, eps=FAR[norm])
    ratios = [f.distance / model.distance(image, norm) for f, image in zip(found, x, strict=True)]
    assert all(f.met for f in found)
    assert min(ratios) >= 1 - 1e-5
    assert sorted(ratios)[-1 if classes == 2 else len(ratios) // 2] <= 1.01, ratios


def test_in_l0_it_finds_the_fewest_values(attack: Run) -> None:
    model = Linear(2, 6.0)
    x = images(model)
    found, least = attack(model, "fmn", x, norm="l0", eps=27.0), [fewest(model, image) for image in x]
    assert max(least) > 2
    assert all(few <= f.distance <= few + 1 for f, few in zip(found, least, strict=True)), [f.distance for f in found]
    assert sum(f.distance == few for f, few in zip(found, least, strict=True)) >= 5


@each_norm
def test_a_constant_on_all_logits_changes_nothing(attack: Run, norm: str) -> None:
    model = Linear(3, 6.0)
    x, shifted = images(model), Linear(3, 6.0)
    shifted.bias = model.bias + 64
    first, second = ([f.distance for f in attack(m, "fmn", x, norm=norm, eps=FAR[norm])] for m in (model, shifted))
    assert second == pytest.approx(first, rel=2e-3)


@each_norm
def test_a_target_that_is_not_the_nearest_class_is_reached(norm: str) -> None:
    model = Linear(3, 6.0)
    x = images(model)
    labels, target = model(x).argmax(1), model(x).argmin(1)
    for f, image, aim in zip(distances.findings(model, "fmn", x, Targeted(labels, target), norm), x, target.tolist(), strict=True):
        assert f.met
        assert f.logits.argmax() == aim
        rival = Linear(3, 6.0)  # past the label alone
        rival.weight, rival.bias = model.weight[[0, aim]], model.bias[[0, aim]]
        least = fewest(rival, image) if norm == "l0" else rival.distance(image, norm)
        assert f.distance >= least * (1 - 1e-5)


# --- the radius ------------------------------------------------------------------------------------------------------------


class Cornered(nn.Module):
    """Class 1 where the values, by weights of which all but the last `free` push out of the box at a white image, add up to enough."""

    def __init__(self, free: int) -> None:
        super().__init__()
        self.weight = torch.where(torch.arange(48) < 48 - free, 1.0, -1.0)

    def forward(self, x: Tensor) -> Tensor:
        height = (x - 1).flatten(1) @ self.weight - 2
        return torch.stack([-height, height], 1)


@each_norm
def test_values_that_the_box_holds_back_do_not_keep_it_from_the_boundary(attack: Run, norm: str) -> None:
    """Only 8 of 48 values can move: the way to the boundary, taken without the box, always falls short of it."""
    optimum = {"l2": 8 * 0.25 / math.sqrt(8), "linf": 0.25, "l1": 2.0, "l0": 3.0}[norm]  # at exactly 2 it is a tie, and class 0
    for f in attack(Cornered(8), "fmn", torch.ones(2, 3, 4, 4), norm=norm, eps=48.0 if norm == "l0" else 0.9):
        assert f.met
        assert f.distance <= 1.01 * optimum


def test_a_radius_that_counts_values_changes_by_one_at_least() -> None:
    eps, far = torch.tensor([1.0, 2, 10, 104]), torch.tensor([torch.inf, torch.inf, torch.inf, 40])
    gamma, never = torch.full((4,), 0.05), torch.zeros(4, dtype=torch.bool)
    assert counted(eps, gamma, never, far).tolist() == [2, 3, 11, 109]
    assert counted(eps, gamma, ~never, far).tolist() == [1, 1, 9, 40]


@each_norm
def test_more_steps_come_nearer_and_cost_what_is_documented(attack: Run, net: Any, pictures: Any, norm: str) -> None:
    x, medians = pictures(12), []
    for steps in (10, 100):
        found = attack(net(), f"fmn:steps={steps}", x, norm=norm, eps=FAR[norm])
        assert {(f.steps, f.forwards, f.backwards) for f in found} == {(steps, steps + 1, steps)}
        medians.append(sorted(f.distance if f.met else math.inf for f in found)[6])
    assert medians[1] <= medians[0]
    assert medians[1] < math.inf


# --- against other libraries -----------------------------------------------------------------------------------------------

PEERS = {"l2": (2, "L2FMNAttack"), "linf": (torch.inf, "LInfFMNAttack"), "l1": (1, "L1FMNAttack"), "l0": (0, "L0FMNAttack")}


@pytest.mark.peers
@pytest.mark.parametrize("norm", PEERS)
@pytest.mark.parametrize("name", distances.MODELS)
def test_it_comes_as_near_as_other_libraries(name: str, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    visdom = ModuleType("visdom")
    visdom.__spec__, visdom.Visdom = ModuleSpec("visdom", None), object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "visdom", visdom)
    foolbox, advlib = pytest.importorskip("foolbox"), pytest.importorskip("adv_lib.attacks.fast_minimum_norm")
    (model, x, labels), steps, (number, peer) = distances.digits(name, 30), 60, PEERS[norm]
    theirs = {
        "adv-lib": advlib.fmn(model, x, labels, number, steps=steps),
        "foolbox": getattr(foolbox.attacks, peer)(steps=steps).run(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, labels),
    }
    peers = {peer: float(distances.of_images(model, made, x, labels, norm).median()) for peer, made in theirs.items()}
    ours = distances.nearest(model, f"fmn:steps={steps}", x, labels, norm)
    print(name, norm, float(ours.median()), peers)
    assert float(ours.median()) <= 1.02 * min(peers.values())
