"""Gradients without the stand-ins that layers declare: the figure that flatters, the one that does not, and what the report says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_fixture import Ran
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.bpda import as_they_are, straight_through
from robustbench_lite.errors import RunMismatch, UsageError
from robustbench_lite.gate.running import run_gate
from robustbench_lite.gate.settings import read_settings
from robustbench_lite.models import load_model
from robustbench_lite.results import Result
from robustbench_lite.store import read_run

Inside = Callable[..., Ran]
PLAIN, ADAPTIVE = "pgd:steps=10[linf,0.1]", "bpda:steps=10[linf,0.1]"
ADVICE = "were taken as they are: leave --no-stand-ins out"


def command(spec: str, *more: object, limit: int = 50, out: str = "run") -> list[object]:
    model = ["--model", "digits_standard", "--defense", spec, "--data", "digits", "--limit", limit]
    return [*model, "--attack", "pgd:steps=10", "--eps", "0.1", "--out", out, *more]


def accuracy(result: Result, condition: str) -> float:
    return float(result.table.set_index("condition").loc[condition, "accuracy"])


@pytest.mark.parametrize(("spec", "layer"), [("jpeg", "Compression"), ("bit-depth", "Rounding")])
def test_one_command_shows_what_plain_gradients_hide_and_refutes_them(inside: Inside, tmp_path: Path, spec: str, layer: str) -> None:
    ran = inside(*command(spec, "--attack", "bpda:steps=10", "--no-stand-ins", "--format", "html,md"))
    result = read_run(tmp_path / "run")
    plain, adaptive = accuracy(result, PLAIN), accuracy(result, ADAPTIVE)
    assert ran.code == 0
    assert plain >= 0.9
    assert adaptive <= 0.2

    trust = result.trust[PLAIN]
    assert trust.level == "refuted"
    assert trust.at_most == pytest.approx(accuracy(result, "worst[linf,0.1]"))
    assert any(reason.startswith(f"of the {plain * 50:g} images that {PLAIN} counts as right") for reason in trust.reasons)
    assert f"gradients of {layer} {ADVICE}" in trust.reasons
    assert not any(ADVICE in reason for name in (ADAPTIVE, "worst[linf,0.1]") for reason in result.trust[name].reasons)
    assert not any("by the stand-in" in finding.seen for finding in result.findings)

    said = " ".join(ran.out.split())
    assert f"note: gradients of {layer} were taken as they are, which flatters: leave --no-stand-ins out" in said
    assert "refuted" in said
    for file in ("report.html", "report.md"):
        text = (tmp_path / "run" / file).read_text().replace("\\", "")
        assert "refuted" in text
        assert f"radients of {layer} {ADVICE}" in text

    assert inside(*command(spec, "--no-stand-ins", "--strict", limit=20, out="alone")).code == 1
    alone = read_run(tmp_path / "alone")
    assert {alone.trust[name].level for name in (PLAIN, "worst[linf,0.1]")} == {"doubtful"}
    assert f"gradients of {layer} {ADVICE}" in alone.trust["worst[linf,0.1]"].reasons
    assert inside(*command(spec, limit=20, out="usual")).code == 0
    assert accuracy(read_run(tmp_path / "usual"), PLAIN) <= 0.2


def test_doubt_tries_the_stand_ins_by_itself() -> None:
    model = load_model("digits_standard", defense="jpeg")
    result = rb.evaluate(model, "pgd:steps=5", "digits", eps=0.1, limit=5, stand_ins=False, doubt=True)
    assert accuracy(result, "pgd:steps=5[linf,0.1]") == 1
    assert accuracy(result, "worst[linf,0.1]") == 0
    assert result.trust["pgd:steps=5[linf,0.1]"].level == "refuted"
    assert result.trust["pgd:steps=5[linf,0.1]"].at_most == 0
    assert [v.broken for v in result.of("bpda[linf,0.1]")] == [True] * 5


def test_rows_without_gradients_are_not_doubted_for_it() -> None:
    model = load_model("digits_standard", defense="jpeg")
    result = rb.evaluate(model, ["square:queries=20", "pgd:steps=2"], "digits", eps=0.05, limit=5, stand_ins=False)
    reasons = {name: any(ADVICE in reason for reason in trust.reasons) for name, trust in result.trust.items()}
    assert reasons == {"clean": False, "square:queries=20[linf,0.05]": False, "pgd:steps=2[linf,0.05]": True, "worst[linf,0.05]": True}


def test_a_run_does_not_go_on_the_other_way(inside: Inside) -> None:
    for first, second in (((), ("--no-stand-ins",)), (("--no-stand-ins",), ())):
        out = "-".join(("run", *first))
        assert inside(*command("bit-depth", *first, limit=3, out=out)).code == 0
        assert inside(*command("bit-depth", *first, limit=3, out=out)).code == 0
        ran = inside(*command("bit-depth", *second, limit=3, out=out))
        assert ran.code == 2
        assert "is a run with another no_stand_ins (" in ran.complaint
        assert ran.complaint.endswith("choose another --out, or --fresh to start over")


def test_what_has_no_stand_in_to_leave_out_is_refused(inside: Inside) -> None:
    for model in ("digits_standard", "digits_kwta"):
        ran = inside("--model", model, "--attack", "pgd", "--limit", 2, "--no-stand-ins")
        assert (ran.code, ran.complaint) == (2, f"no layer of {model} declares a stand-in for its gradient: leave --no-stand-ins out")
    with pytest.raises(UsageError, match=r"^a transfer attack follows the gradients of surrogates: leave --surrogate or --no-stand-ins"):
        rb.evaluate(load_model("digits_standard", defense="jpeg"), "pgd", "digits", surrogates=["digits_cnn"], stand_ins=False)


def test_a_gate_has_no_such_setting_and_takes_no_such_baseline(inside: Inside, tmp_path: Path) -> None:
    assert inside("gate", "--no-stand-ins").code == 2
    assert inside(*command("bit-depth", "--no-stand-ins", limit=3)).code == 0
    settings = {"model": "digits_standard", "defense": "bit-depth", "data": "digits", "limit": 3, "attacks": ["pgd:steps=10"], "eps": 0.1}
    asked = read_settings(overrides={**settings, "rules": ["worst.accuracy no_worse_than baseline"], "baseline": str(tmp_path / "run")})
    with pytest.raises(RunMismatch, match="was made with no_stand_ins Rounding, not None"):
        run_gate(asked)


# --- the gradients themselves


class Floor(nn.Module):
    """Whole numbers with a declared stand-in, and with no gradient of their own or with a wrong one."""

    def __init__(self, *, connected: bool) -> None:
        super().__init__()
        self.connected = connected

    def forward(self, x: Tensor) -> Tensor:
        whole = x.detach().floor()
        return whole + 2 * (x - x.detach()) if self.connected else whole

    def surrogate_backward(self, x: Tensor) -> Tensor:
        return x


def test_gradients_as_they_are_by_hand() -> None:
    def slope(model: nn.Module) -> Tensor:
        leaf = torch.tensor([[0.5, 1.5]], requires_grad=True)
        answer = model(leaf)
        assert answer.tolist() == [[0.0, 1.0]]
        return torch.autograd.grad(answer.sum(), leaf)[0]

    for connected, expected in ((False, 0.0), (True, 2.0)):
        model = nn.Sequential(Floor(connected=connected))
        with as_they_are(model):
            assert slope(model).tolist() == [[expected] * 2]
            with straight_through(model, "smooth") as names:
                assert names == ["0"]
                assert slope(model).tolist() == [[1.0, 1.0]]
            assert slope(model).tolist() == [[expected] * 2]
            with torch.no_grad():
                assert not model(torch.ones(1, 2)).requires_grad
        assert not any(module._forward_hooks for module in model.modules())
