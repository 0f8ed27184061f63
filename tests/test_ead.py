"""EAD: on linear models it changes the heaviest values only, and in any units of the logits the same."""

from __future__ import annotations

import distances
import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.criteria import Misclassified
from robustbench_lite.plan import Finding

QUICK = "ead:searches=4,iterations=40"


class Linear(nn.Module):
    """Two classes, parted by a plane that grey images have 0.3 away in l1: in the value whose weight is 2, the others weigh less than 1."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.weight = torch.rand(27, generator=torch.Generator().manual_seed(0))
        self.weight[5] = -2.0
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor) -> Tensor:
        height = (x - 0.5).flatten(1) @ self.weight - 0.6
        return self.scale * torch.stack([-height, height], 1) + self.shift


def searched(model: nn.Module, x: Tensor, spec: str = QUICK) -> list[Finding]:
    return distances.findings(model, spec, x, Misclassified(model(x).argmax(1)), "l1", eps=100.0)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1000.0, 0.0), (1.0, 1e4)])
def test_on_a_linear_model_it_changes_the_heaviest_value(scale: float, shift: float) -> None:
    x = torch.full((2, 3, 3, 3), 0.5)
    x[1].view(-1)[5] = 1.0  # at the edge of the box, from which it comes down
    x[1].view(-1)[0] -= 0.5
    gap = -((x - 0.5).flatten(1) @ Linear().weight - 0.6)
    for f, image, optimum in zip(searched(Linear(scale, shift), x), x, gap / 2, strict=True):
        assert f.broken
        # a step draws all values back by beta, so that what is reached swings by about as much
        assert float(optimum) - 1e-3 <= f.distance <= float(optimum) * 1.02 + 0.01
        assert ((f.image - image).flatten().abs() > 0.011).nonzero().flatten().tolist() == [5]


def test_costs_are_bounded() -> None:
    (found,) = searched(Linear(), torch.full((1, 3, 3, 3), 0.5), "ead:searches=2,iterations=5")
    assert found.forwards <= 22
    assert found.backwards <= 11


@pytest.mark.peers
@pytest.mark.parametrize("name", distances.MODELS)
def test_it_comes_nearer_than_foolbox(name: str) -> None:
    """At an equal number of steps. Left at its own first constant of 1e-3, foolbox's has no steps to come back, and is no measure."""
    foolbox = pytest.importorskip("foolbox")
    (model, x, labels), searches, iterations = distances.digits(name, 50), 5, 40
    peer_attack = foolbox.attacks.EADAttack(searches, iterations, initial_const=1.0, abort_early=False, decision_rule="L1")
    theirs = peer_attack.run(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, foolbox.criteria.Misclassification(labels))
    peer = distances.of_images(model, theirs, x, labels, "l1")
    ours = distances.nearest(model, f"ead:searches={searches},iterations={iterations}", x, labels, "l1")
    print(name, float(ours.median()), float(peer.median()))
    assert peer.isfinite().all()
    assert peer.max() < 200  # else it is the peer that failed
    assert ours.isfinite().all()
    assert float(ours.median()) <= 1.02 * float(peer.median())
