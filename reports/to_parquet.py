"""`table.parquet` and `samples.parquet`: the rows of the CSV files with their types, for large runs (https://parquet.apache.org)."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from robustbench_lite.errors import UsageError
from robustbench_lite.registry import file_format, needs, report
from robustbench_lite.results import TABLE_COLUMNS, Result

from .files import write
from .records import SAMPLE_COLUMNS, Records, samples, table

TYPES = {
    **dict.fromkeys(("eps", "accuracy", "ci_low", "ci_high", "mean_forwards", "mean_backwards", "seconds", "success_all"), float),
    **dict.fromkeys(("success_correct", "median_distance", "at_most", "distance", "confidence", "nll", "brier", "gradient"), float),
    **dict.fromkeys(("radius", "nearest"), float),
    **dict.fromkeys(("severity", "n", "correct", "undecided", "target", "restart", "steps", "forwards", "backwards", "seed"), int),
    "broken": bool,
}
"""Columns that are no text; a class is text too, JSON where it is several."""


@file_format("parquet")
@report("parquet")
@needs("pyarrow", extra="parquet")
def parquet(result: Result) -> list[Path]:
    """Write `table.parquet` and `samples.parquet` into the run's folder.

    Raises:
        UsageError: pyarrow is not installed, or the result has no folder.
        InvalidEvaluation: a file could not be written.
    """
    files = {"table.parquet": (TABLE_COLUMNS, table(result)), "samples.parquet": (SAMPLE_COLUMNS, samples(result))}
    return [write(result, name, _bytes(columns, records)) for name, (columns, records) in files.items()]


def _bytes(columns: tuple[str, ...], records: Records) -> bytes:
    try:
        import pyarrow
        from pyarrow.parquet import write_table
    except ImportError as error:
        raise UsageError("parquet needs pyarrow: install robustbench-lite[parquet], or ask for --format csv") from error
    kinds = {float: pyarrow.float64(), int: pyarrow.int64(), bool: pyarrow.bool_(), str: pyarrow.string()}
    arrays = [pyarrow.array([_cell(r[name], TYPES.get(name, str)) for r in records], kinds[TYPES.get(name, str)]) for name in columns]
    buffer = io.BytesIO()
    write_table(pyarrow.table(arrays, names=list(columns)), buffer)
    return buffer.getvalue()


def _cell(value: Any, kind: type) -> Any:
    if value is None or kind is not str or isinstance(value, str):
        return value
    return json.dumps(value)
