"""`report.json`: everything that a run says, in one file for machines, without the verdicts on single images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustbench_lite.corruption_metrics import corruptions
from robustbench_lite.registry import file_format, report
from robustbench_lite.results import Result

from .believing import lacking, summary
from .files import write
from .plain_json import json_text
from .records import derived, table
from .table import rows

SCHEMA = 1
"""Version of what `report.json` holds. Within a version names are only ever added; docs/results.md lists them."""


@file_format("json")
@report("json")
def to_json(result: Result) -> list[Path]:
    """Write `report.json` into the run's folder; what is infinite is the text `inf`, since JSON has no such number.

    Raises:
        UsageError: the result has no folder.
        InvalidEvaluation: the file could not be written.
    """
    return [write(result, "report.json", json_text(content(result)))]


def content(result: Result) -> dict[str, Any]:
    """What the file holds."""
    trust = {
        name: {"level": trust.level, "at_most": trust.at_most, "reasons": trust.reasons, "missing": trust.missing}
        for name, trust in result.trust.items()
    }
    figures = [
        {"name": f.name, "value": f.estimate.value, "low": f.estimate.low, "high": f.estimate.high, "meaning": f.meaning}
        for f in corruptions(result).figures
    ]
    return {
        "schema": SCHEMA,
        "summary": summary(result.config["model"]["name"], rows(result)),
        "config": result.config,
        "table": table(result),
        "trust": trust,
        "missing": lacking(result),
        **derived(result),
        "corruption_figures": figures,
        "sequence_figures": result.sequence_figures,
    }
