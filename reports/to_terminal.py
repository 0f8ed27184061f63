"""The table in a terminal, whole at 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from robustbench_lite.registry import report
from robustbench_lite.results import Result

from .table import FEW_IMAGES, Row, amount, percent, rows


@report("terminal")
def terminal(result: Result) -> Group:
    """The table of a run, and below it those of its cascades and of transfer. Only names may wrap; no number is ever cut.

    A condition's name holds its norm and its size. Cells are `Text`, since rich would read `[linf,4/255]` as markup.
    """
    shown = rows(result)
    undecided = any(row.undecided for row in shown)
    table = Table(
        title=Text(f"{result.config['model']['name']} on {result.config['data']['name']}"),
        caption=_caption(shown),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 0 if undecided else 1, 0, 0),  # eight columns leave the names room only where they stand close
    )
    table.add_column("condition", overflow="fold")
    headings = ["correct", "accuracy", "95 % in-\nterval", *(["un-\ndecided"] if undecided else []), "forward\npasses", "backward\npasses"]
    for heading in [*headings, "seconds"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row, following in zip(shown, [*shown[1:], None], strict=True):
        table.add_row(*_cells(row, undecided), end_section=following is not None and following.kind != row.kind)
    return Group(table, *_cascades(result), *_transfers(result))


def _cascades(result: Result) -> Iterator[Table]:
    """For every condition that is several attacks in turn, what each of them broke and cost."""
    goals = {condition.name: condition.goal for condition in result.conditions}
    for condition, stages in groupby(result.cascade, key=lambda row: row.condition):
        table = _below(condition, "attack", ["images", "broken", "forward\npasses", "backward\npasses"])
        for row in stages:
            passes = [Text(amount(value), style="dim") for value in (row.mean_forwards, row.mean_backwards)]
            table.add_row(Text(row.stage), Text(str(row.attacked)), Text(str(row.broken), style="bold"), *passes)
        seen = "what those before it left" if goals[condition] == "first" else "every image"
        table.caption = f"Each attack saw {seen}; passes are means over these."
        yield table


def _transfers(result: Result) -> Iterator[Table]:
    """For every attack on a source, how far it got with each target."""
    for condition, cells in groupby(result.transfer, key=lambda row: row.condition):
        table = _below(condition, "target", ["wrong\nof all", "8-bit", "of those\nright", "8-bit", "SSIM"])
        for row in cells:
            name = Text(row.target)
            if row.white_box:
                name.append(" white box", style="dim")
            shares = (row.success_all, row.success_all_8bit, row.success_correct, row.success_correct_8bit)
            table.add_row(name, *(Text("" if share is None else f"{percent(share)} %") for share in shares), Text(f"{row.ssim:.3f}"))
        table.caption = "Wrong: of all images, and of those that the target has right when clean; then rounded to 8 bits."
        yield table


def _below(title: str, first: str, headings: list[str]) -> Table:
    table = Table(title=Text(title), caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cells(row: Row, undecided: bool) -> list[Text]:
    name = Text(row.condition, style="bold" if row.kind == "worst" else "")
    if row.first_pass_only:
        name.append(" bf16", style="yellow")
    return [
        name,
        Text(row.share),
        Text(row.percent, style="bold"),
        Text(row.interval),
        *([Text(str(row.undecided or ""), style="yellow")] if undecided else []),
        Text(amount(row.mean_forwards), style="dim"),
        Text(amount(row.mean_backwards), style="dim"),
        Text(row.time, style="dim"),
    ]


def _caption(shown: list[Row]) -> Text:
    lines = ["Passes are means per attacked image."]
    if any(row.undecided for row in shown):
        lines.append("Undecided images count as not correct.")
    if any(row.first_pass_only for row in shown):
        lines.append("bf16: search=bf16 only; survivors were not attacked again in float32, which flatters the model.")
    widest = max(shown, key=lambda row: row.width)
    if widest.n < FEW_IMAGES:
        lines.append(f"Only {widest.n} images: the interval is up to {widest.width:.0f} points wide.")
    return Text("\n".join(lines))
