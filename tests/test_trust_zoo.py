"""The checks on real models: the defended ones that stand are believed, those that mask their gradients are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.results import Result

pytestmark = pytest.mark.slow


class Rounded(nn.Module):
    """A plain network behind eight levels of grey, without a stand-in for their gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.network = rb.load_model("digits_cnn")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(torch.round(x * 8) / 8)
        return logits


class Noisy(Rounded):
    """The same network behind noise."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x + 0.1 * torch.randn_like(x))
        return logits


def evaluated(model: str | nn.Module, attack: str, eps: float, limit: int, **more: Any) -> Result:
    return rb.evaluate(model, data="digits", attacks=attack, eps=eps, norm="linf", limit=limit, witnesses="none", **more)


def levels(result: Result) -> dict[str, str]:
    return {c.kind: result.trust[c.name].level for c in result.conditions if c.kind in ("attack", "worst")}


def named(result: Result) -> set[str]:
    """The checks that doubt or refute some row."""
    return {finding.check for finding in result.findings if finding.weight != "notes"}


def test_an_undefended_model_is_believed_to_fall() -> None:
    result = evaluated("digits_standard", "autoattack", 0.15, 100)
    assert levels(result) == {"attack": "sound", "worst": "sound"}
    assert result.table["accuracy"].iloc[-1] == 0


@pytest.mark.timeout(1200)  # images that stand meet all of autoattack, and fewer of them would be too few to be believed
@pytest.mark.parametrize("model", ["digits_pgd_at", "digits_trades"])
def test_adversarial_training_under_autoattack_is_sound(model: str) -> None:
    doubted = evaluated(model, "autoattack", 0.15, 100, doubt=True)
    assert any(c.kind == "doubt" for c in doubted.conditions)
    left_out = {c.name for c in doubted.conditions if c.kind == "doubt"}
    plain = replace(
        doubted,
        conditions=[c for c in doubted.conditions if c.name not in left_out],
        verdicts=[v for v in doubted.verdicts if v.condition not in left_out],
    )
    for result in (doubted, plain):
        assert levels(result) == {"attack": "sound", "worst": "sound"}, result.findings
        assert result.table["accuracy"].iloc[-1] > 0.3


def test_k_wta_under_pgd_alone_is_doubtful() -> None:
    result = evaluated("digits_kwta", "pgd", 0.05, 100)
    assert levels(result) == {"attack": "doubtful", "worst": "doubtful"}
    assert {"stand-ins", "converged"} <= named(result)
    assert any(counter.attack == "bpda" for finding in result.findings for counter in finding.settle)
    assert any("without gradients" in reason for reason in result.trust["pgd[linf,0.05]"].reasons)


@pytest.mark.parametrize(("model", "eps"), [("digits_kwta", 0.05), ("digits_kwta_at", 0.15)])  # at 0.15 pgd leaves nothing of the first
def test_k_wta_under_pgd_is_refuted_by_square(model: str, eps: float) -> None:
    result = evaluated(model, "pgd", eps, 60, doubt=True)
    assert levels(result) == {"attack": "refuted", "worst": "doubtful"}
    assert "square" in result.trust[f"pgd[linf,{eps}]"].reasons[0]
    assert "black-box" in named(result)


def test_the_attack_made_for_k_wta_settles_it() -> None:
    result = evaluated("digits_kwta", "pgd", 0.05, 20, settle=True)
    believed = result.trust["pgd[linf,0.05]"]
    assert believed.level == "refuted"
    assert believed.at_most <= 0.25
    assert "bpda" in believed.reasons[0]


@pytest.mark.timeout(1200)
def test_k_wta_under_autoattack_is_not_sound() -> None:
    result = evaluated("digits_kwta", "autoattack", 0.05, 100)
    assert levels(result) == {"attack": "doubtful", "worst": "doubtful"}
    assert {"black-box", "local-linear"} <= named(result)


def test_rounding_without_a_stand_in_is_flagged_for_its_gradients() -> None:
    result = evaluated(Rounded().eval(), "pgd", 0.15, 100)
    assert levels(result) == {"attack": "doubtful", "worst": "doubtful"}
    assert "gradients" in named(result)


def test_a_randomised_model_is_flagged_and_tried_again_on_more_answers() -> None:
    result = evaluated(Noisy().eval(), "pgd:steps=10", 0.05, 20, settle=True, eot=2, votes=5)
    assert any(finding.check == "random-answers" for finding in result.findings)
    assert "pgd:steps=10[linf,0.05,eot=10]" in [c.name for c in result.conditions if c.kind == "doubt"]
