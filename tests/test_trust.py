"""Numbers that would flatter a model, each by a way that was once open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.errors import RunMismatch
from robustbench_lite.labelled import LabelledImages, from_arrays
from robustbench_lite.store import read_run


class Linear(nn.Module):
    """Two classes by mean brightness, with `between` applied to the image first."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.between, self.weight = between, nn.Parameter(torch.tensor([[1.0], [-1.0]]))
        self.bias = nn.Parameter(torch.tensor([-0.5, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.between(x).flatten(1).mean(1, keepdim=True), self.weight, self.bias)


def model(between: Callable[[Tensor], Tensor] = lambda x: x) -> rb.Classifier:
    return rb.Classifier(Linear(between).eval(), classes=2)


def images(count: int = 12) -> LabelledImages:
    """Right and clear, but for the first two, whose labels are wrong."""
    x = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.2
    x[::2] += 0.7
    y = torch.tensor([0, 1] * (count // 2))
    y[:2] = 1 - y[:2]
    return from_arrays(x, y)


def test_a_targeted_row_is_never_above_the_clean_one() -> None:
    table = rb.evaluate(model(), "fgsm", images(), eps=1e-4, target=1).table.set_index("condition")
    left = 6  # images whose label is not the target; one of them is wrong when clean
    assert table.loc["clean", "correct"] == 10
    assert (table.loc["fgsm[linf,0.0001,target=1]", "n"], table.loc["fgsm[linf,0.0001,target=1]", "correct"]) == (left, left - 1)
    assert table.loc["worst[linf,0.0001,target=1]", "correct"] == left - 1


def test_a_rounding_model_is_not_called_robust() -> None:
    result = rb.evaluate(model(lambda x: torch.round(x * 16) / 16), "pgd", images(), eps=0.2)
    for row in ("pgd[linf,0.2]", "worst[linf,0.2]"):
        assert result.trust[row].level == "doubtful"
        assert any("zero" in reason for reason in result.trust[row].reasons)


def test_a_model_with_random_answers_is_judged_by_votes_and_said_to_be() -> None:
    result = rb.evaluate(model(lambda x: x + torch.rand_like(x)), "pgd", images(), eps=0.2)
    assert any("is randomised: verdicts by 10 votes" in note for note in result.config["notes"])


def test_changed_weights_are_another_model(tmp_path: Path) -> None:
    classifier = model()
    rb.evaluate(classifier, "fgsm", images(), eps=0.1, out=tmp_path / "run")
    with torch.no_grad():
        classifier.model.bias.mul_(0)
    with pytest.raises(RunMismatch, match="another model"):
        rb.evaluate(classifier, "fgsm", images(), eps=0.1, out=tmp_path / "run")


def test_changed_code_is_noticed_by_its_answers(tmp_path: Path) -> None:
    first, second = model(lambda x: x), model(lambda x: 0.5 * x)
    assert first.digest == second.digest
    rb.evaluate(first, "fgsm", images(), eps=0.1, out=tmp_path / "run")
    with pytest.raises(RunMismatch, match="when this run began"):
        rb.evaluate(second, "fgsm", images(), eps=0.1, out=tmp_path / "run")


def test_results_without_their_record_are_not_adopted(tmp_path: Path) -> None:
    rb.evaluate(model(), "fgsm", images(), eps=0.1, out=tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(RunMismatch, match=r"no run\.json"):
        rb.evaluate(model(lambda x: 0.5 * x), "fgsm", images(), eps=0.1, out=tmp_path / "run")


def test_changed_pictures_are_noticed(tmp_path: Path) -> None:
    from PIL import Image

    for name, grey in (("0", 230), ("1", 20)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (4, 4), (grey + number,) * 3).save(tmp_path / "data" / name / f"{number}.bmp")
    data = f"imagefolder:{tmp_path / 'data'}"
    rb.evaluate(model(), "fgsm", data, eps=0.1, out=tmp_path / "run")
    for path in (tmp_path / "data").rglob("*.bmp"):
        Image.new("RGB", (4, 4), (128,) * 3).save(path)  # of the same size in bytes
    with pytest.raises(RunMismatch, match="is not the one that this run began with"):
        rb.evaluate(model(), "fgsm", data, eps=0.1, out=tmp_path / "run")


def test_an_interrupted_run_says_so_and_has_no_worst_case_of_half_its_attacks(tmp_path: Path) -> None:
    def stop(condition: str, done: int, total: int, broken: int) -> None:
        if condition.startswith("pgd"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rb.evaluate(model(), ["fgsm", "pgd"], images(), eps=0.01, out=tmp_path / "run", progress=stop)
    result = read_run(tmp_path / "run")
    assert any(note.startswith("UNFINISHED") and "fgsm[linf,0.01] 12" in note for note in result.config["notes"])
    worst = [v for v in result.verdicts if v.condition.startswith("worst")]
    assert all(v.broken for v in worst)  # at most what was wrong when clean, which no attack need try
    finished = rb.evaluate(model(), ["fgsm", "pgd"], images(), eps=0.01, out=tmp_path / "run")
    assert not any("UNFINISHED" in note for note in finished.config["notes"])
    assert len(finished.of("worst[linf,0.01]")) == 12


def test_the_query_budget_is_the_images_and_not_the_restarts() -> None:
    verdicts = rb.evaluate(model(), "pgd:steps=10,restarts=5", images(), eps=0.01, query_budget=6).of("pgd:steps=10,restarts=5[linf,0.01]")
    assert max(v.forwards + v.backwards for v in verdicts) == 6
