"""`table.csv`, one row per condition, `samples.csv`, one per verdict, and a file for everything else that a run has rows of.

docs/results.md lists their columns.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from csv import writer
from dataclasses import fields
from pathlib import Path
from typing import Any

from robustbench_lite.calibration import calibration_rows
from robustbench_lite.corruption_metrics import corruption_rows
from robustbench_lite.registry import report
from robustbench_lite.results import Result

from .files import write
from .shapes import shape_rows


@report("csv")
def csv(result: Result) -> list[Path]:
    """Write the files into the run's folder; returns their paths.

    Raises:
        UsageError: the result has no folder.
        InvalidEvaluation: a file could not be written.
    """
    # a severity is a whole number; beside the empty ones pandas would make it 3.0
    table = result.table.astype({"severity": "Int64"}).to_csv(index=False, lineterminator="\n")
    files = {
        "table.csv": table,
        "samples.csv": _lines(result.verdicts),
        "cascade.csv": _lines(result.cascade),
        "transfer.csv": _lines(result.transfer),
        "corruptions.csv": _lines(corruption_rows(result)),
        "calibration.csv": _lines(calibration_rows(result)),
        "sequences.csv": _lines(result.sequences),
        "shape_bias.csv": _lines(shape_rows(result)),
    }
    return [write(result, name, text) for name, text in files.items() if text]


def _lines(records: Sequence[Any]) -> str:
    """One line per record, under the names of its fields; nothing for none."""
    if not records:
        return ""
    text = io.StringIO()
    lines, names = writer(text, lineterminator="\n"), [field.name for field in fields(records[0])]
    lines.writerow(names)
    lines.writerows([_cell(getattr(record, name)) for name in names] for record in records)
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | list | tuple | dict):
        return json.dumps(value)
    return repr(value) if isinstance(value, float) else str(value)
