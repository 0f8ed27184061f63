"""The checks that look at the model and the data: each has a model that trips it and one that does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.diagnostics import Counter, Evidence, Finding
from robustbench_lite.doubts import seen_in_training, stated
from robustbench_lite.jpeg import jpeg
from robustbench_lite.labelled import LabelledImages, from_arrays
from robustbench_lite.models import load_model
from robustbench_lite.results import Result
from robustbench_lite.store import read_run

Fixture = Callable[..., Any]


class Before(nn.Module):
    """A network with something done to the image before, and something to the logits after it."""

    def __init__(self, net: nn.Module, before: Callable[[Tensor], Tensor] | None = None, after: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x if self.before is None else self.before(x))
        return logits if self.after is None else self.after(logits)


class Levels(nn.Module):
    """Nine levels of grey, with a stand-in for the gradient that rounding has not got."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * 8) / 8

    def surrogate_backward(self, x: Tensor) -> Tensor:
        return x


def levels(x: Tensor) -> Tensor:
    return torch.round(x * 8) / 8


@pytest.fixture(scope="module")
def evaluated(net: Fixture, pictures: Fixture) -> Callable[..., Result]:
    """An evaluation of a small network, all of whose clean answers are right, with parts put before and after it."""

    def run(attacks: Any = "pgd", *, before: Any = None, after: Any = None, count: int = 24, **options: Any) -> Result:
        model, x = Before(net(), before, after).eval(), pictures(count)
        with torch.no_grad():
            y = (Before(net(), before) if before is levels else net())(x).argmax(1)
        return rb.evaluate(model, attacks, from_arrays(x, y), **({"eps": 0.02} | options))

    return run


def found(result: Result, check: str) -> list[Finding]:
    return [finding for finding in result.findings if finding.check == check]


def after_doubt(result: Result, attack: str, *, door: str, eot: int | None = None, gradient: float | None = None) -> Result:
    """The result as it would be had an attack been tried, in doubt, on what the first row left, and broken nothing."""
    row = next(c for c in result.conditions if c.kind == "attack")
    name = f"{attack}[{row.norm},{row.eps}" + (f",eot={eot}]" if eot else "]")
    tried = replace(row, name=name, kind="doubt", attack=attack, doors={"": door}, eot=eot)
    verdicts = [replace(v, condition=name, gradient=gradient) for v in result.of(row.name) if v.broken is False]
    return replace(result, conditions=[*result.conditions, tried], verdicts=[*result.verdicts, *verdicts])


# ---------------------------------------------------------------------- random answers


def noisy(x: Tensor) -> Tensor:
    return x + 0.02 * torch.randn_like(x)


def test_a_randomised_model_is_doubted_until_more_answers_break_nothing(evaluated: Fixture) -> None:
    asked = {"before": noisy, "count": 8, "eps": 0.001, "eot": 2, "votes": 3}
    result = evaluated("pgd:steps=3", **asked)
    (finding,) = found(result, "random-answers")
    assert finding.weight == "doubts"
    assert finding.conditions == ("pgd:steps=3[linf,0.001]", "worst[linf,0.001]")
    assert finding.settle == (Counter("pgd:steps=3", eot=10),)
    assert "averaged 2 answers" in finding.seen
    fewer, more = (after_doubt(result, "pgd:steps=3", door="white box", eot=eot) for eot in (5, 10))
    assert found(fewer, "random-answers") == [finding]
    (note,) = found(more, "random-answers")
    assert (note.weight, note.settle) == ("notes", ())
    one = more.verdicts[-1]
    (still,) = found(replace(more, verdicts=[*more.verdicts[:-1], replace(one, broken=True, broken_by="pgd")]), "random-answers")
    assert still.weight == "doubts"
    (partly,) = found(replace(more, verdicts=more.verdicts[:-1]), "random-answers")  # it was broken off
    assert partly.weight == "doubts"


def test_a_model_that_answers_alike_is_no_finding_and_a_random_one_that_falls_a_note(evaluated: Fixture) -> None:
    assert not found(evaluated("fgsm"), "random-answers")
    (finding,) = found(evaluated("pgd:steps=5", before=noisy, eps=0.9, count=4, votes=3), "random-answers")  # nothing is left
    assert finding.weight == "notes"


