"""AugMix: whole mixtures held to PIL's, the consistency loss to hand-computed values, and what its draws depend on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from robustbench_lite.defenses import augmix
from robustbench_lite.defenses.augmix import AugMix, jensen_shannon
from robustbench_lite.defenses.chains import ALL, USUAL
from torch import Tensor, nn
from torch.nn.functional import kl_div

from robustbench_lite.classifier import Classifier
from robustbench_lite.data import load_data
from robustbench_lite.defending import Batch, Defenses, Step
from robustbench_lite.errors import BadSpec
from robustbench_lite.overlap import overlaps
from robustbench_lite.registry import DEFENSES
from robustbench_lite.streams import Streams

CPU = torch.device("cpu")
AFFINE, BILINEAR = Image.Transform.AFFINE, Image.Resampling.BILINEAR


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.stack([image for image, _ in load_data("cifar10", limit=12)])


def streams(count: int, epoch: int = 0) -> Streams:
    return Streams(0, "training", [(str(k), epoch) for k in range(count)], None, CPU)


def batch_of(images: Tensor) -> Batch:
    return Batch(images, torch.eye(10)[torch.arange(len(images)) % 10])


# --- mixtures


def by_pil(picture: Image.Image, name: str, level: float, sign: float) -> Image.Image:
    """The official code's operation, at a level that is already drawn."""
    enhanced = {"color": ImageEnhance.Color, "contrast": ImageEnhance.Contrast}
    enhanced |= {"brightness": ImageEnhance.Brightness, "sharpness": ImageEnhance.Sharpness}
    shift = sign * int(level * (picture.width / 3) / 10)
    affine = {
        "shear_x": (1, sign * level * 0.3 / 10, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, sign * level * 0.3 / 10, 1, 0),
        "translate_x": (1, 0, shift, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, shift),
    }
    if name in affine:
        return picture.transform(picture.size, AFFINE, affine[name], BILINEAR)
    if name in enhanced:
        return enhanced[name](picture).enhance(level * 1.8 / 10 + 0.1)
    if name == "rotate":
        return picture.rotate(sign * int(level * 30 / 10), BILINEAR)
    if name == "posterize":
        return ImageOps.posterize(picture, 4 - int(level * 4 / 10))
    if name == "solarize":
        return ImageOps.solarize(picture, 256 - int(level * 256 / 10))
    return {"autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize}[name](picture)


def mixture_by_pil(image: Tensor, gammas: Tensor, chances: Tensor, names: tuple[str, ...], severity: float) -> Tensor:
    """One mixture of one image, chain by chain, from its draws: (2 + chains,) and (chains, 1 + 3 * deepest)."""
    own = gammas[0] / (gammas[0] + gammas[1])
    weights = gammas[2:] / gammas[2:].sum()
    mix = torch.zeros_like(image, dtype=torch.float64)
    for weight, drawn in zip(weights, chances, strict=True):
        picture = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
        deepest = len(drawn) // 3
        for step in range(1 + int(drawn[0] * deepest)):
            kind, level, sign = drawn[1 + step], drawn[1 + deepest + step], drawn[1 + 2 * deepest + step]
            name = names[int(kind * len(names))]
            picture = by_pil(picture, name, float(0.1 + (severity - 0.1) * level), -1 if sign > 0.5 else 1)
        mix += weight * torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    return own * image + (1 - own) * mix


@pytest.mark.parametrize(("spec", "names"), [("augmix", USUAL), ("augmix:all_ops=true,severity=9", ALL)])
def test_a_mixture_is_that_of_the_pil_pipeline(images: Tensor, spec: str, names: tuple[str, ...]) -> None:
    defense, draw = DEFENSES.build(spec), streams(len(images))
    views = defense.augment(batch_of(images), draw).views
    gammas, chances = draw.gamma("augmix weights", 1.0, 2, 5), draw.uniform("augmix operations", 6, 10)
    chances = chances.view(len(images), 2, 3, 10)
    apart = []
    for i, image in enumerate(images):
        for v, view in enumerate(views):
            apart.append((view[i] - mixture_by_pil(image, gammas[i, v], chances[i, v], names, defense.severity)).abs())
    # a level that one operation leaves one off may be many off after equalize or solarize; measured: 0.15 levels on average
    assert torch.stack(apart).mean() * 255 < 0.3
    assert torch.stack(apart).flatten(1).median(1).values.max() * 255 <= 1


def test_weights_and_lengths_are_distributed_as_in_the_paper() -> None:
    draw = streams(2000)
    gammas = draw.gamma("augmix weights", 1.0, 1, 5)[:, 0]
    own = gammas[:, 0] / gammas[:, :2].sum(1)
    assert own.mean() == pytest.approx(1 / 2, abs=0.03)
    assert own.var() == pytest.approx(1 / 12, abs=0.01)  # Beta(1, 1) is uniform
    narrow = draw.gamma("augmix weights", 4.0, 1, 2)[:, 0]
    assert (narrow[:, 0] / narrow.sum(1)).var() == pytest.approx(1 / 36, abs=0.005)  # of Beta(4, 4)


def test_one_chain_of_one_operation(images: Tensor) -> None:
    grey, draw, seen = images[:, :1].repeat(4, 1, 1, 1), streams(4 * len(images)), set()
    view, _ = AugMix(width=1, depth=1, severity=0.1).augment(batch_of(grey), draw).views
    kinds = draw.uniform("augmix operations", 2, 4)[:, 0, 1]
    gammas = draw.gamma("augmix weights", 1.0, 2, 3)[:, 0]
    own = (gammas[:, 0] / gammas[:, :2].sum(1)).float()
    for i, kind in enumerate(kinds.tolist()):
        name = USUAL[int(kind * 9)]
        if name in ("rotate", "translate_x", "translate_y"):  # by nothing at the lowest level
            assert torch.allclose(view[i], grey[i], atol=1e-6)
        elif name == "posterize":
            coarse = (grey[i] * 255).round() // 16 * 16 / 255
            assert torch.allclose(view[i], own[i] * grey[i] + (1 - own[i]) * coarse, atol=1e-6)
        seen.add(name)
    assert {"rotate", "posterize"} <= seen


def test_views_are_images_and_the_images_are_left_alone(images: Tensor) -> None:
    before, state = images.clone(), torch.get_rng_state()
    batch = AugMix(severity=10).augment(batch_of(images), streams(len(images)))
    assert batch.images is images
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    one, other = batch.views
    for view in (one, other):
        assert view.shape == images.shape
        assert view.min() >= 0
        assert view.max() <= 1
    assert not torch.equal(one, other)


def test_a_mixture_depends_on_its_image_and_epoch_alone(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    defense, draw = AugMix(), streams(len(images))
    together = defense.augment(batch_of(images), draw).views[1]
    alone = defense.augment(batch_of(images[3:5]), draw.take(slice(3, 5))).views[1]
    assert torch.equal(together[3:5], alone)
    monkeypatch.setattr(augmix, "PIXELS", 5 * 1024)
    assert torch.equal(together, defense.augment(batch_of(images), draw).views[1])
    assert not torch.equal(together, defense.augment(batch_of(images), streams(len(images), epoch=1)).views[1])


def test_without_the_comparison_one_mixture_takes_the_images_place(images: Tensor) -> None:
    defense = DEFENSES.build("augmix:jsd=false")
    batch = defense.augment(batch_of(images), streams(len(images)))
    assert batch.views == ()
    assert not torch.equal(batch.images, images)
    step = Step(linear(), batch, streams(len(images)))
    assert torch.equal(defense.penalty(step), torch.zeros(len(images)))


def test_what_is_no_whole_level_is_rounded_in_the_chains_only(images: Tensor) -> None:
    between = images * 0.9973
    rounded = (between * 255).round() / 255
    draw = streams(len(images))
    gammas = draw.gamma("augmix weights", 1.0, 2, 5)[:, 0]
    own = (gammas[:, 0] / gammas[:, :2].sum(1)).float().view(-1, 1, 1, 1)
    (view, _), (exact, _) = (AugMix().augment(batch_of(x), draw).views for x in (between, rounded))
    assert torch.allclose(view - exact, own * (between - rounded), atol=1e-6)


# --- the loss


def linear() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).eval())


