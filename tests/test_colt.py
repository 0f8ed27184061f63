"""COLT: its phases, what is frozen in each, its losses by hand, and its adversary, which stays where it may be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from robustbench_lite.defenses import training as loop
from robustbench_lite.defenses.colt import COLT, Phase, _noise, blocks_of
from robustbench_lite.defenses.train_cli import main
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from training_fixture import digits, made, same, training

from robustbench_lite.classifier import Classifier
from robustbench_lite.defending import Batch, Defenses, Step
from robustbench_lite.errors import BadSpec, ModelError, UsageError
from robustbench_lite.streams import Streams
from robustbench_lite.zonotope import Region, exact_region

CPU = torch.device("cpu")
PLAIN = COLT(eps=0.1, mix=0, excess=1, decay=1, l1=0, stability=0)


def draws(count: int) -> Streams:
    return Streams(0, "training", [(f"image {k}", 0) for k in range(count)], None, CPU)


def network(seed: int = 0) -> Classifier:
    """For images of 1 x 4 x 4, with three ReLUs, and so with three phases."""
    torch.manual_seed(seed)
    convolutions = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 2, stride=2), nn.ReLU()]
    layers = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        for weight in layers.parameters():
            weight.copy_(2 * weight if weight.ndim > 1 else weight.abs())  # so that answers move and no layer is dead
    return Classifier(layers.eval(), mean=(0.4,), std=(0.5,), classes=3).train()


def made_step(classifier: Classifier, progress: float = 0.0, count: int = 6) -> Step:
    images = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return Step(classifier, Batch(images, torch.eye(3)[torch.arange(count) % 3]), draws(count), progress)


def scalar(bias: float = 0.0) -> Classifier:
    """h = relu(2 x + bias) of an image of one pixel, and the logits (h, 0)."""
    layers = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        for layer, weight, offset in ((layers[1], [[2.0]], [bias]), (layers[3], [[1.0], [0.0]], [0.0, 0.0])):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(offset))
    return Classifier(layers, classes=2).train()


def one_pixel(classifier: Classifier, value: float = 0.5, progress: float = 1.0) -> Step:
    return Step(classifier, Batch(torch.full((2, 1, 1, 1), value), torch.eye(2)), draws(2), progress)


# --- phases


@pytest.mark.parametrize(
    ("progress", "number", "left", "kappa"),
    [
        (0.0, 0, 2, 0.0),
        (0.05, 0, 2, 0.5),
        (0.1, 0, 2, 1.0),
        (0.3, 0, 2, 1.0),
        (1 / 3, 1, 1, 0.0),
        (1 / 3 + 0.025, 1, 1, 0.25),
        (2 / 3, 2, 0, 0.0),
        (0.99, 2, 0, 1.0),
        (1.0, 2, 0, 1.0),
    ],
)
def test_phases_are_as_long_as_each_other_and_mix_at_their_start(progress: float, number: int, left: int, kappa: float) -> None:
    phase = COLT(eps=0.1).phase(progress, 3)
    assert (phase.number, phase.left) == (number, left)
    assert phase.kappa == pytest.approx(kappa, abs=1e-6)


def test_the_schedule_starts_again_with_each_phase() -> None:
    model = network().model
    assert Defenses((COLT(eps=0.1),)).phases(model) == COLT(eps=0.1).phases(model) == 3
    assert Defenses().phases(model) == 1
    spec = "colt:eps=0.05,projections=3,steps=1"
    learning = training(digits(32), what=made(defense=spec), epochs=3, batch_size=16, lr=0.01)  # a phase is an epoch of two steps
    learning.run()
    assert [epoch.lr for epoch in learning.running.epochs] == pytest.approx([0.005] * 3), "half of it at the second step of each phase"
    assert learning.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


@pytest.mark.parametrize("steps", [3, 7 * 3, 29 * 60])
def test_a_phase_begins_with_its_own_first_step_whatever_is_rounded(steps: int) -> None:
    numbers = [COLT(eps=0.1).phase(step / steps, 3).number for step in range(steps)]
    assert numbers == [3 * step // steps for step in range(steps)]


def test_the_projections_of_a_step_are_drawn_again_and_those_of_the_next_are_others() -> None:
    one, again, other = (_noise(made_step(network(), progress))((5, 4)) for progress in (0.1, 0.1, 0.2))
    assert torch.equal(one, again)
    assert not torch.isclose(one, other).any()


def test_early_phases_have_the_larger_radius() -> None:
    defense = COLT(eps=0.1)
    assert [defense.radius(Phase(0, left, 1)) for left in (2, 1, 0)] == pytest.approx([0.12705, 0.1155, 0.105])


@pytest.mark.parametrize(("progress", "frozen"), [(0.1, 0), (0.34, 1), (0.5, 1), (0.7, 2), (0.9, 2)])
def test_only_the_layers_after_the_region_learn(progress: float, frozen: int) -> None:
    classifier = network()
    torch.autograd.backward(COLT(eps=0.1).fit(made_step(classifier, progress)).sum())
    for number, block in enumerate(blocks_of(classifier.model)):
        for weight in block.parameters():
            assert (weight.grad is None) == (number < frozen)
            assert weight.grad is None or weight.grad.abs().sum() > 0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_frozen_layers_stay_as_they_are_to_the_last_bit(optimizer: str) -> None:
    """Neither momentum nor weight decay moves them, nor the average of the weights."""
    seen: list[list[Tensor]] = []

    def report(epochs: object) -> None:
        seen.append([weight.detach().clone() for weight in learning.classifier.parameters()])

    spec = "colt:eps=0.05,projections=3,steps=1"
    learning = training(digits(32), what=made(defense=spec), report=report, epochs=3, batch_size=16, optimizer=optimizer, weight_decay=0.1)
    final = list(learning.run().parameters())
    seen.append(final)
    before = seen[0]
    for epoch, blocks in ((1, 1), (2, 2)):
        moved = [not torch.equal(one, other) for one, other in zip(before, seen[epoch], strict=True)]
        assert moved == [k >= 2 * blocks for k in range(len(moved))]  # a weight and a bias in each
        before = seen[epoch]


# --- losses, by hand


def test_the_loss_of_the_first_phase_by_hand() -> None:
    """x = 0.5 and eps 0.1: h in [0.8, 1.2]; -log softmax is log(1 + exp(-0.8)) for the first class and log(1 + exp(1.2)) for the other."""
    losses = PLAIN.fit(one_pixel(scalar()))
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-0.8)), math.log1p(math.exp(1.2))], abs=1e-6)


def test_the_ball_ends_where_pixels_do() -> None:
    losses = PLAIN.fit(one_pixel(scalar(), value=0.95))  # h in [1.7, 2]
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-1.7)), math.log1p(math.exp(2.0))], abs=1e-6)


def test_penalties_by_hand() -> None:
    """2 x - 1.05 in [-0.25, 0.15]: the ReLU costs 0.25 * 0.15; weights are 2, 1 and 0, and biases cost nothing."""
    classifier = scalar(-1.05)
    plain = PLAIN.fit(one_pixel(classifier))
    stability = COLT(eps=0.1, mix=0, excess=1, decay=1, l1=0, stability=4).fit(one_pixel(classifier))
    sparse = COLT(eps=0.1, mix=0, excess=1, decay=1, l1=0.5, stability=0).fit(one_pixel(classifier))
    assert (stability - plain).tolist() == pytest.approx([0.15] * 2, abs=1e-6)
    assert (sparse - plain).tolist() == pytest.approx([1.5] * 2, abs=1e-6)
    assert COLT(eps=0.1, mix=0, excess=1, l1=0, stability=4).fit(one_pixel(scalar())).tolist() == pytest.approx(
        PLAIN.fit(one_pixel(scalar())).tolist()
    )  # nothing where no sign is in doubt


def test_stability_grows_with_the_phases_and_comes_with_the_phases_adversary() -> None:
    def cost(progress: float) -> Tensor:
        settings: dict[str, Any] = {"eps": 0.1, "mix": 0.5, "excess": 1, "decay": 1, "l1": 0}
        defended = [COLT(stability=weight, growth=growth, **settings) for weight, growth in ((1, 1), (1, 3), (0, 1))]
        one, other, none = (defense.fit(made_step(network(), progress)) for defense in defended)
        assert ((other - none) / (one - none)).tolist() == pytest.approx([3.0 ** int(3 * progress)] * 6, rel=1e-3)
        return (one - none).detach()

    half, whole = cost(0.25 / 3), cost(0.5 / 3)
    assert torch.allclose(half, whole / 2, rtol=1e-4)
    cost(1.9 / 3)


def test_before_the_first_adversary_images_are_learnt_as_they_are() -> None:
    step = made_step(network(), 0.0)
    losses = COLT(eps=0.1, l1=0, stability=0).fit(step)
    assert torch.allclose(losses, cross_entropy(step.logits, step.batch.labels, reduction="none"), atol=1e-6)


def test_a_phase_begins_at_the_adversary_of_the_one_before_and_moves_over_in_a_straight_line() -> None:
    """The first region after a ReLU is exact, so that nothing but kappa changes within the second phase."""

    def losses(kappa: float) -> Tensor:
        mixing = COLT(eps=0.1, mix=0.5, excess=1, decay=1, l1=0, stability=0)
        return mixing.fit(made_step(network(), (1 + kappa / 2) / 3)).detach()

    first, half, last = losses(0), losses(0.5), losses(1)
    assert torch.allclose(half, (first + last) / 2, atol=1e-4)
    assert (last - first).abs().max() > 0.01
    step = made_step(network(), 0.2)
    x, eps = step.batch.images, 0.1
    lower, upper = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    symbols = draws(6).uniform("0 0", 1, 4, 4, low=-1, high=1)
    for _ in range(8):  # PGD as it is written in papers, in the units of the box
        x_adv = ((lower + upper) / 2 + symbols * (upper - lower) / 2).requires_grad_()
        loss = cross_entropy(step.classifier(x_adv), step.batch.labels, reduction="sum")
        symbols = (symbols + 0.25 * torch.autograd.grad(loss, x_adv)[0].sign()).clamp(-1, 1)
    x_adv = (lower + upper) / 2 + symbols * (upper - lower) / 2
    assert torch.allclose(first, cross_entropy(step.classifier(x_adv), step.batch.labels, reduction="none"), atol=1e-4)


# --- the adversary


def regions(classifier: Classifier) -> list[tuple[Region, nn.Module]]:
    """Every region of the network, on exact bounds, and the layers after it."""
    blocks = blocks_of(classifier.model)
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1)).to(next(classifier.parameters()).dtype)
    found = []
    for number in range(len(blocks)):
        layers = [layer for block in blocks[:number] for layer in block]
        with torch.no_grad():
            found.append((exact_region(x, torch.full_like(x, 0.2), layers)[0], nn.Sequential(*blocks[number:])))
    return found


def test_the_adversary_stays_in_the_region_and_climbs() -> None:
    labels = torch.arange(6) % 3
    for region, rest in regions(network()):
        symbols = PLAIN.worst(region, rest, labels, draws(6))
        start = COLT(eps=0.1, steps=1, step_size=1e-9).worst(region, rest, labels, draws(6))
        assert [tuple(symbol.shape[1:]) for symbol in symbols] == list(region.shapes)
        assert all((symbol.abs() <= 1).all() for symbol in symbols)
        before, after = (cross_entropy(rest(region.at(point)), labels, reduction="none") for point in (start, symbols))
        assert (after > before).all()


def test_what_is_proven_withstands_the_adversary() -> None:
    """The margins at its point are never below the bounds of the zonotope of the whole network."""
    classifier, labels = network().double(), torch.arange(6) % 3
    weight, bias = classifier.model[-1].weight.detach(), classifier.model[-1].bias.detach()
    for region, rest in regions(classifier):
        with torch.no_grad():
            _, zonotope = exact_region(region.centre, region.radius, list(classifier.model)[:-1])
        lead = weight[labels][:, None] - weight[None]  # (B, K, features)
        middle = (lead @ zonotope.centre[:, :, None])[..., 0] + bias[labels][:, None] - bias
        margins = middle - torch.einsum("bkd,bed->bek", lead, zonotope.errors).abs().sum(1)
        logits = rest(region.at(PLAIN.worst(region, rest, labels, draws(6))))
        assert (logits.gather(1, labels[:, None]) - logits >= margins - 1e-9).all()


def test_the_model_and_random_state_are_as_they_were() -> None:
    classifier, state = network(), torch.get_rng_state()
    weights = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    COLT(eps=0.1).fit(made_step(classifier, 0.7))
    assert torch.equal(state, torch.get_rng_state())
    assert all(weight.requires_grad and weight.grad is None for weight in classifier.parameters())
    assert all(module.training for module in classifier.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in classifier.state_dict().items())


# --- trained


class Interrupted(Exception):
    """Raised by a report: the training ends there, with the state of the step before."""


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_training_that_was_interrupted_in_any_phase_goes_on_to_the_same_weights(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "STATE_SECONDS", 0.0)
    given: dict[str, Any] = {"what": made(defense="colt:eps=0.1,projections=5,steps=2"), "epochs": 4, "batch_size": 16}

    def stop(epochs: tuple[object, ...]) -> None:
        if len(epochs) == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        training(digits(32), state_file=tmp_path / "state", report=stop, **given).run()
    resumed = training(digits(32), state_file=tmp_path / "state", **given)
    assert resumed.running.step == 2 * after - 1
    assert same(resumed.run(), training(digits(32), **given).run())


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("colt:norm=l2", "colt:norm=l2: input should be 'linf'"),
        ("colt:eps=0", "input should be greater than 0"),
        ("colt:steps=0", "input should be greater than or equal to 1"),
        ("colt:mix=1.5", "input should be less than or equal to 1"),
        ("colt:decay=0.9", "input should be greater than or equal to 1"),
        ("colt+pgd-at", "colt and pgd-at both choose the adversarial images|pgd-at and colt both choose the adversarial images"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(spec: str, said: str) -> None:
    with pytest.raises(BadSpec, match=said) as refused:
        Defenses.parse(spec)
    assert "\n" not in str(refused.value)


def test_a_network_with_batch_statistics_is_refused_before_the_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["--model", "digits_cnn", "--defense", "colt", "--epochs", "3", "--device", "cpu", "--out", str(out)]) == 2
    assert "block1.norm is a BatchNorm2d" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("*.state"))


def test_a_network_without_relus_or_ending_in_one_is_refused() -> None:
    for layers in ([nn.Flatten(), nn.Linear(16, 3)], [nn.Flatten(), nn.Linear(16, 3), nn.ReLU()]):
        with pytest.raises(ModelError, match="no ReLU before its last layer"):
            COLT(eps=0.1).fit(made_step(Classifier(nn.Sequential(*layers).eval(), classes=3)))


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(UsageError, match="colt freezes one layer after another"):
        COLT(eps=0.1).fit(made_step(network()))
