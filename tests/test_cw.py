"""C&W: the optimum of linear models with a box, units of the logits that play no part, and its search for the constant."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import distances
import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.criteria import Binary, Criterion, Misclassified, Targeted
from robustbench_lite.plan import Finding
from robustbench_lite.planes import step_to_plane
from robustbench_lite.weighing import Weighing

QUICK = "cw:searches=3,iterations=60"


class Linear(nn.Module):
    """Logits that are linear in the image, then scaled and shifted; class 0 is ahead on grey images. One class: above 0 on grey ones."""

    def __init__(self, classes: int = 3, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.weight = torch.randn(classes, 27, generator=torch.Generator().manual_seed(classes))
        self.lead = 4.0 * (torch.arange(classes) == 0)
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * ((x - 0.5).flatten(1) @ self.weight.T.to(x) + self.lead.to(x)) + self.shift


def pictures(model: nn.Module) -> Tensor:
    """Images of class 0 with a third of their values at the edges of the box."""
    x = 0.5 + 0.5 * torch.randn(60, 3, 3, 3, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    logits = model(x)
    return x[logits.argmax(1) == 0 if logits.shape[1] > 1 else logits[:, 0] > 0][:5]


def optimum(model: Linear, x: Tensor) -> Tensor:
    """(N,) to the nearest plane, within the box, for each image."""
    logits, found = model(x), []
    for rival in range(1, max(2, len(model.weight))):
        binary = len(model.weight) == 1
        normal = -model.weight[0] if binary else model.weight[rival] - model.weight[0]
        height = -logits[:, 0] if binary else logits[:, rival] - logits[:, 0]
        step = step_to_plane(x, normal.view(1, 3, 3, 3).expand_as(x), height, "l2").flatten(1)
        found.append(step.norm(dim=1).where((step @ normal + height).abs() < 1e-4, torch.inf))
    return torch.stack(found).amin(0)


def searched(model: nn.Module, x: Tensor, spec: str = QUICK, rule: Criterion | None = None) -> list[Finding]:
    return distances.findings(model, spec, x, rule or Misclassified(model(x).argmax(1)), "l2", eps=100.0)


@pytest.mark.parametrize("classes", [1, *(pytest.param(many, marks=pytest.mark.slow) for many in (2, 10))])
def test_on_a_linear_model_it_comes_to_the_optimum_in_the_box(classes: int) -> None:
    model = Linear(classes)
    x = pictures(model)
    best = optimum(model, x)
    step = step_to_plane(x, (model.weight[0]).view(1, 3, 3, 3).expand_as(x), model(x)[:, 0], "l2")
    assert ((x + step).isclose(torch.tensor(0.0)) | (x + step).isclose(torch.tensor(1.0))).any()  # the box does stop values
    rule = Binary(torch.ones(len(x), dtype=torch.long)) if classes == 1 else None
    found = searched(model, x, "cw:searches=3,iterations=150", rule)
    ratio = torch.tensor([f.distance for f in found]) / best
    assert all(f.broken for f in found)
    assert (ratio >= 1 - 1e-5).all()
    # of ten classes it climbs to the likeliest, which need not be the nearest
    assert (ratio > 1.01).sum() <= (classes == 10), ratio


def test_the_units_of_the_logits_play_no_part() -> None:
    model = Linear()
    x = pictures(model)[:2]
    plain = torch.tensor([f.distance for f in searched(model, x)])
    for scale, shift in ((1000.0, 0.0), (1.0, 1e4)):
        found = searched(Linear(scale=scale, shift=shift), x)
        assert all(f.broken for f in found)
        assert torch.tensor([f.distance for f in found]).tolist() == pytest.approx(plain.tolist(), rel=0.01)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_images_stay_images_where_gradients_are_tiny_or_huge(scale: float) -> None:
    model = Linear(scale=scale)
    x = pictures(model)
    found = searched(model, x)
    assert all(f.broken and float(f.image.min()) >= 0 and float(f.image.max()) <= 1 for f in found)


def test_a_target_is_reached_and_confidence_goes_farther() -> None:
    model = Linear()
    x = pictures(model)
    targets = torch.tensor([1, 2, 1, 2, 2])
    found, sure = (
        searched(model, x, f"cw:searches=3,iterations=30{more}", Targeted(torch.zeros_like(targets), targets))
        for more in ("", ",confidence=3")
    )
    assert [int(f.logits.argmax()) for f in found] == targets.tolist()
    # the image kept is the nearest that was asked about, whatever margin was sought
    assert sum(a.distance < b.distance for a, b in zip(found, sure, strict=True)) >= 4


class Flat(nn.Module):
    """Says class 0 whatever it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0]) + 0 * x.flatten(1)[:, :2]