def test_the_comparison_is_what_a_hand_computes() -> None:
    # p = (3/4, 1/4), (1/4, 3/4) and (1/2, 1/2), whose mean is (1/2, 1/2): twice 3/4 ln 3/2 + 1/4 ln 1/2, and 0
    answers = tuple(torch.tensor([p]).log() for p in ([0.75, 0.25], [0.25, 0.75], [0.5, 0.5]))
    assert jensen_shannon(answers).item() == pytest.approx(2 * 0.1308120 / 3, abs=1e-6)
    # three answers that are each sure of another class: ln 3
    sure = torch.eye(3) * 1000
    assert jensen_shannon((sure[:1], sure[1:2], sure[2:])).item() == pytest.approx(1.0986123, abs=1e-6)


def test_answers_that_agree_cost_nothing() -> None:
    logits = torch.tensor([[3.0, -1.0, 0.5], [1e4, 0.0, -1e4]])
    assert torch.allclose(jensen_shannon((logits, logits + 5, logits - 2)), torch.zeros(2), atol=1e-6)


def test_its_mean_and_gradient_are_those_of_the_published_loss(images: Tensor) -> None:
    """Against torch's own divergence, as the published code calls it: batchmean, the middle bounded below by 1e-7."""
    defense, draw = AugMix(), streams(len(images))
    ours, theirs = linear(), linear()
    step = Step(ours, defense.augment(batch_of(images), draw), draw)
    loss = Defenses((defense,)).losses(step)
    assert loss.shape == (len(images),)
    clean, one, other = theirs(torch.cat([images, *step.batch.views])).chunk(3)
    p = [logits.softmax(1) for logits in (clean, one, other)]
    middle = torch.clamp((p[0] + p[1] + p[2]) / 3, 1e-7, 1).log()
    consistency = sum(kl_div(middle, each, reduction="batchmean") for each in p)
    expected = nn.functional.cross_entropy(clean, step.batch.labels) + 12 * consistency / 3
    assert loss.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    loss.mean().backward()
    expected.backward()
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine.grad, reference.grad, rtol=1e-4, atol=1e-6)


