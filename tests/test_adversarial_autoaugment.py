"""Adversarial AutoAugment: its controller held to a computation by hand and to a bandit, and a search that nothing interrupts."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from robustbench_lite.defenses import training as loop
from robustbench_lite.defenses.adversarial_autoaugment import Search
from robustbench_lite.defenses.controller import Controller, Reinforce, normalised
from robustbench_lite.defenses.policies import NAMES, Policies
from robustbench_lite.defenses.train_cli import main
from safetensors.torch import load_file
from torch import Tensor, nn
from training_fixture import ALONE, digits, made, register_forgetful, same, training

from robustbench_lite.classifier import Classifier
from robustbench_lite.defending import About, Batch, Defenses, Step, soft_cross_entropy
from robustbench_lite.errors import BadSpec, RunMismatch
from robustbench_lite.registry import ARCHITECTURES, DEFENSES
from robustbench_lite.streams import Streams, generator
from robustbench_lite.trained import load_trained

CPU = torch.device("cpu")


# --- the controller


def tiny(options: tuple[int, ...] = (2, 3), rounds: int = 2) -> Controller:
    """Weights far from 0, so that no term of the formulas is lost in rounding."""
    made = Controller(options, rounds, generator("tiny"), hidden=2, embedding=3)
    with torch.no_grad():
        for weights in made.parameters():
            weights.mul_(12)
    return made.double()


def by_hand(weights: dict[str, np.ndarray], decisions: list[int], options: tuple[int, ...]) -> tuple[float, float]:
    """Log-probability and entropy of one policy, by the formulas of an LSTM."""

    def sigmoid(z: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-z))

    hidden, memory, token = np.zeros(2), np.zeros(2), 0
    log_probability = entropy = 0.0
    for turn, decision in enumerate(decisions):
        kind = turn % len(options)
        x = weights["embedding.weight"][token]
        z = weights["cell.weight_ih"] @ x + weights["cell.bias_ih"] + weights["cell.weight_hh"] @ hidden + weights["cell.bias_hh"]
        into, forget, new, out = z.reshape(4, 2)
        memory = sigmoid(forget) * memory + sigmoid(into) * np.tanh(new)
        hidden = sigmoid(out) * np.tanh(memory)
        logits = weights[f"heads.{kind}.weight"] @ hidden + weights[f"heads.{kind}.bias"]
        p = np.exp(logits) / np.exp(logits).sum()
        log_probability += np.log(p[decision])
        entropy -= (p * np.log(p)).sum()
        token = 1 + sum(options[:kind]) + decision
    return log_probability, entropy


def weights_of(controller: Controller) -> dict[str, np.ndarray]:
    return {name: weights.detach().numpy().copy() for name, weights in controller.named_parameters()}


POLICIES = [[0, 2, 1, 0], [1, 1, 0, 2], [1, 0, 1, 1]]


def test_log_probability_and_entropy_are_those_of_a_hand() -> None:
    controller = tiny()
    log_p, entropy = controller(torch.tensor(POLICIES))
    expected = [by_hand(weights_of(controller), policy, (2, 3)) for policy in POLICIES]
    assert log_p.tolist() == pytest.approx([one for one, _ in expected], rel=1e-9)
    assert entropy.tolist() == pytest.approx([other for _, other in expected], rel=1e-9)
    assert np.ptp([one for one, _ in expected]) > 0.1


def test_the_gradient_is_that_of_reinforce_by_hand() -> None:
    """(1/M) sum_m normalised loss_m * log p_m + weight * mean entropy, by central differences of the formulas in numpy."""
    controller, losses, weight = tiny(), [2.0, 5.0, 2.0], 0.3
    rewards = [-1 / 2**0.5, 2**0.5, -1 / 2**0.5]
    torch.autograd.backward(Reinforce(controller, 0.1, weight).objective(torch.tensor(POLICIES), torch.tensor(losses)))
    weights = weights_of(controller)

    def climbed() -> float:
        each = [by_hand(weights, policy, (2, 3)) for policy in POLICIES]
        return float(np.mean([reward * log_p + weight * entropy for reward, (log_p, entropy) in zip(rewards, each, strict=True)]))

    for name, parameter in controller.named_parameters():
        assert parameter.grad is not None
        for place in np.ndindex(*parameter.shape):
            before = weights[name][place]
            weights[name][place] = before + 1e-5
            up = climbed()
            weights[name][place] = before - 1e-5
            slope = (up - climbed()) / 2e-5
            weights[name][place] = before
            assert float(parameter.grad[place]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_a_step_climbs() -> None:
    controller, losses = tiny(), torch.tensor([2.0, 5.0, 2.0])
    player = Reinforce(controller, 0.001, 0.0)
    before = player.objective(torch.tensor(POLICIES), losses).item()
    player.learn(torch.tensor(POLICIES), losses)
    assert player.objective(torch.tensor(POLICIES), losses).item() > before


def test_probabilities_of_all_policies_add_up_to_one_and_are_drawn_so_often() -> None:
    controller = tiny((2, 3), 1)
    every = torch.tensor(list(itertools.product(range(2), range(3))))
    probabilities = controller(every)[0].exp()
    assert probabilities.sum().item() == pytest.approx(1)
    drawn = controller.sample(torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0)))
    shares = torch.stack([(drawn == policy).all(1).double().mean() for policy in every])
    assert (shares - probabilities).abs().max() < 0.015  # four standard deviations of 20,000 draws
    assert probabilities.min() < 0.12 < probabilities.max()


def test_a_draw_at_the_very_end_is_an_option() -> None:
    for chance in (0.0, 1 - 2**-24):
        drawn = Controller((16, 10), 10, generator("end")).sample(torch.full((3, 20), chance))
        assert torch.equal(drawn, torch.tensor([15, 9] if chance else [0, 0]).repeat(3, 10))


def test_the_papers_controller_starts_as_the_paper_says_and_leaves_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    controller = Controller((16, 10), 10, generator("start"))
    assert torch.equal(state, torch.get_rng_state())
    assert isinstance(controller.cell, nn.LSTMCell)
    assert (controller.cell.hidden_size, controller.cell.input_size, controller.turns) == (100, 32, 20)
    together = torch.cat([weights.detach().flatten() for weights in controller.parameters()])
    assert together.abs().max() <= 0.1
    assert together.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.01)
    _, entropy = controller(torch.zeros(1, 20, dtype=torch.int64))
    assert entropy.item() == pytest.approx(10 * (np.log(16) + np.log(10)), rel=0.01)  # nearly uniform


def test_losses_are_normalised_by_their_own_spread() -> None:
    assert normalised(torch.tensor([1.0, 3.0])).tolist() == [-1, 1]
    assert normalised(torch.tensor([1.0, 2.0, 3.0, 6.0])).tolist() == pytest.approx([-2 / 3.5**0.5, -1 / 3.5**0.5, 0, 3 / 3.5**0.5])


@pytest.mark.parametrize("losses", [[2.0, 2.0, 2.0], [0.1, 0.1 + 1e-9, 0.1], [0.0, 0.0, 0.0], [5.0]])
def test_losses_that_differ_by_rounding_or_not_at_all_say_nothing(losses: list[float]) -> None:
    assert normalised(torch.tensor(losses, dtype=torch.float64)).tolist() == [0.0] * len(losses)


@pytest.mark.parametrize("harder", [0, 1])
def test_of_two_operations_that_of_the_higher_loss_becomes_nearly_certain(harder: int) -> None:
    """A bandit whose losses are noisy; the paper's entropy does not keep it from settling."""
    player = Reinforce(Controller((2,), 1, generator("bandit", harder)), rate=0.02, entropy=1e-5)
    random = generator("bandit's losses")
    for _ in range(120):
        decisions = player.controller.sample(torch.from_numpy(random.random((8, 1))))
        losses = 1.0 + (decisions[:, 0] == harder) + 0.3 * torch.from_numpy(random.standard_normal(8))
        player.learn(decisions, losses)
    assert player.controller(torch.tensor([[harder]]))[0].exp().item() > 0.97


