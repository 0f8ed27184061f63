"""Training on bounds: bounds held to points, corners and exact arithmetic; losses at both ends of the schedule; resumed and refused."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from robustbench_lite.defenses import training as loop
from robustbench_lite.defenses.adversary import attack_for_training, attacked
from robustbench_lite.defenses.crown_ibp import CROWNIBP
from robustbench_lite.defenses.ibp import IBP
from robustbench_lite.defenses.proven import Proven
from robustbench_lite.defenses.selection import Score, Selection
from robustbench_lite.defenses.train_cli import main
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from training_fixture import ALONE, digits, made, same, training

from robustbench_lite.classifier import Classifier
from robustbench_lite.data import load_data
from robustbench_lite.defending import Batch, Defenses, Step
from robustbench_lite.errors import BadSpec, ModelError
from robustbench_lite.plain_bounds import backward_margins, ball_in_box, bounded_layers, interval_bounds, interval_margins
from robustbench_lite.streams import Streams
from robustbench_lite.threat import ball
from robustbench_lite.zonotope import Zonotope

CPU = torch.device("cpu")
MARGINS = (interval_margins, backward_margins)


def draws(count: int) -> Streams:
    return Streams(0, "training", [(f"image {k}", 0) for k in range(count)], None, CPU)


def network(seed: int = 0) -> Classifier:
    """In float64, for images of 1 x 6 x 6."""
    torch.manual_seed(seed)
    convolutions = [nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=2, bias=False), nn.ReLU()]
    layers = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    return Classifier(layers.eval(), mean=(0.4,), std=(0.5,), classes=3).double().train()


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def labels(count: int = 6) -> Tensor:
    return torch.arange(count) % 3


def made_step(classifier: Classifier, progress: float) -> Step:
    return Step(classifier, Batch(images(), torch.eye(3, dtype=torch.float64)[labels()]), draws(6), progress)


def margins(classifier: Classifier, eps: float, bound: Any, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    layers = bounded_layers(classifier.model)
    inputs = interval_bounds(layers, ball_in_box(classifier, images() if x is None else x, eps))
    found: Tensor = bound(layers, inputs, labels() if y is None else y)
    return found


# --- bounds


@pytest.mark.parametrize("bound", MARGINS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_point_of_ten_thousand_is_below_the_margins(bound: Any, seed: int) -> None:
    classifier, eps = network(seed), 0.1
    lower, upper = (images() - eps).clamp(min=0), (images() + eps).clamp(max=1)
    drawn = torch.rand(1700, *lower.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn[::2] = drawn[::2].round()  # corners
    with torch.no_grad():
        logits = classifier((lower + drawn * (upper - lower)).flatten(0, 1))
        y = labels().repeat(1700)
        reached = (logits.gather(1, y[:, None]) - logits).reshape(1700, 6, 3).amin(0)
        found = margins(classifier, eps, bound)
    assert (found <= reached + 1e-12).all()
    assert (found >= reached - 10 * (1 + reached.abs())).all()  # and not because they are far off


@pytest.mark.parametrize("bound", MARGINS)
def test_at_eps_0_margins_are_those_of_the_image(bound: Any) -> None:
    classifier = network()
    logits = classifier(images())
    assert torch.allclose(margins(classifier, 0.0, bound), logits.gather(1, labels()[:, None]) - logits, atol=1e-12)


@pytest.mark.parametrize("bound", MARGINS)
def test_margins_of_a_linear_network_are_the_least_over_the_corners(bound: Any) -> None:
    """Which takes the last layer elided: the label's least logit less the other's largest is below them, and so are intervals that pass
    two layers one after the other."""
    torch.manual_seed(0)
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval(), mean=(0.2,), std=(0.5,), classes=3).double()
    x, y, eps = torch.tensor([[0.05, 0.5, 0.9, 0.97]]).double().reshape(1, 1, 2, 2), torch.tensor([1]), 0.1
    corners = torch.tensor(list(product((-eps, eps), repeat=4))).double().reshape(-1, 1, 2, 2)
    logits = classifier((x + corners).clamp(0, 1))
    expected = (logits[:, 1:2] - logits).amin(0)
    assert torch.allclose(margins(classifier, eps, bound, x, y)[0], expected, atol=1e-12)
    apart = logits[:, 1].amin() - logits.amax(0)
    assert (apart[[0, 2]] < expected[[0, 2]] - 1e-3).all()


def test_linear_bounds_are_exact_through_several_affine_layers_and_intervals_are_not() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 2, 2, stride=2, padding=1), nn.Flatten(), nn.Linear(8, 5), nn.Linear(5, 3)).eval()
    classifier, eps = Classifier(layers, classes=3).double(), 0.3
    x = torch.full((1, 1, 2, 2), 0.5).double()
    corners = torch.tensor(list(product((-eps, eps), repeat=4))).double().reshape(-1, 1, 2, 2)
    logits = classifier(x + corners)
    expected = (logits[:, :1] - logits).amin(0)
    first = torch.tensor([0])
    assert torch.allclose(margins(classifier, eps, backward_margins, x, first)[0], expected, atol=1e-12)
    assert (margins(classifier, eps, interval_margins, x, first)[0, 1:] < expected[1:] - 1e-3).all()


def hidden(weight: float, bias: float) -> Classifier:
    """Logits (relu(weight * x + bias), 0) of an image of one pixel."""
    layers = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        for layer, weights, offset in ((layers[1], [[weight]], [bias]), (layers[3], [[1.0], [0.0]], [0.0, 0.0])):
            layer.weight.copy_(torch.tensor(weights))
            layer.bias.copy_(torch.tensor(offset))
    return Classifier(layers, classes=2).double()


@pytest.mark.parametrize(
    ("bias", "first", "second"),
    [
        (-1.5, -0.4, -0.6),  # in [-0.4, 0.6]: above its input where it rises, below the chord 0.6 (x + 0.4) where it falls
        (-1.7, 0.0, -0.4),  # in [-0.6, 0.4]: above 0
        (-3.0, 0.0, 0.0),  # never on
        (0.0, 1.1, -2.1),  # always
    ],
)
def test_linear_bounds_of_one_relu_by_hand(bias: float, first: float, second: float) -> None:
    """2 x + bias for x in [0.55, 1.05]."""
    x = torch.full((2, 1, 1, 1), 0.8).double()
    layers = bounded_layers(hidden(2.0, bias).model)
    inputs = interval_bounds(layers, (x - 0.25, x + 0.25))
    found = backward_margins(layers, inputs, torch.tensor([0, 1]))
    assert [found[0, 1].item(), found[1, 0].item()] == pytest.approx([first, second])


def test_zonotopes_are_linear_bounds_with_parallel_slopes_and_intervals_are_wider_than_both() -> None:
    """An independent way to the same: where no lower slope is chosen freely, the two agree to the last digits."""
    classifier, eps = network(), 0.02
    layers = bounded_layers(classifier.model)
    box = ball_in_box(classifier, images(), eps)
    inputs, zonotope = interval_bounds(layers, box), Zonotope.of_box(*box)
    with torch.no_grad():
        for layer, known in zip(layers[:-1], inputs, strict=False):
            zonotope = zonotope.after(layer, known)
        last: Any = layers[-1]
        lead = last.weight[labels()][:, None] - last.weight
        centre = (lead @ zonotope.centre[:, :, None])[..., 0] + last.bias[labels()][:, None] - last.bias
        parallel = centre - torch.einsum("bkd,bed->bek", lead, zonotope.errors).abs().sum(1)
        linear, intervals = backward_margins(layers, inputs, labels()), interval_margins(layers, inputs, labels())
    others = torch.nn.functional.one_hot(labels(), 3) == 0
    assert (intervals[others] < parallel[others]).all()
    assert (linear - parallel)[others].abs().max() < 0.5 * (parallel - intervals)[others].min()


# --- losses


@pytest.mark.parametrize("defense", [IBP, CROWNIBP])
def test_without_a_radius_the_loss_is_plain_cross_entropy(defense: type[Proven]) -> None:
    for settings, progress in (({"eps": 0.1}, 0.0), ({"eps": 0.1}, 0.049), ({"eps": 1e-12, "warmup": 0, "ramp": 0, "kappa": 0}, 0.5)):
        step = made_step(network(), progress)
        losses = defense(**settings).fit(step)  # type: ignore[arg-type]  # fields of both
        assert torch.allclose(losses.float(), cross_entropy(step.logits, labels(), reduction="none").float(), atol=1e-5)


@pytest.mark.parametrize("defense", [IBP, CROWNIBP])
def test_targets_that_are_shared_out_are_learnt_from(defense: type[Proven]) -> None:
    step = made_step(network(), 0.5)
    step.batch = Batch(images(), 0.9 * step.batch.targets + 0.1 / 3)
    losses = defense(eps=1e-12, warmup=0, ramp=0, kappa=0).fit(step)
    assert torch.allclose(losses, cross_entropy(step.logits, step.batch.targets, reduction="none"), atol=1e-5)


def test_the_loss_is_that_of_the_worst_logits_in_the_shares_of_the_schedule() -> None:
    """A quarter of the training after a warm-up of a tenth, with a ramp of a half: 0.3 of the radius, kappa 1 - 0.3 * 0.4."""
    classifier = network()
    losses = IBP(eps=0.1, warmup=0.1, ramp=0.5, kappa=0.6).fit(made_step(classifier, 0.25))
    natural = cross_entropy(classifier(images()), labels(), reduction="none")
    worst = (-margins(classifier, 0.03, interval_margins)).exp().sum(1).log()
    assert torch.allclose(losses, 0.88 * natural + 0.12 * worst, atol=1e-6)


def test_linear_bounds_give_way_to_intervals() -> None:
    classifier = network()
    settings: dict[str, Any] = {"eps": 0.1, "warmup": 0.1, "ramp": 0.5, "kappa": 0}
    losses = CROWNIBP(**settings, beta=0.2).fit(made_step(classifier, 0.35))  # half way: beta 0.6
    mixed = 0.6 * margins(classifier, 0.05, backward_margins) + 0.4 * margins(classifier, 0.05, interval_margins)
    natural = cross_entropy(classifier(images()), labels(), reduction="none")
    assert torch.allclose(losses, 0.5 * natural + 0.5 * (-mixed).exp().sum(1).log(), atol=1e-6)
    end = made_step(classifier, 0.6)
    assert torch.allclose(CROWNIBP(**settings).fit(end), IBP(**settings).fit(end), atol=1e-12)


@pytest.mark.parametrize("defense", [IBP, CROWNIBP])
def test_no_point_of_the_ball_has_a_larger_loss(defense: type[Proven]) -> None:
    classifier = network()
    losses = defense(eps=0.05, kappa=0).fit(made_step(classifier, 0.9))
    attack = attack_for_training("pgd:steps=20", "linf")
    x_adv = attacked(classifier.float(), images().float(), labels(), ball("linf", 0.05), attack, draws(6))
    assert (cross_entropy(classifier(x_adv), labels(), reduction="none") <= losses + 1e-5).all()


@pytest.mark.parametrize("bound", MARGINS)
def test_gradients_are_those_of_finite_differences(bound: Any) -> None:
    classifier, nudge = network(), 1e-6
    weights = list(classifier.parameters())
    gradients = torch.autograd.grad(margins(classifier, 0.05, bound).square().sum(), weights)
    assert len(weights) == 7
    for weight, gradient in zip(weights, gradients, strict=True):
        first, sides = (0,) * weight.ndim, []
        with torch.no_grad():
            for step in (nudge, -2 * nudge):
                weight[first] += step
                sides.append(margins(classifier, 0.05, bound).square().sum().item())
            weight[first] += nudge
        assert gradient[first].item() == pytest.approx((sides[0] - sides[1]) / (2 * nudge), rel=1e-4, abs=1e-6)


def test_bounds_are_computed_in_full_precision_where_the_rest_is_not() -> None:
    classifier, settings = network().float(), {"eps": 0.05, "warmup": 0, "ramp": 0, "kappa": 0}
    step = Step(classifier, Batch(images().float(), torch.eye(3)[labels()]), draws(6), 0.5)
    expected = IBP(**settings).fit(step)  # type: ignore[arg-type]  # numbers
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(IBP(**settings).fit(step), expected)  # type: ignore[arg-type]  # numbers


# --- trained


class Interrupted(Exception):
    """Raised by a report: the training ends there, with the state of the step before."""


@pytest.mark.parametrize("spec", ["ibp:warmup=0.1,ramp=0.6", "crown-ibp:warmup=0.1,ramp=0.6"])
def test_a_training_that_was_interrupted_goes_on_to_the_same_weights(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STATE_SECONDS", 0.0)
    given: dict[str, Any] = {"what": made(defense=spec), "epochs": 3, "batch_size": 16, "lr": 0.01}

    def stop(epochs: tuple[object, ...]) -> None:
        if len(epochs) == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        training(digits(32), state_file=tmp_path / "state", report=stop, **given).run()
    resumed = training(digits(32), state_file=tmp_path / "state", **given)
    assert resumed.running.step == 3
    assert same(resumed.run(), training(digits(32), **given).run())


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["ibp:eps=0.1", "crown-ibp:eps=0.1"])
def test_what_is_proven_of_a_short_training_withstands_pgd_and_is_more_than_a_third(spec: str) -> None:
    """Of adversarial training intervals prove nothing at all."""
    test = load_data("digits", limit=200)
    x, y = torch.stack([image for image, _ in test]), torch.tensor(test.labels)
    classifier = training(
        load_data("digits:train"), what=made(defense=spec), optimizer="adamw", lr=2e-3, weight_decay=1e-4, epochs=12
    ).run()
    layers = bounded_layers(classifier.model)
    inputs = interval_bounds(layers, ball_in_box(classifier, x, 0.1))
    found = torch.maximum(interval_margins(layers, inputs, y), backward_margins(layers, inputs, y))
    proven = (found.scatter(1, y[:, None], torch.inf) > 0).all(1)
    x_adv = attacked(classifier, x, y, ball("linf", 0.1), attack_for_training("pgd:steps=20", "linf"), draws(200))
    assert (classifier(x_adv).argmax(1) == y)[proven].all()
    assert proven.float().mean() > 1 / 3


# --- what makes no sense


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("ibp:norm=l2", "ibp:norm=l2: input should be 'linf'"),
        ("ibp:eps=0", "input should be greater than 0"),
        ("ibp:kappa=2", "input should be less than or equal to 1"),
        ("ibp:warmup=0.6", "warmup=0.6 and ramp=0.5 are shares of one training: together they may be 1 at most"),
        ("crown-ibp:beta=-1", "input should be greater than or equal to 0"),
        ("crown-ibp:betta=1", "crown-ibp has no parameter 'betta': did you mean 'beta'"),
        ("crown-ibp+ibp", "both choose the adversarial images: take one of the two"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(spec: str, said: str) -> None:
    with pytest.raises(BadSpec, match=said) as refused:
        Defenses.parse(spec)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("spec", ["ibp", "crown-ibp"])
def test_a_network_with_batch_statistics_is_refused_before_the_first_step(
    spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["--model", "digits_cnn", "--defense", spec, "--epochs", "3", "--device", "cpu", "--out", str(out)]) == 2
    assert "block1.norm is a BatchNorm2d" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("*.state"))


@pytest.mark.parametrize(
    ("spec", "chosen"),
    [
        ("ibp:eps=0.1,warmup=0.3,ramp=0.3", 4),
        ("ibp:eps=0.1,warmup=0.9,ramp=0.1", 6),
        ("colt:eps=0.1,projections=2,steps=1", 5),
        ("none", 1),
    ],
)
def test_the_best_epoch_is_one_of_the_whole_radius_and_of_the_last_phase(spec: str, chosen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs before are the more robust under attack, and nothing of them can be proven. The last one always counts."""
    scores = iter(Score(1 / epoch, 1.0) for epoch in range(1, 7))
    monkeypatch.setattr(Selection, "_scored", lambda self, classifier: next(scores))
    selection = Selection(digits(8), None, None, 0, ALONE)
    ours = training(digits(16), what=made("small_cnn", defense=spec), epochs=6, selection=selection, lr=1e-4)
    ours.run()
    assert selection.epoch == chosen
    assert [epoch.attacked for epoch in ours.running.epochs] == [1 / epoch for epoch in range(1, 7)], "all are in the log"


def test_a_network_that_does_not_end_in_a_linear_layer_is_refused() -> None:
    for layers in ([nn.Linear(2, 2), nn.ReLU()], []):
        with pytest.raises(ModelError, match="does not end in one"):
            bounded_layers(nn.Sequential(*layers))
