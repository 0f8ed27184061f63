"""Accuracy by class: which classes a condition hurts most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robustbench_lite.results import Result, Verdict
from robustbench_lite.stats import wilson
from robustbench_lite.trust import Level, Trust

from .gallery import class_name
from .table import Row, qualified

WIDEST = 6
"""Conditions side by side; where there are more, the worst cases stand for the attacks."""
OPEN = 12
"""Classes that are shown at once; where there are more, the others fold away."""


@dataclass(frozen=True)
class ClassRow:
    """One class under one condition. `at_most` is the accuracy without the images that are known to be broken; the interval is of it."""

    condition: str
    label: int
    class_name: str
    n: int
    correct: int
    accuracy: float
    at_most: float
    ci_low: float
    ci_high: float
    trust: Level

    @property
    def percent(self) -> str:
        return qualified(self.at_most, self.trust)


@dataclass(frozen=True)
class ClassLine:
    """One class under the conditions that are shown; None where a condition has no image of it."""

    name: str
    n: int
    cells: Sequence[ClassRow | None]


def class_rows(result: Result) -> list[ClassRow]:
    """One row per condition and class, in the order of the conditions and then of the labels; none where a label is not one class."""
    names = result.config["data"].get("class_names")
    rows = []
    for c in result.conditions:
        by_label: dict[int, list[Verdict]] = {}
        for v in result.of(c.name) if c.kind != "doubt" else ():
            if isinstance(v.label, int):
                by_label.setdefault(v.label, []).append(v)
        for label in sorted(by_label):
            rows.append(_row(label, class_name(label, names), by_label[label], result.trust[c.name]))
    return rows


def class_lines(shown: Sequence[Row], rows: Sequence[ClassRow]) -> tuple[list[str], list[ClassLine]]:
    """The conditions of the table, and a line for each class, the one that the hardest condition hurts most first."""
    attacks = [row for row in shown if row.kind in ("attack", "worst")]
    chosen = attacks if len(attacks) < WIDEST else [row for row in attacks if row.kind == "worst"][:WIDEST]
    if not attacks:  # of many corruptions the hardest
        chosen = sorted((row for row in shown if row.kind != "clean"), key=lambda row: row.at_most)[:1]
    columns = [*(row.condition for row in shown if row.kind == "clean"), *(row.condition for row in chosen)]
    cells = {(row.label, row.condition): row for row in rows}
    names = {row.label: row.class_name for row in rows}
    lines = [
        ClassLine(name, max(row.n for row in rows if row.label == label), [cells.get((label, column)) for column in columns])
        for label, name in names.items()
    ]
    return columns, sorted(lines, key=lambda line: min((cell.at_most for cell in line.cells if cell), default=1.0))


def _row(label: int, name: str, verdicts: Sequence[Verdict], trust: Trust) -> ClassRow:
    n, standing = len(verdicts), {v.sample_id for v in verdicts if v.broken is False}
    known = {key for finding in trust.findings if finding.weight == "refutes" for key in finding.samples}
    left = len(standing - known)
    low, high = wilson(left, n)
    return ClassRow(verdicts[0].condition, label, name, n, len(standing), len(standing) / n, left / n, low, high, trust.level)
