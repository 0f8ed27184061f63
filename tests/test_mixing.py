"""Mixup, Remix and CutMix by their formulas, label smoothing, torchvision's augmentations, and what a checkpoint says of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from robustbench_lite.defenses.cutmix import outside_box
from robustbench_lite.defenses.feed import smoothed
from robustbench_lite.defenses.job import save
from robustbench_lite.defenses.mixing import mixed, partnered
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, RandAugment, v2

from robustbench_lite.data import load_data
from robustbench_lite.defending import About, Batch, Defenses
from robustbench_lite.errors import BadSpec
from robustbench_lite.evaluation import evaluate
from robustbench_lite.models import load_model
from robustbench_lite.readout import Subset
from robustbench_lite.registry import DEFENSES
from robustbench_lite.streams import Streams
from robustbench_lite.trained import Made

CPU = torch.device("cpu")
COUNTS = (60, 20, 10, 30)


def streams(count: int, epoch: int = 0) -> Streams:
    return Streams(0, "training", [(str(k), epoch) for k in range(count)], None, CPU)


def flat_batch(count: int = 64, views: int = 0) -> Batch:
    """Image k is k / count all over and of class k mod 4; view v of it is a hundredth more."""
    images = (torch.arange(count) / count).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()
    return Batch(images, torch.eye(4)[torch.arange(count) % 4], tuple(images + (v + 1) / 100 for v in range(views)))


def about() -> About:
    return About(COUNTS, {"linf": 8 / 255}, CPU, (3, 16, 16))


# --- mixing


@pytest.mark.parametrize("spec", ["mixup", "mixup:alpha=1", "remix", "cutmix"])
def test_targets_stay_shares_images_stay_images_and_nothing_is_modified(spec: str) -> None:
    batch = flat_batch(views=2)
    before, state = batch.images.clone(), torch.get_rng_state()
    made = Defenses.parse(spec).informed(about()).augment(batch, streams(64))
    assert torch.allclose(made.targets.sum(1), torch.ones(64))
    assert made.targets.min() >= 0
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    assert not torch.equal(made.images, batch.images)
    assert torch.equal(batch.images, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("spec", ["mixup", "remix", "cutmix"])
def test_views_are_mixed_as_their_images(spec: str) -> None:
    made = Defenses.parse(spec).informed(about()).augment(flat_batch(views=2), streams(64))
    for v, view in enumerate(made.views):
        assert torch.allclose(view, made.images + (v + 1) / 100, atol=1e-6)


def test_everyone_is_a_partner_once_and_nobody_its_own() -> None:
    partner, share = partnered(streams(64), 0.2)
    assert sorted(partner.tolist()) == list(range(64))
    assert (partner != torch.arange(64)).all()
    assert not torch.equal(partner, partnered(streams(64, epoch=1), 0.2)[0])
    assert ((share >= 0) & (share <= 1)).all()
    assert partnered(streams(1), 0.2)[0].tolist() == [0]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    share = partnered(streams(4000), alpha)[1]
    assert share.mean() == pytest.approx(0.5, abs=0.02)
    assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_a_mixture_by_hand() -> None:
    batch = Batch(torch.tensor([0.2, 1.0]).view(2, 1, 1, 1), torch.tensor([[1.0, 0.0], [0.1, 0.9]]), (torch.ones(2, 1, 1, 1),))
    made = mixed(batch, torch.tensor([1, 0]), torch.tensor([0.75, 0.5]), torch.tensor([0.25, 1.0]))
    assert torch.allclose(made.images.flatten(), torch.tensor([0.75 * 0.2 + 0.25, 0.6]))
    assert torch.allclose(made.targets, torch.tensor([[0.25 + 0.075, 0.675], [0.1, 0.9]]))
    assert torch.allclose(made.views[0], torch.ones(2, 1, 1, 1))


def test_mixup_gives_targets_the_weights_of_the_images() -> None:
    batch, (partner, share) = flat_batch(), partnered(streams(64), 1.0)
    made = DEFENSES.build("mixup:alpha=1").augment(batch, streams(64))
    k = torch.arange(64) / 64
    assert torch.allclose(made.images[:, 0, 0, 0], share * k + (1 - share) * k[partner], atol=1e-6)
    assert torch.allclose(made.targets, share[:, None] * batch.targets + (1 - share)[:, None] * batch.targets[partner], atol=1e-6)


def test_remix_leaves_the_target_to_the_rare_class() -> None:
    """Three times as frequent is enough, and the share of the frequent one has to be below a half."""
    batch, (partner, share) = flat_batch(), partnered(streams(64), 1.0)
    made = Defenses.parse("remix").informed(about()).augment(batch, streams(64))
    mixup = DEFENSES.build("mixup:alpha=1").augment(batch, streams(64))
    assert torch.equal(made.images, mixup.images)
    seen = set()
    for i in range(64):
        mine, other, own = COUNTS[i % 4], COUNTS[int(partner[i]) % 4], float(share[i])
        kept = own
        if mine / other >= 3 and own < 0.5:
            kept = 0.0
        if mine / other <= 1 / 3 and 1 - own < 0.5:
            kept = 1.0
        assert torch.allclose(made.targets[i], kept * batch.targets[i] + (1 - kept) * batch.targets[partner[i]], atol=1e-6)
        seen.add("all" if kept == 1 else "nothing" if kept == 0 else "its share")
    assert seen == {"all", "nothing", "its share"}


def test_remix_of_equal_classes_is_mixup() -> None:
    even = About((5, 5, 5, 5), {}, CPU, (3, 16, 16))
    made = Defenses.parse("remix").informed(even).augment(flat_batch(), streams(64))
    assert torch.equal(made.targets, DEFENSES.build("mixup:alpha=1").augment(flat_batch(), streams(64)).targets)


def test_a_cut_takes_its_share_of_the_target() -> None:
    batch, (partner, _) = flat_batch(), partnered(streams(64), 1.0)
    made = DEFENSES.build("cutmix").augment(batch, streams(64))
    k = torch.arange(64) / 64
    stays = (made.images[:, 0] - k.view(-1, 1, 1)).abs() < 1e-6
    taken = (made.images[:, 0] - k[partner].view(-1, 1, 1)).abs() < 1e-6
    assert (stays ^ taken).all()
    area = stays.float().mean((1, 2))[:, None]
    assert torch.allclose(made.targets, area * batch.targets + (1 - area) * batch.targets[partner], atol=1e-6)
    assert area.min() > 0
    assert area.max() <= 1
    assert 0.3 < area.mean() < 0.8


def test_a_box_is_torchvisions() -> None:
    """Its `CutMix` asked for a box, from the share and the pixel that it drew."""
    for seed in range(20):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found = v2.CutMix(num_classes=4).make_params([torch.zeros(2, 3, 24, 32)])
            torch.manual_seed(seed)
            share = float(torch.distributions.Beta(torch.tensor([1.0]), torch.tensor([1.0])).sample(()))
            column, row = (int(torch.randint(size, (1,))) for size in (32, 24))
        left, top, right, bottom = found["box"]
        expected = torch.ones(24, 32)
        expected[top:bottom, left:right] = 0
        ours = outside_box(torch.tensor([share]), torch.tensor([[(row + 0.5) / 24, (column + 0.5) / 32]]), 24, 32)[0, 0]
        assert torch.equal(ours, expected)
        assert float(ours.mean()) == pytest.approx(found["lam_adjusted"])


def test_label_smoothing_by_its_formula() -> None:
    """The label keeps 1 - eps and every other class has eps / (K - 1)."""
    found = smoothed(torch.tensor([0, 2]), 5, 0.1)
    assert torch.allclose(found, torch.tensor([[0.9, 0.025, 0.025, 0.025, 0.025], [0.025, 0.025, 0.9, 0.025, 0.025]]))
    assert torch.equal(smoothed(torch.tensor([1]), 2, 0.0), torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("spec", ["mixup:alpha=0", "remix:kappa=1", "remix:tau=2", "cutmix:alpha=-1", "randaugment:magnitude=31"])
def test_numbers_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(BadSpec, match=spec.partition(":")[2].replace("=", ".")):
        Defenses.parse(spec)


def test_two_ways_of_mixing_contradict_each_other() -> None:
    with pytest.raises(BadSpec, match="both mix images with each other"):
        Defenses.parse("mixup+cutmix")


# --- torchvision's


@pytest.mark.parametrize(
    ("spec", "transform"),
    [
        ("randaugment", RandAugment()),
        ("randaugment:operations=3,magnitude=15", RandAugment(3, 15)),
        ("autoaugment", AutoAugment()),
        ("autoaugment:policy=cifar10", AutoAugment(AutoAugmentPolicy.CIFAR10)),
    ],
)
def test_an_image_is_what_torchvision_makes_of_it_under_its_seed(spec: str, transform: torch.nn.Module) -> None:
    images = torch.stack([image for image, _ in load_data("cifar10", limit=10)])
    states = torch.get_rng_state(), random.getstate()
    made = DEFENSES.build(spec).augment(Batch(images, torch.eye(10)), streams(10)).images
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    seeds = streams(10).seeds(spec.partition(":")[0])
    for image, seed, found in zip(images, seeds, made, strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            expected: Tensor = transform((image * 255).round().byte())
        assert torch.equal((found * 255).round().byte(), expected)
    assert not torch.equal(made, images)
    alone = DEFENSES.build(spec).augment(Batch(images[4:5], torch.eye(10)[4:5]), streams(10).take(slice(4, 5))).images
    assert torch.equal(alone, made[4:5])


# --- what a checkpoint says


def checkpoint(folder: Path, defense: str) -> Path:
    made = Made("digits_cnn", defense, "turn-shift", 10, 3, 32, None, "bilinear", (0.5,) * 3, (0.5,) * 3, "digits")
    save(made.untrained(), folder / "model.safetensors", made, {})
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("defense", "noted"),
    [("randaugment", ["randaugment"]), ("augmix:all_ops=true+mixup", ["augmix-all"]), ("augmix", []), ("cutmix", []), ("none", [])],
)
def test_a_checkpoint_that_was_trained_on_the_corruption_says_so(tmp_path: Path, defense: str, noted: list[str]) -> None:
    file = checkpoint(tmp_path, defense)
    result = evaluate(str(file), data="digits", corruptions="brightness:severity=1", limit=10)
    notes = [note for note in result.config["notes"] if "accuracy there is not on something new" in note]
    assert [note.split()[2].rstrip(",") for note in notes] == noted


def test_what_is_said_twice_is_noted_once(tmp_path: Path) -> None:
    file = checkpoint(tmp_path, "randaugment")
    result = evaluate(str(file), data="digits", corruptions="brightness:severity=1", limit=10, trained_on=["randaugment", "brightness"])
    assert sum("trained on randaugment" in note for note in result.config["notes"]) == 1
    assert sum("trained on brightness" in note for note in result.config["notes"]) == 1


def test_a_readout_forgets_nothing(tmp_path: Path) -> None:
    classifier = load_model(str(checkpoint(tmp_path, "randaugment")))
    classifier.classes = 1000  # as far as the readout can tell before a forward pass
    assert classifier.trained_on == ("rotate", "translate", "randaugment")
    assert Subset((1, 2)).applied(classifier).trained_on == classifier.trained_on
