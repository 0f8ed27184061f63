"""`clinical.csv`: every figure of a scenario in a line of its own, what was published among them and marked so."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from csv import DictWriter
from typing import Any

from robustbench_lite.clinical import Figure, Figures
from robustbench_lite.scenarios import Measured, Published, ScenarioReport

from .escaping import cell
from .scenario_rows import COLUMNS

COLUMNS_OF_FILE = (
    "kind", "scenario", "synthetic", "row", "knowledge", "means", "condition", "trust", "figure", "class", "value", "low", "high",
    "n", "patients", "reason", "source",
)  # fmt: skip
"""`kind` is measured, published or missing; shares are of 1; `trust` as in table.csv: a refuted row's accuracy is too high."""
BY_CLASS = {"auroc": "aurocs", "success": "successes"}
OF_ATTACKED = ("success", "needed")


def csv_text(report: ScenarioReport) -> str:
    """What the file holds."""
    text = io.StringIO()
    writer = DictWriter(text, COLUMNS_OF_FILE, restval="", lineterminator="\n")
    writer.writeheader()
    for line in _lines(report):
        writer.writerow({key: "" if value is None else cell(value) for key, value in line.items()})
    return text.getvalue()


def _lines(report: ScenarioReport) -> Iterator[dict[str, Any]]:
    about = {"scenario": report.name, "synthetic": report.synthetic}
    for measured in report.rows:
        trust = report.result.trust.get(measured.condition or "")
        known = {"trust": None if trust is None else trust.level} | about
        yield from (known | line for line in _measured(measured))
    if report.scenario.published is not None:
        # of something else: whether the run's images are synthetic says nothing of these
        yield from ({"kind": "published", "scenario": report.name} | line for line in _published(report.scenario.published))


def _measured(measured: Measured) -> Iterator[dict[str, Any]]:
    row = measured.row
    about = {"kind": "measured", "row": row.name, "knowledge": row.knowledge, "means": row.means, "condition": measured.condition}
    if measured.figures is None:
        yield about | {"kind": "missing", "reason": measured.missing}
        return
    for key, label, figure, n in _figures(measured.figures):
        value = {"value": figure.value, "low": figure.low, "high": figure.high, "reason": figure.reason}
        yield about | {"figure": key, "class": label, "n": n, "patients": measured.figures.patients} | value


def _figures(figures: Figures) -> Iterator[tuple[str, str | None, Figure, int | None]]:
    """Name, class, figure, and of how many images; of a class that is not known."""
    for column in COLUMNS:
        figure: Figure | None = getattr(figures, column.key)
        if figure is not None:
            yield column.key, None, figure, figures.attacked if column.key in OF_ATTACKED else figures.n
        by_class: Mapping[str, Figure] = getattr(figures, BY_CLASS.get(column.key, ""), None) or {}
        yield from ((column.key, name, each, None) for name, each in by_class.items())
    yield from ((f"change_of_{name}", None, each, figures.n) for name, each in figures.change.items())


def _published(published: Published) -> Iterator[dict[str, Any]]:
    for row in published.rows:
        for key in ("accuracy", "auroc", "confidence"):
            yield {"row": row.row, "figure": key, "value": getattr(row, key), "source": published.source, "reason": published.setting}
