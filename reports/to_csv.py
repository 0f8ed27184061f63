"""`table.csv`, one row per condition, `samples.csv`, one per verdict, and a file for everything else that a run has rows of.

docs/results.md lists their columns.
"""

from __future__ import annotations

import io
import json
from csv import writer
from pathlib import Path
from typing import Any

from robustbench_lite.registry import file_format, report
from robustbench_lite.results import Result

from .escaping import cell
from .files import write
from .records import Records, derived, samples, table


@file_format("csv")
@report("csv")
def csv(result: Result) -> list[Path]:
    """Write the files into the run's folder; returns their paths. A file that an earlier run left and that this one has no rows for goes.

    Raises:
        UsageError: the result has no folder.
        InvalidEvaluation: a file could not be written.
    """
    files = {"table": table(result), "samples": samples(result), **derived(result)}
    written = [write(result, f"{name}.csv", _lines(records)) for name, records in files.items() if records]
    for name, records in files.items():
        if not records and result.folder is not None:
            result.folder.joinpath(f"{name}.csv").unlink(missing_ok=True)
    return written


def _lines(records: Records) -> str:
    """A heading and one line per record."""
    text = io.StringIO()
    lines = writer(text, lineterminator="\n")
    lines.writerow(map(cell, records[0]))
    lines.writerows([_cell(value) for value in record.values()] for record in records)
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | list | tuple | dict):
        return json.dumps(value)
    return repr(value) if isinstance(value, float) else str(cell(str(value)))
