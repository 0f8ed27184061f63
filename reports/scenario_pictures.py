"""Some witnesses of every attack of a scenario: clean, difference x N, attacked; nothing else of an image but label and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt

from robustbench_lite.results import Result, Verdict, Witness
from robustbench_lite.scenarios import ScenarioReport

from .gallery import LONGEST_SIDE, PIXELS, Exhibit, exhibit, shuffled
from .scenario_rows import called, class_names, lines

EACH = 3


@dataclass(frozen=True)
class Pictures:
    """Witnesses of one row, of `of` images that it broke."""

    row: str
    of: int
    exhibits: Sequence[Exhibit]


def pictures(report: ScenarioReport) -> list[Pictures]:
    """Of every row that was attacked the first witnesses; rows show the same images where they broke the same ones."""
    chosen = {line.name: _chosen(report.result, line.condition) for line in lines(report) if line.condition and line.attack}
    count = sum(len(some) for _, some in chosen.values())
    side = min(LONGEST_SIDE, isqrt(PIXELS // max(count, 1)))
    return [Pictures(name, broken, [_shown(report, *pair, side) for pair in some]) for name, (broken, some) in chosen.items() if some]


def _chosen(result: Result, condition: str) -> tuple[int, list[tuple[Verdict, Witness]]]:
    broken = [v for v in result.of(condition) if v.broken and v.broken_by != "clean"]
    found: list[tuple[Verdict, Witness]] = []
    for verdict in sorted((v for v in broken if v.witness is not None), key=shuffled):
        try:
            witness = result.witness(condition, verdict.sample_id)
        except ValueError:  # its file is missing or changed: `verify` names it, and the page shows others
            continue
        if witness is not None:
            found.append((verdict, witness))
        if len(found) == EACH:
            break
    return len(broken), found


def _shown(report: ScenarioReport, verdict: Verdict, witness: Witness, side: int) -> Exhibit:
    names, task = class_names(report), report.result.config["data"].get("task")
    clean = next((v for v in report.result.of("clean") if v.sample_id == verdict.sample_id), None)
    return replace(
        exhibit(verdict, witness, clean, names, side),
        label=called(verdict.label, names, task),
        clean_prediction=called(verdict.clean_prediction, names, task),
        prediction=called(verdict.prediction, names, task),
    )
