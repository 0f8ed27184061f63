"""MART, adversarial weights and free training by hand; and what these and training against several norms keep to."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from adversarial_step import ABOUT, COUNT, RADII, Watched, draws, images, labels, learnt_from, made_step, network, pixels
from hypothesis import given
from hypothesis import strategies as st
from robustbench_lite.defenses import training as loop
from robustbench_lite.defenses.adversary import attack_for_training, attacked
from robustbench_lite.defenses.awp import AWP, direction
from robustbench_lite.defenses.mart import rival_loss
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from training_fixture import digits, made, register_forgetful, same, training

from robustbench_lite.classifier import Classifier
from robustbench_lite.data import load_data
from robustbench_lite.defending import Batch, Defenses, Replay, Step
from robustbench_lite.errors import UsageError
from robustbench_lite.registry import ARCHITECTURES, DEFENSES, defense
from robustbench_lite.threat import ball

# --- MART

MART_BY_HAND = [1.0549571465995429, 3.126481331663842, 3.8384846917314235]
"""Answers (2 x, 0, -x). At x = 0.5 they give p = (0.6285317, 0.2312239, 0.1402444). The attack lowers x to 0.3 for class 0 and raises it to
0.7 for the others, q = (0.5114092, 0.2806673, 0.2079235) and (0.7304317, 0.1801222, 0.0894461); KL(p || q) = 0.0295802 and 0.0263870.