# ---------------------------------------------------------------------- outputs


def softmaxed(logits: Tensor) -> Tensor:
    return logits.softmax(1)


def test_probabilities_are_doubted_under_cross_entropy_and_noted_once_the_margin_was_climbed(evaluated: Fixture) -> None:
    soft = {"after": lambda logits: (logits / 10).softmax(1), "eps": 0.001}  # far from 1
    (finding,) = found(evaluated("pgd:steps=3", **soft), "outputs")
    assert finding.weight == "doubts"
    assert "probabilities in place of logits" in finding.seen
    assert finding.conditions == ("pgd:steps=3[linf,0.001]", "worst[linf,0.001]")
    both = found(evaluated(["pgd:steps=3", "apgd-t:steps=3"], **soft), "outputs")
    assert [(f.weight, f.conditions) for f in both] == [("doubts", ("pgd:steps=3[linf,0.001]",))]
    half = after_doubt(evaluated("pgd:steps=3", **soft), "apgd-t", door="white box")
    assert found(half, "outputs")[0].weight == "doubts"
    (note,) = found(after_doubt(half, "pgd:loss=margin", door="white box"), "outputs")
    assert (note.weight, note.settle) == ("notes", ())


def test_nothing_but_the_logits_settles_probabilities_of_one(evaluated: Fixture) -> None:
    rounded = {"after": lambda logits: (100 * logits).softmax(1), "eps": 0.001, "count": 8}
    result = evaluated(["pgd:steps=3", "noise:queries=5"], **rounded)
    settled = after_doubt(after_doubt(result, "apgd-t", door="white box"), "pgd:loss=margin", door="white box")
    (finding,) = found(settled, "outputs")
    assert (finding.weight, finding.conditions) == ("doubts", ("pgd:steps=3[linf,0.001]",))
    assert "without its softmax" in finding.means
    assert finding.figures["saturated"] > 0.1 * finding.figures["n"]


def test_saturated_logits_are_doubted_under_cross_entropy_alone(evaluated: Fixture) -> None:
    large = {"after": lambda logits: 100 * logits, "eps": 0.001}
    (finding,) = found(evaluated(["pgd:steps=3", "pgd:steps=3,loss=margin", "square:queries=5"], **large), "outputs")
    assert (finding.weight, finding.conditions) == ("doubts", ("pgd:steps=3[linf,0.001]",))
    assert not finding.figures["softmaxed"]


@pytest.mark.parametrize("after", [None, lambda logits: (logits / 10).log_softmax(1), lambda logits: logits / 10])
def test_logits_and_logarithms_of_probabilities_are_no_finding(evaluated: Fixture, after: Any) -> None:
    result = evaluated("pgd:steps=3", after=after or (lambda logits: logits / 5), eps=0.001)
    assert not found(result, "outputs")


def test_outputs_of_one_logit_and_of_several_labels_an_image(pictures: Fixture, net: Fixture) -> None:
    x, one = pictures(8), net(classes=1)
    with torch.no_grad():
        y = (one(x)[:, 0] > 0).long()
    steep = rb.evaluate(Before(one, after=lambda logits: 1000 * logits).eval(), "pgd:steps=2", from_arrays(x, y), eps=0.001)
    assert [f.weight for f in found(steep, "outputs")] == ["doubts"]
    several = torch.zeros(8, 3)
    result = rb.evaluate(Before(net(classes=3), after=softmaxed).eval(), "pgd:steps=2", from_arrays(x, several), eps=0.001)
    assert not found(result, "outputs")


# ---------------------------------------------------------------------- coarse scores


class OneHot(torch.autograd.Function):
    """The class and nothing else, with a gradient that is not its own."""

    @staticmethod
    def forward(_: Any, logits: Tensor) -> Tensor:
        return 10 * nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()

    @staticmethod
    def backward(_: Any, *gradients: Any) -> Any:
        return -gradients[0]


