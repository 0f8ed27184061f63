"""Corruptions as every report shows them: accuracy by corruption and severity, confidences by severity, one image under each."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

from robustbench_lite.calibration import CalibrationRow, calibration_row
from robustbench_lite.corruption_metrics import CorruptionRow
from robustbench_lite.pictures import picture_in
from robustbench_lite.results import Result, Verdict

from .table import Row

MANY = 10
"""More rows of corruptions than this stand in a heat map of their own and not in the main table."""

SEVERITIES = range(1, 6)
SHEET = 700_000  # bytes that the pictures of the sheet share
SMALL = 96  # pixels, of a picture that had to be made smaller


@dataclass(frozen=True)
class HeatRow:
    """One corruption: the row of the table at severities 1 to 5, None where it was not run, and the mean accuracy with its interval."""

    corruption: str
    cells: Sequence[Row | None]
    mean: float
    low: float
    high: float


def heat(result: Result, shown: Sequence[Row], corruptions: Sequence[CorruptionRow]) -> list[HeatRow]:
    """The heat map, one row per corruption in the run's order."""
    rows = {row.condition: row for row in shown}
    at = {(c.corruption, c.severity): rows[c.name] for c in result.conditions if c.kind == "corruption"}
    return [
        HeatRow(c.corruption, [at.get((c.corruption, s)) for s in SEVERITIES], 1 - c.mean_error, 1 - c.ci_high, 1 - c.ci_low)
        for c in corruptions
    ]


def tabled(shown: Sequence[Row]) -> list[Row]:
    """The rows that the main table shows: those of many corruptions are left to the heat map."""
    corrupted = sum(row.kind == "corruption" for row in shown)
    return [row for row in shown if corrupted <= MANY or row.kind != "corruption"]


def by_severity(result: Result) -> dict[str, list[Verdict]]:
    """The verdicts on images as they are (`clean`) and at each severity, all corruptions together."""
    names = {
        c.name: "clean" if c.kind == "clean" else f"severity {c.severity}" for c in result.conditions if c.kind in ("clean", "corruption")
    }
    pools: dict[str, list[Verdict]] = {name: [] for name in ["clean", *(f"severity {s}" for s in SEVERITIES)]}
    for v in result.verdicts:
        if v.condition in names:
            pools[names[v.condition]].append(v)
    return {name: verdicts for name, verdicts in pools.items() if verdicts}


def calibration(pools: dict[str, list[Verdict]]) -> list[CalibrationRow]:
    """The figures of each pool that has confidences."""
    rows = [calibration_row(name, verdicts) for name, verdicts in pools.items()]
    return [row for row in rows if row is not None]


@dataclass(frozen=True)
class Strip:
    """One line of the sheet: a name, and data URIs at severities 1 to 5, None where there is no picture."""

    name: str
    pictures: Sequence[str | None]


def sheet(result: Result) -> tuple[str | None, list[Strip]]:
    """The clean picture as a data URI, and one strip for every corruption that has pictures."""
    room = SHEET // max(len(result.shown), 1)
    shown = {name: _uri(content, room) for name, content in result.shown.items()}
    strips: dict[str, Strip] = {}
    for c in result.conditions:
        if c.kind == "corruption" and c.corruption is not None and c.name in shown:
            strip = strips.setdefault(c.corruption, Strip(c.corruption, [None] * len(SEVERITIES)))
            pictures = [shown[c.name] if s == c.severity else p for s, p in zip(SEVERITIES, strip.pictures, strict=True)]
            strips[c.corruption] = replace(strip, pictures=pictures)
    return shown.get("clean"), list(strips.values())


def _uri(content: bytes, room: int) -> str:
    """A stored picture as it is where it fits, else a smaller one."""
    if len(content) > room:
        with picture_in(io.BytesIO(content)) as picture:
            small = picture.convert("L" if picture.mode == "L" else "RGB")
        small.thumbnail((SMALL, SMALL))
        buffer = io.BytesIO()
        small.save(buffer, format="JPEG", quality=75)
        content = buffer.getvalue()
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
