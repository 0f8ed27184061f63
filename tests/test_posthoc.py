"""Defenses around a finished model: what each does to an image or an answer, by hand, and what attacks that know of it leave."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from robustbench_lite.defenses.around import in_place_of
from robustbench_lite.defenses.ensemble import Ensemble, Members
from robustbench_lite.defenses.jpeg import Compression, Jpeg
from robustbench_lite.defenses.median import Median, MedianSmoothing
from robustbench_lite.defenses.resizing import RandomResizing, Resizing
from robustbench_lite.defenses.temperature import Temperature, fitted_temperature
from scipy.ndimage import median_filter
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

import robustbench_lite as rb
from robustbench_lite.bpda import straight_through
from robustbench_lite.checks import first_answer
from robustbench_lite.classifier import Classifier, Preprocess
from robustbench_lite.data import load_data
from robustbench_lite.errors import BadSpec, ModelError, UsageError
from robustbench_lite.models import load_model
from robustbench_lite.passes import Passes
from robustbench_lite.streams import seeded


def small(classes: int = 5, seed: int = 0, **changed: object) -> Classifier:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes)).eval()
    preprocess = Preprocess(size=(8, 8), resize=None)
    given = Classifier(model, mean=(0.1 * seed,) * 3, std=(0.2,) * 3, preprocess=preprocess, classes=classes, name=f"small{seed}")
    given.trained_on = (("augmix",), ("rotate",))[seed % 2]
    return given.requires_grad_(False)


def pictures(count: int = 4, size: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


WRAPPED = {
    "jpeg": [Jpeg(), Jpeg(30)],
    "median": [MedianSmoothing(), MedianSmoothing(2)],
    "resizing": [RandomResizing(), RandomResizing(0.8), RandomResizing(1, 1.25)],
    "temperature": [Temperature(t=1.5), Temperature(t=1.501)],
}


@pytest.mark.parametrize("name", WRAPPED)
def test_all_that_is_known_stays_every_setting_has_a_digest_and_gradients_reach_the_image(name: str) -> None:
    digests = {small().digest}
    for defense in WRAPPED[name]:
        inner = small()
        inner.learnt_from = ("digits:train",)
        wrapped = defense.wrap(inner)
        for kept in ("preprocess", "classes", "name", "data", "differentiable", "trained_on", "learnt_from"):
            assert getattr(wrapped, kept) == getattr(inner, kept)
        assert wrapped.digest == defense.wrap(small()).digest
        digests.add(wrapped.digest)
        logits, random = first_answer(wrapped, pictures(), torch.zeros(4, dtype=torch.int64))
        assert logits.shape == (4, 5)
        assert random == (name == "resizing")
        x = pictures().requires_grad_()
        with straight_through(wrapped) as named:
            (slope,) = torch.autograd.grad(wrapped(x)[:, 0].sum(), x)
        assert bool(named) == (name in ("jpeg", "median"))
        assert (slope.flatten(1).abs().sum(1) > 0).all()
    assert len(digests) == 1 + len(WRAPPED[name])


@pytest.mark.parametrize("name", ["jpeg", "median", "resizing"])
def test_what_is_no_number_is_not_hidden(name: str) -> None:
    x = pictures()
    x[1, 0, 3, 3] = torch.nan
    answers = WRAPPED[name][0].wrap(small())(x)
    assert answers.isnan().all(1).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    "spec",
    [
        *("jpeg:quality=0", "jpeg:quality=101", "median:size=1", "median:size=10", "resizing:low=0", "resizing:low=1,high=0.9"),
        *("temperature", "temperature:t=0", "temperature:t=1,data=digits", "ensemble", "ensemble:models=(digits_cnn,)"),
    ],
)
def test_parameters_are_checked(spec: str) -> None:
    with pytest.raises(BadSpec, match=f"^{spec.partition(':')[0]}"):
        load_model("digits_cnn", defense=spec)


# --- what they do


@pytest.mark.parametrize("quality", [10, 75])
def test_an_image_is_what_its_jpeg_file_holds_and_the_gradient_is_the_identitys(quality: int) -> None:
    x = pictures(3, 32)
    layer, found = Compression(quality), Compression(quality)(x)
    for image, ours in zip(x, found, strict=True):
        file = io.BytesIO()
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        read = np.asarray(Image.open(file)).transpose(2, 0, 1)
        assert np.array_equal((ours * 255).round().byte().numpy(), read)
    leaf, weight = x.clone().requires_grad_(), torch.rand_like(x)
    assert not layer(leaf).requires_grad
    with straight_through(layer):
        through = layer(leaf)
        assert torch.equal(through, found)
        assert torch.equal(torch.autograd.grad((through * weight).sum(), leaf)[0], weight)


@given(st.integers(2, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_medians_are_scipys(size: int, height: int, width: int, seed: int) -> None:
    x = (torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(seed)) * 4).round() / 4
    if min(height, width) >= size // 2:
        expected = median_filter(x.numpy(), size=(1, 1, size, size), mode="reflect")
        assert np.array_equal(Median(size)(x).numpy(), expected)


def test_the_gradient_of_a_median_is_that_of_the_mean() -> None:
    x, weight = pictures(1, 5).requires_grad_(), torch.zeros(1, 3, 5, 5)
    weight[0, 1, 2, 2] = 9.0
    layer = Median(3)
    with straight_through(layer):
        (slope,) = torch.autograd.grad((layer(x) * weight).sum(), x)
    expected = torch.zeros(1, 3, 5, 5)
    expected[0, 1, 1:4, 1:4] = 1.0
    torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize(("low", "high", "sizes"), [(0.6, 1.0, range(6, 10)), (1.0, 1.3, range(10, 13)), (0.7, 0.7, [7])])
def test_a_resized_image_lies_somewhere_on_the_canvas(low: float, high: float, sizes: list[int]) -> None:
    x = pictures(1, 10) * 0.9 + 0.1
    layer, side = Resizing(low, high), round(10 * high)
    possible = {}
    for size in sizes:
        resized = interpolate(x, (size, size), mode="bilinear", align_corners=False)
        for top in range(side - size + 1):
            for left in range(side - size + 1):
                possible[size, top, left] = nn.functional.pad(resized, (left, side - size - left, top, side - size - top))
    met = set()
    with seeded("resizing", low):
        found = layer(x.expand(300, -1, -1, -1))
    assert found.shape == (300, 3, side, side)
    for image in found:
        near = [key for key, each in possible.items() if torch.allclose(each[0], image, atol=1e-5)]
        assert len(near) == 1
        met.add(near[0])
    assert {size for size, _, _ in met} == set(sizes)
    assert len(met) > 0.8 * len(possible)


def test_a_network_of_one_size_is_told_what_it_takes() -> None:
    with pytest.raises(ModelError, match=r"^resizing enlarges images: digits_cnn does not take 3x40x40 images: .*low=0.9,high=1, which"):
        load_model("digits_cnn", defense="resizing:low=1,high=1.25")


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_one_of_the_least_cross_entropy(true: float) -> None:
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(20_000, 4, generator=draw) * 2
    labels = torch.multinomial(z.softmax(1), 1, generator=draw)[:, 0]
    found = fitted_temperature(z * true, labels)
    best = minimize_scalar(lambda t: float(cross_entropy((z * true).double() / t, labels)), bounds=(0.2, 5), method="bounded")
    assert found == pytest.approx(best.x, abs=1e-3)
    assert found == pytest.approx(true, rel=0.05)
    two = z[:, :1]
    told = (torch.rand(20_000, generator=draw) < two[:, 0].sigmoid()).long()
    assert fitted_temperature(two * true, told) == pytest.approx(true, rel=0.06)


def test_a_temperature_stays_within_its_bounds() -> None:
    z, right = torch.eye(3), torch.arange(3)
    assert (fitted_temperature(z, right), fitted_temperature(z, (right + 1) % 3)) == (0.2, 5.0)


def test_a_fitted_temperature_mends_confidence_and_no_prediction() -> None:
    some = load_data("digits", limit=300)
    x, y = torch.stack([image for image, _ in some]), torch.tensor([int(str(label)) for _, label in some])
    plain, fitted = load_model("digits_standard"), load_model("digits_standard", defense="temperature:data=digits")
    with torch.no_grad():
        before, after = plain(x), fitted(x)
    ratio = (before / after).mean()
    torch.testing.assert_close(before, after * ratio)
    assert f"t={float(ratio):.3f}".rstrip("0") in repr(fitted)
    assert torch.equal(before.argmax(1), after.argmax(1))
    assert cross_entropy(after, y) < cross_entropy(before, y)


def test_a_low_temperature_stops_the_gradient_of_the_cross_entropy_and_not_that_of_the_margin() -> None:
    x = pictures()
    cold = Temperature(t=1e-6).wrap(small())
    labels = cold(x).argmax(1)
    leaf = x.clone().requires_grad_()
    assert not torch.autograd.grad(cross_entropy(cold(leaf), labels), leaf)[0].any()
    margin = -cold(leaf).gather(1, labels[:, None]).sum()
    assert torch.autograd.grad(margin, leaf)[0].any()


# --- ensembles


def test_an_ensemble_is_the_mean_of_members_that_normalise_for_themselves() -> None:
    x, members = pictures(), [small(5, 0), small(5, 1), small(5, 2)]
    answers = torch.stack([member.model((x - 0.1 * seed) / 0.2) for seed, member in enumerate(members)])
    torch.testing.assert_close(Members(members, "probabilities")(x).exp(), answers.softmax(2).mean(0))
    torch.testing.assert_close(Members(members, "logits")(x), answers.mean(0))
    one = [small(1, 0), small(1, 1)]
    odds = torch.stack([member(x).sigmoid() for member in one]).mean(0)
    torch.testing.assert_close(Members(one, "probabilities")(x).sigmoid(), odds)


def test_an_ensemble_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {"one": small(5, 1), "two:a=1,b=2": small(5, 2), "ten": small(10, 1)}
    monkeypatch.setattr("robustbench_lite.defenses.ensemble.load_model", ours.__getitem__)
    x, first = pictures(), small(5, 0)
    first.learnt_from, ours["one"].learnt_from, ours["two:a=1,b=2"].learnt_from = ("here",), ("there", "here"), ()
    found = Ensemble("one,two:a=1,b=2").wrap(first)
    assert found.learnt_from == ("here", "there")
    torch.testing.assert_close(found(x), Members([first, *list(ours.values())[:2]], "probabilities")(x))
    assert found.trained_on == ("augmix", "rotate")
    digests = [first.digest, found.digest, *(Ensemble(n, mean="logits").wrap(first).digest for n in ("one", "two:a=1,b=2"))]
    digests.append(Ensemble("one").wrap(first).digest)
    assert len(set(digests)) == 5
    with pytest.raises(ModelError, match=r"^ensemble: small0 5 and small1 10 classes: members must have the same$"):
        Ensemble("ten").wrap(first)
    ours["one"].preprocess = Preprocess(size=(9, 9), resize=None)
    with pytest.raises(ModelError, match=r"^ensemble: small0 takes images of 3x8x8 and small1 of 3x9x9: members must agree$"):
        Ensemble("one").wrap(first)
    ours["two:a=1,b=2"].differentiable = False
    assert not Ensemble("two:a=1,b=2").wrap(first).differentiable


def test_what_any_member_was_trained_on_is_warned_of() -> None:
    members = load_model("digits_standard", defense="ensemble:models=digits_augmix")
    assert "augmix" in members.trained_on
    assert members.learnt_from == ("digits:split=train",)
    (note,) = [
        note
        for note in rb.evaluate(members, (), "digits", corruptions="contrast:severity=1", limit=4).config["notes"]
        if "trained on augmix" in note
    ]
    alone = rb.evaluate(load_model("digits_standard"), (), "digits", corruptions="contrast:severity=1", limit=4)
    assert not any("trained on" in other for other in alone.config["notes"])
    assert note in rb.evaluate("digits_augmix", (), "digits", corruptions="contrast:severity=1", limit=4).config["notes"]


def test_copies_of_what_any_member_learnt_from_are_found() -> None:
    """The first member learnt from other images, the second from those that it is tested on."""
    members = load_model("digits_standard", defense="ensemble:models=digits_augmix")
    for specs, copies in (("digits:split=train",), False), (("digits:split=train", "digits"), True), (("npz:/nowhere.npz", "digits"), True):
        members.learnt_from = specs
        result = rb.evaluate(members, (), "digits", limit=5, doubt=True)
        assert any("5 of 5 images (100.0%) are near-duplicates" in reason for reason in result.trust["clean"].reasons) == copies


# --- under attack


class Masked(nn.Module):
    """Another layer's answer as a user might write it who does not know of stand-ins: all gradients are exactly zero."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.hidden = [layer]  # not registered, so that nothing sees what it declares

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.hidden[0](x)
        return answer.detach() + 0 * x