def test_outputs_that_tell_the_class_alone_are_doubted_whatever_was_tried(evaluated: Fixture) -> None:
    blind = {"eps": 0.001, "count": 30}
    asked = ["pgd:steps=10", "square:queries=1000"]
    result = evaluated(asked, after=OneHot.apply, **blind)
    (finding,) = found(result, "coarse-scores")
    assert (finding.weight, finding.figures) == ("doubts", {"values": 1, "n": 30})
    assert finding.conditions[-1] == "worst[linf,0.001]"
    assert result.trust["worst[linf,0.001]"].reasons == (finding.seen,)  # nothing else would have said so
    hidden = evaluated(asked[0], after=lambda logits: OneHot.apply(logits) + 1e-7 * logits.detach(), **blind)
    assert found(hidden, "coarse-scores"), "what is lost in rounding is nothing to follow"
    assert not found(evaluated("pgd:steps=2", after=lambda logits: 1e-3 * logits + 7, **blind), "coarse-scores")


# ---------------------------------------------------------------------- gradients


def test_zero_gradients_are_doubted_and_no_black_box_clears_them(evaluated: Fixture) -> None:
    result = evaluated("pgd:steps=5", before=levels, eps=0.01)
    finding = next(f for f in found(result, "gradients") if f.conditions == ("pgd:steps=5[linf,0.01]",))
    assert finding.weight == "doubts"
    assert finding.figures["zero"] == finding.figures["standing"] > 0
    assert set(finding.samples) == Evidence(result).standing(result.conditions[1])
    assert result.trust["pgd:steps=5[linf,0.01]"].level == result.trust["worst[linf,0.01]"].level == "doubtful"
    blind = after_doubt(after_doubt(result, "square", door="scores"), "es-pgd:samples=500,iterations=40", door="scores")
    assert found(blind, "gradients") == found(result, "gradients")


def test_another_loss_with_gradients_clears_those_that_cross_entropy_lost(evaluated: Fixture) -> None:
    large = {"after": lambda logits: 1000 * logits, "eps": 0.0001, "count": 12}
    alone = evaluated("pgd:steps=3", **large)
    assert {f.conditions[0] for f in found(alone, "gradients")} == {"pgd:steps=3[linf,0.0001]", "worst[linf,0.0001]"}
    both = evaluated(["pgd:steps=3", "pgd:steps=3,loss=margin"], **large)
    assert {f.conditions for f in found(both, "gradients")} == {("pgd:steps=3[linf,0.0001]",)}  # the row itself had none
    assert not found(after_doubt(alone, "apgd-t", door="white box", gradient=0.1), "gradients")


def test_tiny_and_infinite_gradients_are_counted_and_broken_images_are_not(evaluated: Fixture) -> None:
    result = evaluated("pgd:steps=3", eps=0.001, count=12)
    assert not found(result, "gradients")
    name = "pgd:steps=3[linf,0.001]"
    standing = [v for v in result.of(name) if v.broken is False]
    changed = {
        standing[0].sample_id: replace(standing[0], gradient=5e-8),
        standing[1].sample_id: replace(standing[1], broken=None, reason="the model's gradient was NaN or infinite"),
        standing[2].sample_id: replace(standing[2], broken=True, broken_by="pgd", gradient=0.0),
        standing[3].sample_id: replace(standing[3], gradient=2e-7),
    }
    verdicts = [changed.get(v.sample_id, v) if v.condition == name else v for v in result.verdicts]
    (finding,) = [f for f in found(replace(result, verdicts=verdicts), "gradients") if f.conditions == (name,)]
    assert (finding.figures["tiny"], finding.figures["zero"], finding.figures["not_finite"]) == (1, 0, 1)
    assert finding.samples == (standing[0].sample_id, standing[1].sample_id)


def test_few_such_images_are_a_note(evaluated: Fixture) -> None:
    result = evaluated("pgd:steps=2", eps=0.0001, count=150)
    name = "pgd:steps=2[linf,0.0001]"
    first = next(v for v in result.of(name) if v.broken is False)
    verdicts = [replace(v, gradient=0.0) if v == first else v for v in result.verdicts]
    (finding,) = [f for f in found(replace(result, verdicts=verdicts), "gradients") if f.conditions == (name,)]
    assert (finding.weight, finding.settle) == ("notes", ())


