"""A gate inside a test suite: `assert_robust` fails the test that calls it unless the model is shown to be as robust as stated.

    import pytest
    from robustbench_lite.testing import assert_robust

    @pytest.mark.robustness
    def test_the_model_withstands_apgd():
        assert_robust("digits_pgd_at", attack="apgd", data="digits", eps=0.1, at_least=0.6, limit=300)

`pytest -m "not robustness"` leaves such tests out. The marker comes with the package, by its plug-in for pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from .gate.rulings import Judgement
    from .labelled import LabelledImages
    from .plan import Attack
    from .results import Result

__all__ = ["RobustnessNotShown", "assert_robust"]

told: ContextVar[Callable[[str], None] | None] = ContextVar("told", default=None)
"""Who is told what came of every `assert_robust`; the plug-in, while a test runs."""


class RobustnessNotShown(AssertionError):
    """The model failed, or nothing could be decided; `judgement.outcome` is `fail`, `inconclusive` or `invalid`."""

    def __init__(self, judgement: Judgement) -> None:
        super().__init__(_sentence(judgement))
        self.judgement = judgement


def assert_robust(
    model: str | nn.Module,
    attack: str | Attack | Sequence[str | Attack] = "apgd",
    data: str | LabelledImages | Iterable[Any] | None = None,
    *,
    at_least: float,
    eps: float | str | None = None,
    norm: str | None = None,
    limit: int | None = None,
    alpha: float = 0.05,
    on_inconclusive: Literal["fail", "skip"] = "fail",
    doubt: bool = False,
    seed: int = 0,
    out: str | Path | None = None,
) -> Result:
    """Assert that the share of images which stay right under attack is at least so large, by the decision rule of `robust-eval gate`.

    It passes where the lower bound of the accuracy reaches `at_least`, and not where only the estimate does. Under several attacks an
    image counts as right where it withstands them all.

    Args:
        model, attack, data, eps, norm, limit, doubt, seed, out: as `evaluate` takes them.
        at_least: accuracy under attack, in [0, 1].
        alpha: one-sided level of the decision, in (0, 0.5).
        on_inconclusive: with too few images to decide, fail the test or skip it.

    Returns:
        What was found, where the assertion holds.

    Raises:
        RobustnessNotShown: the model failed, nothing could be decided, or the figure cannot be believed.
        UsageError: the model, the data or an option cannot be used.
        InvalidEvaluation: the evaluation began and cannot be trusted or kept.
    """
    __tracebackhide__ = True  # so that pytest shows the line that called
    from .errors import UsageError
    from .evaluation import evaluate
    from .gate.decisions import decide
    from .gate.rules import parse
    from .gate.rulings import Judgement

    if on_inconclusive not in ("fail", "skip"):
        raise UsageError(f"on_inconclusive is fail or skip, got {on_inconclusive!r}")
    if not 0 < alpha < 0.5:
        raise UsageError(f"alpha must lie between 0 and 0.5, got {alpha:g}: 0.05 is usual")
    rules = [parse(f"worst.accuracy >= {float(at_least)!r}")]
    result = evaluate(model, attack, data, eps=eps, norm=norm, limit=limit, doubt=doubt, seed=seed, out=out)
    judgement = Judgement(
        decide(rules, result, alpha=alpha, on_inconclusive="fail" if on_inconclusive == "fail" else "warn"), result, alpha=alpha
    )
    tell = told.get()
    if tell is not None:
        tell(_sentence(judgement))
    if judgement.outcome == "pass":
        return result
    if judgement.outcome == "inconclusive" and on_inconclusive == "skip":
        import pytest

        pytest.skip(_sentence(judgement))
    raise RobustnessNotShown(judgement)


def _sentence(judgement: Judgement) -> str:
    """`fail: digits_standard on digits: worst.accuracy >= 0.6: ...`"""
    config = judgement.result.config
    said = "; ".join(f"{ruling.rule}: {ruling.message}" for ruling in judgement.rulings)
    return f"{judgement.outcome}: {config['model']['name']} on {config['data']['name']}: {said}"
