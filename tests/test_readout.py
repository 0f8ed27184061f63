"""Readouts: the classifier that a data set makes of one for ImageNet answers in the data's classes, with gradients and all the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from robustbench_lite.checks import first_answer
from robustbench_lite.classifier import Classifier, Preprocess
from robustbench_lite.errors import ModelError
from robustbench_lite.prepare import prepare
from robustbench_lite.readout import Groups, Readout, Subset

GROUPS = Groups(((7,), (1, 2, 5), (999, 0)))
SUBSET = Subset((3, 999, 40))
READOUTS = pytest.mark.parametrize("readout", [GROUPS, SUBSET])


def classifier(outputs: int = 1000, classes: int | None = 1000) -> Classifier:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, outputs)).eval()
    made = Classifier(net, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), preprocess=Preprocess((8, 8), 9), classes=classes, name="net")
    made.recipe = {"spec": "net"}
    return made.requires_grad_(False)


def pictures() -> Tensor:
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_subset_slices_the_logits() -> None:
    given = classifier()
    read = SUBSET.applied(given)
    assert torch.equal(read(pictures()), given(pictures())[:, [3, 999, 40]])


def test_groups_are_log_means_of_probabilities() -> None:
    given = classifier()
    probabilities = given(pictures()).double().softmax(1)
    wanted = torch.stack([probabilities[:, list(group)].mean(1) for group in GROUPS.groups], 1).log()
    assert torch.allclose(GROUPS.applied(given)(pictures()).double(), wanted, atol=1e-5)


def test_groups_hold_where_probabilities_vanish() -> None:
    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.zeros(len(x), 1000)
            return logits.index_fill(1, torch.tensor([2]), 500.0)

    logits = GROUPS.applied(Classifier(Sure().eval(), classes=1000))(pictures())
    assert logits.isfinite().all()
    assert (logits.argmax(1) == 1).all()


@READOUTS
def test_all_else_is_as_it_was(readout: Readout) -> None:
    given = classifier()
    read = readout.applied(given)
    assert (read.classes, read.name, read.preprocess, read.recipe) == (3, "net", given.preprocess, {"spec": "net"})
    assert torch.equal(read.mean, given.mean)
    assert torch.equal(read.std, given.std)
    assert read.digest != given.digest
    assert read.digest == readout.applied(classifier()).digest
    assert not any(module.training for module in read.modules())


def test_digests_tell_readouts_apart() -> None:
    others = [SUBSET, Subset((3, 999, 41)), GROUPS, Groups(((7,), (1, 2, 6), (999, 0)))]
    assert len({readout.applied(classifier()).digest for readout in others}) == 4


@READOUTS
def test_attacks_can_climb_it_and_the_model_is_prepared_as_before(readout: Readout) -> None:
    read = readout.applied(classifier())
    x = pictures().requires_grad_()
    (slope,) = torch.autograd.grad(read(x)[:, 1].sum(), x)
    assert slope.isfinite().all()
    assert slope.flatten(1).any(1).all()
    prepared = prepare(read, pictures())
    assert (prepared.folded, prepared.reason) == (1, None)
    assert isinstance(fx.symbolic_trace(read), fx.GraphModule)


@READOUTS
def test_a_model_with_other_outputs_is_refused(readout: Readout) -> None:
    with pytest.raises(ModelError, match="net has 10 classes, and these data are read off the 1000 of ImageNet"):
        readout.applied(classifier(10, 10))
    read = readout.applied(classifier(10, None))
    with pytest.raises(ModelError, match="the model has 10 classes"):
        first_answer(read, pictures(), torch.tensor([0, 1, 2, 0, 1]))


def test_an_attack_on_a_read_off_model_finds_what_it_should(attack: Any) -> None:
    read = Groups(((0, 1), (2, 3))).applied(classifier())
    found = attack(read, "pgd", pictures(), eps=0.5)
    assert all(finding.broken for finding in found)
