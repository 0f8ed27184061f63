"""The training loop: what a step does, in which order, at which rate, what is averaged, chosen and refused; and the bundled checkpoint."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from robustbench_lite.defenses import feed
from robustbench_lite.defenses import training as loop
from robustbench_lite.defenses.average import Average
from robustbench_lite.defenses.job import count_correct
from robustbench_lite.defenses.recipe import Recipe, Tricks
from robustbench_lite.defenses.selection import Score, Selection, held_out
from robustbench_lite.defenses.training import Diverged, Epoch
from torch import Tensor, nn
from training_fixture import ALONE, digits, made, metadata, same, training

from robustbench_lite.classifier import Classifier
from robustbench_lite.data import load_data
from robustbench_lite.defending import Defenses, Kind, Step
from robustbench_lite.errors import DataError, ModelError, UsageError
from robustbench_lite.labelled import LabelledImages, from_arrays
from robustbench_lite.registry import ARCHITECTURES, DEFENSES, MODELS, architecture, defense
from robustbench_lite.streams import generator

DOCS = Path(__file__).parent.parent / "docs" / "training.md"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test registers is gone afterwards."""
    for registry in (ARCHITECTURES, DEFENSES):
        registry.names()
        monkeypatch.setattr(registry, "found", dict(registry.found))


@pytest.fixture
def linear(registered: None) -> str:
    """The name of a network of one linear layer."""

    @architecture("linear")
    def build(classes: int, channels: int = 3) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * 32 * 32, classes))

    return "linear"


# --- the bundled checkpoint


def bundled_file() -> Path:
    package = find_spec("robustbench_lite.defenses")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).with_name("digits_cnn.safetensors")


def test_the_bundled_checkpoint_is_small_accurate_and_says_how_it_was_made() -> None:
    images, classifier = load_data("digits"), MODELS.build("digits_cnn")
    correct = count_correct(classifier, images)
    facts = metadata(bundled_file())
    assert len(images) == 900
    assert correct / len(images) >= 0.97
    assert bundled_file().stat().st_size < 300_000
    assert facts["test_accuracy"] == f"{correct / 900:.4f}"
    assert facts["command"] in DOCS.read_text()
    assert f"{correct} of 900 test images right" in DOCS.read_text()


def test_the_bundled_classifier_is_ready_for_an_attack() -> None:
    classifier = MODELS.build("digits_cnn")
    assert not any(module.training for module in classifier.modules())
    assert (classifier.name, classifier.data, classifier.classes) == ("digits_cnn", "digits", 10)
    assert (classifier.preprocess.size, classifier.preprocess.resize) == ((32, 32), None)
    grey = torch.full((1, 3, 32, 32), 0.305)
    assert torch.equal(classifier(grey), classifier.model(torch.zeros(1, 3, 32, 32)))  # normalised inside, once


