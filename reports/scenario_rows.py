"""A scenario's table as every report shows it: one line per row, its figures and the trust in them put into words in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isinf
from typing import Literal

from robustbench_lite.clinical import Figure, Figures
from robustbench_lite.registry import GOALS
from robustbench_lite.results import Result
from robustbench_lite.scenarios import Measured, ScenarioReport
from robustbench_lite.trust import Level

from .comparison import points
from .table import amount, percent

DISCLAIMER = "A research tool, not a medical device. Nothing on this page may guide the care of a patient. No data left this machine."
SYNTHETIC = "SYNTHETIC PHANTOMS: not patients' images"
PUBLISHED = "published, on other data"
NONE = "–"
MULTI_LABEL = "multi-label"
HAS = {
    "white box": "has the model itself",
    "same architecture": "has a twin of the model, trained independently",
    "other architecture": "has a model of another architecture, trained independently",
    "public backbone": "has the public network that the model was made from",
    "scores": "sees the model's scores",
    "decisions": "sees the model's decisions",
    "nothing": "knows nothing: a control, clumsiness or an accident",
}
"""Of an attacker, by what he knows."""


Unit = Literal["share", "rank", "count"]


@dataclass(frozen=True)
class Column:
    """A figure of the table. Of a refuted row it is shown with `bound`: which side of the truth such a row is known to err on."""

    key: str
    title: str
    unit: Unit
    bound: Literal["≤", "≥", ""]


COLUMNS = (
    Column("accuracy", "accuracy, %", "share", "≤"),
    Column("auroc", "AUROC", "rank", "≤"),
    Column("confidence", "mean confidence, %", "share", ""),
    Column("sensitivity", "sensitivity, %", "share", "≤"),
    Column("specificity", "specificity, %", "share", "≤"),
    Column("balanced_accuracy", "balanced accuracy, %", "share", "≤"),
    Column("ece", "calibration error, %", "share", ""),
    Column("success", "attack success, %", "share", "≥"),
    Column("needed", "images to attack for one success", "count", "≤"),
)
AUROC, SUCCESS = COLUMNS[1], COLUMNS[7]


@dataclass(frozen=True)
class Cell:
    """A figure in words. `change` is the difference to the clean images; `reason` says why there is no value, or what to know of it."""

    text: str
    interval: str = ""
    change: str = ""
    reason: str | None = None


@dataclass(frozen=True)
class Line:
    """A row of the table. `cells` are by the keys of COLUMNS, none where the row was not run and `missing` says why.

    Args:
        left: of a refuted row the share that may be right at most, `≤ 12.0 %`, once all that other attacks broke is taken away.
    """

    name: str
    knowledge: str
    means: str
    trust: Level
    reasons: Sequence[str]
    left: str | None
    n: int
    attacked: int
    missing: str | None
    cells: Mapping[str, Cell]
    figures: Figures | None
    condition: str | None

    @property
    def attack(self) -> bool:
        """Whether somebody aimed: there is a share of successes."""
        return self.figures is not None and self.figures.success is not None


def lines(report: ScenarioReport) -> list[Line]:
    """The rows in their order, the clean images first."""
    return [_line(measured, report.result) for measured in report.rows]


def shown(value: float, unit: Unit) -> str:
    """`93.7` of a share or `0.937` of a rank, where none and all are kept for exactly these; `1.3` of a count."""
    if unit == "count":
        return "∞" if isinf(value) else amount(value)
    return percent(value) if unit == "share" else f"{min(max(value, 0.001), 0.999) if 0 < value < 1 else value:.3f}"


def printed(value: float, unit: Unit) -> str:
    """A published figure with the digits that it was published with: `0.01`, `78.53`."""
    return f"{100 * value if unit == 'share' else value:.6g}"


def cell(figure: Figure | None, column: Column, trust: Level) -> Cell:
    """A figure of a row in words, a dash where there is none."""
    if figure is None or figure.value is None:
        return Cell(NONE, reason=None if figure is None else figure.reason)
    doubt = " ?" if trust == "doubtful" and column.bound else ""
    return Cell(f"{_sign(column, trust)}{shown(figure.value, column.unit)}{doubt}", _interval(figure, column.unit), reason=figure.reason)


def called(said: object, names: Sequence[str] | None, task: str | None) -> str:
    """A label or a prediction in words: a class, or the findings that are there."""
    if isinstance(said, list | tuple):
        indices = [index for index, there in enumerate(said) if there] if task == MULTI_LABEL else [int(index) for index in said]
        return ", ".join(_class(index, names) for index in indices) or "no finding"
    return _class(said, names) if isinstance(said, int) else str(said)


def class_names(report: ScenarioReport) -> Sequence[str] | None:
    """The data's own."""
    names: Sequence[str] | None = report.result.config["data"].get("class_names")
    return names


def hardest(shown_lines: Sequence[Line]) -> Line | None:
    """The row after which least is left; of several the first that was aimed, or else the first."""
    run = [line for line in shown_lines[1:] if line.figures is not None and line.figures.accuracy.value is not None]
    return min(run, key=lambda line: (_accuracy(line), not line.attack), default=None)


