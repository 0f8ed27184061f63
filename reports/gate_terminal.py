"""A gate in a terminal, whole at 80 columns: the rules side by side, then what is to be said of each."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from robustbench_lite.gate.rulings import Judgement, Outcome, Ruling
from robustbench_lite.plain_text import one_line
from robustbench_lite.registry import report

from .gate_words import COLOURS, MEANINGS, figure, images, interval, level, subject, verdict


@report("gate-terminal")
def gate_terminal(judgement: Judgement) -> Group:
    """The table, one message per rule, the notes, and in the last line the outcome.

    Only rules may wrap; no number is ever cut. Cells are `Text`, since rich would read `[linf,4/255]` as markup.
    """
    table = Table(title=Text(one_line(subject(judgement))), box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("rule", overflow="fold")
    table.add_column("outcome", no_wrap=True)
    for heading in ("estimate", "interval", "threshold", "images"):
        table.add_column(heading, justify="right", no_wrap=heading != "images")
    for ruling in judgement.rulings:
        table.add_row(Text(one_line(ruling.rule)), _coloured(ruling.outcome, ruling.outcome), *map(Text, _figures(ruling)))
    said = [part for ruling in judgement.rulings for part in _message(ruling)]
    notes = [Text(f"note: {one_line(note)}") for note in judgement.notes]
    outcome = Text.assemble("gate: ", _coloured(judgement.outcome, judgement.outcome.upper()), f", {MEANINGS[judgement.outcome]}")
    outcome.append(f" (exit code {judgement.exit_code}; each bound one-sided at {level(judgement)})", style="dim")
    return Group(table, Text(), *said, *notes, outcome)


def _figures(ruling: Ruling) -> list[str]:
    return [figure(ruling.estimate), interval(ruling), figure(ruling.threshold), images(ruling)]


def _message(ruling: Ruling) -> tuple[Text, Padding]:
    row = Text.assemble(_coloured(ruling.outcome, verdict(ruling)), f": {one_line(ruling.rule)}")
    if ruling.condition:
        row.append(f"  {one_line(ruling.condition)}", style="dim")
    return row, Padding(Text(one_line(ruling.message)), (0, 0, 0, 2))


def _coloured(outcome: Outcome, text: str) -> Text:
    return Text(text, style=f"bold {COLOURS[outcome][0]}")
