"""A leaderboard in a terminal, as `leaderboard.csv`, and as one HTML file, leaderboard.html beside this file, that needs no network."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from csv import writer
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from robustbench_lite.cards import Figure
from robustbench_lite.leaderboard import NORM, Board, Line
from robustbench_lite.registry import report
from robustbench_lite.results import eps_text
from robustbench_lite.store import explained, write_text

from .escaping import cell
from .table import percent

COLUMNS = (
    "model", "data", "condition", "attacks", "norm", "eps", "n", "answers", "accuracy", "ci_low", "ci_high",
    "card_n", "card_accuracy", "card_low", "card_high", "baseline", "difference", "difference_low", "difference_high",
)  # fmt: skip


@report("leaderboard")
def leaderboard(board: Board) -> tuple[RenderableType, Path]:
    """The table for a terminal, and the path of `leaderboard.html`, written into the board's folder beside `leaderboard.csv`.

    Raises:
        InvalidEvaluation: a file could not be written.
    """
    path = board.folder / "leaderboard.html"
    with explained(board.folder):
        write_text(board.folder / "leaderboard.csv", _csv(board))
        write_text(path, page(board))
    return _terminal(board), path


def page(board: Board) -> str:
    """The page as text: well-formed XML as well as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "points": _points, "radius": eps_text}
    shown, tables = _shown(board), []
    for together in _tables(board):
        groups: list[tuple[str, list[str]]] = []
        for eps, figures in groupby(together, key=lambda figure: figure.eps):
            conditions = [figure.condition for figure in figures]
            groups += [("", [each]) for each in conditions] if eps is None else [(f"{NORM} {eps_text(eps)}", conditions)]
        tables.append(groups)
    config = board.lines[0].config
    return environment.get_template("leaderboard.html").render(
        board=board,
        tables=tables,
        names={figure.condition: figure.name for figure in shown},
        stored=any(line.stored(figure.condition) for line in board.lines for figure in shown),
        command=board.command,
        versions=config["versions"],
        device=config["device"],
    )


def _shown(board: Board) -> list[Figure]:
    """One figure for every condition, in order."""
    figures = {figure.condition: figure for line in board.lines for figure in line.figures}
    return [figures[condition] for condition in board.conditions]


def _tables(board: Board) -> list[list[Figure]]:
    """What stands in a table each, one for each radius; clean and corrupted images stand with the first."""
    radii = [(eps, list(figures)) for eps, figures in groupby(_shown(board), key=lambda figure: figure.eps)]
    plain = [figure for eps, figures in radii if eps is None for figure in figures]
    attacked = [figures for eps, figures in radii if eps is not None]
    return [[plain[0], *attacked[0], *plain[1:]], *attacked[1:]]


def _points(share: float) -> str:
    """`+12.3`, with a minus sign as long as the plus."""
    return f"{100 * share:+.1f}".replace("-", "−")


def _csv(board: Board) -> str:
    """One line per model and condition."""
    text = io.StringIO()
    lines = writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    for line in board.lines:
        for figure in line.figures:
            card, gap = line.stored(figure.condition), board.difference(line, figure.condition)
            row: list[Any] = [line.name, board.data, figure.condition, " ".join(figure.asked), figure.norm, figure.eps]
            row += [figure.n, figure.answers, figure.accuracy, *figure.interval]
            row += [None] * 4 if card is None else [card.n, card.accuracy, *card.interval]
            row += [None] * 4 if gap is None else [board.baseline, gap.value, gap.low, gap.high]
            lines.writerow("" if value is None else cell(value) for value in row)
    return text.getvalue()


def _terminal(board: Board) -> RenderableType:
    """A table for each radius, whole at 80 columns."""
    groups = _tables(board)
    tables = [_table(board, f"{board.data}, {board.n} images: right, %, and the 95 % interval", group, _share) for group in groups]
    if board.baseline and len(board.lines) > 1:
        title = f"points more than {board.baseline}, same images, and the 95 % interval"
        tables += [_table(board, title, group, _gap) for group in groups]
    of = sorted({card.n for line in board.lines for each in line.figures if (card := line.stored(each.condition))})
    cards = [f"card: what the model's card says, of {' or '.join(map(str, of))} images"] if of else []
    said = [*cards, *board.flattering, *board.proven, *(f"note: {note}" for note in board.notes)]
    return Group(*tables, Text("\n".join(["", *said])))


def _table(board: Board, title: str, shown: Sequence[Figure], cell: Callable[[Board, Line, str], str]) -> Table:
    sizes = [eps_text(figure.eps) for figure in shown if figure.eps is not None]
    table = Table(
        title=Text(f"\n{NORM} {sizes[0]}: {title}"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model", overflow="fold", min_width=8)
    for figure in shown:
        table.add_column(figure.name, justify="right", no_wrap=True)
    for line in board.lines:
        table.add_row(Text(line.name), *(Text(cell(board, line, figure.condition)) for figure in shown))
    return table


def _share(board: Board, line: Line, condition: str) -> str:
    figure, card = line.figure(condition), line.stored(condition)
    if figure is None:
        return "–"
    low, high = figure.interval
    return f"{percent(figure.accuracy)}\n{100 * low:.0f}–{100 * high:.0f}" + (f"\ncard {percent(card.accuracy)}" if card else "")


def _gap(board: Board, line: Line, condition: str) -> str:
    gap = board.difference(line, condition)
    return "–" if gap is None else f"{_points(gap.value)}\n{_rounded(gap.low)} {_rounded(gap.high)}"


def _rounded(share: float) -> str:
    return f"{100 * share:+.0f}".replace("-", "−")
