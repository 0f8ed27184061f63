"""Goals by hand-made logits: what the attacker wants counts, a change in another direction never does."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.classifier import Classifier, Preprocess
from robustbench_lite.conditions import checked_target, criterion, offered
from robustbench_lite.data import from_arrays
from robustbench_lite.errors import BadSpec, UnknownName, UsageError
from robustbench_lite.evaluation import evaluate

# one row a label, one column a prediction: # success, . none, - nothing to be gained by such an image
CLASSES = {
    "missed-disease:positive=1+2": ("----", "#..#", "#..#", "----"),
    "missed-disease:positive=3": ("----", "----", "----", "###."),
    "upcoding": (".###", "..##", "...#", "----"),
    "upcoding:order=2+0+1+3": (".#.#", "...#", "##.#", "----"),
    "trial-eligibility:eligible=2": ("..#.", "..#.", "----", "..#."),
    "trial-eligibility:eligible=0+2": ("----", "#.#.", "----", "#.#."),
    "grade-shift": (".###", "#.##", "##.#", "###."),
    "grade-shift:steps=2": ("..##", "...#", "#...", "##.."),
    "grade-shift:steps=3": ("...#", "----", "----", "#..."),
}
TWO = {
    "missed-disease": ("--", "#."),
    "missed-disease:positive=0": (".#", "--"),
    "upcoding": (".#", "--"),
    "upcoding:order=1+0": ("--", "#."),
    "trial-eligibility": (".#", "--"),
    "trial-eligibility:eligible=0": ("--", "#."),
    "grade-shift": (".#", "#."),
}
# label, prediction, success
FINDINGS = {
    "missed-disease": [
        ((1, 0, 1), (0, 0, 1), "#"),
        ((1, 0, 1), (0, 1, 1), "#"),
        ((1, 0, 1), (1, 1, 1), "."),
        ((1, 0, 1), (1, 0, 1), "."),
        ((0, 0, 0), (1, 1, 1), "-"),
    ],
    "missed-disease:positive=1": [
        ((1, 0, 1), (0, 0, 0), "-"),
        ((1, 1, 0), (1, 0, 0), "#"),
        ((1, 1, 0), (0, 1, 1), "."),
        ((0, 1, 0), (0, 1, 0), "."),
    ],
    "upcoding": [
        ((1, 0, 1), (1, 1, 1), "#"),
        ((1, 0, 1), (0, 1, 0), "#"),
        ((1, 0, 1), (0, 0, 0), "."),
        ((1, 0, 1), (1, 0, 1), "."),
        ((1, 1, 1), (0, 0, 0), "-"),
    ],
}


def judged(target: str, labels: Tensor, logits: Tensor) -> str:
    """What becomes of each image, in the marks of the tables."""
    for_him, aimed = offered(labels, target, logits)
    broken = criterion(labels, target, logits).margin(logits) > 0
    assert aimed is None, "a goal drives no image to one class"
    return "".join("-" if not gain else "#" if hit else "." for gain, hit in zip(for_him.tolist(), broken.tolist(), strict=True))


@pytest.mark.parametrize(("target", "table"), [*CLASSES.items(), *TWO.items()])
def test_only_what_the_attacker_wants_is_a_success(target: str, table: tuple[str, ...]) -> None:
    classes = len(table)
    labels = torch.arange(classes).repeat_interleave(classes)
    said = torch.arange(classes).repeat(classes)
    logits = torch.full((classes**2, classes), -1.0).scatter(1, said[:, None], 0.5)
    assert judged(target, labels, logits) == "".join(table)
    assert judged(target, labels, logits + 100) == "".join(table)


@pytest.mark.parametrize(("target", "table"), TWO.items())
def test_a_single_logit_tells_the_same(target: str, table: tuple[str, ...]) -> None:
    labels, logits = torch.tensor([0, 0, 1, 1]), torch.tensor([[-0.1], [0.1], [-0.1], [0.1]])
    assert judged(target, labels, logits) == "".join(table)


@pytest.mark.parametrize(("target", "rows"), FINDINGS.items())
def test_findings_are_turned_round_one_way_only(target: str, rows: list[tuple[Any, Any, str]]) -> None:
    labels, said = (torch.tensor([row[column] for row in rows]).float() for column in (0, 1))
    assert judged(target, labels, said * 2 - 1) == "".join(row[2] for row in rows)


@pytest.mark.parametrize("target", CLASSES)
def test_logits_close_together_are_judged_as_the_prediction_is(target: str) -> None:
    logits = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)).mul(3).round() / 1000  # with ties
    labels = torch.arange(4).repeat(100)
    marks = judged(target, labels, logits)
    assert marks == "".join(CLASSES[target][label][said] for label, said in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True))


# --- an evaluation -----------------------------------------------------------------------------------------------------------


class Grades(nn.Module):
    """Three grades by brightness: below 0.4, up to 0.6, above."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean((1, 2, 3)) * 50
        return torch.stack([20 - bright, torch.zeros_like(bright), bright - 30], 1)


