"""Randomised smoothing: its bound against SciPy's, its radius where it is known in closed form, whom it refuses, and models made for it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import erf, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from robustbench_lite.defenses.gaussian import Gaussian
from robustbench_lite.defenses.smoothed import Smoothed, Voting
from robustbench_lite.defenses.train_cli import main
from scipy.stats import beta, binomtest, kstest, norm
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.certifying import Proof
from robustbench_lite.checks import first_answer
from robustbench_lite.classifier import Classifier
from robustbench_lite.data import load_data
from robustbench_lite.defending import Batch
from robustbench_lite.errors import BadSpec, UsageError
from robustbench_lite.models import load_model
from robustbench_lite.registry import CERTIFICATES, DEFENSES
from robustbench_lite.results import reach
from robustbench_lite.smoothed import certified_radius, share_at_least, votes
from robustbench_lite.streams import Streams, generator, seeded
from robustbench_lite.threat import ball

SHAPE = (1, 4, 4)


def draws(count: int, first: int = 0) -> Streams:
    return Streams(0, "smoothing", [(f"image {row}", 0) for row in range(first, first + count)], None, torch.device("cpu"))


def proof(spec: str, model: nn.Module, x: Tensor, y: Tensor, eps: float = 0.25, **about: Any) -> Proof:
    return CERTIFICATES.build(spec).prove(Classifier(model.eval(), **about), x, y, ball("l2", eps), draws(len(x)))


def linear(w: Tensor, b: float = 0.0) -> nn.Module:
    """Classes 0 and 1 by the sign of w x + b."""
    layer = nn.Linear(w.numel(), 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(w), w.clone()]))
        layer.bias.copy_(torch.tensor([0.0, b]))
    return nn.Sequential(nn.Flatten(), layer).eval()


def at_distances(distances: Tensor) -> tuple[nn.Module, Tensor]:
    """A linear classifier of these images, (B, *SHAPE), that are so far on the side of class 1."""
    w = torch.randn(16, generator=torch.Generator().manual_seed(1))
    direction = w / w.norm()
    x = 0.5 + distances[:, None] * direction
    return linear(3 * w, float(-3 * 0.5 * w.sum())), x.view(-1, *SHAPE)


# --- the bound and the radius


@given(st.integers(1, 200_000), st.floats(0, 1), st.sampled_from([0.1, 0.05, 0.001, 1e-6]))
def test_the_bound_is_clopper_and_pearsons(n: int, part: float, alpha: float) -> None:
    k = round(part * n)
    expected = 0.0 if k == 0 else float(beta.ppf(alpha, k, n - k + 1))
    assert share_at_least(k, n, alpha) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert share_at_least(k, n, alpha) == pytest.approx(binomtest(k, n).proportion_ci(1 - 2 * alpha, "exact").low, rel=1e-9, abs=1e-300)


def test_the_bound_of_none_and_of_all() -> None:
    assert share_at_least(0, 100, 0.001) == 0
    for n in (1, 10, 10_000):
        assert share_at_least(n, n, 0.001) == pytest.approx(0.001 ** (1 / n), rel=1e-12)


@pytest.mark.parametrize("p", [0.5, 0.501, 0.6, 0.95])
def test_the_bound_is_above_the_probability_as_seldom_as_it_says(p: float) -> None:
    """Over all outcomes of 300 votes, by their probabilities and not by sampling."""
    n, alpha = 300, 0.01
    exceeded = [k for k in range(n + 1) if share_at_least(k, n, alpha) > p]
    total = sum(
        float(torch.distributions.Binomial(n, torch.tensor(p, dtype=torch.float64)).log_prob(torch.tensor(float(k))).exp())
        for k in exceeded
    )
    assert alpha / 5 < total <= alpha


@pytest.mark.parametrize("share", [0.500001, 0.6, 0.841344746, 0.99])
def test_the_radius_is_the_normal_quantile(share: float) -> None:
    assert certified_radius(share, 0.5) == pytest.approx(0.5 * float(norm.ppf(share)), rel=1e-9)
    assert 0.5 * (1 + erf(certified_radius(share, 1.0) / sqrt(2))) == pytest.approx(share)


def test_half_is_not_most() -> None:
    assert [certified_radius(share, 0.5) for share in (0.0, 0.3, 0.45, 0.5)] == [0.0] * 4


# --- the proof, where the truth is known


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_a_linear_classifiers_radius_is_below_its_distance_and_comes_near_it(sigma: float) -> None:
    """Its smoothed version is itself, and the probability of its class Phi(distance / sigma), so that the exact radius is the distance."""
    distance = sigma * torch.linspace(0.1, 2.5, 60)
    model, x = at_distances(distance)
    gaps = []
    for n in (200, 3000, 20_000):
        found = proof(f"smoothing:sigma={sigma},n={n},batch=500", model, x, torch.ones(60, dtype=torch.int64), eps=sigma)
        assert (found.radius <= distance).all(), "one in a thousand may be, and with these draws none is"
        assert torch.equal(found.proven, found.radius >= sigma)
        assert set(found.prediction.tolist()) <= {1, -1}
        gaps.append(float((distance - found.radius).mean()) / sigma)
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] / 1.5
    assert gaps[2] < 0.06
    assert 10 < int(found.proven.sum()) < 40


def test_a_radius_is_that_of_the_bound_on_the_votes() -> None:
    model, x = at_distances(torch.tensor([0.1, 0.3]))
    found = proof("smoothing:sigma=0.25,n=400,alpha=0.01", model, x, torch.tensor([1, 1]))
    keyed = replace(draws(2), condition="smoothing: 0.25")
    counts = votes(Classifier(model), x, 0.25, 400, keyed, "estimation", batch=7)[:, 1].tolist()
    expected = [0.25 * float(norm.ppf(beta.ppf(0.01, k, 400 - k + 1))) for k in counts]
    assert reach(found.radius).tolist() == pytest.approx(expected, rel=1e-9)
    assert found.margin.isnan().all()


class Coin(nn.Module):
    """Two classes that are equally likely where the first value is 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        heads = (x[:, 0, 0, 0] - 0.5).sign()
        return torch.stack([heads, -heads], 1)


