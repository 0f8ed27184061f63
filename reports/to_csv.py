"""Two CSV files: `table.csv`, one row per condition, and `samples.csv`, one per verdict. docs/results.md lists their columns."""

from __future__ import annotations

import io
import json
from csv import writer
from pathlib import Path
from typing import Any

from robustbench_lite.registry import report
from robustbench_lite.results import VERDICT_FIELDS, Result

from .files import write


@report("csv")
def csv(result: Result) -> list[Path]:
    """Write `table.csv` and `samples.csv` into the run's folder; returns their paths.

    Raises:
        UsageError: the result has no folder.
        InvalidEvaluation: a file could not be written.
    """
    # a severity is a whole number; beside the empty ones pandas would make it 3.0
    table = result.table.astype({"severity": "Int64"}).to_csv(index=False, lineterminator="\n")
    samples = io.StringIO()
    lines = writer(samples, lineterminator="\n")
    lines.writerow(VERDICT_FIELDS)
    lines.writerows([_cell(getattr(v, name)) for name in VERDICT_FIELDS] for v in result.verdicts)
    return [write(result, "table.csv", table), write(result, "samples.csv", samples.getvalue())]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | list | tuple):
        return json.dumps(value)
    return repr(value) if isinstance(value, float) else str(value)
