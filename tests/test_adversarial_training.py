"""Adversarial training: the images that are learnt from, the losses, and what an attack may leave behind in the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from robustbench_lite.defenses.adversary import attack_for_training, attacked
from robustbench_lite.defenses.recipe import Recipe, Tricks
from robustbench_lite.defenses.training import Objective, Training
from robustbench_lite.defenses.world import World
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from robustbench_lite.classifier import Classifier
from robustbench_lite.data import load_data
from robustbench_lite.defending import About, Batch, Defenses, Step
from robustbench_lite.errors import BadSpec, RobustEvalError, UsageError
from robustbench_lite.registry import ATTACKS
from robustbench_lite.streams import Streams
from robustbench_lite.threat import ball
from robustbench_lite.trained import Made

CPU = torch.device("cpu")
ABOUT = About(counts=(5,) * 10, eps={"linf": 0.1}, device=CPU, shape=(3, 8, 8))
ADVERSARIAL = ("pgd-at:eps=0.1", "fast-at:eps=0.1", "trades:eps=0.1")
EPS = {"linf": 0.1, "l2": 0.8}


def draws(count: int) -> Streams:
    return Streams(0, "training", [(f"image {k}", 0) for k in range(count)], None, CPU)


def images(count: int = 12) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def labels(count: int = 12) -> Tensor:
    return torch.arange(count) % 10


def network() -> Classifier:
    """With everything that is other in training mode than in eval mode."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16, 10))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean, module.running_var = torch.randn(8) / 4, torch.rand(8) + 0.5
    return Classifier(model.eval(), mean=(0.4,) * 3, std=(0.3,) * 3, classes=10).train()


def made_step(classifier: Classifier, count: int = 12, **more: Any) -> Step:
    return Step(classifier, Batch(images(count), torch.eye(10)[labels(count)]), draws(count), **more)


