"""The table in a terminal, whole at 80 columns."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from robustbench_lite.registry import report
from robustbench_lite.results import Result

from .table import FEW_IMAGES, Row, amount, rows


@report("terminal")
def terminal(result: Result) -> Table:
    """The table of a run. Only the condition's name may wrap; no number is ever cut.

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