Class 0: -log 0.5114092 - log(1 - 0.2806673) + 5 * 0.3714683 * 0.0295802 = 0.6705852 + 0.3294313 + 0.0549406.
Class 1: -log 0.1801222 - log(1 - 0.7304317) + 5 * 0.7687761 * 0.0263870 = 1.7141195 + 1.3109335 + 0.1014284.
Class 2: -log 0.0894461 - log(1 - 0.7304317) + 5 * 0.8597556 * 0.0263870 = 2.4141195 + 1.3109335 + 0.1134316.
"""


def test_the_mart_loss_is_the_one_computed_by_hand() -> None:
    losses = Defenses.parse("mart:eps=0.2").losses(pixels([[2.0], [0.0], [-1.0]], 0.5, [0, 1, 2]))
    assert losses.tolist() == pytest.approx(MART_BY_HAND, abs=1e-6)


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=6), st.integers(0, 5))
def test_the_rival_loss_is_one_less_the_likeliest_wrong_class(answers: list[float], at: int) -> None:
    logits, label = torch.tensor([answers], dtype=torch.float64), at % len(answers)
    p = logits.softmax(1)[0].tolist()
    expected = -math.log(sum(p) - max(share for k, share in enumerate(p) if k != label))
    assert rival_loss(logits, torch.tensor([label])).item() == pytest.approx(expected, abs=1e-9)


def test_the_rival_loss_stays_exact_where_the_wrong_class_is_certain() -> None:
    logits = torch.tensor([[0.0, 200.0, -5.0]], requires_grad=True)
    loss = rival_loss(logits, torch.tensor([0]))
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.item() == pytest.approx(200 - math.log1p(math.exp(-5)), rel=1e-6)
    assert slope[0].tolist() == pytest.approx([-1 / (1 + math.exp(-5)), 1, -1 / (1 + math.exp(5))], abs=1e-5)


def test_gradients_of_mart_flow_through_its_doubt_and_both_answers() -> None:
    classifier = network().eval()  # where both passes have the same statistics
    x_adv = learnt_from("mart:eps=0.1,beta=3", classifier)
    torch.autograd.backward(Defenses.parse("mart:eps=0.1,beta=3").losses(made_step(classifier)).sum())
    ours = [weights.grad for weights in classifier.parameters()]
    twin = network().eval()
    clean, adv = twin(images()), twin(x_adv)
    p, q, rows = clean.softmax(1), adv.softmax(1), range(COUNT)
    rival = q.masked_fill(torch.eye(10)[labels()].bool(), 0).amax(1)
    apart = kl_div(adv.log_softmax(1), p, reduction="none").sum(1)
    loss = cross_entropy(adv, labels(), reduction="none") - (1 - rival).log() + 3 * (1 - p[rows, labels()]) * apart
    theirs = torch.autograd.grad(loss.sum(), list(twin.parameters()))
    assert all(one is not None and torch.allclose(one, other, atol=1e-4) for one, other in zip(ours, theirs, strict=True))


# --- adversarial weights


def test_the_awp_loss_is_the_one_computed_by_hand() -> None:
    """Answers (2 x, 0), class 0, x lowered to 0.3. The slope by the weights is along (-1, 1), so that they go half of their length of 2
    that way: (2 - 0.7071068, 0.7071068). The loss is log(1 + exp(-0.3 * 0.5857864)), and without the perturbation log(1 + exp(-0.6))."""
    for spec, expected in (("awp:eps=0.2,gamma=0.5", 0.6091346472765479), ("awp:eps=0.2,gamma=1e-9", 0.4374879504858856)):
        losses = Defenses.parse(spec).losses(pixels([[2.0], [0.0]], 0.5, [0]))
        assert losses.tolist() == pytest.approx([expected], abs=1e-6)


def test_the_trades_loss_at_adversarial_weights_is_the_one_computed_by_hand() -> None:
    """No step size reaches further than the ball: the attack ends at 0.3 or 0.7, where the noise put it to begin with."""
    step = pixels([[2.0], [0.0]], 0.5, [0])
    x_adv = 0.7 if draws(1).normal("near", 1, 1, 1).item() > 0 else 0.3

    def loss(a: Tensor) -> Tensor:
        clean, adv = 0.5 * a[0] - 0.5 * a[1], x_adv * (a[0] - a[1])
        p, q = clean.sigmoid(), adv.sigmoid()
        return -p.log() + 6 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())

    weights = torch.tensor([2.0, 0.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(weights), weights)
    expected = loss(weights.detach() + 0.5 * 2 * slope / slope.norm())
    losses = Defenses.parse("awp:over=trades,eps=0.2,gamma=0.5").losses(step)
    assert losses.item() == pytest.approx(expected.item(), abs=1e-6)


def perturbed_by_hand(classifier: Classifier, x_adv: Tensor, over: str, gamma: float) -> Classifier:
    """A twin whose matrices are where equation 10 puts them."""
    proxy, twin = copy.deepcopy(classifier), copy.deepcopy(classifier)
    torch.autograd.backward(loss_by_hand(proxy, x_adv, over))
    with torch.no_grad():
        for weights, moving in zip(twin.parameters(), proxy.parameters(), strict=True):
            if weights.ndim > 1:
                assert moving.grad is not None
                weights += gamma * weights.norm() * moving.grad / moving.grad.norm()
    return twin


def loss_by_hand(model: Classifier, x_adv: Tensor, over: str) -> Tensor:
    if over == "pgd-at":
        return cross_entropy(model(x_adv), labels(), reduction="sum")
    clean, adv = model(images()), model(x_adv)
    return cross_entropy(clean, labels(), reduction="sum") + 6 * kl_div(adv.log_softmax(1), clean.softmax(1), reduction="sum")


@pytest.mark.parametrize(("over", "gamma"), [("pgd-at", 0.01), ("trades", 0.005)])
def test_awp_learns_by_the_gradient_at_perturbed_weights_and_leaves_them_where_they_are(over: str, gamma: float) -> None:
    classifier, start = network(), network()
    x_adv = learnt_from(f"awp:eps=0.1,over={over}")
    twin = perturbed_by_hand(start, x_adv, over, gamma)
    torch.autograd.backward(Defenses.parse(f"awp:eps=0.1,over={over}").losses(made_step(classifier)).sum())
    assert all(torch.equal(ours, before) for ours, before in zip(classifier.parameters(), start.parameters(), strict=True))
    theirs = torch.autograd.grad(loss_by_hand(twin, x_adv, over), list(twin.parameters()))
    plain = torch.autograd.grad(loss_by_hand(start, x_adv, over), list(start.parameters()))
    for weights, other, unperturbed in zip(classifier.parameters(), theirs, plain, strict=True):
        assert weights.grad is not None
        apart = (unperturbed - other).norm()
        assert (weights.grad - other).norm() < 0.02 * apart + 1e-4, "at the perturbed weights, and clearly not at the others"
    # and running statistics are of the passes that were learnt from
    assert all(torch.allclose(ours, other, atol=1e-5) for ours, other in zip(classifier.buffers(), twin.buffers(), strict=True))


@pytest.mark.parametrize("gamma", [0.005, 0.2])
def test_each_layer_moves_by_its_share_of_its_own_length_and_vectors_do_not(gamma: float) -> None:
    classifier = network()
    classifier.model[4].weight.requires_grad_(False)
    assert set(AWP(eps=0.1).perturbed(made_step(classifier), images())) == {"model.0.weight"}, "what is not learnt is not perturbed"
    classifier.model[4].weight.requires_grad_(True)
    moved = AWP(eps=0.1, gamma=gamma).perturbed(made_step(classifier), images())
    weights = dict(classifier.named_parameters())
    assert set(moved) == {"model.0.weight", "model.4.weight"}
    for name, there in moved.items():
        assert (there - weights[name]).norm().item() == pytest.approx(gamma * weights[name].norm().item(), rel=1e-4)
    assert all(weight.grad is None for weight in weights.values())


def test_several_processes_perturb_weights_by_the_slopes_of_all_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, parts, told = network().eval(), (slice(0, 5), slice(5, None)), AWP(eps=0.1, gamma=0.3)
    sent: list[Tensor] = []

    def moved(rows: slice) -> dict[str, Tensor]:
        x = images()[rows]
        return told.perturbed(Step(classifier, Batch(x, torch.eye(10)[labels()[rows]]), draws().take(rows)), x)

    whole, alone = moved(slice(None)), moved(parts[0])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda slope: sent.append(slope.clone()))
    moved(parts[1])
    others = iter(sent)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda slope: slope.add_(next(others)))
    together = moved(parts[0])
    assert all(torch.allclose(together[name], whole[name], atol=1e-5) for name in whole)
    assert not any(torch.allclose(alone[name], whole[name], atol=1e-3) for name in whole)


def test_a_layers_direction_is_of_length_one_however_small_its_gradient() -> None:
    slope = torch.tensor([[3.0, -4.0]])
    for size in (1.0, 1e-25, 1e25):
        assert torch.allclose(direction(size * slope), torch.tensor([[0.6, -0.8]]))
    assert torch.equal(direction(torch.zeros(2, 2)), torch.zeros(2, 2))


def test_weights_are_perturbed_after_the_first_share_of_the_training_only() -> None:
    def losses(spec: str, progress: float) -> Tensor:
        return Defenses.parse(spec).losses(made_step(network().eval(), progress=progress)).detach()

    plain, perturbed = losses("pgd-at:eps=0.1", 0.4), losses("awp:eps=0.1", 0.4)
    assert torch.equal(losses("awp:eps=0.1,after=0.5", 0.4), plain)
    assert torch.equal(losses("awp:eps=0.1,after=0.5", 0.5), perturbed)
    assert (perturbed.sum() - plain.sum()) > 0.01


# --- free


@pytest.mark.parametrize(("norm", "eps", "replays"), [("linf", 0.15, 1), ("linf", 0.15, 3), ("l2", 1.5, 3)])
def test_free_training_is_algorithm_1_from_random_points(norm: str, eps: float, replays: int) -> None:
    """Replays of a batch, each with an update of the weights and a step of the images by one and the same pass."""
    ours = training(what=made(defense=f"free-at:norm={norm},replays={replays}"))
    model, threat, losses = copy.deepcopy(ours.classifier), ball(norm, eps), []
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for number, (batch, draw, _) in enumerate(ours.feed.batches(0)):
        sgd.param_groups[0]["lr"] = ours.recipe.learning_rate(number, ours.feed.per_epoch)
        x_adv = threat.random_point(batch.images, draw)
        for _ in range(replays):
            x_adv.requires_grad_()
            sgd.zero_grad()
            loss = cross_entropy(model(x_adv), batch.targets)
            loss.backward()
            assert x_adv.grad is not None
            losses.append(loss.item())
            sgd.step()
            with torch.no_grad():
                slope = x_adv.grad
                unit = slope.sign() if norm == "linf" else slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                x_adv = threat.project(x_adv + eps * unit, batch.images)
    found = ours.run()
    for name, weights in model.state_dict().items():
        assert torch.allclose(found.state_dict()[name], weights, atol=2e-5), name
    half = len(losses) // 2
    assert [epoch.loss for epoch in ours.running.epochs] == pytest.approx([sum(losses[:half]) / half, sum(losses[half:]) / half], abs=1e-4)


def test_every_replay_starts_where_the_last_one_went_and_no_number_is_no_direction() -> None:
    part: Any = Defenses.parse("free-at:eps=0.1,step_size=0.5").parts[0]
    before = (images() + 0.02).clamp(0, 1).requires_grad_()
    before.grad = torch.ones_like(before)
    before.grad[3] = float("nan")
    before.grad[4] = -float("inf")
    replay = Replay(1, before)
    part.fit(made_step(network(), replay=replay))
    x, there = images(), replay.moved
    assert there is not None
    expected = torch.minimum(before.detach() + 0.05, x + 0.1).clamp(0, 1)
    expected[3:5] = before.detach()[3:5]
    assert torch.allclose(there, expected, atol=1e-6)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, Tensor]]:
    """What `recorder:replays=...` saw: the replay's number, a draw of torch's own, and the images."""
    DEFENSES.names()
    monkeypatch.setattr(DEFENSES, "found", dict(DEFENSES.found))
    seen: list[tuple[int, float, Tensor]] = []

    @defense("recorder")
    @dataclass(frozen=True)
    class Recorder:
        """Records."""

        kind = "adversarial"
        replays: int = 1

        def penalty(self, step: Step) -> Tensor:
            seen.append((step.replay.number, torch.rand(1).item(), step.batch.images))
            return torch.zeros(len(step.batch.images))

    return seen


def test_replays_are_of_the_same_images_with_draws_of_their_own(recorded: list[tuple[int, float, Tensor]]) -> None:
    training(what=made(defense="recorder:replays=2"), augment="turn-shift", epochs=1).run()
    twice = list(recorded)
    recorded.clear()
    training(what=made(defense="recorder"), augment="turn-shift", epochs=1).run()
    assert [number for number, _, _ in twice] == [0, 1] * 3
    assert len({draw for _, draw, _ in twice}) == 6
    assert all(torch.equal(one[2], other[2]) for one, other in zip(twice[::2], twice[1::2], strict=True))
    assert [draw for _, draw, _ in twice[::2]] == [draw for _, draw, _ in recorded], "one replay draws as before there were any"


# --- what they share

PASSES = {
    "mart": (10, 2, 2),
    "awp": (10, 2, 1),
    "awp:over=trades": (11, 4, 2),
    "free-at": (0, 1, 1),
    f"multi-norm:max,{RADII}": (33, 1, 1),
    f"multi-norm:average,{RADII}": (30, 1, 1),
    f"multi-norm:msd,{RADII}": (40, 1, 1),
}
"""Of a step: passes in eval mode, passes in training mode, and batches in the running statistics."""


@pytest.mark.parametrize("spec", PASSES)
def test_attacks_are_in_eval_mode_and_statistics_of_what_is_learnt_from(spec: str) -> None:
    classifier, state = network(), torch.get_rng_state()
    watched = Watched(classifier).train()
    losses = Defenses.parse(spec).informed(ABOUT).losses(made_step(watched))
    modes = Counter(training for _, training in watched.asked)
    assert (modes[False], modes[True], int(classifier.model[1].num_batches_tracked)) == PASSES[spec]
    assert [training for _, training in watched.asked] == sorted(training for _, training in watched.asked), "attacked before they take in"
    assert losses.shape == (COUNT,)
    assert all(module.training for module in classifier.modules())
    assert all(weights.requires_grad for weights in classifier.parameters())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("spec", PASSES)
def test_in_half_precision_the_losses_are_in_full_and_every_weight_learns(spec: str) -> None:
    classifier = network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = Defenses.parse(spec).informed(ABOUT).losses(made_step(classifier))
    torch.autograd.backward(losses.mean())
    assert losses.dtype == torch.float32
    assert all(weights.grad is not None and weights.grad.abs().sum() > 0 for weights in classifier.parameters())


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with batch statistics and dropout, and a state after every step."""
    ARCHITECTURES.names()
    monkeypatch.setattr(ARCHITECTURES, "found", dict(ARCHITECTURES.found))
    monkeypatch.setattr(loop, "STATE_SECONDS", 0.0)
    register_forgetful()


