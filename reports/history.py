"""A figure over many runs in a terminal, as `history.csv`, and as one HTML file, history.html beside this file, that needs no network."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from csv import writer
from itertools import groupby
from math import floor, log10
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from robustbench_lite import private
from robustbench_lite.history import History, Line, Point
from robustbench_lite.plain_text import printable
from robustbench_lite.registry import report
from robustbench_lite.store import explained, write_text

from .comparison import points as signed
from .escaping import cell
from .slopes import Point as Drawn
from .slopes import Series, apart_by_severity, chart
from .table import amount, percent

COLUMNS = (
    "data", "data_digest", "condition", "run", "created", "model", "model_digest", "n", "metric", "value", "low", "high", "trust",
    "change", "change_low", "change_high",
)  # fmt: skip
SHARES = ("accuracy", "success_correct")
REFUTED = {"accuracy": "≤ ", "success_correct": "≥ ", "median_distance": "≤ "}
"""What stands before the figure of a refuted row; what it cost is as it was."""
MOST_DATES = 4  # below a chart


@report("history")
def history(found: History, folder: Path, formats: Sequence[str] = ("html", "csv")) -> tuple[RenderableType, list[Path]]:
    """The table for a terminal, and the paths of what was written into the folder, the page first.

    Raises:
        InvalidEvaluation: a file could not be written.
    """
    made: dict[str, Callable[[History], str]] = {"html": page, "csv": _csv}
    written = [folder / f"history.{kind}" for kind in formats]
    with explained(folder):
        private.folder(folder)
        for path, kind in zip(written, formats, strict=True):
            write_text(path, made[kind](found))
    return _terminal(found), written


def page(found: History) -> str:
    """The page as text: well-formed XML as well as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"points": signed, "percent": percent}
    text = environment.get_template("history.html").render(
        found=found, words=_words(found.metric), charts=list(_charts(found)), value=_value, name=_name
    )
    return printable(text)


def _words(metric: str) -> str:
    """`accuracy, %`"""
    return metric.replace("_", " ") + (", %" if metric in SHARES else "")


def _value(metric: str, point: Point) -> str:
    """`≤ 52.0` where images are known to be broken that the attack left, of what it broke itself `≥ 40.0`."""
    text = percent(point.value) if metric in SHARES else f"{point.value:.4g}" if metric == "median_distance" else amount(point.value)
    return (REFUTED.get(metric, "") if point.trust == "refuted" else "") + text


def _name(found: History, point: Point) -> str:
    """Of the run, as short as it is unambiguous."""
    return str(point.run.relative_to(found.folder)) if point.run != found.folder else point.run.name


def _charts(found: History) -> Iterator[tuple[str, str]]:
    """Title and `<svg>` of charts, on one set of images each."""
    charts = apart_by_severity([line.condition for line in found.lines])

    def place(line: Line) -> tuple[str, str, int, str]:
        title, order = charts[line.condition.name]
        return line.data, line.data_digest, order, title

    for (_, _, _, own), together in groupby(sorted(found.lines, key=place), key=place):
        lines = list(together)
        title = f"{lines[0].images}: {_words(found.metric)}" + (f", {own}" if own else "")
        runs = sorted({(point.created, point.run) for line in lines for point in line.points})
        every = -(-len(runs) // MOST_DATES)
        ticks = [(i / (len(runs) - 1), f"{created:%Y-%m-%d}") for i, (created, _) in enumerate(runs) if i % every == 0]
        yield title, chart(title, [_series(found, line, runs) for line in lines], ticks, _most(found.metric, lines))


def _series(found: History, line: Line, runs: Sequence[object]) -> Series:
    scale = 100 if found.metric in SHARES else 1
    return Series(
        line.condition.name,
        [
            Drawn(
                runs.index((point.created, point.run)) / (len(runs) - 1),
                scale * point.value,
                None if point.interval is None else (scale * point.interval[0], scale * point.interval[1]),
                f"{point.created:%Y-%m-%d %H:%M} {point.model}: {_value(found.metric, point)}, {point.trust}",
                point.trust != "sound",
            )
            for point in line.points
        ],
    )


def _most(metric: str, lines: Sequence[Line]) -> float:
    """The upper end of a chart: 100 %, or a round number of which a quarter is round."""
    if metric in SHARES:
        return 100
    most = max((point.value for line in lines for point in line.points), default=0) or 1
    power = 10.0 ** floor(log10(most))
    return next(power * step for step in (1, 2, 4, 8, 10) if power * step >= most)


def _terminal(found: History) -> RenderableType:
    """A table for every line, whole at 80 columns."""
    said = [f"skipped {place}: {reason}" for place, reason in found.skipped]
    if found.alone:
        said.append(f"{found.alone} conditions that one run alone has on its images are left out")
    if found.metric == "accuracy":
        said.append("change: to the run before, over the same images, in points, with Newcombe's 95 % interval")
    return Group(*(_table(found, line) for line in found.lines), Text("\n".join(["", *said])))


def _table(found: History, line: Line) -> Table:
    title = Text(f"\n{line.condition.name} on {line.images}: {_words(found.metric)}")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("when", no_wrap=True)
    table.add_column("run, model", overflow="fold", min_width=12)
    headings = ["n", found.metric.replace("_", " "), *(["change"] if found.metric == "accuracy" else []), "trust"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for place, point in enumerate(line.points):
        about = _name(found, point) if point.run.name == point.model else f"{_name(found, point)}\n{point.model}"
        cells = [f"{point.created:%Y-%m-%d\n%H:%M}", about, f"{point.n}", _value(found.metric, point)]
        if point.interval is not None:
            cells[-1] += f"\n{percent(point.interval[0])}–{percent(point.interval[1])}"
            unlike = "other\nattacks" if place else ""
            cells.append(unlike if point.change is None else f"{signed(point.change.value)}\n{_span(point)}")
        table.add_row(*map(Text, [*cells, point.trust]))
    return table


def _span(point: Point) -> str:
    return "" if point.change is None else f"{signed(point.change.low)} {signed(point.change.high)}"


def _csv(found: History) -> str:
    """One line for every condition and run."""
    text = io.StringIO()
    lines = writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    for line in found.lines:
        for point in line.points:
            about = [line.data, line.data_digest, line.condition.name, _name(found, point), point.created.isoformat(), point.model]
            change = (None, None, None) if point.change is None else (point.change.value, point.change.low, point.change.high)
            figures = [point.value, *(point.interval or (None, None)), point.trust, *change]
            row = [*about, point.digest, point.n, found.metric, *figures]
            lines.writerow("" if value is None else cell(value) for value in row)
    return text.getvalue()