# ---------------------------------------------------------------------- operations


def test_rounding_in_the_forward_pass_is_doubted_until_it_was_passed_by(evaluated: Fixture) -> None:
    result = evaluated(["pgd:steps=2", "noise:queries=2"], before=levels, eps=0.001)
    (finding,) = found(result, "operations")
    assert (finding.weight, finding.figures) == ("doubts", {"round": 1})
    assert finding.conditions == ("pgd:steps=2[linf,0.001]", "worst[linf,0.001]")
    assert [counter.attack for counter in finding.settle] == ["square", "es-pgd:samples=500,iterations=40"]
    half = after_doubt(result, "square", door="scores")
    assert [f.weight for f in found(half, "operations")] == ["doubts"]
    assert [f.weight for f in found(after_doubt(half, "es-pgd:samples=500,iterations=40", door="scores"), "operations")] == ["notes"]


def test_a_declared_stand_in_and_a_comparison_are_notes_and_a_plain_network_is_nothing(evaluated: Fixture) -> None:
    (declared,) = found(evaluated("pgd:steps=2", before=Levels()), "operations")
    assert (declared.weight, "Levels" in declared.seen) == ("notes", True)
    (masked,) = found(evaluated("pgd:steps=2", after=lambda logits: logits * (logits > 0)), "operations")
    assert (masked.weight, masked.figures) == ("notes", {"gt": 1})
    assert not found(evaluated("pgd:steps=2"), "operations")


# ---------------------------------------------------------------------- eight bits


def test_rounding_is_judged_by_the_model_and_its_target(pictures: Fixture) -> None:
    class Fine(nn.Module):
        """Class 1 where the first value lies off every whole 255th."""

        def forward(self, x: Tensor) -> Tensor:
            first = x[:, 0, 0, 0] * 255
            off = (first - first.detach().round()).abs() - 0.25
            return torch.stack([-off, off], 1)

    x = (pictures(6) * 200).round() / 255 + 10 / 255
    y = torch.zeros(6, dtype=torch.long)
    for target in (None, 1):
        result = rb.evaluate(Fine().eval(), "pgd:steps=20,restarts=3", from_arrays(x, y, classes=2), eps=0.45 / 255, target=target)
        name = next(c.name for c in result.conditions if c.kind == "attack")
        (finding,) = found(result, "eight-bit")
        broken = sum(bool(v.broken) for v in result.of(name))
        assert broken > 0
        assert (finding.weight, finding.figures) == ("notes", {"asked": broken, "lost": broken})
        assert result.trust[name].level != "refuted"
    kept = rb.evaluate(Fine().eval(), "pgd:steps=20", from_arrays(x, y, classes=2), eps=0.45 / 255, witnesses="none")
    assert not found(kept, "eight-bit")


def test_images_that_cannot_be_read_are_not_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, net: Fixture) -> None:
    monkeypatch.setattr("robustbench_lite.session.LOOKED_AT", 1)
    (tmp_path / "0").mkdir()
    Image.new("RGB", (8, 8), (90, 40, 200)).save(tmp_path / "0" / "good.png")
    for number in range(3):
        (tmp_path / "0" / f"{number}.png").write_bytes(b"no picture")
    for order in range(4):  # in which the readable one is not always the first
        result = rb.evaluate(net(), "fgsm", f"imagefolder:{tmp_path}", eps=0.001, on_bad_image="quarantine", shuffle_seed=order)
        assert [v.broken is None for v in result.of("clean")].count(True) == 3


# ---------------------------------------------------------------------- stated accuracy


def test_another_accuracy_than_the_stated_one_is_doubted_on_every_row(evaluated: Fixture) -> None:
    result = evaluated("fgsm", stated_accuracy=0.7)  # all 24 are right: 2 * 0.7 ** 24
    (finding,) = found(result, "stated-accuracy")
    assert finding.weight == "doubts"
    assert set(finding.conditions) == {c.name for c in result.conditions}
    assert finding.figures["p"] == pytest.approx(2 * 0.7**24)
    assert result.trust["clean"].level == "doubtful"
    assert not found(evaluated("fgsm", stated_accuracy=0.8), "stated-accuracy")  # 24 images do not tell


