"""Training against several norms: the images chosen among them, their losses, and the radii."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from adversarial_step import ABOUT, COUNT, RADII, images, labels, learnt_from, made_step, network, pixels
from robustbench_lite.defenses.multi_norm import MultiNorm
from torch.nn.functional import cross_entropy

from robustbench_lite.defending import Defenses
from robustbench_lite.errors import UsageError

FOUR = [[1.5, -1.0, 0.5, 0.0], [-1.5, 1.0, -0.5, 0.0]]
"""A network whose margin is (3, -2, 1, 0) times the image: a ball of radius eps moves it by 6, 3.741657 or 3 times eps (linf, l2, l1)."""

MOVES = {"linf": 6.0, "l2": 14**0.5, "l1": 3.0}


@pytest.mark.parametrize("radii", [(0.1, 0.1, 0.1), (0.02, 0.3, 0.1), (0.02, 0.02, 0.4)])
@pytest.mark.parametrize("how", ["max", "average", "msd"])
def test_the_loss_over_norms_is_the_one_in_closed_form(how: str, radii: tuple[float, ...]) -> None:
    given = ",".join(f"{norm}={eps}" for norm, eps in zip(MOVES, radii, strict=True))
    losses = Defenses.parse(f"multi-norm:{how},{given},steps=40,step_size=0.1").losses(pixels(FOUR, 0.5, [0, 1]))
    worst = [move * eps for move, eps in zip(MOVES.values(), radii, strict=True)]
    for clean, found in zip((1.0, -1.0), losses.tolist(), strict=True):  # the margin at 0.5 is 1
        each = [math.log1p(math.exp(move - clean)) for move in worst]
        assert found == pytest.approx(sum(each) / 3 if how == "average" else max(each), abs=2e-3)


def test_each_image_is_learnt_from_under_the_norm_that_is_worst_for_it() -> None:
    classifier, radii = network().eval(), "linf=0.05,l2=0.53,l1=3"
    chosen = learnt_from(f"multi-norm:max,{radii}", classifier)
    told: Any = Defenses.parse(f"multi-norm:max,{radii}").parts[0]
    each = [told._attacked(made_step(classifier), threat) for threat in told.threats]
    losses = torch.stack([cross_entropy(classifier(x), labels(), reduction="none") for x in each])
    for row, best in enumerate(losses.argmax(0).tolist()):
        assert torch.equal(chosen[row], each[best][row])
    assert set(losses.argmax(0).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("how", ["max", "average", "msd"])
def test_images_lie_in_one_of_the_balls(how: str) -> None:
    made = learnt_from(f"multi-norm:{how},{RADII}")
    x = images().repeat(len(made) // COUNT, 1, 1, 1)
    inside = torch.stack([threat.contains(made, x) for threat in MultiNorm(linf=0.1, l2=0.8, l1=4).threats])
    assert inside.any(0).all()
    if how == "average":
        assert all(inside[k, k * COUNT : (k + 1) * COUNT].all() for k in range(3))
    assert not torch.equal(made, x)


def test_msd_takes_the_step_that_raises_the_loss_most() -> None:
    """One step of the whole radius, in each norm by hand."""
    classifier = network().eval()
    made = learnt_from("multi-norm:msd,linf=0.02,l2=0.21,norms=linf,l2,steps=1,step_size=1", classifier)
    x = images().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(classifier(x), labels(), reduction="sum"), x)
    unit = slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    both = torch.stack([images() + 0.02 * slope.sign(), images() + 0.21 * unit]).clamp(0, 1)
    best = torch.stack([cross_entropy(classifier(each), labels(), reduction="none") for each in both]).argmax(0)
    assert torch.allclose(made, both[best, torch.arange(COUNT)], atol=1e-6)
    assert set(best.tolist()) == {0, 1}


def test_msds_usual_steps_reach_the_edge_of_the_ball() -> None:
    losses = Defenses.parse("multi-norm:msd,linf=0.02,l2=0.02,l1=0.4,steps=2").losses(pixels(FOUR, 0.5, [0, 1]))
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(3.0 * 0.4 - clean)) for clean in (1.0, -1.0)], abs=1e-5)


def test_radii_are_those_of_the_data_unless_others_are_given() -> None:
    told = Defenses.parse("multi-norm:norms=linf,l2,l2=0.5").informed(ABOUT)
    assert told == Defenses.parse("multi-norm:norms=linf,l2,linf=0.1,l2=0.5")
    with pytest.raises(UsageError, match=r"these data have no usual radius in l1: give the defense one, l1=\.\.\., or name other norms="):
        Defenses.parse("multi-norm").informed(ABOUT)