def grades(*brightness: float) -> Any:
    return from_arrays(torch.cat([torch.full((1, 1, 2, 2), value) for value in brightness]), [1] * len(brightness), "grades", classes=3)


@pytest.mark.parametrize(
    ("target", "stands"),
    [
        (None, [False, True, False]),
        ("upcoding", [True, True, False]),
        ("upcoding:order=2+1+0", [False, True, True]),
        ("trial-eligibility:eligible=2", [True, True, False]),
        ("missed-disease:positive=1+2", [False, True, True]),
        ("grade-shift", [False, True, False]),
    ],
)
def test_an_attack_that_can_go_one_way_wins_that_way_only(target: str | None, stands: list[bool]) -> None:
    model = Classifier(Grades().eval(), preprocess=Preprocess(size=None, resize=None, channels=1), classes=3)
    images = grades(0.41, 0.5, 0.59)
    result = evaluate(model, ["pgd:steps=5", "apgd:steps=5"], images, eps=0.03, target=target, device="cpu")
    for row in [name for name in {v.condition for v in result.verdicts} if "pgd" in name]:
        assert [not each.broken for each in sorted(result.of(row), key=lambda v: images.ids.index(v.sample_id))] == stands, row


def test_who_offers_nothing_is_left_out_and_counted() -> None:
    model = Classifier(Grades().eval(), preprocess=Preprocess(size=None, resize=None, channels=1), classes=3)
    images = from_arrays(torch.tensor([0.2, 0.41, 0.9])[:, None, None, None].expand(3, 1, 2, 2), [0, 1, 2], "grades", classes=3)
    result = evaluate(model, "pgd:steps=5", images, eps=0.03, target="missed-disease:positive=1+2", device="cpu")
    row = next(row for row in result.table.to_dict("records") if str(row["condition"]).startswith("pgd"))
    assert (row["n"], row["correct"]) == (2, 1)
    assert any("1 image" in note and "offer" in note for note in result.config["notes"])


# --- refusals ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "labels", "outputs", "said"),
    [
        ("missed-disease", [0, 1, 2], 3, "say which of the 3 classes mean disease: missed-disease:positive=1+2"),
        ("missed-disease:positive=7", [0, 1], 2, "missed-disease names class 7, and the model has the classes 0..1"),
        ("missed-disease:positive=2", [0, 1], 1, "names class 2, and the model has the classes 0..1"),
        ("upcoding:order=0+1", [0, 1, 2], 3, "must name each of the 3 classes once, from mild to severe"),
        ("upcoding:order=0+1+1", [0, 1, 2], 3, "must name each of the 3 classes once"),
        ("upcoding:order=0+1", [[1.0, 0.0]], 2, "findings have no order of severity"),
        ("trial-eligibility", [0, 1, 2], 3, "say which of the 3 classes a study takes in: trial-eligibility:eligible=1+2"),
        ("trial-eligibility", [[1.0, 0.0]], 2, "needs one class an image, and these labels are findings"),
        ("grade-shift", [[1.0, 0.0]], 2, "needs grades, and these labels are findings"),
        ("grade-shift:steps=3", [0, 1, 2], 3, "grade-shift by 3 is impossible among 3 classes"),
        ("upcoding", [[0, 1], [1, -1]], 2, "several right"),
        ("1", [[1.0, 0.0]], 2, "a target is a class, and these labels hold several"),
    ],
)
def test_goals_without_a_meaning_here_are_refused(target: str, labels: list[Any], outputs: int, said: str) -> None:
    checked = checked_target(target)
    with pytest.raises(UsageError, match=re.escape(said)):
        criterion(torch.tensor(labels), checked, torch.zeros(len(labels), outputs))


@pytest.mark.parametrize(
    ("target", "error", "said"),
    [
        ("upcodin", UnknownName, "unknown target 'upcodin': did you mean 'upcoding'"),
        ("cure", UnknownName, "a target is a class index, least-likely or a goal"),
        ("missed-disease:negative=0", BadSpec, "missed-disease has no parameter 'negative'"),
        ("missed-disease:positive=-1", BadSpec, "write class indices with pluses between them"),
        ("trial-eligibility:eligible=a+b", BadSpec, "write class indices with pluses between them"),
        ("missed-disease:positive=", BadSpec, "write class indices with pluses between them"),
        ("grade-shift:steps=0", BadSpec, "grade-shift:steps=0: input should be greater than or equal to 1"),
        ("grade-shift:steps=some", BadSpec, "grade-shift:steps=some: input should be a valid integer"),
    ],
)
def test_unknown_goals_and_options_are_refused(target: str, error: type[UsageError], said: str) -> None:
    with pytest.raises(error, match=said):
        checked_target(target)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("upcodin", "did you mean 'upcoding'"),
        ("missed-disease", "say which of the 10 classes mean disease"),
        ("grade-shift:steps=10", "impossible"),
    ],
)
def test_the_command_line_says_it_in_one_line(inside: Callable[..., Any], target: str, said: str) -> None:
    ran = inside("--model", "digits_cnn", "--data", "digits", "--limit", 4, "--attack", "pgd", "--target", target, "--out", "run")
    assert ran.code == 2
    assert said in ran.complaint
