"""`gate-junit.xml`: a gate as a test suite, one case for every rule."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from robustbench_lite.gate.rulings import Judgement, Outcome, Ruling
from robustbench_lite.registry import report

from .files import write
from .gate_words import figure, images, interval, settings_path, subject
from .junit import Case, Suite, junit_xml

OUTCOMES: dict[Outcome, Literal["passed", "failure", "skipped", "error"]] = {
    "pass": "passed",
    "fail": "failure",
    "inconclusive": "skipped",
    "invalid": "error",
}


@report("gate-junit")
def gate_junit(judgement: Judgement) -> Path:
    """Write `gate-junit.xml` into the run's folder; returns its path.

    An inconclusive rule is a skipped case; the exit code says whether it blocks.

    Raises:
        UsageError: the result has no folder.
        InvalidEvaluation: the file could not be written.
    """
    config, path = judgement.result.config, settings_path(judgement)
    properties = {
        "outcome": judgement.outcome,
        "exit_code": str(judgement.exit_code),
        "alpha": f"{judgement.alpha:g}",
        "settings": path,
        "run": str(judgement.result.folder),
        "model_digest": config["model"]["digest"],
        "data_digest": config["data"]["digest"],
    } | {f"note {number}": note for number, note in enumerate(judgement.notes, 1)}
    seconds = dict(judgement.result.seconds)  # the first rule about a row has the time that it took, so that the sum is right
    cases = [
        Case(
            ruling.rule,
            OUTCOMES[ruling.outcome],
            ruling.message,
            _details(ruling),
            path,
            ruling.line,
            seconds.pop(ruling.condition, 0.0),
        )
        for ruling in judgement.rulings
    ]
    return write(judgement.result, "gate-junit.xml", junit_xml(Suite(subject(judgement), properties), cases))


def _details(ruling: Ruling) -> str:
    """Every figure behind a ruling, one a line."""
    lines = {
        "row": ruling.condition,
        "n": images(ruling),
        "estimate": figure(ruling.estimate),
        "interval": interval(ruling),
        "threshold": figure(ruling.threshold),
        "images that would probably decide it": "" if ruling.needed is None else str(ruling.needed),
        "blocks": "yes" if ruling.blocking else "",
    } | {name: f"{value:.6g}" for name, value in ruling.figures.items()}
    return "\n".join(f"{name}: {value}" for name, value in lines.items() if value)
