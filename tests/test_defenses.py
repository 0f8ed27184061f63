"""What every registered defense keeps to, and how several of them combine."""

from __future__ import annotations

import copy
import inspect
import re
import sys
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite import defending
from robustbench_lite.classifier import Classifier, Preprocess
from robustbench_lite.defending import About, Batch, Defenses, Step, soft_cross_entropy
from robustbench_lite.errors import BadSpec, UnknownName, UsageError
from robustbench_lite.overlap import overlaps
from robustbench_lite.registry import DEFENSES
from robustbench_lite.streams import Streams

CPU = torch.device("cpu")
NEEDS = {
    "distill": "distill:teacher=digits_cnn",
    "ensemble": "ensemble:models=digits_cnn",
    "laplace": "laplace:data=(digits:train)",
    "multi-norm": "multi-norm:l1=20",
    "policy": f"policy:{Path(__file__).parent / 'goldens' / 'policies.json'}",
    "temperature": "temperature:t=1.5",
}
"""Specs of defenses that do not go without a parameter."""

# stylised needs weights and paintings of the user's: tests/test_stylised.py makes some
SPECS = {name: NEEDS.get(name, name) for name in DEFENSES.names() if name != "stylised"}


PLAIN = ("ibp", "crown-ibp", "colt")
"""Trainings of plain sequences without batch norm, held to their contract in test_provable_training and test_colt."""


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255


ABOUT = About(counts=(5,) * 10, eps={"linf": 0.1, "l2": 1.0}, device=CPU, shape=(3, 32, 32), some=images)


def targets(count: int = 6) -> Tensor:
    return torch.eye(10)[torch.arange(count) % 10]


def draws(rows: list[int]) -> Streams:
    return Streams(0, "training", [(f"image {row}", 0) for row in rows], None, CPU)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)),
    ).eval()


def informed(name: str) -> Defenses:
    return Defenses.parse(SPECS[name]).informed(ABOUT)


INFORMED = {name: informed(name).parts[0] for name in SPECS}
"""As a training has them: some learn only then what to do."""


def having(method: str) -> list[str]:
    return [name for name, defense in INFORMED.items() if hasattr(defense, method)]


# --- the contract


@pytest.mark.parametrize("name", SPECS)
def test_a_defense_is_a_frozen_dataclass_that_says_what_it_is(name: str) -> None:
    defense: Any = DEFENSES.get(name)
    assert is_dataclass(defense)
    assert defense.__dataclass_params__.frozen
    assert defense.kind in defending.ORDER
    methods = {m for m in ("rebuild", "scheduled", "augment", "fit", "penalty", "wrap") if hasattr(INFORMED[name], m)}
    assert methods
    assert methods == {"wrap"} or "wrap" not in methods
    assert (defense.kind in ("input", "output")) == (methods == {"wrap"})
    first = (inspect.getdoc(sys.modules[defense.__module__]) or "").splitlines()[0]
    assert re.search(r"https://\S+\w", first)
    assert len(inspect.getdoc(defense) or "") > 60
    assert all(field.name in (inspect.getdoc(defense) or "") for field in fields(defense))


@pytest.mark.parametrize("name", SPECS)
def test_the_spec_builds_the_same_defense_again(name: str) -> None:
    built = Defenses.parse(SPECS[name])
    assert Defenses.parse(built.spec) == built


@pytest.mark.parametrize("name", SPECS)
def test_what_was_trained_on_is_known_to_the_overlap_warning(name: str) -> None:
    assert overlaps(Defenses.parse(SPECS[name]).trained_on, []) == [], "a name that it does not know is an error"


