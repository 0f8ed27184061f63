"""A randomised forward pass: an attack that averages too few answers follows noise (Athalye et al., https://arxiv.org/abs/1802.00420)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from robustbench_lite.diagnostics import Counter, Evidence, Finding, Look
from robustbench_lite.errors import RobustEvalError
from robustbench_lite.registry import ATTACKS, diagnostic
from robustbench_lite.results import Condition
from robustbench_lite.settlement import carried_out

MORE = 5
"""Times as many answers as the run averaged: the standard error of a mean gradient falls to less than half."""


@diagnostic("random-answers")
@dataclass(frozen=True)
class RandomAnswers:
    """The model answers the same image differently each time. Settled by the same attack on more answers, if it breaks nothing."""

    def observe(self, look: Look) -> Mapping[str, Any]:
        return {"random": True} if look.random else {}

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        if not evidence.observed("random-answers"):
            return
        # a transfer attack searches on a surrogate, which is not random; where nothing is left there is nothing to doubt
        rows = [row for row in evidence.attacks if row.source is None and evidence.standing(row)]
        for row in rows:
            yield _finding(evidence, row, evidence.answers(row))
        if not rows:
            yield Finding(
                "random-answers",
                "notes",
                tuple(c.name for c in evidence.result.conditions),
                "the model answers the same image differently each time",
                "every verdict is the majority of several answers",
            )


def _finding(evidence: Evidence, row: Condition, answers: int) -> Finding:
    counter = Counter(_again(row), eot=MORE * answers)
    tried = carried_out(evidence, row, counter)
    quiet = bool(tried) and not any(evidence.broken(c) for c in tried)
    worst = evidence.worst(str(row.norm), float(row.eps or 0))
    # an attack of others asks the model itself, one answer at a time
    averaged = 1 if "whole model" in evidence.doors(row) else answers
    seen = f"the model answers the same image differently each time, and {row.name} averaged {averaged} answers a step"
    return Finding(
        "random-answers",
        "notes" if quiet else "doubts",
        (row.name, *([worst.name] if worst and evidence.standing(worst) else [])),
        f"{seen}; {counter.words} broke nothing more" if quiet else seen,
        "more answers do not change the figure"
        if quiet
        else "an attack that averages too few answers follows noise, so the figure may be too high",
        () if quiet else (counter,),
        {"answers": averaged},
    )


def _again(row: Condition) -> str:
    """The row's own attack where it can be had again and averages answers, else pgd."""
    try:
        ATTACKS.build(str(row.attack))
    except RobustEvalError:
        return "pgd"
    return "pgd" if "whole model" in row.doors.values() else str(row.attack)