@contextmanager
def undeclared(model: Classifier) -> Iterator[Classifier]:
    """A wrapped classifier whose first layer does not declare its stand-in."""
    layer, classifier = list(model.model.children())
    assert isinstance(classifier, Classifier)
    yield in_place_of(classifier, masked=Masked(layer), classifier=classifier)


def standing(result: rb.Result, condition: str) -> int:
    return sum(verdict.broken is False for verdict in result.of(condition))


@pytest.mark.parametrize("spec", ["jpeg", "bit-depth:bits=4"])
def test_plain_gradients_flatter_the_stand_in_does_not_and_the_report_says_so(tmp_path: Path, spec: str) -> None:
    wrapped, some, row = load_model("digits_standard", defense=spec), load_data("digits", limit=40), "pgd:steps=20[linf,0.1]"
    adaptive = rb.evaluate(wrapped, "pgd:steps=20", some, eps=0.1, out=tmp_path / "adaptive")
    with undeclared(wrapped) as hidden:
        plain = rb.evaluate(hidden, "pgd:steps=20", some, eps=0.1, out=tmp_path / "plain")
    assert standing(plain, "clean") >= 38
    assert standing(plain, row) >= standing(adaptive, row) + 15, "what the masked gradient hides"
    assert standing(adaptive, row) <= 10

    assert any("by the stand-in that it declares (BPDA)" in note for note in adaptive.config["notes"])
    assert plain.trust[row].level == "doubtful"
    assert any("every gradient was exactly zero" in reason for reason in plain.trust[row].reasons)
    assert not [f for f in adaptive.trust[row].findings if f.check in ("gradients", "operations")]