def summary(report: ScenarioReport) -> str:
    """The scenario in two sentences, for somebody who reads no further."""
    table = lines(report)
    clean, worst = table[0], hardest(table)
    what = "of the findings of" if report.result.config["data"].get("task") == MULTI_LABEL else "of"
    told = (
        f"{report.models.get('model', 'The model')} is right on {shown(_accuracy(clean), 'share')} % {what} {clean.n:,} images as they are"
    )
    if worst is None or worst.figures is None:
        return f"{told}; no attack was run."
    at_most = "at most " if worst.trust == "refuted" else ""
    told += f", and on {at_most}{shown(_accuracy(worst), 'share')} % under {worst.name}"
    told += (
        "; that may be too high, for what was tried does not suffice to believe it." if "doubtful" in (clean.trust, worst.trust) else "."
    )
    success = worst.figures.success
    if success is None or success.value is None:
        return told
    least = "At least " if worst.trust == "refuted" else ""
    offering = "were right" if _aim(report) is None else "were right and offer the attacker something"
    return (
        f"{told} {least}{shown(success.value, 'share')} % of the {worst.attacked:,} images that {offering} were turned the attacker's way."
    )


def goal_of(report: ScenarioReport) -> str:
    """What counts as the attacker's success."""
    aim = _aim(report)
    if aim is None:
        return "Any wrong answer."
    name = str(aim).partition(":")[0]
    if name in GOALS.names():
        meaning = (GOALS.get(name).__doc__ or "").partition("\n\n")[0]
        return f"{' '.join(meaning.split())} (goal {aim}; a change in another direction is no success.)"
    return f"The prediction {called(aim, class_names(report), None)}; a change to another class is no success."


def legend(table: Sequence[Line]) -> list[str]:
    """What the signs beside figures mean; a line for each that is there."""
    levels = {line.trust for line in table}
    meanings = {
        "refuted": "≤ and ≥, refuted: images that the row counts as right are known to be broken by other attacks of this size or smaller. "
        "The figures of an attacker who knows less say what this attacker did, not what the model withstands.",
        "doubtful": "? doubtful: the figure may be too good, or known too roughly.",
    }
    return [meaning for level, meaning in meanings.items() if level in levels]


def counted(report: ScenarioReport) -> str:
    """`40 images of 20 patients`, where it is said of images and patients that were made up."""
    figures = report.rows[0].figures
    if figures is None:
        return "no images"
    images, patients = ("synthetic images", "made-up patients") if report.synthetic else ("images", "patients")
    return f"{figures.n:,} {images}" + (f" of {figures.patients:,} {patients}" if figures.patients is not None else "")


def intervals(report: ScenarioReport) -> str:
    """How the intervals were made."""
    figures = report.rows[0].figures
    over = "images" if figures is None or figures.patients is None else "patients, with all the images of each"
    return (
        f"Intervals are 95 %, by a bootstrap over {over}; that of the mean confidence is a t interval, and the calibration error has none, "
        "since resampling inflates it. Differences to clean are paired."
    )


def _aim(report: ScenarioReport) -> int | str | None:
    """The target of the run, of which there is one."""
    aims = [c.target for c in report.result.conditions if c.kind == "attack"]
    return aims[0] if aims else report.scenario.goal


def _class(index: int, names: Sequence[str] | None) -> str:
    return names[index] if names is not None and 0 <= index < len(names) else f"class {index}"


def _accuracy(line: Line) -> float:
    if line.figures is None or line.figures.accuracy.value is None:
        raise ValueError(f"{line.name} has no accuracy")
    return line.figures.accuracy.value


def _line(measured: Measured, result: Result) -> Line:
    row, figures = measured.row, measured.figures
    trust = result.trust.get(measured.condition or "")
    level: Level = "sound" if trust is None else trust.level
    told = {}
    if figures is not None:
        for column in COLUMNS:
            made = cell(getattr(figures, column.key), column, level)
            told[column.key] = made if made.text == NONE else replace(made, change=_change(column, figures, level))
    return Line(
        name=row.name,
        knowledge=row.knowledge,
        means=row.means,
        trust=level,
        reasons=() if trust is None else trust.reasons,
        left=f"≤\u00a0{percent(trust.at_most)}\u00a0%" if trust is not None and level == "refuted" else None,
        n=0 if figures is None else figures.n,
        attacked=0 if figures is None else figures.attacked,
        missing=measured.missing,
        cells=told,
        figures=figures,
        condition=measured.condition,
    )


def _interval(figure: Figure, unit: Unit) -> str:
    return "" if figure.low is None or figure.high is None else f"{shown(figure.low, unit)}–{shown(figure.high, unit)}"


def _change(column: Column, figures: Figures, trust: Level) -> str:
    """`−94.0 (−97.0, −90.1)`; nothing where there is no difference to be had."""
    change = figures.change.get(column.key)
    if change is None or change.value is None:
        return ""
    signed = points if column.unit == "share" else _signed
    span = "" if change.low is None or change.high is None else f" ({signed(change.low)},\u00a0{signed(change.high)})"
    return f"{_sign(column, trust)}{signed(change.value)}{span}"


def _sign(column: Column, trust: Level) -> str:
    return f"{column.bound} " if trust == "refuted" and column.bound else ""


def _signed(value: float) -> str:
    return "0.000" if value == 0 else f"{value:+.3f}".replace("-", "−")