@pytest.mark.parametrize("name", having("augment"))
def test_augmented_images_are_images_and_the_given_ones_are_left_alone(name: str) -> None:
    defense, x, y = informed(name), images(), targets()
    kept, state = x.clone(), torch.get_rng_state()
    batch = defense.augment(Batch(x, y), draws(list(range(6))))
    assert torch.equal(x, kept)
    assert torch.equal(state, torch.get_rng_state())
    for made in (batch.images, *batch.views):
        assert made.shape == x.shape
        assert made.dtype == x.dtype
        if name != "gaussian":  # noise is learnt as a smoothed classifier is asked under it, and that is not clipped
            assert made.min() >= 0
            assert made.max() <= 1
    assert torch.allclose(batch.targets.sum(1), torch.ones(6))
    assert any(not torch.equal(made, x) for made in (batch.images, *batch.views))


@pytest.mark.parametrize("name", [name for name in having("augment") if INFORMED[name].kind == "augmentation"])
def test_an_image_is_augmented_alike_in_every_batch(name: str) -> None:
    defense, x, y = informed(name), images(), targets()
    whole = defense.augment(Batch(x, y), draws(list(range(6))))
    order = [4, 1]
    some = defense.augment(Batch(x[order], y[order]), draws(order))
    for one, other in zip((whole.images, *whole.views), (some.images, *some.views), strict=True):
        assert torch.equal(one[order], other)


@pytest.mark.parametrize("name", [name for name in (*having("fit"), *having("penalty")) if name not in PLAIN])
def test_losses_are_one_a_row_and_have_gradients_and_statistics_are_of_training_images_only(name: str) -> None:
    defense = informed(name)
    classifier = Classifier(network(), classes=10).train()
    before = copy.deepcopy(classifier.state_dict())
    batch = defense.augment(Batch(images(), targets()), draws(list(range(6))))
    losses = defense.losses(Step(classifier, batch, draws(list(range(6)))))
    assert losses.shape == (6,)
    assert losses.isfinite().all()
    torch.autograd.backward(losses.mean())
    assert all(weights.grad is not None and weights.grad.abs().sum() > 0 for weights in classifier.parameters())
    after = classifier.state_dict()
    counted = int(after["model.1.num_batches_tracked"]) - int(before["model.1.num_batches_tracked"])
    assert 1 <= counted <= 2  # passes in training mode; an attack's are not among them
    assert all(torch.equal(before[key], after[key]) for key in before if "weight" in key or "bias" in key)
    assert classifier.training
    assert all(module.training for module in classifier.modules())


@pytest.mark.parametrize("name", having("rebuild"))
def test_a_rebuilt_network_answers_and_says_so_in_its_digest(name: str) -> None:
    plain = Classifier(network(), classes=10)
    rebuilt = Classifier(informed(name).rebuild(network()).eval(), classes=10)
    assert rebuilt(images()).shape == (6, 10)
    assert rebuilt.digest != plain.digest


@pytest.mark.parametrize("name", having("wrap"))
def test_a_wrapped_classifier_keeps_what_is_known_of_it(name: str) -> None:
    classifier = Classifier(network(), mean=(0.5,) * 3, std=(0.2,) * 3, classes=10, name="inner", data="digits")
    classifier.preprocess = Preprocess(size=(32, 32), resize=None)
    answered = classifier(images())
    wrapped = Defenses.parse(SPECS[name]).applied(classifier)
    assert (wrapped.classes, wrapped.data, wrapped.preprocess) == (10, "digits", classifier.preprocess)
    assert wrapped.name.startswith("inner+")
    assert not wrapped.training
    assert wrapped(images()).shape == answered.shape


# --- combinations


@dataclass(frozen=True)
class Doubled:
    """Fits twice the cross-entropy."""

    kind = "adversarial"

    def fit(self, step: Step) -> Tensor:
        return 2 * soft_cross_entropy(step.logits, step.batch.targets)


@dataclass(frozen=True)
class Added:
    """Adds the number of the row."""

    kind = "distillation"

    def penalty(self, step: Step) -> Tensor:
        return torch.arange(len(step.batch.images)).float()