class Watched(nn.Module):
    """What a classifier was asked about, whether it was in training mode, and whether any of its weights learnt."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier, self.asked = classifier, list[tuple[Tensor, bool, bool]]()

    def forward(self, x: Tensor) -> Tensor:
        learns = any(weights.requires_grad for weights in self.classifier.parameters())
        self.asked.append((x.detach().clone(), self.classifier.training, learns))
        answer: Tensor = self.classifier(x)
        return answer


def learnt_from(spec: str, classifier: Classifier | None = None, **more: Any) -> Tensor:
    """The last images that a defense puts before the network."""
    watched: Any = Watched(classifier or network())
    Defenses.parse(spec).losses(made_step(watched, **more))
    found: Tensor = watched.asked[-1][0]
    return found


# --- the images, by hand


def linf_step(x_adv: Tensor, x: Tensor, slope: Tensor, size: float, eps: float) -> Tensor:
    return torch.clamp(x_adv + size * slope.sign(), x - eps, x + eps).clamp(0, 1)


def l2_step(x_adv: Tensor, x: Tensor, slope: Tensor, size: float, eps: float) -> Tensor:
    unit = slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    delta = x_adv + size * unit - x
    return (x + delta * (eps / delta.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)).clamp(0, 1)


STEPS = {"linf": linf_step, "l2": l2_step}


def written_out(
    norm: str, start: Tensor, loss: Callable[[Tensor], Tensor], steps: int, share: float, model: Classifier | None = None
) -> Tensor:
    """PGD from a start, as the papers write it; `loss` of logits is climbed."""
    x, x_adv, eps, model = images(), start, EPS[norm], model or network().eval()
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(model(x_adv)), x_adv)
        x_adv = STEPS[norm](x_adv.detach(), x, slope, share * eps, eps)
    return x_adv


def random_start(norm: str) -> Tensor:
    x, eps, shape = images(), EPS[norm], (3, 8, 8)
    if norm == "linf":
        return (x + eps * (2 * draws(12).uniform("random point", *shape) - 1)).clamp(0, 1)
    direction = draws(12).normal("random point", *shape)
    radius = eps * draws(12).uniform("radius", 1).view(-1, 1, 1, 1)
    return (x + radius * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_at_learns_from_what_pgd_makes(norm: str) -> None:
    made = learnt_from(f"pgd-at:eps={EPS[norm]},norm={norm},attack=(pgd:steps=4,step_size=0.4)")
    expected = written_out(norm, random_start(norm), lambda logits: cross_entropy(logits, labels(), reduction="sum"), 4, 0.4)
    assert torch.allclose(made, expected, atol=1e-6)


def test_pgd_at_has_the_published_step() -> None:
    made = learnt_from("pgd-at:eps=0.1")  # 2/255 of 8/255, ten times
    expected = written_out("linf", random_start("linf"), lambda logits: cross_entropy(logits, labels(), reduction="sum"), 10, 0.25)
    assert torch.allclose(made, expected, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fast_at_learns_from_one_long_step_from_a_random_start(norm: str) -> None:
    expected = written_out(norm, random_start(norm), lambda logits: cross_entropy(logits, labels(), reduction="sum"), 1, 1.25)
    assert torch.allclose(learnt_from(f"fast-at:eps={EPS[norm]},norm={norm}"), expected, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_trades_learns_from_where_the_answers_differ_most(norm: str) -> None:
    x, eps = images(), EPS[norm]
    near = STEPS[norm](x + 0.001 * draws(12).normal("near", 3, 8, 8), x, torch.ones_like(x), 0.0, eps)
    model = network().eval()  # where the pass over the images as they are changes no statistics before the attack
    natural = model(x).softmax(1).detach()
    expected = written_out(norm, near, lambda logits: kl_div(logits.log_softmax(1), natural, reduction="sum"), 5, 7 / 31, model)
    off = (learnt_from(f"trades:eps={eps},norm={norm},steps=5", model) - expected).abs().flatten(1).amax(1)
    # next to the image the divergence is nearly flat, and roundings of its slope, which are the processor's, grow
    assert int((off > 5e-4).sum()) <= 1, off


def test_any_gradient_attack_stays_in_ball_and_box_and_gives_an_image_the_same_in_every_batch() -> None:
    model, x, y = network(), images(), labels()
    tried = []
    for name in ATTACKS.names():
        for norm, eps in EPS.items():
            threat = ball(norm, eps)
            try:
                attack = attack_for_training(name, norm)
                shorter: Any = replace(attack, steps=3) if "steps" in getattr(attack, "__dataclass_fields__", ()) else attack
                x_adv = attacked(model, x, y, threat, shorter, draws(12))
            except RobustEvalError:  # not for training, or not for this network
                continue
            assert threat.contains(x_adv, x).all()
            assert not torch.equal(x_adv, x)
            assert torch.allclose(attacked(model, x[:5], y[:5], threat, shorter, draws(5)), x_adv[:5], atol=1e-4)
            tried.append(name)
    assert {"pgd", "fgsm", "bim", "apgd", "apgd-dlr", "mi", "di"} <= set(tried)
    assert torch.equal(x, images())


def test_every_step_of_an_attack_has_draws_of_its_own() -> None:
    seen = []

    @dataclass(frozen=True)
    class Recorder:
        steps: int = 3

        def start(self, oracle: Any, draw: Streams) -> Any:
            seen.append(draw.steps)
            return ATTACKS.get("pgd")().start(oracle, draw)

        def step(self, oracle: Any, state: Any, draw: Streams) -> Any:
            seen.append(draw.steps)
            return ATTACKS.get("pgd")().step(oracle, state, draw)

    recorder: Any = Recorder()
    attacked(network(), images(), labels(), ball("linf", 0.1), recorder, draws(12))
    assert seen[0] is None
    assert [int(steps[0]) for steps in seen[1:] if steps is not None] == [0, 1, 2]


@pytest.mark.peers
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_equal_those_of_torchattacks(norm: str) -> None:
    import torchattacks

    peer = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    theirs = peer(network().eval(), eps=EPS[norm], alpha=0.3 * EPS[norm], steps=5, random_start=False)(images(), labels())
    ours = learnt_from(f"pgd-at:eps={EPS[norm]},norm={norm},attack=(bim:steps=5,step_size=0.3)")
    assert torch.allclose(ours, theirs, atol=1e-6)


# --- the losses, in numbers

UP, DOWN = 0.014732290948226201, 0.01664969441966481
"""KL of softmax(1, 0) and softmax(1.4, 0), and of softmax(1, 0) and softmax(0.6, 0)."""


def test_the_trades_loss_is_the_one_computed_by_hand() -> None:
    """Logits (2 x, 0) at x = 0.5: p = (0.7311, 0.2689). The attack goes to 0.7 or 0.3, away from where the noise put it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False)).eval()
    model[1].weight.data = torch.tensor([[2.0], [0.0]])
    classifier = Classifier(model, classes=2).train()
    x, targets, draw = torch.full((6, 1, 1, 1), 0.5), torch.eye(2)[[0, 1, 0, 1, 0, 1]], draws(6)
    losses = Defenses.parse("trades:eps=0.2,beta=6").losses(Step(classifier, Batch(x, targets), draw))
    up = draw.normal("near", 1, 1, 1).flatten() > 0
    assert set(up.tolist()) == {True, False}
    natural = [0.3132616875182228, 1.3132616875182228] * 3
    expected = [clean + 6 * (UP if rises else DOWN) for clean, rises in zip(natural, up.tolist(), strict=True)]
    assert losses.tolist() == pytest.approx(expected, abs=1e-6)