def test_a_jpeg_without_its_stand_in_is_refused_and_not_called_robust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Compression, "surrogate_backward")
    with pytest.raises(ModelError, match=r"^pgd:steps=2 needs gradients, and digits_standard\+jpeg has none"):
        rb.evaluate(load_model("digits_standard", defense="jpeg"), "pgd:steps=2", "digits", eps=0.1, limit=4, out=tmp_path / "run")


def test_a_mean_of_random_gradients_is_nearer_to_the_one_that_counts() -> None:
    model = load_model("digits_standard", defense="resizing:low=0.8")
    some = load_data("digits", limit=8)
    x, labels = torch.stack([image for image, _ in some]), torch.tensor([int(str(label)) for _, label in some])

    def of(draws: int, seed: int) -> Tensor:
        from robustbench_lite.criteria import Misclassified

        with seeded("resizing", draws, seed):
            return Passes(model, draws=draws).gradient(x, Misclassified(labels), "margin")[1]

    truth = of(200, 0)
    likeness = [float(nn.functional.cosine_similarity(of(n, 1).flatten(1), truth.flatten(1)).mean()) for n in (1, 5, 20)]
    assert all(one < other for one, other in pairwise(likeness))
    assert likeness[0] < 0.8
    assert likeness[-1] > 0.9