def test_the_bundled_classifier_is_cheap() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        MODELS.build("digits_cnn")(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() < 10_000_000


# --- the loop


def by_hand(start: nn.Module, data: LabelledImages, optimizer: Callable[..., torch.optim.Optimizer], seed: int) -> nn.Module:
    """Two epochs of plain PyTorch at a constant rate, over images normalised by 0.3 and 0.3, in the order that the seed gives."""
    model = copy.deepcopy(start).train().requires_grad_(True)
    moved = optimizer(model.parameters())
    x = (torch.stack([image for image, _ in data]) - 0.3) / 0.3
    y = torch.tensor(data.labels)
    for epoch in range(2):
        order = torch.from_numpy(generator(seed, "order", epoch).permutation(len(data)))
        for chosen in order.chunk(3):
            moved.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), y[chosen], label_smoothing=0.0).backward()
            moved.step()
    return model


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_loop_is_the_plain_loop(name: str) -> None:
    given: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "schedule": "constant", "optimizer": name, "seed": 3}
    ours = training(**given)
    settings: dict[str, Any] = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    plain = torch.optim.SGD if name == "sgd" else torch.optim.AdamW
    theirs = by_hand(ours.classifier.model, digits(), lambda weights: plain(weights, lr=0.02, weight_decay=0.1, **settings), seed=3)
    trained = ours.run().model
    for one, other in zip(trained.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_same_seed_gives_the_same_weights_whatever_happened_before() -> None:
    first = training(augment="turn-shift").run()
    torch.rand(7)
    assert same(first, training(augment="turn-shift").run())
    assert not same(first, training(augment="turn-shift", seed=1).run())


def test_training_leaves_global_random_state_and_data_as_they_were() -> None:
    images = digits()
    state, pixels = torch.get_rng_state(), torch.stack([image for image, _ in images])
    training(images, augment="crop-flip").run()
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(pixels, torch.stack([image for image, _ in images]))


def test_a_trained_classifier_is_in_eval_mode_and_frozen() -> None:
    classifier = training().run()
    assert not any(module.training for module in classifier.modules())
    assert not any(parameter.requires_grad for parameter in classifier.parameters())


def test_every_image_is_used_once_an_epoch_in_steps_of_nearly_equal_size(registered: None) -> None:
    seen: list[Tensor] = []

    @defense("recorder")
    @dataclass(frozen=True)
    class Recorder:
        kind: ClassVar[Kind] = "adversarial"

        def fit(self, step: Step) -> Tensor:
            seen.append(step.batch.images)
            return 0 * step.logits.sum(1) + step.batch.labels  # the mean over the images is known

    reports: list[tuple[Epoch, ...]] = []
    odd = digits(65)  # one more than two steps of 32
    training(odd, what=made(defense="recorder"), report=reports.append).run()
    assert [len(batch) for batch in seen] == [22, 22, 21] * 2
    for epoch in (seen[:3], seen[3:]):
        assert {image.numpy().tobytes() for image in torch.cat(epoch)} == {image.numpy().tobytes() for image, _ in odd}
    assert not torch.equal(seen[0], seen[3]), "every epoch has an order of its own"
    mean = sum(label for label in odd.labels if isinstance(label, int)) / 65
    assert [epoch.loss for epoch in reports[-1]] == [pytest.approx(mean), pytest.approx(mean)]
    assert [(len(report), report[-1].number) for report in reports] == [(1, 1), (2, 2)]
    assert reports[-1][0].clean is None


def test_images_that_do_not_fit_into_memory_are_read_in_threads_to_the_same_end(monkeypatch: pytest.MonkeyPatch) -> None:
    held = training(augment="turn-shift")
    monkeypatch.setattr(feed, "IN_MEMORY", 0)
    read = training(augment="turn-shift")
    assert held.feed.held is not None
    assert read.feed.held is None
    assert same(held.run(), read.run())


def test_dropout_is_drawn_under_the_seed(registered: None) -> None:
    @architecture("forgetful")
    def build(classes: int, channels: int = 3) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(channels * 32 * 32, classes))

    first = training(what=made("forgetful")).run()
    torch.rand(3)
    assert same(first, training(what=made("forgetful")).run())


def test_clipping_bounds_the_step(linear: str) -> None:
    """With plain SGD a step is as long as the rate times the gradient."""
    given: dict[str, Any] = {"epochs": 1, "batch_size": 96, "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    for clip, expected in ((0.01, 0.01), (1e9, None)):
        ours = training(what=made(linear), clip=clip, **given)
        start = nn.utils.parameters_to_vector(ours.classifier.parameters()).clone().detach()
        moved = float((nn.utils.parameters_to_vector(ours.run().parameters()) - start).norm())
        assert moved == pytest.approx(expected, rel=1e-3) if expected else moved > 0.02


def test_half_precision_trains_nearly_alike() -> None:
    exact, half = training().run(), training(precision="bf16").run()
    pairs = list(zip(exact.parameters(), half.parameters(), strict=True))
    assert not same(exact, half)
    assert all(one.dtype == other.dtype == torch.float32 for one, other in pairs)
    assert max(float((one - other).abs().max()) for one, other in pairs) < 0.05


# --- schedules


def rates(epochs: int = 10, per_epoch: int = 2, **given: Any) -> list[float]:
    tricks = {name: given.pop(name) for name in list(given) if name in Tricks.__dataclass_fields__}
    plan = Recipe(epochs=epochs, lr=given.pop("lr", 1.0), **given, tricks=Tricks(**tricks))
    return [plan.learning_rate(step, per_epoch) for step in range(epochs * per_epoch)]


def test_cosine_falls_from_the_rate_towards_0() -> None:
    found = rates()
    assert (found[0], found[10]) == (1, pytest.approx(0.5))
    assert found[5] == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert 0 < found[19] < 0.01


def test_a_training_in_phases_has_the_whole_schedule_in_each() -> None:
    plan = Recipe(epochs=10, lr=1.0, tricks=Tricks(warmup=0.5))
    found = [plan.learning_rate(step, 6, 3) for step in range(60)]
    assert found[:20] == found[20:40] == found[40:]
    assert found[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert found[3] == 1
    assert 0 < found[19] < 0.01
    uneven = [plan.learning_rate(step, 7, 3) for step in range(70)]  # 70 steps: phases begin with steps 24 and 47
    assert [step for step in range(1, 70) if uneven[step] > uneven[step - 1] and uneven[step - 1] < 0.1] == [24, 47]


def test_steps_divide_by_ten() -> None:
    assert rates(schedule="steps") == pytest.approx([1] * 10 + [0.1] * 5 + [0.01] * 5)
    assert rates(schedule="steps", drops=(0.9,)) == pytest.approx([1] * 18 + [0.1] * 2)


def test_cyclic_rises_for_two_fifths_and_falls_after() -> None:
    found = rates(schedule="cyclic")
    assert found[:8] == pytest.approx([(step + 1) / 8 for step in range(8)])
    assert max(found) == 1
    assert found[8:] == pytest.approx([min(1, (20 - step) / 12) for step in range(8, 20)])


def test_warm_up_is_a_straight_line_before_the_schedule() -> None:
    assert rates(schedule="constant", warmup=2) == pytest.approx([0.25, 0.5, 0.75] + [1] * 17)
    assert rates(warmup=2)[4:] == pytest.approx(rates(epochs=8))


def test_the_rate_grows_with_the_batch_where_that_is_asked_for() -> None:
    assert rates(schedule="constant", scale_lr=True, batch_size=64, lr=0.1)[0] == pytest.approx(0.025)
    assert rates(schedule="constant", batch_size=64, lr=0.1)[0] == 0.1


# --- the average of the weights


def test_the_average_follows_its_formula_and_counts_whole_numbers() -> None:
    model = Classifier(nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)).eval())
    weight, counter = model.model[0].weight, model.model[1].num_batches_tracked
    nn.init.zeros_(weight)
    average, expected = Average.of(model, 0.25), 0.0
    for step, value in enumerate((8.0, 4.0, 2.0, -1.0)):
        with torch.no_grad():
            weight.fill_(value)
        counter.fill_(step + 5)
        average.update(model)
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert average.model is not None
        assert float(average.model.model[0].weight) == pytest.approx(expected)
        assert int(average.model.model[1].num_batches_tracked) == step + 5