SHORT = [
    "mart:attack=(pgd:steps=2)",
    "awp:attack=(pgd:steps=2)",
    "awp:over=trades",
    "free-at:replays=3",
    "multi-norm:max,l1=10,steps=2",
    "multi-norm:msd,l1=10,steps=2",
]


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("spec", SHORT)
def test_interrupted_and_resumed_gives_the_weights_of_an_unbroken_training(spec: str, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def report(epochs: object) -> None:
        raise Interrupted

    given: dict[str, Any] = {
        "what": made("forgetful", defense=spec),
        "ema": 0.9,
        "augment": "turn-shift",
        "data": digits(48),
        "batch_size": 16,
    }
    with pytest.raises(Interrupted):
        training(state_file=tmp_path / "state", report=report, **given).run()
    resumed = training(state_file=tmp_path / "state", **given)
    assert resumed.running.step == 2, "within the first epoch"
    assert same(resumed.run(), training(**given).run())


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("spec", ["awp:norm=l2,attack=(pgd:steps=2)", "free-at:norm=l2,replays=2"])
def test_two_processes_train_what_one_trains(spec: str, tmp_path: Path) -> None:
    """In l2, where the last bit of a sum is not made much of. Parts of a step differ in size."""
    flags = "--model small_cnn --epochs 1 --batch-size 225 --optimizer sgd --lr 0.05 --ema 0.9 --device cpu"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    weights = []
    for name, launched in (("one", []), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"])):
        out = tmp_path / f"{name}.safetensors"
        command = [
            sys.executable,
            *launched,
            "-m",
            "robustbench_lite.defenses.train_cli",
            *flags.split(),
            "--defense",
            spec,
            "--out",
            str(out),
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        weights.append(load_file(out))
    one, two = weights
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("mart:norm=l1", "mart:norm=l1: input should be 'linf' or 'l2'"),
        ("mart:beta=0", "mart:beta=0: input should be greater than 0"),
        ("mart:attack=square", "square cannot make training images: take a gradient attack"),
        ("mart+awp", "mart and awp both choose the adversarial images: take one of the two"),
        ("awp:norm=l7", "awp:norm=l7: input should be 'linf' or 'l2'"),
        ("awp:gamma=1.5", "awp:gamma=1.5: input should be less than 1"),
        ("awp:over=mart", "awp:over=mart: input should be 'pgd-at' or 'trades'"),
        ("awp:over=trades,attack=fgsm", "awp:over=trades has the attack of TRADES: leave attack= out, or take over=pgd-at"),
        ("awp:beta=3", "awp:over=pgd-at has no divergence to weigh: leave beta= out, or take over=trades"),
        ("awp:attack=(pgd:restarts=3)", "several runs an image"),
        ("free-at:replays=0", "free-at:replays=0: input should be greater than or equal to 1"),
        ("free-at:eps=8", "eps 8 is more than the whole range of a pixel: .* write 8/255"),
        ("free-at:norm=l0", "free-at:norm=l0: input should be 'linf' or 'l2'"),
        ("multi-norm:min", "multi-norm:how=min: input should be 'max', 'average' or 'msd'"),
        ("multi-norm:norms=linf,l7", "multi-norm has no norm 'l7'.*: it has linf, l2, l1"),
        ("multi-norm:norms=linf", "multi-norm is against several norms, each named once, got 'linf': against one, take pgd-at"),
        ("multi-norm:norms=l2,l2", "each named once, got 'l2,l2'"),
        ("multi-norm:norms=linf,l2,l1=3", "a radius in l1, which is not among its norms linf,l2: add it, or leave l1= out"),
        ("multi-norm:linf=8", "eps 8 is more than the whole range of a pixel"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        Defenses.parse(spec)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("spec", [*SHORT, "multi-norm:average,norms=linf,l2,steps=3", "awp:after=0.25,over=trades,beta=3.0"])
def test_a_spec_builds_the_same_defense_again(spec: str) -> None:
    built = Defenses.parse(spec)
    assert Defenses.parse(built.spec) == built


# --- what they are for


def right_under_pgd(spec: str) -> int:
    """Of 100 test images after five epochs over 320."""
    given: dict[str, Any] = {"data": digits(320), "optimizer": "adamw", "epochs": 5, "lr": 3e-3}
    classifier, test = training(what=made("digits_cnn", spec), **given).run(), load_data("digits", limit=100)
    x, y = torch.stack([image for image, _ in test]), torch.tensor(test.labels)
    x_adv = attacked(classifier, x, y, ball("linf", 0.1), attack_for_training("pgd:steps=20", "linf"), draws(100))
    return int((classifier(x_adv).argmax(1) == y).sum())


WORTH = [*(f"{spec},eps=0.1" for spec in SHORT[:3]), "free-at:eps=0.1,replays=4", "multi-norm:linf=0.1,l2=1,l1=5,steps=3"]


@pytest.mark.slow
@pytest.mark.parametrize("spec", WORTH)
def test_a_short_training_withstands_pgd(spec: str) -> None:
    assert right_under_pgd(spec) > 40


@pytest.mark.slow
def test_a_standard_training_of_that_length_does_not() -> None:
    assert right_under_pgd("none") < 10
