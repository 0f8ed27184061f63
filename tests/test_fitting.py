"""Attacks that learn first, attacks with means of their own, and runs that keep what the model answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import robustbench_lite as rb
from robustbench_lite.conditions import Means
from robustbench_lite.errors import UnknownName, UsageError
from robustbench_lite.fitting import Lesson, halves, without_judged
from robustbench_lite.labelled import LabelledImages
from robustbench_lite.oracle import WhiteBox
from robustbench_lite.plan import State
from robustbench_lite.results import LEARNT_FROM, NOTHING_TO_GAIN, Result
from robustbench_lite.store import read_run
from robustbench_lite.streams import Streams

EPS = 0.1
PUSH = f"Push[linf,{EPS}]"
LESSONS: list[list[str]] = []


@dataclass(frozen=True)
class Push:
    """One direction for all images: the sign of the summed gradients of those that it learns from."""

    access = WhiteBox
    norms = ("linf",)
    steps: int = 1
    learnt: Mapping[str, Tensor] = field(default_factory=dict, repr=False, init=False)

    def fit(self, lesson: Lesson) -> dict[str, Tensor]:
        LESSONS.append([])
        total = 0.0
        for pupils, _ in lesson.batches(0):
            LESSONS[-1] += lesson.images.ids if not LESSONS[-1] else []
            total = total + lesson.gradient(pupils.x, pupils.criterion)[1].sum(0)
        return {"direction": torch.as_tensor(total).sign()}

    def fitted(self, learnt: Mapping[str, Tensor]) -> Push:
        made = Push(self.steps)
        object.__setattr__(made, "learnt", learnt)
        return made

    def start(self, oracle: WhiteBox, draw: Streams) -> State:
        return State.at(oracle.origin)

    def step(self, oracle: WhiteBox, state: State, draw: Streams) -> State:
        return state.moved(oracle.threat.project(state.x + oracle.threat.eps * self.learnt["direction"], oracle.origin))


@pytest.fixture(autouse=True)
def no_lessons_yet() -> None:
    LESSONS.clear()


def grouped(limit: int = 40) -> LabelledImages:
    images = rb.load_data("digits", limit=limit)
    return replace(images, groups=[f"writer-{row // 4}" for row in range(limit)])


def pushed(**more: Any) -> Result:
    return rb.evaluate("digits_cnn", Push(), more.pop("data", "digits"), eps=EPS, limit=more.pop("limit", 40), **more)


def test_it_learns_from_half_of_the_images_and_is_judged_on_the_others() -> None:
    result = pushed()
    assert len(LESSONS) == 1
    learnt, judged = set(LESSONS[0]), {v.sample_id for v in result.of(PUSH)}
    assert len(learnt) == len(judged) == 20
    assert not learnt & judged
    assert learnt | judged == {v.sample_id for v in result.of("clean")}
    assert result.left_out[PUSH] == dict.fromkeys(learnt, LEARNT_FROM)
    assert result.table.set_index("condition").loc[PUSH, "n"] == 20
    assert any("learnt from 20 of the images" in note for note in result.config["notes"])
    assert not [f for f in result.findings if f.check == "unfinished"]


def test_who_belongs_together_is_on_one_side() -> None:
    images = grouped()
    chosen, ids = halves(images, 0)
    assert images.groups is not None
    assert chosen.groups is not None
    others = {group for key, group in zip(images.ids, images.groups, strict=True) if key not in ids}
    assert not set(chosen.groups) & others
    assert len(chosen) == 20


def test_with_images_to_learn_from_every_image_is_judged(tmp_path: Path) -> None:
    result = pushed(fit_data=rb.load_data("digits:train", limit=30), out=tmp_path)
    assert len(LESSONS[0]) == 30
    assert len(result.of(PUSH)) == 40
    assert not result.left_out
    with pytest.raises(rb.errors.RunMismatch, match="another fit_data"):
        pushed(out=tmp_path)


def test_a_run_that_goes_on_attacks_with_what_was_learnt(tmp_path: Path) -> None:
    def interrupted(name: str, done: int, *_: object) -> None:
        if name == PUSH and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pushed(out=tmp_path, progress=interrupted, batch_size=4)
    half = read_run(tmp_path)
    assert 0 < len(half.of(PUSH)) < 20
    whole = pushed(out=tmp_path)
    assert len(LESSONS) == 1
    assert [(v.sample_id, v.broken) for v in whole.of(PUSH)] == [(v.sample_id, v.broken) for v in pushed().of(PUSH)]
    said: list[str] = []
    pushed(out=tmp_path, progress=lambda name, *_: said.append(name))
    assert "clean" not in said  # nothing is left to be asked


def test_what_a_transfer_attack_learns_it_learns_on_the_surrogate() -> None:
    asked = [Means(Push(), eps=0.3), Means(Push(), eps=0.3, source="digits_pgd_at")]
    result = rb.evaluate("digits_cnn", asked, "digits", limit=40, surrogates=["digits_pgd_at"], fit_data="digits:train")
    own, other = (f"Push[linf,0.3{more}]" for more in ("", ",from=digits_pgd_at"))
    first, second = (result.witness(name, next(v.sample_id for v in result.of(name) if v.witness)) for name in (own, other))
    assert first is not None
    assert second is not None
    assert not torch.equal((first.adversarial - first.clean).sign(), (second.adversarial - second.clean).sign())


def test_nobody_to_learn_from_is_one_line() -> None:
    ones = rb.load_data("digits:train").take([row for row, label in enumerate(rb.load_data("digits:train").labels) if label == 1][:6])
    with pytest.raises(UsageError, match=r"none of the 6 images of digits to learn from offers the attacker anything: give others"):
        pushed(target=1, fit_data=ones)
    with pytest.raises(UsageError, match="too few images to learn from"):
        pushed(limit=1)


def test_means_have_eps_and_source_of_their_own() -> None:
    asked = [Means("fgsm", eps=0.1), Means("fgsm", eps=0.02), Means("fgsm", "l2", 1.0), Means("fgsm", eps=0.1, source="digits_trades")]
    result = rb.evaluate("digits_cnn", asked, "digits", limit=20, surrogates=["digits_trades"])
    names = ["fgsm[linf,0.1]", "fgsm[linf,0.02]", "fgsm[l2,1]", "fgsm[linf,0.1,from=digits_trades]"]
    assert [c.name for c in result.conditions if c.kind == "attack"] == names
    assert [c.source for c in result.conditions if c.kind == "attack"] == [None, None, None, "digits_trades"]
    with pytest.raises(UsageError, match=r"fgsm is to be made on digits_kwta, which is none of the surrogates \(digits_trades\)"):
        rb.evaluate("digits_cnn", Means("fgsm", source="digits_kwta"), "digits", surrogates=["digits_trades"])


def test_kept_outputs_are_those_of_the_image_that_is_spoken_of() -> None:
    model = rb.load_model("digits_cnn")
    result = rb.evaluate(model, "pgd:steps=3", "digits", eps=0.02, limit=60, goal="full", keep_outputs=True, corruptions="fog:severity=3")
    images = dict(zip((d := rb.load_data("digits", limit=60)).ids, d.pictures, strict=True))
    for v in result.of("clean"):
        torch.testing.assert_close(torch.tensor(v.outputs), model(images[v.sample_id][None])[0])
    name = "pgd:steps=3[linf,0.02]"
    for v in result.of(name):
        assert v.outputs is not None
        if (witness := result.witness(name, v.sample_id)) is not None:
            torch.testing.assert_close(torch.tensor(v.outputs), model(witness.adversarial[None])[0], atol=1e-4, rtol=1e-4)
    assert all(v.outputs is not None and len(v.outputs) == 10 for v in result.of("fog[3]"))
    assert all(v.outputs is None for v in pushed().verdicts)


def test_where_outputs_are_kept_what_is_wrong_already_is_made_worse() -> None:
    asked: dict[str, Any] = {"eps": 0.05, "limit": 300, "goal": "full"}
    result = rb.evaluate("digits_cnn", "pgd:steps=10", "digits", keep_outputs=True, **asked)
    wrong = {v.sample_id: v for v in result.of("clean") if v.broken}
    assert wrong
    for v in result.of("pgd:steps=10[linf,0.05]"):
        if v.sample_id in wrong:
            assert (v.broken, v.broken_by) == (True, "clean")
            logits, clean = torch.tensor(v.outputs), torch.tensor(wrong[v.sample_id].outputs)
            rest = [k for k in range(10) if k != v.label]
            assert logits[rest].max() - logits[v.label] > clean[rest].max() - clean[v.label]
    table = rb.evaluate("digits_cnn", "pgd:steps=10", "digits", **asked).table
    assert table["correct"].tolist() == result.table["correct"].tolist()


def test_a_goal_is_a_target_and_its_witnesses_hold(tmp_path: Path) -> None:
    goal = "trial-eligibility:eligible=0+1"
    result = rb.evaluate("digits_cnn", "pgd:steps=20", "digits", eps=0.2, limit=60, target=goal, out=tmp_path)
    (name,) = (c.name for c in result.conditions if c.kind == "attack")
    assert name == f"pgd:steps=20[linf,0.2,target={goal}]"
    for v in result.of(name):
        assert v.label not in (0, 1)
        if v.broken and v.broken_by != "clean":
            assert v.prediction in (0, 1)
    inside = {v.sample_id for v in result.of("clean") if v.label in (0, 1)}
    assert result.left_out[name] == dict.fromkeys(inside, NOTHING_TO_GAIN)
    assert rb.verify(tmp_path).failures == []
    with pytest.raises(UnknownName, match="unknown target 'upcodign': did you mean 'upcoding'"):
        rb.evaluate("digits_cnn", "pgd", "digits", target="upcodign")
    with pytest.raises(UsageError, match="say which of the 10 classes mean disease"):
        rb.evaluate("digits_cnn", "pgd", "digits", target="missed-disease", limit=4)


def test_what_is_learnt_from_is_not_judged_on() -> None:
    images = grouped()
    with pytest.raises(UsageError, match="the images to learn from are those that are judged on: give images of another split"):
        pushed(fit_data=images.take([0, 1]))
    plain = rb.load_data("digits", limit=60)
    result = pushed(data=plain.take(range(30)), fit_data=plain.take(range(20, 40)), limit=None)
    assert LESSONS.pop() == list(plain.ids[30:40])
    assert "10 images to learn from are judged on as well: nothing was learnt from them" in result.config["notes"]
    first, second = images.take(range(0, 40, 2)), images.take(range(1, 40, 2))
    with pytest.raises(rb.errors.DataError, match=r"10 patients are in .* \(writer-0, writer-1, writer-2, \.\.\.\)"):
        pushed(data=second, fit_data=first)
    assert not LESSONS
    renamed = replace(second, ids=first.ids, groups=None)  # two folders may name their images alike
    assert without_judged(renamed, replace(first, groups=None)) is renamed


def test_what_is_left_out_is_counted_by_its_reason() -> None:
    result = pushed(target=3)
    gone = list(result.left_out[f"Push[linf,{EPS},target=3]"].values())
    assert gone.count(LEARNT_FROM) == 20
    assert 0 < gone.count(NOTHING_TO_GAIN) < 20
    said = [note for note in result.config["notes"] if "target's own class" in note]
    assert [f": {gone.count(NOTHING_TO_GAIN)} images" in note for note in said] == [True]


def test_a_run_that_goes_on_still_says_who_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(name: str, *_: object) -> None:
        if name.startswith("noise"):
            raise KeyboardInterrupt

    asked: dict[str, Any] = {"eps": EPS, "limit": 20, "target": 3, "out": tmp_path}
    monkeypatch.setattr("robustbench_lite.store.Store.record_session", lambda *_: None)  # a process that is killed says nothing more
    with pytest.raises(KeyboardInterrupt):
        rb.evaluate("digits_cnn", ["fgsm", "noise:queries=1"], "digits", progress=killed, **asked)
    monkeypatch.undo()
    result = rb.evaluate("digits_cnn", ["fgsm", "noise:queries=1"], "digits", **asked)
    assert [note.partition("[")[0] for note in result.config["notes"] if "left out" in note] == ["fgsm", "noise:queries=1"]


@dataclass(frozen=True)
class Torn:
    """Pictures of which some cannot be read."""

    pictures: Any
    bad: frozenset[int]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, row: int) -> Tensor:
        if row in self.bad:
            raise rb.errors.DataError(f"image {row} cannot be read")
        picture: Tensor = self.pictures[row]
        return picture


def test_an_image_that_cannot_be_read_teaches_nothing_and_is_undecided(tmp_path: Path) -> None:
    images = rb.load_data("digits", limit=40)
    taught_by = halves(images, 0)[1]
    (bad, *_) = (row for row, key in enumerate(images.ids) if key in taught_by)
    torn = replace(images, pictures=Torn(images.pictures, frozenset([bad])))

    def interrupted(name: str, done: int, *_: object) -> None:
        if name == PUSH and done > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pushed(data=torn, out=tmp_path, on_bad_image="quarantine", progress=interrupted, batch_size=4)
    result = pushed(data=torn, out=tmp_path, on_bad_image="quarantine")
    assert set(result.left_out[PUSH]) == taught_by - {images.ids[bad]}
    assert [v.broken for v in result.of(PUSH) if v.sample_id == images.ids[bad]] == [None]
    assert len(result.of(PUSH)) == 21
    assert not [f for f in result.findings if f.check == "unfinished"]


@pytest.mark.parametrize("target", ["trial-eligibility:eligible=0+1", 1])
def test_a_row_without_images_is_refused(target: Any) -> None:
    images = rb.load_data("digits", limit=60)
    ones = images.take([row for row, label in enumerate(images.labels) if label == 1])
    with pytest.raises(UsageError, match=rf"none of the {len(ones)} images to be judged on offers the attacker anything"):
        rb.evaluate("digits_cnn", "pgd", ones, eps=EPS, target=target)


def test_nor_is_a_row_that_would_hold_nothing_but_what_was_learnt_from() -> None:
    few = grouped(20)  # by whom it was written, so that the halves do not hang on the labels
    learnt = halves(few, 0)[1]
    labels = [2 if key in learnt else 1 for key in few.ids]  # what the attacker wants is in the half that teaches alone
    with pytest.raises(UsageError, match=f"none of the {20 - len(learnt)} images to be judged on"):
        pushed(data=replace(few, labels=labels), target=1)
    assert not LESSONS


def test_outputs_of_attacks_that_stop_early_are_refused() -> None:
    with pytest.raises(UsageError, match="add goal='full', or AUROC and confidences would flatter"):
        rb.evaluate("digits_cnn", "pgd", "digits", limit=4, keep_outputs=True)
