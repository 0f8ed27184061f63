"""Runs side by side in a terminal, as CSV and JSON, and as one HTML file, comparison.html beside this file, that needs no network."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from csv import writer
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from robustbench_lite import private
from robustbench_lite.comparison import LEVEL, Beside, Comparison, Flip, Row, Share
from robustbench_lite.pairing import Run
from robustbench_lite.plain_text import printable
from robustbench_lite.registry import report
from robustbench_lite.store import explained, write_text
from robustbench_lite.trust import Trust

from .escaping import cell
from .slopes import Point, Series, apart_by_severity, chart
from .table import percent

COLUMNS = (
    "reference", "run", "condition", "kind", "norm", "eps", "severity", "n", "correct_reference", "correct_run",
    "accuracy_reference", "low_reference", "high_reference", "accuracy_run", "low_run", "high_run",
    "difference", "difference_low", "difference_high", "p", "p_holm", "lost", "gained",
    "trust_reference", "trust_run", "remarks",
)  # fmt: skip
FLIP_COLUMNS = ("run", "condition", "sample_id", "label", "direction", "prediction", "broken_by")
CLASS_COLUMNS = (
    "run", "condition", "label", "class_name", "n", "correct_reference", "correct_run", "difference", "difference_low", "difference_high",
    "trust_reference", "trust_run",
)  # fmt: skip
FIRST_IN_TERMINAL, FIRST_IN_PAGE = 3, 24


@report("comparison")
def comparison(compared: Comparison, folder: Path, formats: Sequence[str] = ("html", "csv", "json")) -> tuple[RenderableType, list[Path]]:
    """The table for a terminal, and the paths of what was written into the folder, the page first.

    Raises:
        InvalidEvaluation: a file could not be written.
    """
    files: dict[str, dict[str, Callable[[Comparison], str]]] = {
        "html": {"comparison.html": page},
        "csv": {"comparison.csv": _csv, "flips.csv": _flips_csv, "classes.csv": _classes_csv},
        "json": {"comparison.json": _json},
    }
    written = []
    with explained(folder):
        private.folder(folder)
        for name, made in (each for kind in formats for each in files[kind].items()):
            write_text(folder / name, made(compared))
            written.append(folder / name)
    return _terminal(compared), written


def page(compared: Comparison) -> str:
    """The page as text: well-formed XML as well as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "points": points, "p": _p, "class_name": lambda label: _class_name(compared, label)}
    text = environment.get_template("comparison.html").render(
        compared=compared,
        charts=list(_charts(compared)),
        remarks={beside.run.letter: _row_remarks(beside.rows) for beside in compared.others},
        verdict=_verdict,
        known=_known,
        tests=_tests(compared),
        ids=_ids,
        first=FIRST_IN_PAGE,
    )
    return printable(text)


def points(share: float) -> str:
    """`+12.3`, with a minus sign as long as the plus; no difference has no sign."""
    return "0.0" if share == 0 else f"{100 * share:+.1f}".replace("-", "−")


def _known(share: Share, trust: Trust) -> str:
    """`52.0`, or `≤ 52.0` where images have been taken away that are known to be broken: a search for them may find more."""
    return ("≤ " if trust.level == "refuted" else "") + percent(share.accuracy)


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else "<.001"


def _tests(compared: Comparison) -> str:
    """What p is, in a sentence."""
    what = "one comparison, which needs no adjustment" if compared.tests == 1 else f"all {compared.tests} comparisons here (Holm)"
    return f"p: exact two-sided McNemar test, adjusted over {what}; {LEVEL} or less is more than the luck of these images."


def _verdict(compared: Comparison, beside: Beside) -> str:
    """The comparison in a sentence: of the hardest question that both were asked and that one of the two has any image right on."""
    row = min(_hardest(beside), key=lambda row: row.all.reference.right + row.all.other.right or 2 * row.all.n + 1)
    gap, a, b = row.all.difference, compared.reference.letter, beside.run.letter
    span = f"95 % interval {points(gap.low)} to {points(gap.high)}"
    if not row.flips:
        said = f"Under {row.name}, {b} and {a} are right on the same {row.all.both:,} of {row.all.n:,} images ({span} points)."
    elif row.sure:
        more = "more" if gap.value > 0 else "fewer"
        said = f"Under {row.name}, {b} has {percent(abs(gap.value))} points {more} right than {a} ({span}; {row.all.n:,} images)."
    else:
        said = f"Under {row.name}, {row.all.n:,} images do not tell {b} from {a}: {points(gap.value)} points ({span})."
    levels = {trust.level for trust in row.trust} - {"sound"}
    return said + (f" This rests on a figure that is {' or '.join(sorted(levels))}." if levels else "")