def test_half_the_weight_is_half_the_penalty(images: Tensor) -> None:
    draw = streams(len(images))
    step = Step(linear(), AugMix().augment(batch_of(images), draw), draw)
    assert torch.allclose(AugMix(weight=6).penalty(step) * 2, AugMix().penalty(step))
    assert (AugMix().penalty(replace_views(step)) == 0).all()


def replace_views(step: Step) -> Step:
    same = step.batch.images
    return Step(step.classifier, replace(step.batch, views=(same, same)), step.draw)


# --- as a defense


@pytest.mark.parametrize("spec", ["augmix:severity=0", "augmix:severity=11", "augmix:depth=0", "augmix:width=0", "augmix:alpha=0"])
def test_numbers_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(BadSpec, match=spec.partition(":")[2].replace("=", ".")):
        Defenses.parse(spec)


def test_two_augmentations_contradict_each_other() -> None:
    with pytest.raises(BadSpec, match="both choose the augmentation"):
        Defenses.parse("augmix+randaugment")


def test_it_says_what_it_has_seen_of_the_test() -> None:
    assert overlaps(Defenses.parse("augmix").trained_on, ["brightness", "saturate", "gaussian_noise"]) == []
    (sentence,) = overlaps(Defenses.parse("augmix:all_ops=true").trained_on, ["brightness", "saturate", "gaussian_noise"])
    assert "brightness and saturate" in sentence