def test_losses_are_one_fit_and_every_penalty() -> None:
    classifier = Classifier(network(), classes=10)
    step = Step(classifier, Batch(images(), targets()), draws(list(range(6))))
    plain = -classifier(images()).log_softmax(1)[range(6), range(6)]
    assert torch.allclose(Defenses().losses(step), plain)
    assert torch.allclose(Defenses((Doubled(), Added())).losses(step), 2 * plain + torch.arange(6))


def test_views_share_one_pass_with_the_images() -> None:
    passes: list[int] = []
    classifier = Classifier(network(), classes=10).train()
    classifier.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    step = Step(classifier, Batch(images(), targets(), (images() / 2, images() / 3)), draws(list(range(6))))
    assert [len(answer) for answer in step.answers] == [6, 6, 6]
    assert step.logits is step.answers[0]
    assert passes == [18]


def test_nothing_is_asked_of_the_images_where_nothing_needs_them() -> None:
    class Alone:
        kind = "adversarial"

        def fit(self, step: Step) -> Tensor:
            return torch.zeros(len(step.batch.images))

    classifier = Classifier(network(), classes=10)
    classifier.register_forward_hook(lambda *_: pytest.fail("a pass that nobody asked for"))
    losses = Defenses((Alone(),)).losses(Step(classifier, Batch(images(), targets()), draws(list(range(6)))))
    assert torch.equal(losses, torch.zeros(6))


def test_no_defense_is_standard_training() -> None:
    for spec in (None, "none"):
        assert Defenses.parse(spec) == Defenses()
    assert (Defenses().spec, Defenses().trained_on, Defenses().adversarial) == ("none", (), False)


def test_parts_act_in_one_order_however_they_are_named() -> None:
    assert Defenses.parse("trades:beta=3+augmix+kwta") == Defenses.parse("kwta+augmix+trades:beta=3")
    assert [part.kind for part in Defenses.parse("trades+augmix+kwta").parts] == ["network", "augmentation", "adversarial"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("trade", "did you mean 'trades'"),
        ("pgd-at+trades", "pgd-at and trades both choose the adversarial images: take one of the two"),
        ("augmix+randaugment", "both choose the augmentation"),
        ("mixup+cutmix", "both mix images with each other"),
        ("kwta+kwta", "both change the network's layers"),
        ("jpeg+median", "both stand before the model"),
        ("laplace+temperature:t=2", "both change its answers"),
        ("trades:alpha=3", "trades has no parameter 'alpha'"),
        ("trades:beta=-1", "trades:beta=-1: input should be greater than"),
        ("", "empty name"),
        ("augmix+", "augmix\\+"),
    ],
)
def test_a_combination_that_makes_no_sense_is_refused_in_a_line(spec: str, said: str) -> None:
    with pytest.raises((BadSpec, UnknownName), match=said):
        Defenses.parse(spec)


def test_one_thing_stands_before_a_model_and_another_changes_its_answers() -> None:
    classifier = Classifier(network(), classes=10, data="digits")
    whole = Defenses.parse("temperature:t=2+jpeg").applied(classifier)
    one_by_one = Defenses.parse("temperature:t=2").applied(Defenses.parse("jpeg").applied(Classifier(network(), classes=10, data="digits")))
    assert torch.equal(whole(images()), one_by_one(images()))


def test_what_is_put_around_a_model_is_not_trained_and_the_other_way_round() -> None:
    with pytest.raises(UsageError, match="bit-depth is not trained but put around a model: robust-eval --defense bit-depth"):
        Defenses.parse("bit-depth").trainable()
    with pytest.raises(UsageError, match="trades is learnt, and cannot be put on a model: robust-train --defense trades"):
        Defenses.parse("trades").applied(Classifier(network(), classes=10))


def test_an_attack_in_a_defense_stands_in_parentheses() -> None:
    defense = Defenses.parse("pgd-at:attack=(apgd:steps=5,loss=dlr),eps=8/255+augmix")
    assert [part.kind for part in defense.parts] == ["augmentation", "adversarial"]
    assert Defenses.parse(defense.spec) == defense