def test_gradients_of_trades_flow_through_both_answers() -> None:
    classifier = network().eval()
    step = made_step(classifier)
    torch.autograd.backward(Defenses.parse("trades:eps=0.1,beta=2").losses(step).sum())
    ours = [weights.grad.clone() for weights in classifier.parameters() if weights.grad is not None]
    twin = network().eval()
    x_adv = learnt_from("trades:eps=0.1,beta=2", twin)
    logits, answers = twin(images()), twin(x_adv)
    loss = cross_entropy(logits, labels(), reduction="sum") + 2 * kl_div(answers.log_softmax(1), logits.softmax(1), reduction="sum")
    theirs = torch.autograd.grad(loss, list(twin.parameters()))
    assert all(torch.allclose(one, other, atol=1e-3, rtol=1e-3) for one, other in zip(ours, theirs, strict=True))


def test_the_loss_of_adversarial_training_is_cross_entropy_with_the_shares_as_targets() -> None:
    classifier, targets = network().eval(), torch.full((12, 10), 0.02) + 0.8 * torch.eye(10)[labels()]
    losses = Defenses.parse("pgd-at:eps=0.1").losses(Step(classifier, Batch(images(), targets), draws(12)))
    expected = cross_entropy(classifier(learnt_from("pgd-at:eps=0.1")), targets, reduction="none")
    assert torch.allclose(losses, expected, atol=1e-5)


# --- the radius


def test_the_radius_is_the_usual_one_of_the_data_unless_another_is_given() -> None:
    for name in ("pgd-at", "fast-at", "trades"):
        assert Defenses.parse(name).informed(ABOUT) == Defenses.parse(f"{name}:eps=0.1")
        assert Defenses.parse(f"{name}:eps=0.2").informed(ABOUT) == Defenses.parse(f"{name}:eps=0.2")
        with pytest.raises(UsageError, match=r"these data have no usual radius in l2: give the defense one, eps=\.\.\."):
            Defenses.parse(f"{name}:norm=l2").informed(ABOUT)


def test_the_radius_may_rise_over_the_first_share_of_the_training() -> None:
    spec, x = "pgd-at:eps=0.1,ramp=0.5", images()
    reach = [float((learnt_from(spec, progress=done) - x).abs().max()) for done in (0.0, 0.25, 0.5, 0.75)]
    assert reach == pytest.approx([0, 0.05, 0.1, 0.1], abs=1e-6)


def test_a_step_knows_how_much_of_the_training_is_done() -> None:
    seen: list[float] = []

    @dataclass(frozen=True)
    class Recorder:
        def penalty(self, step: Step) -> Tensor:
            seen.append(step.progress)
            return torch.zeros(len(step.batch.images))

    training = digits_training("none", 64, Recipe(epochs=2, batch_size=32))
    assert isinstance(training.objective, Objective)
    training.objective.defenses = Defenses((Recorder(),))
    training.run()
    assert seen == [0, 0.25, 0.5, 0.75]


# --- what an attack leaves behind


@pytest.mark.parametrize("spec", ADVERSARIAL)
def test_the_model_is_attacked_in_eval_mode_and_is_afterwards_as_it_was(spec: str) -> None:
    classifier = network()
    frozen = classifier.model[1].eval()  # a layer that stays in eval mode in training
    classifier.model[0].weight.requires_grad_(False)  # and weights that are not learnt
    modes = {name: module.training for name, module in classifier.named_modules()}
    learnt = {name: weights.requires_grad for name, weights in classifier.named_parameters()}
    watched: Any = Watched(classifier)
    Defenses.parse(spec).losses(made_step(watched))
    in_training = [training for _, training, _ in watched.asked]
    assert in_training == [learns for _, _, learns in watched.asked]  # an attack computes no gradients of weights
    passes = {"pgd-at": (10, 1), "fast-at": (1, 1), "trades": (11, 2)}[spec.partition(":")[0]]
    assert (in_training.count(False), in_training.count(True)) == passes
    assert {name: module.training for name, module in classifier.named_modules()} == modes
    assert {name: weights.requires_grad for name, weights in classifier.named_parameters()} == learnt
    assert frozen.num_batches_tracked == 0
    assert int(classifier.model[4].num_batches_tracked) == passes[1]