def test_a_randomised_model_is_attacked_on_means_and_judged_by_votes(tmp_path: Path) -> None:
    result = rb.evaluate(
        load_model("digits_standard", defense="resizing"), "pgd:steps=5", "digits", eps=0.1, limit=6, out=tmp_path / "run", votes=5
    )
    assert any("is randomised: verdicts by 5 votes" in note and "the mean of 20 answers" in note for note in result.config["notes"])
    assert rb.verify(tmp_path / "run").holding == standing(result, "clean") - standing(result, "pgd:steps=5[linf,0.1]")


def test_at_a_low_temperature_cross_entropy_is_not_believed_and_another_loss_breaks_what_it_left() -> None:
    """The softmax is saturated: in float32 the gradient of the cross-entropy is zero, and pgd leaves every image."""
    model, row = load_model("digits_standard", defense="temperature:t=0.01"), "pgd:steps=10[linf,0.1]"
    alone = rb.evaluate(model, "pgd:steps=10", "digits", eps=0.1, limit=20)
    assert standing(alone, row) == standing(alone, "clean") == 20
    for name in (row, "worst[linf,0.1]"):
        assert alone.trust[name].level == "doubtful"
        assert {finding.check for finding in alone.trust[name].findings} >= {"gradients", "outputs"}
        assert any("every gradient was exactly zero for 20" in reason for reason in alone.trust[name].reasons)

    both = rb.evaluate(model, ["pgd:steps=10", "pgd:steps=10,loss=margin"], "digits", eps=0.1, limit=20)
    assert standing(both, "pgd:steps=10,loss=margin[linf,0.1]") <= 4
    assert both.trust[row].level == "refuted"
    assert both.trust[row].at_most <= 0.2