def test_the_average_is_what_comes_out_and_without_a_decay_nothing_is_averaged() -> None:
    plain = training()
    assert plain.run() is plain.classifier
    averaged = training(ema=0.9)
    result = averaged.run()
    assert result is averaged.average.model
    assert same(plain.classifier, averaged.classifier), "averaging does not change the training"
    assert not same(result, averaged.classifier)


# --- the epoch that is kept


class Scripted(Selection):
    """Scores as they are given, one an epoch, and what was asked about."""

    scores: ClassVar[list[Score]]
    asked: ClassVar[list[Classifier]]

    def _scored(self, classifier: Classifier) -> Score:
        self.asked.append(copy.deepcopy(classifier))
        return self.scores[len(self.asked) - 1]


def scripted(*scores: tuple[float, float]) -> Scripted:
    Scripted.scores, Scripted.asked = [Score(*score) for score in scores], []
    return Scripted(digits(8), None, None, 0, ALONE)


def test_the_epoch_of_the_highest_attacked_score_is_kept_and_of_equals_the_earlier() -> None:
    scores = [(0.2, 0.9), (0.5, 0.6), (0.5, 0.6), (0.4, 0.99), (0.1, 1.0)]
    selection = scripted(*scores)
    ours = training(epochs=5, selection=selection)
    result = ours.run()
    assert selection.epoch == 2
    assert same(result, selection.asked[1])
    assert not same(result, ours.classifier)
    assert [(epoch.attacked, epoch.clean) for epoch in ours.running.epochs] == scores


def test_scores_are_shares_of_the_images_held_out_clean_and_attacked() -> None:
    from robustbench_lite.defenses.adversary import attack_for_training

    from robustbench_lite.threat import ball

    images = load_data("digits", limit=150)  # more than one batch
    classifier = MODELS.build("digits_cnn").train()
    clean = Selection(images, None, None, 0, ALONE).consider(classifier, 1)
    assert classifier.training
    assert clean == Score(clean.clean, clean.clean)
    assert clean.clean == pytest.approx(count_correct(classifier.eval(), images) / 150)
    attacked = Selection(images, attack_for_training("pgd:steps=5", "linf"), ball("linf", 0.1), 0, ALONE)
    first = attacked.consider(classifier, 1)
    assert first == attacked.consider(classifier, 2), "every epoch is attacked with the same draws"
    assert first.clean == clean.clean
    assert first.attacked < clean.clean - 0.2
    assert attacked.epoch == 1