def test_an_attack_alone_touches_neither_statistics_nor_gradients_nor_random_state() -> None:
    classifier = network()
    before, state = copy.deepcopy(classifier.state_dict()), torch.get_rng_state()
    x_adv = attacked(classifier, images(), labels(), ball("linf", 0.1), attack_for_training("apgd:steps=4", "linf"), draws(12))
    assert not x_adv.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert all(weights.grad is None for weights in classifier.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_the_model_is_as_it_was_after_an_attack_that_failed() -> None:
    classifier = network()
    with pytest.raises((RuntimeError, IndexError)):
        attacked(classifier, images(), labels() + 10, ball("linf", 0.1), attack_for_training("pgd", "linf"), draws(12))
    assert all(module.training for module in classifier.modules())
    assert all(weights.requires_grad for weights in classifier.parameters())


@pytest.mark.parametrize("spec", [*ADVERSARIAL, "pgd-at:eps=0.1,attack=(apgd:steps=3)"])
def test_in_half_precision_the_attack_is_too_and_every_weight_still_learns(spec: str) -> None:
    classifier, found = network(), list[torch.dtype]()
    classifier.model[0].register_forward_hook(lambda module, given, answer: found.append(answer.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = Defenses.parse(spec).losses(made_step(classifier))
    torch.autograd.backward(losses.mean())
    assert set(found) == {torch.bfloat16}
    assert losses.dtype == torch.float32
    assert all(weights.grad is not None and weights.grad.abs().sum() > 0 for weights in classifier.parameters())


def test_several_processes_attack_inside_of_their_shared_forward_pass(tmp_path: Path) -> None:
    def gradients(wrap: Callable[[nn.Module], nn.Module]) -> list[Tensor]:
        torch.manual_seed(3)  # for dropout
        classifier = network()
        objective = wrap(Objective(classifier, Defenses.parse("trades:eps=0.1"), lambda x, draw: x))
        batch = made_step(classifier).batch
        objective(batch.images, batch.targets, draws(12), 0.0).sum().backward()
        return [weights.grad for weights in classifier.parameters() if weights.grad is not None]

    alone = gradients(lambda module: module)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        shared = gradients(nn.parallel.DistributedDataParallel)
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(alone, shared, strict=True))


# --- what makes no sense


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("pgd-at+trades", "pgd-at and trades both choose the adversarial images: take one of the two"),
        ("pgd-at:attack=square", "square cannot make training images: take a gradient attack such as pgd, fgsm or apgd"),
        ("pgd-at:attack=autoattack", "autoattack cannot make training images"),
        ("pgd-at:attack=fab", "fab cannot make training images"),
        ("pgd-at:attack=(pgd:restarts=3)", "pgd:restarts=3 is several runs an image, and a training image is the end of one"),
        ("pgd-at:attack=apgd-t", "set no restarts and no targets"),
        ("pgd-at:attack=pdg", "unknown attack 'pdg': did you mean 'pgd'"),
        ("pgd-at:attack=(pgd:stepz=3)", "pgd has no parameter 'stepz': did you mean 'steps'"),
        ("pgd-at:norm=l7", "pgd-at:norm=l7: input should be 'linf' or 'l2'"),
        ("trades:norm=l1", "trades:norm=l1: input should be 'linf' or 'l2'"),
        ("fast-at:eps=8", "eps 8 is more than the whole range of a pixel: .* write 8/255"),
        ("trades:eps=0", "trades:eps=0: input should be greater than 0"),
        ("pgd-at:ramp=2", "pgd-at:ramp=2: input should be less than or equal to 1"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        Defenses.parse(spec)
    assert "\n" not in str(refused.value)


def test_two_adversarial_defenses_are_a_bad_spec() -> None:
    with pytest.raises(BadSpec):
        Defenses.parse("fast-at+pgd-at")


# --- what it is for


def digits_training(defense: str, count: int, recipe: Recipe) -> Training:
    data = load_data("digits:train", limit=count)
    made = Made("digits_cnn", defense, "turn-shift", 10, 3, 32, None, "bilinear", (0.3,) * 3, (0.3,) * 3, "digits")
    return Training(made, data, recipe, World(0, 1, CPU))


def test_a_short_training_against_pgd_withstands_it_and_a_standard_one_does_not() -> None:
    test, recipe = load_data("digits", limit=100), Recipe("adamw", epochs=5, batch_size=32, lr=3e-3, tricks=Tricks(augment="none"))
    x, y = torch.stack([image for image, _ in test]), torch.tensor(test.labels)
    right = {}
    for spec in ("none", "pgd-at:eps=0.1,attack=(pgd:steps=3)"):
        classifier = digits_training(spec, 320, recipe).run()
        x_adv = attacked(classifier, x, y, ball("linf", 0.1), attack_for_training("pgd:steps=20", "linf"), draws(100))
        right[spec] = int((classifier(x_adv).argmax(1) == y).sum())
    standard, defended = right.values()
    assert standard < 20
    assert defended > 50
