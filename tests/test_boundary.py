"""The boundary attack: near the optimum where it is known, and each row with step sizes of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_lite.plan import Finding

Run = Callable[..., list[Finding]]
WEIGHT = torch.randn(12, generator=torch.Generator().manual_seed(3))


class Plane(nn.Module):
    """Two classes, parted by a plane at a distance of 0.3 from the grey image."""

    def forward(self, x: Tensor) -> Tensor:
        height = (x - 0.5).flatten(1) @ WEIGHT + 0.3 * WEIGHT.norm()
        return torch.stack([height, -height], 1)


SOON = "boundary:steps=800,around=0.1,inward=0.05,probes=10,trials=10"


def test_on_a_linear_model_it_comes_near_the_optimum(attack: Run) -> None:
    found = attack(Plane(), SOON, torch.full((3, 3, 2, 2), 0.5), norm="l2")
    for f in found:
        assert f.met
        assert 0.3 * (1 - 1e-4) <= f.distance <= 1.05 * 0.3
        assert f.forwards <= 1.1 * 800 + 70


def test_no_row_sees_the_others_statistics(attack: Run, net: Any, pictures: Any) -> None:
    spec, model, x = SOON.replace("800", "80"), net(), pictures(6)
    together, alone = (attack(model, spec, x, norm="l2", batch_size=size) for size in (6, 1))
    for a, b in zip(together, alone, strict=True):
        assert (a.met, a.forwards) == (b.met, b.forwards)
        assert torch.allclose(a.image, b.image, atol=1e-4)


def test_the_walk_ends_where_steps_inward_have_become_nothing(attack: Run) -> None:
    """From the nearest point no step inward is broken."""
    found = attack(
        Plane(), "boundary:steps=3000,around=0.1,inward=1e-6,probes=3,trials=3,factor=20", torch.full((1, 3, 2, 2), 0.5), norm="l2"
    )
    assert found[0].steps < 3000