def _hardest(beside: Beside) -> list[Row]:
    """The worst cases; where there are none the attacks, and without any attack all rows."""
    kinds = [[row for row in beside.rows if row.condition.kind == kind] for kind in ("worst", "attack")]
    return next((rows for rows in kinds if rows), list(beside.rows))


def _row_remarks(rows: Iterable[Row]) -> list[tuple[str, list[str]]]:
    """Each remark once, with the rows that it is about."""
    about: dict[str, list[str]] = {}
    for row in rows:
        for remark in row.remarks:
            about.setdefault(remark, []).append(row.name)
    return list(about.items())


def _ids(flips: Iterable[Flip], direction: str) -> list[str]:
    return [flip.sample_id for flip in flips if flip.direction == direction]


def _class_name(compared: Comparison, label: int) -> str:
    names = compared.reference.result.config["data"].get("class_names")
    return str(label) if not names else f"{label} {names[label]}"


def _charts(compared: Comparison) -> Iterator[tuple[str, str]]:
    """Title and `<svg>` of charts of the conditions that every run shares with the reference."""
    shared = set.intersection(*({row.name for row in beside.rows} for beside in compared.others))
    rows = [row for row in compared.others[0].rows if row.name in shared]
    charts = apart_by_severity([row.condition for row in rows])
    rows.sort(key=lambda row: charts[row.name][1])  # a stable sort: conditions keep their order
    letters = [run.letter for run in compared.runs]
    ticks = [(place / (len(letters) - 1), letter) for place, letter in enumerate(letters)]
    for (own, _), together in groupby(rows, key=lambda row: charts[row.name]):
        title = f"Accuracy, %, {own}".rstrip(" ,")
        yield title, chart(f"{title}, of {' and '.join(letters)}", [_slope(compared, row.name) for row in together], ticks)


def _slope(compared: Comparison, name: str) -> Series:
    rows = [next(row for row in beside.rows if row.name == name) for beside in compared.others]
    shares = [(compared.reference, rows[0].all.reference, rows[0].trust[0])]
    shares += [(beside.run, row.all.other, row.trust[1]) for beside, row in zip(compared.others, rows, strict=True)]
    return Series(
        name,
        [
            Point(
                place / (len(shares) - 1),
                100 * share.accuracy,
                (100 * share.interval[0], 100 * share.interval[1]),
                f"{run.letter}: {_known(share, trust)} % of {share.n}, {trust.level}",
                trust.level != "sound",
            )
            for place, (run, share, trust) in enumerate(shares)
        ],
    )


def _terminal(compared: Comparison) -> RenderableType:
    """A table for each run beside the reference, whole at 80 columns."""
    named = [f"{run.letter}  {_about(run)}" for run in compared.runs]
    parts: list[RenderableType] = [Text("\n".join(named))]
    for beside in compared.others:
        parts += [_table(compared, beside), Text("\n".join(["", *_said(compared, beside)]))]
    return Group(*parts, Text(_tests(compared)))


def _about(run: Run) -> str:
    place = "" if run.result.folder is None else f", {run.result.folder}"
    return f"{run.model} on {run.result.config['data']['name']}{place}"


