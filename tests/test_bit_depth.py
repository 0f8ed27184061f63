"""Bit-depth reduction: its levels by hand, what stays of the classifier behind it, and what an adaptive attack leaves of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from robustbench_lite.defenses.bit_depth import BitDepth, Rounding
from torch import Tensor, nn
from training_fixture import digits, made, training

import robustbench_lite as rb
from robustbench_lite.checks import first_answer
from robustbench_lite.classifier import Classifier, Preprocess
from robustbench_lite.data import load_data
from robustbench_lite.errors import BadSpec, ModelError, UsageError
from robustbench_lite.models import load_model
from robustbench_lite.prepare import prepare


@pytest.mark.parametrize(
    ("bits", "given", "levels"),
    [
        (1, [0.0, 0.49, 0.51, 1.0], [0.0, 0.0, 1.0, 1.0]),
        (2, [0.0, 0.16, 0.17, 0.4, 0.84, 1.0], [0, 0, 1 / 3, 1 / 3, 1, 1]),
        (3, [0.07, 0.08, 0.5, 3 / 7], [0, 1 / 7, 4 / 7, 3 / 7]),
        (8, [100 / 255, 100.4 / 255, 100.6 / 255], [100 / 255, 100 / 255, 101 / 255]),
    ],
)
def test_values_become_the_nearest_of_as_many_levels(bits: int, given: list[float], levels: list[float]) -> None:
    torch.testing.assert_close(Rounding(bits)(torch.tensor(given)), torch.tensor(levels))
    assert len(Rounding(bits)(torch.linspace(0, 1, 10_001)).unique()) == 2**bits


def normalised() -> Classifier:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5)).eval()
    preprocess = Preprocess(size=(4, 4), resize=None, interpolation="bicubic")
    given = Classifier(model, mean=(0.5,) * 3, std=(0.2,) * 3, preprocess=preprocess, classes=5, name="five", data="digits")
    given.trained_on = ("augmix",)
    return given


def test_the_image_is_rounded_before_it_is_normalised() -> None:
    given, x = normalised(), torch.rand(6, 3, 4, 4)
    wrapped = BitDepth(bits=2).wrap(given)
    expected = given.model(((x * 3).round() / 3 - 0.5) / 0.2)
    torch.testing.assert_close(wrapped(x), expected)
    assert not torch.allclose(expected, given(x))


def test_all_that_is_known_of_the_classifier_stays() -> None:
    given = normalised()
    wrapped = BitDepth().wrap(given)
    for name in ("preprocess", "classes", "name", "data", "differentiable", "trained_on"):
        assert getattr(wrapped, name) == getattr(given, name)
    assert not any(module.training for module in wrapped.modules())


def test_each_depth_is_a_model_of_its_own() -> None:
    digests = {normalised().digest, *(BitDepth(bits).wrap(normalised()).digest for bits in (2, 3))}
    assert len(digests) == 3
    assert BitDepth(3).wrap(normalised()).digest in digests


def test_grey_images_are_still_refused_by_a_model_for_colours() -> None:
    with pytest.raises(ModelError, match="five does not take 1x4x4 images: it is normalised for 3 channels"):
        first_answer(BitDepth().wrap(normalised()), torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64))


def test_it_is_run_as_given_since_rounding_could_tip_over() -> None:
    preparation = prepare(BitDepth().wrap(load_model("digits_cnn")), torch.rand(2, 3, 32, 32))
    assert preparation.reason == "Rounding is not smooth"


# --- under attack


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    some = load_data("digits", limit=24)
    return torch.stack([image for image, _ in some]), torch.tensor([label for _, label in some])


def test_without_a_stand_in_every_gradient_would_be_zero(images: tuple[Tensor, Tensor]) -> None:
    wrapped = load_model("digits_cnn", defense="bit-depth")
    x = images[0][:2].clone().requires_grad_()
    assert not torch.autograd.grad(wrapped(x).logsumexp(1).sum(), x)[0].any()


def test_an_attack_goes_through_it_and_the_run_can_be_verified(tmp_path: Path, images: tuple[Tensor, Tensor]) -> None:
    wrapped = load_model("digits_cnn", defense="bit-depth:bits=3")
    assert wrapped.name == "digits_cnn+bit-depth"
    result = rb.evaluate(wrapped, "pgd:steps=20", images, eps=0.2, out=tmp_path / "run")
    table = result.table.set_index("condition")
    clean, attacked = int(table.loc["clean", "correct"]), int(table.loc["pgd:steps=20[linf,0.2]", "correct"])
    assert clean >= 20
    assert attacked <= clean // 4
    assert any("model.rounding" in note and "BPDA" in note for note in result.config["notes"])
    assert result.config["model"]["recipe"]["defense"] == "bit-depth:bits=3"
    assert rb.verify(tmp_path / "run").holding == clean - attacked


def test_its_witnesses_are_not_those_of_another_depth(tmp_path: Path, images: tuple[Tensor, Tensor]) -> None:
    rb.evaluate(load_model("digits_cnn", defense="bit-depth:bits=2"), "noise:queries=2", images, eps=0.1, out=tmp_path / "run")
    with pytest.raises(UsageError):
        rb.evaluate(load_model("digits_cnn", defense="bit-depth:bits=3"), "noise:queries=2", images, eps=0.1, out=tmp_path / "run")


# --- where it does not belong


def test_it_is_refused_in_training() -> None:
    with pytest.raises(UsageError, match=r"^bit-depth is not trained but put around a model: robust-eval --defense bit-depth:bits=4$"):
        training(digits(32), what=made("small_cnn", "bit-depth:bits=4"))


@pytest.mark.parametrize("bits", ["0", "9", "2.5"])
def test_a_depth_that_there_is_not_is_refused(bits: str) -> None:
    with pytest.raises(BadSpec, match=rf"^bit-depth:bits={bits}: input should be "):
        load_model("digits_cnn", defense=f"bit-depth:bits={bits}")


def test_what_is_learnt_cannot_be_put_on_a_model() -> None:
    with pytest.raises(UsageError, match=r"^trades is learnt, and cannot be put on a model: robust-train --defense trades$"):
        load_model("digits_cnn", defense="bit-depth+trades")
