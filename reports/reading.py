"""Accuracy at a few other sizes, read off the curves of attacks that sought the nearest: for reports that draw no charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from robustbench_lite.distances import ALL_TOGETHER, Curve, curves
from robustbench_lite.results import WITHIN, Result, reach, size_text

from .table import Row, distance, percent, signed

AROUND = (0.25, 0.5, 1, 2, 4)
"""Times the eps that was asked for, where it is one."""


@dataclass(frozen=True)
class Line:
    """One attack, or all together: its name, its median distance, and its accuracy at each size."""

    name: str
    cells: tuple[str, ...]
    worst: bool


@dataclass(frozen=True)
class Reading:
    """A table for one norm: `first` heads the names, `headings` the cells."""

    title: str
    first: str
    headings: tuple[str, ...]
    lines: tuple[Line, ...]
    note: str


def readings(result: Result, rows: Sequence[Row]) -> list[Reading]:
    """One table for every norm in which an attack sought the nearest broken image."""
    found: dict[tuple[str, bool], list[Curve]] = {}
    for curve in curves(result):
        found.setdefault((curve.norm, curve.scaled), []).append(curve)
    by_name = {row.condition: row for row in rows}
    return [_reading(norm, scaled, some, by_name) for (norm, scaled), some in found.items()]


def _reading(norm: str, scaled: bool, found: Sequence[Curve], rows: dict[str, Row]) -> Reading:
    worst = next((curve for curve in found if curve.name == ALL_TOGETHER), None)
    sizes = _sizes(sorted({eps for curve in found for eps in curve.judged}), max(map(_middle, found)))
    shown = [curve for curve in found if curve is not worst or len(found) > 2]
    lines = []
    for curve in shown:
        of_curve = sorted((rows[name] for name in curve.conditions), key=lambda row: row.eps or 0)
        cells = [_cell(curve, worst, size, of_curve) for size in sizes]
        lines.append(Line(curve.name, (_median(curve, of_curve), *cells), curve is worst))
    unit = ", in multiples of each image's own eps" if scaled else ""
    note = "Read off the distances of the nearest broken images found."
    if any(cell.startswith("≤") for line in lines for cell in line.cells):
        note += " ≤: of other attacks' witnesses too."
    if any(cell.endswith("?") for line in lines for cell in line.cells):
        note += " ?: the accuracy may be lower; at sizes that were not asked for nothing else was tried."
    if any(not cell for line in lines for cell in line.cells):
        note += " Empty: beyond the last image that the attack found."
    headings = ("median distance", *(size_text(size, scaled) for size in sizes))
    return Reading(f"Accuracy by eps ({norm}){unit}, %", "attack", headings, tuple(lines), note)


def _cell(curve: Curve, worst: Curve | None, eps: float, rows: Sequence[Row]) -> str:
    """`79.0`, with the signs of `Row.percent`: `≤` where the witnesses of all attacks leave less, `?` where a row is doubtful."""
    share = curve.at(eps)
    # of the attack's own images, which may be some of all
    known = {} if worst is None else worst.nearest
    least = sum(min(distance, known.get(key, math.inf)) > reach(eps) for key, distance in curve.nearest.items()) / curve.n
    if eps > curve.end and share > 0:
        return ""
    if least < share:
        return f"≤ {percent(least)}"
    asked = any(abs(eps - judged) <= WITHIN * eps for judged in curve.judged)
    doubtful = least > 0 and (not asked or any(row.trust == "doubtful" for row in rows))
    return percent(least) + (" ?" if doubtful else "")


def _median(curve: Curve, rows: Sequence[Row]) -> str:
    """Of all images, with the sign of the row that it can be believed least of."""
    levels = {row.trust for row in rows}
    return signed(distance(median(curve.distances)), "refuted" if "refuted" in levels else "doubtful" if "doubtful" in levels else "sound")


def _middle(curve: Curve) -> float:
    """The median distance of those images that were found and were not wrong already; infinite where there are none."""
    return median([d for d in curve.distances if 0 < d < math.inf] or [math.inf])


def _sizes(judged: Sequence[float], middle: float) -> list[float]:
    """Five sizes around the one that was asked for; around several, the outermost and the middle one of them, half and double.

    Where everything has long been broken at the least of them, sizes halve from it until they come to the middle of the distances.
    """
    if judged[0] > 4 * middle:
        halvings = math.floor(math.log2(judged[0] / middle))
        return [judged[0] * 2.0**-k for k in (halvings + 2, halvings + 1, halvings, halvings - 1)] + [judged[0]]
    if len(judged) == 1:
        return [judged[0] * times for times in AROUND if judged[0] > 0]
    inside = [judged[0], *judged[1:-1][(len(judged) - 3) // 2 :][:1], judged[-1]] if len(judged) > 2 else list(judged)
    return [size for size in (inside[0] / 2, *inside, 2 * inside[-1]) if size > 0]
