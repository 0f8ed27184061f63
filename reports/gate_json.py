"""`gate.json`: everything that a gate decided and what it rests on, for machines. docs/ci.md lists its keys."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from robustbench_lite.gate.rulings import Judgement
from robustbench_lite.registry import report
from robustbench_lite.results import Result

from .files import write
from .plain_json import json_text
from .records import table

SCHEMA_VERSION = 1
"""Goes up when a key changes its meaning or goes away, not when one is added."""


@report("gate-json")
def gate_json(judgement: Judgement) -> Path:
    """Write `gate.json` into the run's folder; returns its path.

    Raises:
        UsageError: the result has no folder.
        InvalidEvaluation: the file could not be written.
    """
    result = judgement.result
    said = {
        "schema_version": SCHEMA_VERSION,
        "outcome": judgement.outcome,
        "exit_code": judgement.exit_code,
        "alpha": judgement.alpha,
        "settings": judgement.settings or None,
        "notes": list(judgement.notes),
        "rulings": [asdict(ruling) | {"figures": dict(ruling.figures)} for ruling in judgement.rulings],
        "rows": _rows(result),
        "findings": [asdict(finding) | {"figures": dict(finding.figures)} for finding in result.findings],
        "run": {"folder": str(result.folder)} | dict(result.config),
    }
    return write(result, "gate.json", json_text(said))


def _rows(result: Result) -> list[dict[str, Any]]:
    """The table, each row with the reasons why it is not sound as a list."""
    return [row | _trust(result, row["condition"]) for row in table(result)]


def _trust(result: Result, condition: str) -> dict[str, Any]:
    trust = result.trust[condition]
    return {"trust": trust.level, "at_most": trust.at_most, "reasons": list(trust.reasons), "missing": list(trust.missing)}