def test_no_temperature_changes_a_verdict_under_a_loss_that_knows_no_scale(tmp_path: Path) -> None:
    broken = []
    for t in (0.2, 1.0, 5.0):
        model = load_model("digits_standard", defense=f"temperature:t={t}")
        result = rb.evaluate(model, "pgd:steps=10,loss=margin", "digits", eps=0.05, limit=30, out=tmp_path / str(t))
        broken.append([verdict.broken for verdict in result.verdicts if verdict.condition != "clean"])
    assert broken[0] == broken[1] == broken[2]
    assert len(set(broken[0])) == 2


@pytest.mark.parametrize(
    ("spec", "judged"),
    [
        ("temperature:data=digits", 6),
        ("temperature:data=(digits:split=train)", 0),
        ("temperature:t=2", 0),
        ("laplace:validation=digits", 6),
        ("laplace:data=digits,variance=1", 6),
        ("laplace", 0),
        ("temperature:data=digits+jpeg", 6),
    ],
)
def test_confidences_that_were_fitted_on_the_images_judged_are_said_to_be(spec: str, judged: int) -> None:
    result = rb.evaluate(load_model("digits_standard", defense=spec), (), "digits", limit=6)
    said = [note for note in result.config["notes"] if "confidences were fitted on" in note]
    assert [int(note.split()[0]) for note in said] == [judged] * bool(judged)


def test_none_is_trained() -> None:
    from robustbench_lite.defending import Defenses

    for spec in ("jpeg", "median", "resizing", "temperature:t=2.0", "ensemble:models=digits_cnn", "laplace"):
        with pytest.raises(UsageError, match="is not trained but put around a model: robust-eval --defense"):
            Defenses.parse(spec).trainable()