def test_entropy_alone_makes_options_equal() -> None:
    controller = tiny((4,), 1)
    player, first = Reinforce(controller, rate=0.05, entropy=1.0), controller(torch.tensor([[0]]))[1].item()
    for _ in range(300):
        player.learn(torch.tensor([[0], [1]]), torch.tensor([1.0, 1.0]))
    assert first < 1.25
    assert controller(torch.tensor([[0]]))[1].item() == pytest.approx(np.log(4), abs=0.01)


# --- the search


def about(seed: int = 0) -> About:
    return About((5,) * 10, {}, CPU, (3, 32, 32), seed, lambda count: torch.stack([image for image, _ in digits(count)]))


def search(spec: str = "aaa:copies=3", seed: int = 0) -> Search:
    found = Defenses.parse(spec).informed(about(seed)).parts[0]
    assert isinstance(found, Search)
    return found


def streams(count: int, epoch: int = 0) -> Streams:
    return Streams(0, "training", [(str(k), epoch) for k in range(count)], None, CPU)


def stepped(one: Search, count: int = 8) -> tuple[Tensor, Tensor]:
    """Losses (M, B) as a hand adds them up, and what the search asks to minimise."""
    data = digits(count)
    targets = torch.eye(10)[torch.tensor([int(str(label)) for _, label in data])]
    batch = one.augment(Batch(torch.stack([image for image, _ in data]), targets), streams(count))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).eval(), classes=10)
    fitted = one.fit(Step(classifier, batch, streams(count)))
    return torch.stack([soft_cross_entropy(classifier(x), targets) for x in (batch.images, *batch.views)]).detach(), fitted.detach()