def _table(compared: Comparison, beside: Beside) -> Table:
    a, b = compared.reference.letter, beside.run.letter
    title = Text(f"\n{b} beside {a}, same images: right, %, and how far it can be believed")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("condition", overflow="fold", min_width=8)
    for heading in ("n", a, b, f"{b} − {a}, points\nand 95 % interval", f"only {a}\nonly {b}", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in beside.rows:
        gap, both = row.all.difference, row.all
        shares = [f"{_known(share, trust)}\n{trust.level}" for share, trust in zip((both.reference, both.other), row.trust, strict=True)]
        cells = [f"{both.n}", *shares, f"{points(gap.value)}\n{points(gap.low)} {points(gap.high)}"]
        cells += [f"{both.only_reference}\n{both.only_other}", _p(row.adjusted)]
        table.add_row(Text(row.name), *map(Text, cells))
    return table


def _said(compared: Comparison, beside: Beside) -> Iterator[str]:
    """What a reader must know, what is not compared, and the first images that flipped."""
    a, b = compared.reference.letter, beside.run.letter
    yield _verdict(compared, beside)
    for remark in beside.remarks:
        yield f"note: {remark}"
    for run, names in ((a, beside.only_reference), (b, beside.only_other)):
        if names:
            yield f"only in {run}, not compared: {', '.join(names)}"
    if beside.unlike:
        yield f"not the same in both, not compared: {', '.join(beside.unlike)}"
    shown = _hardest(beside)
    for remark, names in _row_remarks(shown):
        yield f"{', '.join(names)}: {remark}"
    for row in shown:
        for direction, run in (("lost", a), ("gained", b)):
            if found := _ids(row.flips, direction):
                more = f", ... ({len(found):,})" if len(found) > FIRST_IN_TERMINAL else ""
                yield f"right only in {run} under {row.name}: {', '.join(found[:FIRST_IN_TERMINAL])}{more}"
    if len(shown) < len(beside.rows):
        yield "What is to be known of the other rows, and all images that flipped, are in the files."
    yield ""


def _csv(compared: Comparison) -> str:
    """One line for every run and condition."""
    rows = ((beside, row) for beside in compared.others for row in beside.rows)
    return _lines(COLUMNS, (_figures(compared, beside, row).values() for beside, row in rows))


def _figures(compared: Comparison, beside: Beside, row: Row) -> dict[str, Any]:
    """The columns of comparison.csv."""
    both, c = row.all, row.condition
    gap = both.difference
    values = [
        compared.reference.letter, beside.run.letter, c.name, c.kind, c.norm, c.eps, c.severity, both.n, both.reference.right,
        both.other.right, both.reference.accuracy, *both.reference.interval, both.other.accuracy, *both.other.interval,
        gap.value, gap.low, gap.high, both.p, row.adjusted, both.only_reference, both.only_other,
        row.trust[0].level, row.trust[1].level, " ".join(row.remarks),
    ]  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _flips_csv(compared: Comparison) -> str:
    """One line for every image that one of two runs alone gets right."""
    return _lines(
        FLIP_COLUMNS,
        (
            [beside.run.letter, row.name, flip.sample_id, flip.label, flip.direction, flip.prediction, flip.broken_by]
            for beside in compared.others
            for row in beside.rows
            for flip in row.flips
        ),
    )


def _classes_csv(compared: Comparison) -> str:
    """One line for every run, condition and class."""
    names = compared.reference.result.config["data"].get("class_names")
    return _lines(
        CLASS_COLUMNS,
        (
            [beside.run.letter, row.name, label, names[label] if names else None, *_class_figures(row, label)]
            for beside in compared.others
            for row in beside.rows
            for label in row.classes
        ),
    )


def _class_figures(row: Row, label: int) -> list[float | str]:
    """The columns of classes.csv from `n` on."""
    both = row.classes[label]
    gap, levels = both.difference, [trust.level for trust in row.trust]
    return [both.n, both.reference.right, both.other.right, gap.value, gap.low, gap.high, *levels]


def _lines(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    lines = writer(text, lineterminator="\n")
    lines.writerow(columns)
    for row in rows:
        lines.writerow("" if value is None else cell(value) for value in row)
    return text.getvalue()


def _json(compared: Comparison) -> str:
    """All of it: the runs, every row with its flips and classes, and every remark."""
    document = {
        "format": 1,
        "reference": compared.reference.letter,
        "runs": [
            {
                "run": run.letter,
                "folder": None if run.result.folder is None else str(run.result.folder),
                "model": run.model,
                "model_digest": run.result.config["model"]["digest"],
                "data": run.result.config["data"]["name"],
                "data_digest": run.result.config["data"]["digest"],
                "created": run.result.config["created"],
            }
            for run in compared.runs
        ],
        "p_adjusted_over": compared.tests,
        "compared": [
            {
                "run": beside.run.letter,
                "remarks": list(beside.remarks),
                "only_reference": list(beside.only_reference),
                "only_run": list(beside.only_other),
                "unlike": list(beside.unlike),
                "rows": [_row(compared, beside, row) for row in beside.rows],
            }
            for beside in compared.others
        ],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _row(compared: Comparison, beside: Beside, row: Row) -> dict[str, Any]:
    return _figures(compared, beside, row) | {
        "remarks": list(row.remarks),
        "reasons": [list(trust.reasons) for trust in row.trust],
        "lost_ids": _ids(row.flips, "lost"),
        "gained_ids": _ids(row.flips, "gained"),
        "classes": [dict(zip(CLASS_COLUMNS[4:], _class_figures(row, k), strict=True)) | {"label": k} for k in row.classes],
    }