def test_a_coin_gets_a_radius_as_seldom_as_alpha_says() -> None:
    """It would twice as often, if the draws that choose the class bounded its probability as well."""
    alpha, count = 0.05, 1000
    x = torch.full((count, *SHAPE), 0.5)
    found = proof(f"smoothing:n0=100,n=100,alpha={alpha}", Coin(), x, torch.zeros(count, dtype=torch.int64))
    named = int((found.prediction >= 0).sum())
    assert binomtest(named, count, alpha, alternative="greater").pvalue > 0.001
    assert named > 10, "draws of its own for every image, and no other reason to abstain"
    assert ((found.prediction >= 0) == (found.radius > 0) | (found.prediction == 1)).all()
    never = proof("smoothing:n0=10,n=100", Coin(), x[:100], torch.zeros(100, dtype=torch.int64))
    assert int((never.prediction >= 0).sum()) <= 2


def test_another_class_has_no_radius_and_is_not_proven() -> None:
    model, x = at_distances(torch.tensor([0.5, 0.5]))
    found = proof("smoothing:n=500", model, x, torch.tensor([1, 0]), eps=0.01)
    assert found.prediction.tolist() == [1, 1]
    assert found.proven.tolist() == [True, False]
    assert found.radius[0] > 0.25
    assert found.radius[1] == 0


def test_a_smaller_alpha_proves_less() -> None:
    model, x = at_distances(torch.linspace(0.01, 0.6, 20))
    radii = [proof(f"smoothing:n=300,alpha={alpha}", model, x, torch.ones(20, dtype=torch.int64)).radius for alpha in (0.2, 0.01, 1e-5)]
    for larger, smaller in pairwise(radii):
        assert (smaller <= larger).all()
        assert (smaller < larger)[larger > 0].all()
    assert CERTIFICATES.build("smoothing:alpha=0.01").confidence == 0.99


# --- noise


class Kept(nn.Module):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return torch.tensor([0.0, 1.0]).expand(len(x), 2)


def test_noise_is_normal_of_this_sigma_not_clipped_and_goes_through_the_normalisation() -> None:
    kept = Kept()
    classifier = Classifier(kept.eval(), mean=(0.3,), std=(0.1,))
    counts = votes(classifier, torch.full((1, *SHAPE), 0.9), 0.25, 500, draws(1), "estimation", batch=100)
    assert counts.tolist() == [[0, 500]]
    assert [len(part) for part in kept.seen] == [100] * 5
    noise = ((torch.cat(kept.seen) * 0.1 + 0.3 - 0.9) / 0.25).flatten()
    assert kstest(noise.numpy(), "norm").pvalue > 0.001
    assert ((noise * 0.25 + 0.9) > 1).float().mean() > 0.3