@pytest.mark.parametrize(("right", "n", "share"), [(0, 5, 0.5), (3, 10, 0.7), (10, 10, 0.9), (7, 9, 1.0), (4, 4, 1.0), (0, 3, 0.0)])
def test_the_chance_is_twice_the_smaller_tail(right: int, n: int, share: float) -> None:
    from scipy.stats import binom

    tails = binom.cdf(right, n, share), binom.sf(right - 1, n, share)
    assert stated._chance(right, n, share) == pytest.approx(min(1, 2 * min(tails)), abs=1e-12)


def test_a_zoo_model_with_other_preprocessing_is_noticed_on_its_own_data_only() -> None:
    broken = load_model("digits_standard", mean=(0.9,) * 3, std=(0.05,) * 3)
    assert broken.stated is not None
    assert broken.stated[1] == "digits"
    result = rb.evaluate(broken, "fgsm", "digits", limit=60)
    assert [f.weight for f in found(result, "stated-accuracy")] == ["doubts"]
    fine = rb.evaluate(load_model("digits_standard"), "fgsm", "digits", limit=60)
    assert not found(fine, "stated-accuracy")
    elsewhere = rb.evaluate(broken, "fgsm", "digits:split=train", limit=60)
    assert not found(elsewhere, "stated-accuracy")


def test_what_a_model_is_said_to_have_goes_with_its_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    plain = load_model("digits_standard")
    assert plain.learnt_from == ("digits:split=train",)
    save_file(plain.model.state_dict(), str(tmp_path / "mine.safetensors"))
    mine = load_model("digits_standard", weights=tmp_path / "mine.safetensors")
    assert (mine.stated, mine.learnt_from) == (None, ())
    assert load_model("digits_standard", defense="kwta:gamma=0.2").stated is None


# ---------------------------------------------------------------------- seen in training


@pytest.fixture(scope="module")
def digits() -> LabelledImages:
    return rb.load_data("digits", limit=60)


def trained_on(images: Tensor) -> LabelledImages:
    return from_arrays(images, torch.zeros(len(images), dtype=torch.long), "training")


COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "the same": lambda x: x,
    "jpeg": lambda x: jpeg((x * 255).round().to(torch.uint8), 30).float() / 255,
    "shifted": lambda x: nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")[:, :, 2:, :-2],
    "darker": lambda x: 0.6 * x,
    "brighter": lambda x: 0.5 + 0.5 * x,
    "grey": lambda x: x[:, :1],
    "larger": lambda x: nn.functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "noisy": lambda x: (x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1),
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_of_ten_test_images_are_found_among_training_images(digits: LabelledImages, copy: str) -> None:
    x = torch.stack([image for image, _ in digits])[20:30]
    training = trained_on(COPIES[copy](x))
    result = rb.evaluate("digits_standard", "fgsm", digits, eps=1.0, training_data=training, doubt=True)
    (finding,) = found(result, "seen-in-training")
    assert finding.weight == "doubts"
    assert set(finding.samples) == set(digits.ids[20:30])
    assert finding.figures["seen"] == 10
    assert result.trust["clean"].level == "doubtful"


def test_a_model_that_answers_nothing_has_no_images_to_compare(digits: LabelledImages) -> None:
    class Mute(nn.Module):
        asked = 0

        def forward(self, x: Tensor) -> Tensor:  # its first answer is one, else it would be refused
            self.asked += 1
            return torch.full((len(x), 10), 0.0 if self.asked == 1 else torch.nan)

    result = rb.evaluate(Mute().eval(), "square:queries=2", digits, eps=1.0, norm="linf", training_data=digits, doubt=True)
    assert result.table["undecided"].tolist() == [60] * len(result.table)
    assert "seen-in-training" not in (result.config["observed"] or {})


