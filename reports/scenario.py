"""A scenario in a terminal, as CSV and JSON, and as one HTML file, scenario.html beside this file, that needs no network."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import RenderableType

from robustbench_lite import private
from robustbench_lite.clinical import Figure
from robustbench_lite.plain_text import printable
from robustbench_lite.registry import report
from robustbench_lite.scenarios import ScenarioReport
from robustbench_lite.store import explained, write_text

from .believing import command_of
from .scenario_csv import csv_text
from .scenario_json import json_of
from .scenario_pictures import pictures
from .scenario_roc import charts
from .scenario_rows import (
    AUROC,
    COLUMNS,
    DISCLAIMER,
    HAS,
    PUBLISHED,
    SUCCESS,
    SYNTHETIC,
    Cell,
    Column,
    Line,
    cell,
    class_names,
    counted,
    goal_of,
    hardest,
    intervals,
    legend,
    lines,
    printed,
    shown,
    summary,
)
from .scenario_terminal import terminal

PAGE = "scenario.html"
INDEX = "index.html"


@report("scenario")
def scenario(report: ScenarioReport, folder: Path) -> tuple[RenderableType, Path]:
    """The table for a terminal, and the path of `scenario.html`, written into the folder with `clinical.csv` and `clinical.json`.

    Raises:
        InvalidEvaluation: a file could not be written.
    """
    with explained(folder):
        private.folder(folder)
        write_text(folder / "clinical.csv", csv_text(report))
        write_text(folder / "clinical.json", json_of(report))
        write_text(folder / PAGE, page(report))
    return terminal(report), folder / PAGE


@report("scenarios-index")
def index(reports: Sequence[ScenarioReport], folder: Path) -> Path:
    """Write `index.html`, which links to the page of every scenario: in its run's folder, or in a folder of its name in this one.

    Raises:
        InvalidEvaluation: the file could not be written.
    """
    entries = []
    for each in reports:
        table = lines(each)
        where = folder / each.name if each.result.folder is None else each.result.folder
        link = quote(Path(os.path.relpath(where, folder), PAGE).as_posix())
        entries.append((each, link, table[0], hardest(table)))
    text = _rendered("scenarios.html", entries=entries, disclaimer=DISCLAIMER, marked=SYNTHETIC)
    with explained(folder):
        private.folder(folder)
        write_text(folder / INDEX, text)
    return folder / INDEX


def page(report: ScenarioReport) -> str:
    """The page as text: well-formed XML as well as HTML, and nothing of a sample but its label and pictures."""
    table = lines(report)
    config = report.result.config
    return _rendered(
        "scenario.html",
        report=report,
        table=table,
        columns=COLUMNS[:-1],  # what the last one says stands below the successes
        reasons={reason: number for number, reason in enumerate(dict.fromkeys(_reasons(table)), 1)},
        summary=summary(report),
        goal=goal_of(report),
        legend=legend(table),
        beliefs=_beliefs(table),
        charts=charts(report),
        successes=_by_class(table, "successes", SUCCESS),
        aurocs=_by_class(table, "aurocs", AUROC),
        pictures=pictures(report),
        counted=counted(report),
        has=HAS,
        intervals=intervals(report),
        thresholds=_thresholds(report),
        command=command_of(report.result),
        data=config["data"],
        version=config["versions"]["robustbench-lite"],
        disclaimer=DISCLAIMER,
        marked=SYNTHETIC,
        published=PUBLISHED,
    )


def _rendered(template: str, **content: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"share": lambda value: shown(value, "share"), "printed": printed}
    return printable(environment.get_template(template).render(content))


def _reasons(table: Sequence[Line]) -> Iterator[str]:
    """What is to be known of single figures of the table."""
    for line in table:
        yield from (each.reason for each in line.cells.values() if each.reason)


def _beliefs(table: Sequence[Line]) -> dict[str, list[str]]:
    """Why rows are not sound: each reason once, with the rows that it is about."""
    about: dict[str, list[str]] = {}
    for line in table:
        for reason in line.reasons:
            about.setdefault(reason, []).append(line.name)
    return about


def _by_class(table: Sequence[Line], key: str, column: Column) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """Names of the rows that have the figure by class, and of every class its figures in these rows; nothing of a single class."""
    found: list[tuple[Line, Mapping[str, Figure]]] = []
    for line in table:
        by_class: Mapping[str, Figure] | None = getattr(line.figures, key, None)
        if by_class:
            found.append((line, by_class))
    classes = list(dict.fromkeys(name for _, by_class in found for name in by_class))
    if len(classes) < 2:
        return [], []
    cells = [(name, [cell(by_class.get(name), column, line.trust) for line, by_class in found]) for name in classes]
    return [line.name for line, _ in found], cells


def _thresholds(report: ScenarioReport) -> list[tuple[str, str]]:
    """What is positive at or above which probability, by class or finding."""
    if report.point is None:
        return []
    names = class_names(report)
    values = ["none" if value is None else f"{value:.4g}" for value in report.point.thresholds]
    if len(values) == 1:  # of two classes the second, or of a single finding
        return [(names[-1] if names is not None else "positive", values[0])]
    return [(names[place] if names is not None else f"class {place}", value) for place, value in enumerate(values)]
