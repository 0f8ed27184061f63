"""ROC curves of a scenario, from the outputs that are kept with every verdict: all rows for two classes, else class by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustbench_lite.scenarios import ScenarioReport

from .roc import Curve, plot
from .scenario_rows import Line, hardest, lines

if TYPE_CHECKING:
    from robustbench_lite.clinical_answers import Answers


def charts(report: ScenarioReport) -> list[tuple[str, str]]:
    """Title and `<svg>`: of two classes one chart with every row; of several one each, with the clean images and the hardest row."""
    from robustbench_lite.clinical_answers import answers

    table = lines(report)
    worst = hardest(table)
    known = [(line, answers(report.result, line.condition)) for line in table if line.condition is not None]
    sides, names = known[0][1].sides, known[0][1].names
    if len(sides) == 1:
        drawn = [(f"positive: {names[sides[0]]}", _curves(known, sides[0], alone=True))]
    else:
        pair = [(line, said) for line, said in known if line is table[0] or line is worst]
        drawn = [(names[side], _curves(pair, side, alone=False)) for side in sides]
    return [(title, plot(f"ROC, {title}", curves)) for title, curves in drawn if curves]


def _curves(known: Sequence[tuple[Line, Answers]], side: int, *, alone: bool) -> list[Curve]:
    """Of one class against the rest; none of rows whose images are all of one class.

    Args:
        alone: whether the rows' AUROC and operating point are those of this very class.
    """
    from robustbench_lite.clinical_statistics import roc_curve

    curves = []
    for place, (line, said) in enumerate(known):
        decided = said.after.decided
        corners = roc_curve(said.truth[decided, side], said.after.chances[decided, side])
        if corners is not None:
            points = list(zip(corners[0].tolist(), corners[1].tolist(), strict=True))
            at = _operating(line) if alone else None
            curves.append(Curve(line.name, points, at, plain=place == 0, note=_note(line, alone)))
    return curves


def _note(line: Line, alone: bool) -> str:
    """Of a row in the legend its AUROC, whose sign says how far it can be believed; without one, that in a word."""
    if alone:
        return f", AUROC {line.cells['auroc'].text}"
    return f" ({line.trust})" if line.trust != "sound" else ""


def _operating(line: Line) -> tuple[float, float] | None:
    if line.figures is None or line.figures.specificity.value is None or line.figures.sensitivity.value is None:
        return None
    return 1 - line.figures.specificity.value, line.figures.sensitivity.value