@pytest.mark.parametrize("batch", [1, 7, 100, 1000])
def test_a_proof_depends_neither_on_the_pass_nor_on_the_other_images(batch: int) -> None:
    classifier, some = load_model("digits_standard"), load_data("digits", limit=4)
    x, y = torch.stack([image for image, _ in some]), torch.tensor([label for _, label in some])
    certificate = CERTIFICATES.build("smoothing:sigma=1,n0=20,n=80,alpha=0.1")
    whole, state = certificate.prove(classifier, x, y, ball("l2", 0.1), draws(4)), torch.get_rng_state()
    cut = replace(certificate, batch=batch)
    draw = replace(draws(4), condition=CERTIFICATES.spec_of(cut))  # as a run keys it
    parts = [cut.prove(classifier, x[rows], y[rows], ball("l2", 0.1), draw.take(rows)) for rows in (slice(0, 1), slice(1, 4))]
    for name in ("proven", "prediction", "radius"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts])), name
    assert (whole.radius > 0).any()
    assert len(set(whole.radius.tolist())) > 1
    assert torch.equal(torch.get_rng_state(), state)


class Wavering(nn.Module):
    """Rounds otherwise where it is asked about several at once, and leads by no more than that."""

    def forward(self, x: Tensor) -> Tensor:
        shift = 0.0 if len(x) == 1 else 5e-5
        lead = (x[:, 0, 0, 0] - 0.5) * 1e-5
        return torch.stack([torch.ones_like(lead), 1 + lead + shift], 1)


