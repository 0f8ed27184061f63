"""A grey model with one logit, which is what many clinical models are, under AutoAttack and under every scenario for its labels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.classifier import Classifier
from robustbench_lite.scenario_running import run_all


class OneLogit(nn.Module):
    """The odds of class 1, of a model with two classes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).diff(dim=1)


def single(name: str) -> Classifier:
    model = rb.load_model(name)
    return Classifier(OneLogit(model), name=f"{name}_one_logit", preprocess=model.preprocess, classes=2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_autoattack_breaks_what_it_breaks_with_two_outputs() -> None:
    asked = {"attacks": "autoattack", "data": "phantom:chest", "eps": 0.01, "limit": 16}
    one, two = (rb.evaluate(model, **asked) for model in (single("phantom_chest"), "phantom_chest"))  # type: ignore[arg-type]  # as named
    name = "autoattack[linf,0.01]"
    assert [v.broken for v in one.of("clean")] == [v.broken for v in two.of("clean")]
    assert sum(v.broken is False for v in one.of(name)) <= sum(v.broken is False for v in two.of(name))


@pytest.mark.slow
def test_every_scenario_for_binary_labels_runs_on_it() -> None:
    surrogates = [single("phantom_chest_twin"), single("phantom_chest_other")]
    outcome = run_all(single("phantom_chest"), "phantom:chest", surrogates=surrogates, fit_data="phantom:chest,split=val,n=24", limit=8)
    ran = {report.name for report in outcome.reports}
    assert {"finlayson-cxr", "missed-tumour"} <= ran | set(outcome.left_out)
    assert "finlayson-cxr" in ran
    for report in outcome.reports:
        measured = [row for row in report.rows if row.figures is not None]
        assert len(measured) >= 3
        assert {row.missing for row in report.rows if row.figures is None} <= {
            "a public pre-trained network: give one with --backbone",
        }
        assert measured[0].figures is not None
        assert measured[0].figures.auroc.value is not None
        attacked = [row for row in measured if row.row.name.startswith("PGD, white box")]
        for row in attacked:
            assert row.figures is not None
            assert (row.figures.accuracy.value or 0) < (measured[0].figures.accuracy.value or 0)
