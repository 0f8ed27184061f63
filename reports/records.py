"""Everything that a run has rows of, by the name of the file that holds them: what CSV, JSON and Parquet write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from robustbench_lite.calibration import calibration_rows
from robustbench_lite.corruption_metrics import corruption_rows
from robustbench_lite.quarantine import quarantine
from robustbench_lite.results import TABLE_COLUMNS, VERDICT_FIELDS, Result

from .believing import doubted, finding_rows
from .per_class import class_rows
from .shapes import shape_rows

Records = Sequence[dict[str, Any]]
SAMPLE_COLUMNS = (*VERDICT_FIELDS, "nearest")


def table(result: Result) -> Records:
    """The rows of `Result.table`, None where a cell is empty."""
    frame = result.table
    rows = frame.astype(object).where(frame.notna(), None)[list(TABLE_COLUMNS)].to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def samples(result: Result) -> Records:
    """One record per verdict, with how far its nearest broken image lies."""
    return [{**record, "nearest": v.nearest} for record, v in zip(_records(result.verdicts), result.verdicts, strict=True)]


def derived(result: Result) -> dict[str, Records]:
    """What is computed from the verdicts beside the table."""
    return {
        "cascade": _records(result.cascade),
        "transfer": _records(result.transfer),
        "corruptions": _records(corruption_rows(result)),
        "calibration": _records(calibration_rows(result)),
        "sequences": _records(result.sequences),
        "shape_bias": _records(shape_rows(result)),
        "findings": _records(finding_rows(result)),
        "doubts": _records(doubted(result)),
        "certificates": _records(result.proof_rows),
        "proofs": _records(result.proofs),
        "per_class": _records(class_rows(result)),
        "quarantine": _records(quarantine(result)),
    }


def _records(rows: Sequence[Any]) -> Records:
    # not `asdict`, which copies every value: there may be millions
    names = [field.name for field in fields(rows[0])] if rows else []
    return [{name: getattr(row, name) for name in names} for row in rows]