def test_votes_that_hang_on_rounding_are_asked_for_alone() -> None:
    x = torch.full((2, *SHAPE), 0.5)
    found = [votes(Classifier(Wavering().eval()), x, 0.25, 60, draws(2), "estimation", batch=batch) for batch in (1, 7, 60)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert 10 < int(found[0][0, 1]) < 50


class Sometimes(nn.Module):
    """No number wherever the first value is above where it was; else class 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([0.0, 1.0]).expand(len(x), 2) + torch.where(x[:, 0, 0, :1] > 0.5, torch.nan, 0.0)


def test_what_is_no_number_does_not_vote_and_counts_among_the_draws() -> None:
    x = torch.full((1, *SHAPE), 0.5)
    counts = votes(Classifier(Sometimes().eval()), x, 0.25, 1000, draws(1), "estimation", batch=64)
    assert counts[0, 0] == 0
    assert 400 < int(counts[0, 1]) < 600
    assert proof("smoothing:n=1000", Sometimes(), x, torch.tensor([1])).prediction.tolist() == [-1]
    nothing = nn.Sequential(Sometimes(), nn.Threshold(torch.inf, torch.nan))
    assert proof("smoothing:n=50", nothing, x, torch.tensor([0])).prediction.tolist() == [-1]


def test_one_output_tells_two_classes_apart() -> None:
    model, x = at_distances(torch.tensor([0.5, -0.5]))
    one = nn.Sequential(model, nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        one[1].weight.copy_(torch.tensor([[-1.0, 1.0]]))
    found, expected = (proof("smoothing:n=500", each, x, torch.tensor([1, 0])) for each in (one, model))
    assert found.prediction.tolist() == [1, 0]
    assert torch.equal(found.radius, expected.radius)


# --- what it is of, and whom it refuses


def test_the_digest_is_of_classifier_and_sigma_alone() -> None:
    first, second = (Classifier(linear(torch.full((16,), size))) for size in (1.0, 2.0))
    same = {CERTIFICATES.build(spec).holds_for(first) for spec in ("smoothing", "smoothing:n=7,n0=3,alpha=0.1,batch=2")}
    others = {CERTIFICATES.build("smoothing:sigma=0.5").holds_for(first), CERTIFICATES.build("smoothing").holds_for(second)}
    assert len(same) == 1
    assert len(same | others) == 3
    assert first.digest not in same


def test_a_model_that_draws_itself_is_refused_and_so_is_training_mode() -> None:
    x, y = torch.full((1, *SHAPE), 0.5), torch.tensor([0])
    inner = Classifier(linear(torch.ones(16)), name="inner")
    with pytest.raises(UsageError, match="inner answers otherwise when asked again: smoothing needs a model that draws nothing itself"):
        CERTIFICATES.build("smoothing").prove(Smoothed(samples=4).wrap(inner), x, y, ball("l2", 0.1), draws(1))
    CERTIFICATES.build("smoothing").fits(inner)
    inner.model[1].train()
    with pytest.raises(UsageError, match=r"^model.1 of inner is in training mode: call .eval\(\) on the model first$"):
        CERTIFICATES.build("smoothing").fits(inner)


class Odd(nn.Module):
    """Draws, or lets the images of a pass touch each other, where an image is bright."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        more = torch.rand(len(x)) if self.how == "draws" else x.mean().expand(len(x))
        return torch.stack([mean, 0.5 + more.where(mean > 0.8, 0)], 1)


@pytest.mark.parametrize(
    ("how", "words"), [("draws", "odd answers otherwise when asked again"), ("mixes", "odd answers otherwise where images share a pass")]
)
def test_one_odd_image_of_a_batch_is_enough_to_refuse(how: str, words: str) -> None:
    x, y = torch.full((3, *SHAPE), 0.2), torch.zeros(3, dtype=torch.long)
    asked = "smoothing:sigma=0.01,n0=5,n=20"
    assert (proof(asked, Odd(how), x, y, name="odd").prediction == 1).all()
    x[2] = 0.9
    with pytest.raises(UsageError, match=words):
        proof(asked, Odd(how), x, y, name="odd")


def test_a_model_that_draws_under_noise_alone_is_refused() -> None:
    x, y = torch.full((1, *SHAPE), 0.7), torch.tensor([0])  # some values of the noise take it above 0.8

    class Beyond(Odd):
        def forward(self, x: Tensor) -> Tensor:
            over = x.flatten(1).amax(1) > 0.9
            return torch.stack([over * torch.rand(len(x)), torch.full((len(x),), 0.5)], 1)

    with pytest.raises(UsageError, match="when asked again"):
        proof("smoothing:sigma=0.5,n0=5,n=20", Beyond("draws"), x, y)


def test_training_mode_is_refused_by_the_proof_too() -> None:
    inner = Classifier(linear(torch.ones(16)), name="inner")
    inner.model[1].train()
    with pytest.raises(UsageError, match="in training mode"):
        CERTIFICATES.build("smoothing").prove(inner, torch.full((1, *SHAPE), 0.5), torch.tensor([0]), ball("l2", 0.1), draws(1))


def test_what_is_proven_reaches_as_far_as_attacks_may_go() -> None:
    """All votes are for one class, and the radius is the largest there is: a ball of just that eps has a slack that is not proven."""
    model, x = at_distances(torch.tensor([9.0]))
    found = [
        proof("smoothing:sigma=1,n=200", model, x, torch.tensor([1]), eps=certified_radius(0.001 ** (1 / 200), 1.0) * share)
        for share in (1 - 1e-4, 1 - 2e-6)
    ]
    assert [each.proven.tolist() for each in found] == [[True], [False]]
    assert float(reach(found[0].radius)) == pytest.approx(certified_radius(0.001 ** (1 / 200), 1.0), rel=1e-9)


def test_other_balls_and_several_labels_are_refused() -> None:
    x, certificate, inner = torch.full((1, *SHAPE), 0.5), CERTIFICATES.build("smoothing"), Classifier(linear(torch.ones(16)))
    with pytest.raises(UsageError, match="smoothing proves l2 balls, not linf: take --norm l2"):
        certificate.prove(inner, x, torch.tensor([0]), ball("linf", 0.1), draws(1))
    with pytest.raises(UsageError, match="several labels"):
        certificate.prove(inner, x, torch.tensor([[0.0, 1.0]]), ball("l2", 0.1), draws(1))


@pytest.mark.parametrize("wrong", ["sigma=0", "n=0", "n0=0", "alpha=0", "alpha=0.5", "batch=0"])
def test_numbers_out_of_range_are_refused(wrong: str) -> None:
    with pytest.raises(BadSpec, match=f"smoothing:{wrong}"):
        CERTIFICATES.build(f"smoothing:{wrong}")


# --- training for it


def test_gaussian_noise_is_normal_keyed_and_not_clipped() -> None:
    x, targets = torch.full((8, 3, 16, 16), 0.9), torch.eye(8)
    made = Gaussian(sigma=0.3).augment(Batch(x, targets), draws(8))
    assert kstest(((made.images - x) / 0.3).flatten().numpy(), "norm").pvalue > 0.001
    assert made.images.max() > 1
    assert torch.equal(made.targets, targets)
    again = Gaussian(sigma=0.3).augment(Batch(x[2:4], targets[2:4]), draws(2, first=2))
    assert torch.equal(again.images, made.images[2:4])
    assert DEFENSES.spec_of(Gaussian()) == "gaussian"


@pytest.fixture(scope="module")
def for_noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smoothing") / "net.safetensors"
    words = "--data digits --defense gaussian:sigma=1 --epochs 6 --device cpu --out"
    assert main([*words.split(), str(out)]) == 0
    return out


@pytest.mark.slow
def test_a_model_trained_under_noise_proves_more(for_noise: Path) -> None:
    some = load_data("digits", limit=40)
    x, y = torch.stack([image for image, _ in some]), torch.tensor([label for _, label in some])
    trained, plain = load_model(str(for_noise)), load_model("digits_standard")
    assert "gaussian_noise" in trained.trained_on
    certificate = CERTIFICATES.build("smoothing:sigma=1,n=500")
    found = [certificate.prove(each, x, y, ball("l2", 0.5), draws(40)) for each in (trained, plain)]
    more, fewer = (int(each.proven.sum()) for each in found)
    assert more >= fewer + 8, (more, fewer)
    assert more >= 24


# --- the smoothed model itself


def test_shares_are_votes_and_the_mean_probability_as_one_more() -> None:
    class Heads(Kept):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            return torch.stack([x[:, 0, 0, 0], torch.full((len(x),), 0.5), torch.zeros(len(x))], 1)

    kept = Heads()
    x = torch.stack([torch.full(SHAPE, value) for value in (0.4, 0.7)])
    with seeded("noise"):
        answer = Voting(Classifier(kept.eval()), 0.2, 300)(x)
    noisy = torch.cat(kept.seen).view(300, 2, *SHAPE)
    assert len(kept.seen) > 1
    logits = torch.stack([noisy[..., 0, 0, 0], torch.full((300, 2), 0.5), torch.zeros(300, 2)], -1)
    for row in range(2):
        counts = torch.bincount(logits[:, row].argmax(-1), minlength=3)
        expected = (counts + logits[:, row].softmax(-1).mean(0)) / 301
        torch.testing.assert_close(answer[row].exp(), expected)
        assert counts[:2].min() > 20
    assert torch.allclose(answer.exp().sum(1), torch.ones(2))
    assert kstest(((noisy - x) / 0.2).flatten().numpy(), "norm").pvalue > 0.001


def test_its_gradient_is_that_of_the_mean_probability() -> None:
    model, x = at_distances(torch.tensor([0.1, -0.2]))
    voting = Voting(Classifier(model), 0.25, 40)
    x.requires_grad_()
    with seeded("noise"):
        (found,) = torch.autograd.grad(voting(x)[:, 1].sum(), x)
    with seeded("noise"):
        noisy = x + 0.25 * torch.randn(40, *x.shape)
    mean = model(noisy.flatten(0, 1)).softmax(1).view(40, 2, 2).mean(0)
    (expected,) = torch.autograd.grad(mean[:, 1].log().sum(), x)
    torch.testing.assert_close(found, expected)
    assert found.flatten(1).norm(dim=1).min() > 0


def test_answers_that_are_no_number_leave_it_undecided() -> None:
    x = torch.stack([torch.full(SHAPE, value) for value in (0.5, -9.0)])
    assert Voting(Classifier(Sometimes().eval()), 0.25, 64)(x).isnan().all(1).tolist() == [True, False]


def test_it_is_seen_to_be_random_where_every_vote_is_the_same() -> None:
    """A share of 32 in 32 each time would be taken for a model that always answers alike, and judged by one answer."""
    some = load_data("digits", limit=8)
    x, y = torch.stack([image for image, _ in some]), torch.tensor([label for _, label in some])
    model = load_model("digits_standard", defense="smoothed:sigma=0.05")
    assert (model(x).exp().amax(1) > 0.97).all()
    assert first_answer(model, x, y)[1]


@pytest.mark.slow
def test_it_is_attacked_by_its_mean_gradient_and_its_witnesses_hold(for_noise: Path, tmp_path: Path) -> None:
    model = load_model(str(for_noise), defense="smoothed:sigma=1,samples=16")
    result = rb.evaluate(
        model, ["pgd:steps=10", "noise:queries=3"], "digits", norm="l2", eps=2.5, limit=16, eot=1, votes=5, out=tmp_path / "run"
    )
    left = {name: sum(v.broken is False for v in result.of(name)) for name in ("clean", *(c.name for c in result.conditions if c.attack))}
    clean, attacked, random = left.values()
    assert clean >= 12
    assert attacked <= clean - 6
    assert random >= attacked + 4
    assert any("is randomised" in note for note in result.config["notes"])
    assert rb.verify(tmp_path / "run").holding == clean - attacked + max(0, clean - random)


def test_noise_of_one_generator_is_the_same_however_it_is_taken() -> None:
    whole = generator(1).standard_normal((10, 3), dtype="float32")
    parts = generator(1)
    assert [
        value for size in (1, 3, 6) for value in parts.standard_normal((size, 3), dtype="float32").flatten()
    ] == whole.flatten().tolist()
