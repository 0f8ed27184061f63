"""Lines on standard output that GitHub Actions shows beside the settings file and above the log."""

from __future__ import annotations

from robustbench_lite.gate.rulings import Judgement, Outcome, Ruling
from robustbench_lite.registry import report

from .escaping import command_message, command_property
from .gate_words import settings_path

MOST = 10
"""GitHub shows ten of a step's annotations of one kind and drops the others without a word."""
GRAVITY: tuple[Outcome, ...] = ("fail", "invalid", "inconclusive")


@report("gate-annotations")
def gate_annotations(judgement: Judgement) -> list[str]:
    """One line for every rule that did not pass, the gravest first; at most ten, the last of which says how many more there are."""
    grave = [ruling for ruling in judgement.rulings if ruling.outcome != "pass"]
    grave.sort(key=lambda ruling: (GRAVITY.index(ruling.outcome), not ruling.blocking))
    file = settings_path(judgement)
    if len(grave) <= MOST:
        return [_line(ruling, file) for ruling in grave]
    more = grave[MOST - 1 :]
    return [
        *(_line(ruling, file) for ruling in grave[: MOST - 1]),
        f"::{_kind(more[0])} title=robustness gate::{len(more)} more rules did not pass: see gate.md",
    ]


def _kind(ruling: Ruling) -> str:
    return "warning" if ruling.outcome == "inconclusive" else "error"


def _line(ruling: Ruling, file: str) -> str:
    place = {"file": file, "line": str(ruling.line or 1)} if file else {}
    properties = ",".join(f"{name}={command_property(value)}" for name, value in (place | {"title": ruling.rule}).items())
    return f"::{_kind(ruling)} {properties}::{command_message(f'{ruling.outcome}: {ruling.message}')}"