def test_what_stalls_is_let_go_early_and_costs_are_bounded() -> None:
    x = torch.full((2, 3, 3, 3), 0.5)
    for f in searched(Flat(), x, "cw:searches=4,iterations=50"):
        assert not f.met
        assert f.steps == 4 * 6  # every search ends at its second look, a tenth after the first
    model = Linear()
    (found,) = searched(model, pictures(model)[:1], "cw:searches=2,iterations=10")
    assert (found.forwards, found.backwards) == (22, 21)


def test_a_row_goes_on_whatever_the_others_do(attack: Any, net: Any, pictures: Any) -> None:
    x = pictures(6)
    together = attack(net(), "cw:searches=2,iterations=10", x, norm="l2", eps=1.0)
    for row, f in list(enumerate(together))[:2]:
        (alone,) = attack(net(), "cw:searches=2,iterations=10", x[row : row + 1], norm="l2", eps=1.0)
        assert (alone.steps, alone.distance) == (f.steps, pytest.approx(f.distance, rel=1e-3))


def test_the_constant_is_searched_up_down_and_between() -> None:
    state = Weighing.begun(torch.zeros(3, 1, 1, 1), torch.tensor([1.0, 1.0, 1e14]))
    breaks, seen = torch.tensor([4.5, 0.2, torch.inf]), []
    for _ in range(6):
        seen.append(state.constant.tolist())
        state, ended = state.weighed(state.constant >= breaks, torch.zeros(3), steps=1, searches=6, growth=3)
        assert ended.all()
    first, second, third = zip(*seen, strict=True)
    assert first == pytest.approx((1, 3, 9, 27**0.5, 3 * 3**0.25, 3 * 3**0.375))
    assert second == pytest.approx((1, 1 / 3, 1 / 9, 27**-0.5, 27**-0.5 * 3**0.25, 3**-1.375), rel=1e-4)
    assert third == pytest.approx((1e14, 3e14, 9e14, 1e15, 1e15, 1e15))
    assert state.done.all()


@pytest.mark.peers
@pytest.mark.parametrize("name", distances.MODELS)
def test_it_comes_nearer_than_other_libraries(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At an equal budget of gradients, their other settings as they are."""
    visdom = ModuleType("visdom")
    visdom.__spec__, visdom.Visdom = ModuleSpec("visdom", None), object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "visdom", visdom)
    foolbox, torchattacks = pytest.importorskip("foolbox"), pytest.importorskip("torchattacks")
    carlini_wagner_l2 = pytest.importorskip("adv_lib.attacks").carlini_wagner_l2
    (model, x, labels), searches, iterations = distances.digits(name), 5, 40
    theirs = {
        "foolbox": foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=searches, steps=iterations).run(
            foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, labels
        ),
        "adv-lib": carlini_wagner_l2(model, x, labels, binary_search_steps=searches, max_iterations=iterations),
        "torchattacks": torchattacks.CW(model, steps=searches * iterations)(x, labels),
    }
    peers = {peer: float(distances.of_images(model, made, x, labels, "l2").median()) for peer, made in theirs.items()}
    ours = distances.nearest(model, f"cw:searches={searches},iterations={iterations}", x, labels, "l2")
    print(name, float(ours.median()), peers)
    assert ours.isfinite().all()
    assert float(ours.median()) <= 1.02 * min(peers.values())