def test_images_held_out_are_not_trained_on_and_every_class_is_among_them() -> None:
    images = digits(300)
    rest, kept = held_out(images, 0.2, seed=0)
    assert (len(rest), len(kept)) == (240, 60)
    assert not set(rest.ids) & set(kept.ids)
    assert {*rest.ids, *kept.ids} == set(images.ids)
    assert set(kept.labels) == set(range(10))
    assert held_out(images, 0.2, seed=0)[1].ids == kept.ids != held_out(images, 0.2, seed=1)[1].ids


@pytest.mark.parametrize("share", [0.001, 0.999, 1.0, -0.1, math.nan, math.inf])
def test_a_share_that_leaves_one_side_empty_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match=r"--validation .*: a share between 0 and 1 that leaves some of the 96 images"):
        held_out(digits(96), share, 0)


def test_scheduled_layers_are_chosen_and_written_as_the_checkpoint_will_have_them(registered: None) -> None:
    """A network whose layers change while it is trained is scored with the layers of the end, or another one than scored would be kept."""

    class Level(nn.Module):
        level = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return x

    @defense("levels")
    @dataclass(frozen=True)
    class Levels:
        kind: ClassVar[Kind] = "network"

        def rebuild(self, model: nn.Module) -> nn.Module:
            return nn.Sequential(model, Level())

        def scheduled(self, model: nn.Module, epoch: int, epochs: int) -> None:
            model[1].level = epoch / (epochs - 1)

    for ema in (None, 0.5):
        selection = scripted((0.9, 0.9), (0.1, 0.1), (0.1, 0.1))
        ours = training(epochs=3, what=made(defense="levels"), selection=selection, ema=ema)
        assert ours.run().model[1].level == 1.0
        assert [asked.model[1].level for asked in selection.asked] == [1.0] * 3


# --- what is refused


def test_a_loss_that_is_no_number_ends_training_with_its_step() -> None:
    with pytest.raises(Diverged, match=r"the loss became (nan|inf) in step 2 \(epoch 1\): try a smaller --lr than 1e\+30, --clip 1"):
        training(lr=1e30).run()


def test_weights_that_answer_with_no_number_are_found_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(Diverged, match=r"weights became useless in step 1 \(epoch 1\)"):
        training(lr=1e30, batch_size=96, state_file=state).run()
    assert not state.exists()


def test_a_defense_that_gives_nan_is_stopped_in_its_step(registered: None) -> None:
    @defense("breaks")
    @dataclass(frozen=True)
    class Breaks:
        kind: ClassVar[Kind] = "adversarial"

        def fit(self, step: Step) -> Tensor:
            return step.logits.sum(1) * (math.nan if step.progress >= 0.5 else 1e-3)

    with pytest.raises(Diverged, match=r"the loss became nan in step 4 \(epoch 2\)"):
        training(what=made(defense="breaks")).run()


def test_data_without_one_class_an_image_is_refused() -> None:
    several = from_arrays(torch.zeros(2, 3, 32, 32), torch.tensor([[0.0, 1.0], [1.0, 1.0]]), "xrays", ids=["a", "b"], classes=2)
    with pytest.raises(DataError, match="xrays has several labels an image"):
        training(several)
    flat = from_arrays(torch.rand(3, 3, 32, 32), torch.zeros(3), "zeros", classes=10)
    with pytest.raises(DataError, match="all 3 training images of zeros are of one class"):
        training(flat)
    unknown = from_arrays(torch.rand(3, 3, 32, 32), torch.arange(3), "some")
    with pytest.raises(DataError, match="does not say how many classes"):
        training(unknown)


def test_a_network_that_cannot_take_the_images_is_refused_before_training() -> None:
    small = from_arrays(torch.rand(4, 3, 8, 8), torch.arange(4), "small", classes=10)
    with pytest.raises(ModelError, match=r"small_cnn cannot take images of shape \(3, 8, 8\)"):
        training(small)


def test_a_defense_around_a_model_is_not_trained(registered: None) -> None:
    @defense("glasses")
    @dataclass(frozen=True)
    class Glasses:
        kind: ClassVar[Kind] = "input"

        def wrap(self, classifier: Classifier) -> Classifier:
            return classifier

    with pytest.raises(UsageError, match="glasses is not trained but put around a model: robust-eval --defense glasses"):
        training(what=made(defense="glasses"))
    assert Defenses.parse("glasses").parts


def test_the_state_is_written_within_an_epoch_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(loop, "STATE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "keep_state", lambda file, identity, state: steps.append(state["step"]))
    training(state_file=tmp_path / "state").run()
    assert steps == [1, 2, 3, 4, 5, 6]
