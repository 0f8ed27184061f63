"""Attacks that are tried in doubt: which images they meet, what they change, and that an interrupted run goes on with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import robustbench_lite as rb
from robustbench_lite import diagnostics
from robustbench_lite.diagnostics import Counter, Evidence, Finding
from robustbench_lite.errors import RunMismatch, UsageError
from robustbench_lite.results import Condition, Verdict
from robustbench_lite.store import read_run
from robustbench_lite.worst import worst_case

EPS = 0.04
ASKED, WORST = f"fgsm[linf,{EPS}]", f"worst[linf,{EPS}]"


@dataclass(frozen=True)
class Suspicious:
    """A check that doubts every attack, tries one more, and would have another settle it."""

    def doubts(self, asked: Sequence[Condition]) -> list[Counter]:
        return [Counter("pgd:steps=10"), Counter("fgsm", eps=0.5)]

    def observe(self, look: diagnostics.Look) -> dict[str, Any]:
        x, labels = look.batch(look.ids[:3])
        return {"shape": list(x.shape), "labels": labels.tolist(), "logits": list(look.logits.shape)}

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        if evidence.observed("suspicious"):
            yield Finding("suspicious", "doubts", (ASKED,), "it looks bad", "it may be worse", (Counter("pgd", eot=5),))


@pytest.fixture(autouse=True)
def one_check(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(diagnostics.checks())["witnessed"]
    monkeypatch.setattr(diagnostics, "checks", lambda: iter([("suspicious", Suspicious()), ("witnessed", known)]))


def evaluated(**more: Any) -> rb.Result:
    return rb.evaluate("digits_cnn", "fgsm", eps=EPS, limit=40, **more)


@pytest.fixture(scope="module")
def plain() -> rb.Result:
    return rb.evaluate("digits_cnn", "fgsm", eps=EPS, limit=40)


def test_without_doubt_nothing_more_is_attacked(plain: rb.Result) -> None:
    assert [c.name for c in evaluated().conditions] == ["clean", ASKED, WORST]


def test_doubts_meet_what_the_asked_left_and_count_in_the_worst_case(plain: rb.Result) -> None:
    result = evaluated(doubt=True)
    left = [v.sample_id for v in result.of(ASKED) if v.broken is False]
    for doubt in (f"pgd:steps=10[linf,{EPS}]", "fgsm[linf,0.5]"):
        assert [v.sample_id for v in result.of(doubt)] == left
    assert [v.broken for v in result.of(ASKED)] == [v.broken for v in plain.of(ASKED)]
    found = {v.sample_id for v in result.of(f"pgd:steps=10[linf,{EPS}]") if v.broken}
    assert found
    assert {v.sample_id for v in result.of(WORST) if v.broken} == {v.sample_id for v in result.of(ASKED) if v.broken} | found
    assert list(result.table.condition) == ["clean", ASKED, WORST]  # a doubt has met some images only, and has no accuracy
    assert result.trust[ASKED].level == "refuted"
    assert result.trust[ASKED].at_most == result.table.set_index("condition").accuracy[WORST]
    assert set(result.trust[ASKED].findings[0].samples) == found


def test_what_was_observed_is_kept(plain: rb.Result) -> None:
    seen = evaluated().config["observed"]["suspicious"]
    assert seen["shape"] == [3, 3, 32, 32]
    assert len(seen["labels"]) == 3
    assert seen["logits"] == [40, 10]


def test_findings_start_what_would_settle_them() -> None:
    result = evaluated(settle=True)
    settled = f"pgd[linf,{EPS},eot=5]"
    assert [c.name for c in result.conditions if c.kind == "doubt"][-1] == settled
    stood = {v.sample_id for v in evaluated(doubt=True).of(WORST) if v.broken is False}
    assert {v.sample_id for v in result.of(settled)} == stood  # of the finding's row, with all that was known to be broken taken away


def test_an_interrupted_doubt_goes_on(tmp_path: Path) -> None:
    def stop(condition: str, done: int, total: int, broken: int) -> None:
        if condition.startswith("pgd") and "eot" not in condition and done:
            raise KeyboardInterrupt

    whole = evaluated(settle=True)
    with pytest.raises(KeyboardInterrupt):
        evaluated(settle=True, out=tmp_path / "run", progress=stop)
    assert "observed" not in {k for k, v in read_run(tmp_path / "run").config.items() if v}
    again = evaluated(settle=True, out=tmp_path / "run")
    assert [(v.condition, v.sample_id, v.broken) for v in again.verdicts] == [(v.condition, v.sample_id, v.broken) for v in whole.verdicts]
    once_more = evaluated(settle=True, out=tmp_path / "run")
    assert once_more.table.equals(read_run(tmp_path / "run").table)
    assert [f.seen for f in once_more.findings] == [f.seen for f in whole.findings]


def test_a_twins_images_are_tried() -> None:
    result = evaluated(doubt=True, twin="digits_standard")
    (condition,) = (c for c in result.conditions if c.source)
    assert condition.kind == "doubt"
    assert condition.doors == {"": "surrogate"}
    assert len(result.of(condition.name)) == sum(v.broken is False for v in result.of(ASKED))
    assert not result.transfer


@pytest.mark.parametrize("what", ["twin", "training_data"])
def test_what_only_doubts_look_at_is_not_left_out_silently(what: str) -> None:
    with pytest.raises(UsageError, match="add --doubt"):
        evaluated(**{what: "digits_standard" if what == "twin" else "digits:train"})


def test_a_run_that_looked_at_other_training_data_is_another_run(tmp_path: Path) -> None:
    run = {"doubt": True, "out": tmp_path / "run"}
    evaluated(training_data="digits:train", **run)
    evaluated(training_data="digits:train", **run)
    with pytest.raises(RunMismatch, match="another training"):
        evaluated(training_data="digits", **run)


def test_transfer_and_doubts_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="leave --surrogate out"):
        evaluated(doubt=True, surrogates=["digits_standard"])


@pytest.mark.parametrize("stated", [45, -0.1])
def test_a_stated_accuracy_is_a_share(stated: float) -> None:
    with pytest.raises(UsageError, match=r"76 % is 0\.76"):
        evaluated(stated_accuracy=stated)


def test_a_condition_ends_where_enough_is_known() -> None:
    seen: list[int] = []

    def enough(condition: str, fates: Mapping[str, bool | None]) -> bool:
        seen.append(len(fates))
        return condition == ASKED and len(fates) >= 10

    verdicts = evaluated(enough=enough, batch_size=4).of(ASKED)
    assert 10 <= len(verdicts) < 40
    assert max(seen) == len(verdicts)


def test_doubts_that_need_gradients_are_left_out_where_there_are_none() -> None:
    classifier = rb.load_model("digits_cnn")
    classifier.differentiable = False
    result = rb.evaluate(classifier, "noise:queries=5", eps=EPS, limit=20, doubt=True)
    assert [c.kind for c in result.conditions] == ["clean", "attack", "worst"]


def verdict(condition: str, key: str, broken: bool) -> Verdict:
    return Verdict(key, None, condition, 0, 0, 0, None, broken, "pgd" if broken else None, 0, None, 0.0, 1.0, 1, 1, 1, "fp32", 0, None)


def test_what_breaks_in_a_small_ball_is_broken_in_a_large_one() -> None:
    small, large = (Condition(f"pgd[linf,{eps}]", "attack", "pgd", "linf", eps) for eps in (0.1, 0.2))
    other = Condition("pgd[l2,0.1]", "attack", "pgd", "l2", 0.1)
    fates = {small: (True, False), large: (False, False), other: (False, True)}
    verdicts = [verdict(c.name, key, broken) for c, each in fates.items() for key, broken in zip("ab", each, strict=True)]
    found = {(v.condition, v.sample_id): v.broken for v in worst_case([small, large, other], verdicts)[1]}
    assert found["worst[linf,0.2]", "a"] is True
    assert found["worst[linf,0.2]", "b"] is False
    assert found["worst[l2,0.1]", "a"] is False


def test_the_largest_gradient_is_kept() -> None:
    classifier = rb.load_model("digits_cnn")
    result = rb.evaluate(classifier, "fgsm", eps=0.01, limit=20)
    images = rb.load_data("digits", limit=20)
    by_id = {v.sample_id: v for v in result.of("fgsm[linf,0.01]") if v.broken_by != "clean"}
    place = images.ids.index(next(iter(by_id)))
    image, label = images[place]
    x = image[None].clone().requires_grad_()
    (slope,) = torch.autograd.grad(torch.nn.functional.cross_entropy(classifier(x), torch.tensor([label])), x)
    assert by_id[images.ids[place]].gradient == pytest.approx(float(slope.abs().max()), rel=1e-3)
