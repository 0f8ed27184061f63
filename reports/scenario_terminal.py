"""A scenario in a terminal: whole at 100 columns, the figures that a reader asks for first."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from robustbench_lite.plain_text import one_line
from robustbench_lite.scenarios import ScenarioReport

from .scenario_rows import DISCLAIMER, PUBLISHED, SYNTHETIC, Cell, Line, counted, legend, lines, printed, summary

HEADINGS = {"accuracy": "accuracy, %", "auroc": "AUROC", "confidence": "confidence, %", "success": "success, %"}


def terminal(report: ScenarioReport) -> RenderableType:
    """The table, what it lacks and what to make of it."""
    shown_lines = lines(report)
    said = [Text(one_line(f"{report.name}: {report.scenario.title}"), style="bold")]
    said += [Text(SYNTHETIC, style="bold reverse")] if report.synthetic else []
    missing = [f"not run: {line.name}: {line.missing}" for line in shown_lines if line.missing]
    reasons = [f"{line.name}: {cell.reason}" for line in shown_lines for key in HEADINGS if (cell := line.cells.get(key)) and cell.reason]
    notes = [*legend(shown_lines), *(f"note: {note}" for note in report.notes)]
    after = [summary(report), *missing, *dict.fromkeys(reasons), *notes, DISCLAIMER.replace("page", "screen")]
    return Group(*said, _table(report, shown_lines), *(Text(one_line(line)) for line in after))


def _table(report: ScenarioReport, shown_lines: list[Line]) -> Table:
    table = Table(
        title=Text(f"{counted(report)}; below each figure its 95 % interval"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("row", overflow="fold", min_width=16, max_width=40)
    for heading in HEADINGS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    published = {} if report.scenario.published is None else {row.row: row for row in report.scenario.published.rows}
    for line in shown_lines:
        name = line.name if not line.attack or line.knowledge in line.name else f"{line.name} ({line.knowledge})"
        table.add_row(Text(one_line(name)), *(_cell(line.cells.get(key)) for key in HEADINGS))
        if line.name in published:
            row = published[line.name]
            known = (printed(row.accuracy, "share"), printed(row.auroc, "rank"), printed(row.confidence, "share"), "")
            table.add_row(Text(f"  {PUBLISHED}"), *map(Text, known), style="dim")
    return table


def _cell(cell: Cell | None) -> Text:
    """An interval below the value; of a row that was not run nothing but a word."""
    if cell is None:
        return Text("not run", style="dim")
    return Text(f"{cell.text}\n{cell.interval}" if cell.interval else cell.text)