def test_strangers_are_not_taken_for_copies_however_alike_and_images_of_one_grey_are_like_nothing() -> None:
    tested, learnt = (rb.load_data(f"digits:split={split}") for split in ("test", "train"))
    (own,) = seen_in_training.cells(torch.stack([image for image, _ in tested]))
    others = seen_in_training.cells(torch.stack([image for image, _ in learnt]), shifts=True)
    nearest = torch.stack([(other @ own.T).amax(0) for other in others]).amax(0)
    assert 0.99 < float(nearest.max()) < seen_in_training.ALIKE
    (flat,) = seen_in_training.cells(torch.full((2, 3, 5, 5), 0.4))
    assert not flat.any()


def test_a_zoo_model_brings_its_own_training_images_when_doubted(digits: LabelledImages) -> None:
    doubted = rb.evaluate("digits_standard", "fgsm", digits, eps=1.0, doubt=True)
    assert doubted.config["observed"]["seen-in-training"] == {"ids": [], "n": 60, "training": 897, "unread": 0}
    assert not found(doubted, "seen-in-training")
    assert "seen-in-training" not in rb.evaluate("digits_standard", "fgsm", digits, eps=1.0).config["observed"]
    learnt = rb.load_data("digits:split=train", limit=300)  # more than are in memory at once, and its own training images
    caught = rb.evaluate("digits_standard", "fgsm", learnt, eps=1.0, doubt=True)
    assert found(caught, "seen-in-training")[0].figures["seen"] == 300


def test_training_images_that_cannot_be_read_are_counted(tmp_path: Path, digits: LabelledImages) -> None:
    (tmp_path / "train" / "0").mkdir(parents=True)
    pixels = (digits[0][0].permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "train" / "0" / "a.png")
    (tmp_path / "train" / "0" / "b.png").write_bytes(b"no picture")
    result = rb.evaluate("digits_standard", "fgsm", digits, eps=1.0, training_data=f"imagefolder:{tmp_path / 'train'}", doubt=True)
    (finding,) = found(result, "seen-in-training")
    assert (finding.samples, finding.figures["unread"]) == ((digits.ids[0],), 1)
    assert "1 training images could not be read" in finding.seen


# ---------------------------------------------------------------------- all of them


def test_a_stored_run_says_the_same_later(evaluated: Fixture, tmp_path: Path) -> None:
    options = {"before": levels, "after": softmaxed, "eps": 0.02, "stated_accuracy": 0.2, "out": tmp_path / "run"}
    first = evaluated("pgd", **options)
    assert {"gradients", "operations", "outputs", "stated-accuracy"} <= {f.check for f in first.findings}
    assert read_run(tmp_path / "run").findings == first.findings


def test_runs_of_one_image_grey_closest_full_transferred_and_by_others(pictures: Fixture, net: Fixture) -> None:
    x, grey = pictures(3), nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    y, g = net()(x).argmax(1), grey(x[:, :1]).argmax(1)
    assert rb.evaluate(net(), "pgd:steps=2", from_arrays(x[:1], y[:1]), eps=0.01).findings is not None
    for goal in ("closest", "full"):
        assert rb.evaluate(grey, "pgd:steps=2", from_arrays(x[:, :1], g), eps=0.01, goal=goal).findings is not None
    rounding = Before(net(), levels).eval()
    result = rb.evaluate(rounding, "pgd:steps=2", from_arrays(x, y), eps=0.001, surrogates=[rb.Classifier(net(seed=1), name="other")])
    assert not found(result, "gradients")  # the surrogate has them
    foreign = rb.evaluate(net(), "foolbox:LinfPGD", from_arrays(x, y), eps=0.0001)
    assert not found(foreign, "gradients")  # nobody knows what gradients it saw


@pytest.mark.slow
def test_settling_runs_what_the_findings_ask_for(evaluated: Fixture) -> None:
    jittery = evaluated("pgd:steps=3", before=noisy, count=4, eps=0.001, eot=2, votes=3, settle=True)
    assert any(c.name == "pgd:steps=3[linf,0.001,eot=10]" for c in jittery.conditions)
    assert [f.weight for f in found(jittery, "random-answers")] == ["notes"]