def test_the_loss_is_the_mean_over_the_copies_and_the_controller_learns_from_each_policys_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(Reinforce, "learn", lambda self, decisions, losses: learnt.append((decisions, losses)))
    one = search()
    decisions, sums = one.decisions, torch.zeros(3)
    for count, over in ((8, False), (5, True)):
        losses, fitted = stepped(one, count)
        assert losses.shape == (3, count)
        assert torch.allclose(fitted, losses.mean(0))
        one.stepped(ALONE, over)
        sums = sums + losses.sum(1)
    ((given, losses),) = learnt
    assert torch.equal(given, decisions)
    assert losses.tolist() == pytest.approx((sums / 13).tolist(), rel=1e-6)
    assert np.ptp(losses.numpy()) > 1e-3
    assert not torch.equal(one.decisions, decisions)
    assert torch.equal(one.last, decisions)
    assert not one.totals.any()


class Two:
    """Another process beside this one, with other losses and a controller of its own that is the first's."""

    def __init__(self) -> None:
        self.agreed: list[tuple[int, ...]] = []

    def total(self, value: Tensor) -> Tensor:
        return value + torch.tensor([0.0, 100.0, 0.0, 8.0])

    def agree(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self.agreed.append(tuple(tensor.shape))
            tensor.detach().fill_(1)


def test_processes_add_up_their_losses_and_follow_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[Tensor] = []
    monkeypatch.setattr(Reinforce, "learn", lambda self, decisions, losses: learnt.append(losses))
    one, others = search(), Two()
    losses, _ = stepped(one)
    one.stepped(others, True)
    assert learnt[0].tolist() == pytest.approx(((losses.sum(1) + torch.tensor([0.0, 100.0, 0.0])) / 16).tolist())
    assert others.agreed[-1] == (3, 20)
    assert len(others.agreed) == 1 + len(list(one.player.controller.parameters()))
    assert (one.decisions == 1).all()


def test_copies_are_seen_under_other_policies_which_seed_and_epoch_decide() -> None:
    one, other = search(), search(seed=1)
    assert torch.equal(one.decisions, search().decisions)
    assert not torch.equal(one.decisions, other.decisions)
    assert len({tuple(row) for row in one.decisions.tolist()}) == 3
    assert one.policies.choices.shape == (3, 5, 2, 2)
    assert one.policies.choices[..., 0].max() < len(NAMES)
    assert one.policies.choices[..., 1].max() < 10
    batch = one.augment(Batch(torch.rand(4, 3, 32, 32), torch.eye(10)[:4]), streams(4))
    assert len(batch.views) == 2


def test_a_policy_that_is_harder_becomes_more_probable() -> None:
    one = search("aaa:copies=4,rate=0.01")
    first = one.decisions
    before = one.player.controller(first)[0].detach()
    one.totals = torch.tensor([1.0, 1.0, 1.0, 9.0, 1.0], dtype=torch.float64)
    one.of_step = torch.zeros(5)
    one.stepped(ALONE, True)
    risen = one.player.controller(first)[0].detach() - before
    assert risen[3] > 0
    assert risen.argmax() == 3


@pytest.mark.parametrize("spec", ["aaa:copies=1", "aaa:rate=0", "aaa:entropy=-1"])
def test_numbers_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(BadSpec, match=spec.partition(":")[2].partition("=")[0]):
        Defenses.parse(spec)


def test_with_adversarial_training_it_is_refused_since_one_of_the_two_would_do_nothing() -> None:
    with pytest.raises(BadSpec, match="adversarial-autoaugment and pgd-at both say what is minimised: take one of the two"):
        Defenses.parse("aaa+pgd-at").informed(About((5,) * 10, {"linf": 0.1}, CPU, (3, 32, 32)))


# --- trainings


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """`forgetful` for as long as a test lasts, and a state after every step."""
    ARCHITECTURES.names()
    monkeypatch.setattr(ARCHITECTURES, "found", dict(ARCHITECTURES.found))
    register_forgetful()
    monkeypatch.setattr(loop, "STATE_SECONDS", 0.0)


@pytest.mark.parametrize("steps", [2, 3, 5])
@pytest.mark.usefixtures("registered")
def test_interrupted_and_resumed_is_as_if_nothing_had_been(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps an epoch: in the first epoch, after it, and in the second, where the controller has learnt once."""
    given: dict[str, object] = {"what": made("forgetful", defense="aaa:copies=2,rate=0.05"), "epochs": 3}
    unbroken = training(**given)
    unbroken.run()

    class Killed(Exception):
        pass

    def killing(self: loop.Training) -> None:
        keep(self)
        if self.running.step == steps:
            raise Killed

    keep = loop.Training._keep
    with monkeypatch.context() as patched:
        patched.setattr(loop.Training, "_keep", killing)
        with pytest.raises(Killed):
            training(state_file=tmp_path / "state", **given).run()
    resumed = training(state_file=tmp_path / "state", **given)
    assert resumed.running.step == steps
    resumed.run()
    assert same(resumed.classifier, unbroken.classifier)
    one, other = (each.defenses.parts[0] for each in (unbroken, resumed))
    assert same(one.player.controller, other.player.controller)
    assert torch.equal(one.decisions, other.decisions)
    assert one.written() == other.written()
    assert one.epoch == other.epoch == 3


@pytest.mark.usefixtures("registered")
def test_a_policy_that_has_changed_since_is_another_training(tmp_path: Path) -> None:
    file = tmp_path / "a.policies.json"
    file.write_text(search().written()["policies.json"])
    given: dict[str, object] = {"what": made(defense=f"policy:{file}"), "state_file": tmp_path / "state", "epochs": 1}
    training(**given).run()
    training(**given)
    file.write_text(search(seed=1).written()["policies.json"])
    with pytest.raises(
        RunMismatch, match=r"a\.policies\.json has changed since this training began: put it back, or start over with --fresh"
    ):
        training(**given)


def test_the_policies_of_the_last_epoch_are_left_beside_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They make another training, whose checkpoint loads where they are no more."""
    seen: list[Tensor] = []
    sampled = Search._sampled

    def noted(self: Search) -> Tensor:
        seen.append(sampled(self))
        return seen[-1]

    monkeypatch.setattr(Search, "_sampled", noted)
    usual = ["--model", "small_cnn", "--batch-size", "450", "--device", "cpu", "--seed", "5"]
    assert main([*usual, "--epochs", "2", "--defense", "aaa:copies=2", "--out", str(tmp_path / "a.safetensors")]) == 0
    file = tmp_path / "a.policies.json"
    assert len(seen) == 3  # one for each epoch, and one that nothing was trained on
    assert torch.equal(Policies.read(file).choices.flatten(), seen[1].flatten())
    assert not torch.equal(seen[1], seen[2])
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "a.policies.json", "a.training.csv", "a.training.png"}

    assert main([*usual, "--epochs", "1", "--defense", f"policy:{file}", "--out", str(tmp_path / "b.safetensors")]) == 0
    assert not (tmp_path / "b.policies.json").exists()
    file.unlink()
    assert "adversarial-autoaugment" in load_trained(tmp_path / "b.safetensors").trained_on


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_find_the_policies_that_one_finds(tmp_path: Path) -> None:
    command = "-m robustbench_lite.defenses.train_cli --model small_cnn --epochs 2 --batch-size 225 --optimizer sgd --lr 0.05 --device cpu"
    words = [*command.split(), "--defense", "aaa:copies=2,rate=0.02", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name, starting in (("one", []), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"])):
        done = subprocess.run([sys.executable, *starting, *words, f"{tmp_path}/{name}.safetensors"], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
    one, two = (json.loads((tmp_path / f"{name}.policies.json").read_text()) for name in ("one", "two"))
    assert one == two
    expected, found = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(expected[name], found[name], atol=1e-4) for name in expected)


def test_its_short_name_is_known() -> None:
    assert DEFENSES.spec_of(DEFENSES.build("aaa")) == "adversarial-autoaugment"
    assert search("aaa:copies=3").spec == "adversarial-autoaugment:copies=3"
