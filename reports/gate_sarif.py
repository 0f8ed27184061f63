"""`gate.sarif` (SARIF 2.1.0): every rule that a gate did not pass, as code hosts show them beside the line of the settings file."""

from __future__ import annotations

from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from robustbench_lite.gate.rulings import Judgement, Ruling
from robustbench_lite.plain_text import printable
from robustbench_lite.registry import report

from .files import write
from .gate_words import settings_path
from .plain_json import json_text


@report("gate-sarif")
def gate_sarif(judgement: Judgement) -> Path:
    """Write `gate.sarif` into the run's folder; returns its path.

    A rule that passes has no result, since code hosts show every result as an alert: the alert closes once the rule passes. A failed or
    invalid rule is an error, an inconclusive one a warning where it blocks and else a note.

    Raises:
        UsageError: the result has no folder.
        InvalidEvaluation: the file could not be written.
    """
    rules = list(dict.fromkeys(printable(ruling.rule) for ruling in judgement.rulings))
    run = {
        "tool": {
            "driver": {
                "name": "robustbench-lite",
                "version": version("robustbench-lite"),
                "rules": [{"id": rule, "shortDescription": {"text": rule}} for rule in rules],
            }
        },
        # an evaluation that cannot be believed was not carried out as it should have been
        "invocations": [{"executionSuccessful": judgement.outcome != "invalid", "exitCode": judgement.exit_code}],
        "results": [_result(judgement, ruling, rules) for ruling in judgement.rulings if ruling.outcome != "pass"],
        "properties": {
            "outcome": judgement.outcome,
            "model": judgement.result.config["model"]["digest"],
            "data": judgement.result.config["data"]["digest"],
            "notes": [printable(note) for note in judgement.notes],
        },
    }
    log = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}
    return write(judgement.result, "gate.sarif", json_text(log))


def _result(judgement: Judgement, ruling: Ruling, rules: list[str]) -> dict[str, Any]:
    config, rule, file = judgement.result.config, printable(ruling.rule), settings_path(judgement)
    # what an alert is about, which the next commit's model shares
    cell = "\n".join([config["model"]["name"], config["data"]["name"], ruling.condition, ruling.rule])
    place = {"artifactLocation": {"uri": quote(printable(file))}, "region": {"startLine": ruling.line or 1}}
    figures = {
        "outcome": ruling.outcome,
        "condition": printable(ruling.condition),
        "n": ruling.n,
        "of": ruling.of,
        "estimate": ruling.estimate,
        "low": ruling.low,
        "high": ruling.high,
        "threshold": ruling.threshold,
        "needed": ruling.needed,
        "figures": dict(ruling.figures),
    }
    return {
        "ruleId": rule,
        "ruleIndex": rules.index(rule),
        "level": _level(ruling),
        "message": {"text": printable(f"{ruling.outcome}: {ruling.message}")},
        **({"locations": [{"physicalLocation": place}]} if file else {}),
        "partialFingerprints": {"robustEvalCell/v1": sha256(cell.encode("utf-8", "backslashreplace")).hexdigest()},
        "properties": figures,
    }


def _level(ruling: Ruling) -> str:
    if ruling.outcome != "inconclusive":
        return "error"
    return "warning" if ruling.blocking else "note"
