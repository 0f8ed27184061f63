"""BPDA by stand-ins that layers offer: the gradients by hand, what the model answers, and where a masked gradient leads nowhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from robustbench_lite.defenses.kwta import SOFTNESS, WinnersTakeAll
from torch import Tensor, nn

from robustbench_lite.bpda import straight_through
from robustbench_lite.errors import BadSpec, UsageError
from robustbench_lite.registry import ATTACKS
from robustbench_lite.threat import ball

Function = Callable[[Tensor], Tensor]


class Steps(nn.Module):
    """Rounds to quarters: an exact gradient of 0."""

    def __init__(self) -> None:
        super().__init__()
        self.stand_ins: dict[str, Function] = {"straight": lambda x: x}

    def forward(self, x: Tensor) -> Tensor:
        return (x * 4).round() / 4


class Declared(Steps):
    def surrogate_backward(self, x: Tensor) -> Tensor:
        return 3 * x


class Plane(nn.Module):
    """Two classes, parted by a plane behind the rounding."""

    def __init__(self, weight: Tensor, offset: float) -> None:
        super().__init__()
        self.steps, self.weight, self.offset = Steps(), weight, offset

    def forward(self, x: Tensor) -> Tensor:
        height = (self.steps(x) - 0.5).flatten(1) @ self.weight + self.offset
        return torch.stack([height, -height], 1)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 20), WinnersTakeAll(0.2), nn.Linear(20, 5)).double().requires_grad_(False)


def winners(count: int = 8) -> nn.Sequential:
    """A larger one, in float32."""
    torch.manual_seed(1)
    first, second = nn.Conv2d(3, count, 3, padding=1), nn.Conv2d(count, count, 3, stride=2)
    head = nn.Sequential(nn.Flatten(), nn.Linear(9 * count, 10))
    return nn.Sequential(first, WinnersTakeAll(0.1), second, WinnersTakeAll(0.1), head).requires_grad_(False).eval()


def hooks(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules())


def slope(net: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad((net(x) * weight).sum(), x)[0]


def test_gradients_are_those_of_the_stand_ins_by_hand_and_answers_are_the_models() -> None:
    net, x = small(), torch.rand(6, 3, 2, 2, dtype=torch.float64)
    weight = torch.randn(6, 5, dtype=torch.float64)
    z = net[1](x.flatten(1))
    fourth = z.sort(1).values[:, -4, None]
    gate = 1 / (1 + torch.exp(-(z - fourth) / (width := SOFTNESS * z.std(1, keepdim=True))))
    through = {"plain": (z >= fourth).double(), "straight": torch.ones_like(z), "smooth": gate + z * gate * (1 - gate) / width}
    answer = net(x)
    for name, factor in through.items():
        expected = (((weight @ net[3].weight) * factor) @ net[1].weight).reshape(x.shape)
        with nullcontext() if name == "plain" else ATTACKS.build(f"bpda:backward={name}").hooks(net, x[:1]):
            assert torch.equal(net(x), answer)
            assert torch.equal(net(x.clone().requires_grad_()), answer)
            torch.testing.assert_close(slope(net, x, weight), expected)


def test_hooks_are_gone_afterwards_also_after_an_error() -> None:
    net = small()
    with ATTACKS.build("bpda").hooks(net, torch.rand(1, 3, 2, 2)):
        assert hooks(net) == 1
    with pytest.raises(KeyError), ATTACKS.build("bpda").hooks(net, torch.rand(1, 3, 2, 2)):
        raise KeyError
    assert hooks(net) == 0


def test_a_stand_in_is_taken_where_it_was_asked_for_only() -> None:
    net, x = nn.Sequential(Steps(), Declared(), WinnersTakeAll(1.0)), torch.rand(2, 7)
    with straight_through(net) as names:
        assert names == ["1"]
    with straight_through(net, "straight") as names:
        assert names == ["0", "1", "2"]
        assert torch.equal(slope(net, x, torch.ones(2, 7)), torch.ones(2, 7))
    with straight_through(net, "smooth") as names:
        assert names == ["1", "2"], "what is declared is taken where there is no such choice"


def test_behind_rounding_it_finds_the_plane_that_plain_gradients_do_not(attack: Any) -> None:
    weight = torch.tensor([1.0, -2.0, 3.0]).repeat(16)
    x = torch.full((3, 3, 4, 4), 0.5)
    net = Plane(weight, 0.26 * float(weight.abs().sum()))  # rounding moves a grey value by 1/4 once it has gone 1/8, by 1/2 after 3/8
    for spec, eps, expected in (("bpda", 0.37, False), ("bpda", 0.38, True), ("pgd", 0.38, False)):
        spec += ":backward=straight" if spec == "bpda" else ""
        assert [f.broken for f in attack(net, spec, x, eps=eps)] == [expected] * 3


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_it_stays_in_the_ball_changes_nothing_and_does_not_depend_on_the_batch(attack: Any, pictures: Any, norm: str) -> None:
    net, x, eps = winners(), pictures(6), {"linf": 0.06, "l2": 0.6, "l1": 4.0}[norm]
    runs = [attack(net, "bpda:steps=8,step_size=0.3", x, norm=norm, eps=eps, batch_size=size) for size in (6, 4, 1)]
    found = [torch.stack([f.image for f in run]) for run in runs]
    assert hooks(net) == 0
    assert ball(norm, eps).contains(found[0], x).all()
    assert [f.broken for f in runs[0]] == (net(found[0]).argmax(1) != net(x).argmax(1)).tolist()
    assert any(f.broken for f in runs[0])
    for run, seen in zip(runs, found, strict=True):
        assert [f.broken for f in run] == [f.broken for f in runs[0]]
        torch.testing.assert_close(seen, found[0], atol=1e-4, rtol=0)


def test_its_first_step_is_along_the_gradient_of_the_stand_in(attack: Any, pictures: Any) -> None:
    net, x = winners(), pictures(4)
    labels = net(x).argmax(1)
    for name in ("straight", "smooth"):
        with straight_through(net, name):
            leaf = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(net(leaf), labels, reduction="sum"), leaf)
        found = attack(net, f"bpda:steps=1,step_size=1,backward={name},loss=ce", x, eps=1e-3, goal="full", labels=labels)
        moved = (x + 1e-3 * gradient.sign()).clamp(0, 1)
        images = torch.stack([f.image for f in found])
        assert all(torch.allclose(a, b, atol=1e-7) or torch.equal(a, c) for a, b, c in zip(images, moved, x, strict=True))


def test_it_combines_with_other_stages(attack: Any, pictures: Any) -> None:
    net, x = winners(), pictures(4)
    alone, both = (attack(net, spec, x, eps=0.02, goal="full") for spec in ("bpda:steps=5", "bpda:steps=5+mi"))
    assert any(not torch.equal(a.image, b.image) for a, b in zip(alone, both, strict=True))
    assert hooks(net) == 0


def test_what_cannot_be_used_is_said_in_one_line(attack: Any, net: Any, pictures: Any) -> None:
    with pytest.raises(UsageError) as error:
        attack(net(), "bpda", pictures(2))
    assert str(error.value) == (
        "bpda:backward=smooth needs layers that offer such a stand-in, as those of kwta do, and this model has none: "
        "attack it with pgd or autoattack"
    )
    with pytest.raises(UsageError, match="bpda:backward=smooth needs"):
        attack(Plane(torch.ones(48), 1.0), "bpda", torch.rand(2, 3, 4, 4))
    with pytest.raises(BadSpec, match="bpda:backward=sharp: input should be 'smooth' or 'straight'"):
        ATTACKS.build("bpda:backward=sharp")
