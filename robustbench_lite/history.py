"""A figure over many runs in the order of time, each beside the one before it."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from .cards import Difference
from .comparison import Paired, Share, standing
from .errors import RobustEvalError, UnknownName, UsageError
from .pairing import SEARCHED, Run
from .results import Condition
from .trust import Level


@dataclass(frozen=True)
class Point:
    """One run under one condition.

    Args:
        run: its folder.
        value: of the metric; of an accuracy only what is left once every image is taken away that is known to be broken.
        interval: 95 %; of accuracies only.
        change: to the point before, over the same images, with its 95 % interval; of accuracies only, and None for the first, and where the
            two count what different attacks broke: the one that was attacked less would look better for that alone.
        right: per image, by id, whether it is right.
        searched: the attacks of its ball, tried in doubt or not.
    """

    run: Path
    created: datetime
    model: str
    digest: str
    n: int
    value: float
    interval: tuple[float, float] | None
    trust: Level
    change: Difference | None = None
    right: dict[str, bool] = field(default_factory=dict, repr=False)
    searched: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Line:
    """What runs on the same images found under the same condition, the oldest first."""

    data: str
    data_digest: str
    condition: Condition
    points: Sequence[Point]

    @property
    def images(self) -> str:
        """`40 of digits`"""
        return f"{self.points[0].n:,} of {self.data}"


@dataclass(frozen=True)
class History:
    """Lines of two points or more.

    Args:
        metric: column of the runs' tables.
        folder: that the runs were found in.
        skipped: folders that could not take part, and why.
        alone: conditions that one run alone has.
    """

    metric: str
    folder: Path
    lines: Sequence[Line]
    skipped: Sequence[tuple[Path, str]]
    alone: int


def read_history(folder: Path, *, metric: str = "accuracy", condition: str | None = None) -> History:
    """What the runs in a folder and below it found.

    Args:
        metric: a column of `Result.table` that holds a number.
        condition: the name of one, such as `pgd[linf,0.1]`, the beginning of several, such as `pgd`, or a kind, such as `worst`. None: all.

    Raises:
        UsageError: there is no run, no such condition, or no two runs with the same images and the same condition.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: name one that runs were written below")
    runs, skipped = _runs(folder)
    if not runs:
        why = f" (skipped: {'; '.join(f'{place}: {reason}' for place, reason in skipped[:3])})" if skipped else ""
        raise UsageError(f"there is no finished run below {folder}{why}: write some there with --out")
    _check_condition(condition, runs)
    found: dict[tuple[object, ...], list[tuple[Run, Condition]]] = {}
    for run in sorted(runs, key=_created):
        for done, c in run.conditions.items():
            if condition is None or condition in _called(c):
                found.setdefault((run.result.config["data"]["digest"], done), []).append((run, c))
    lines = [_line(each, metric) for each in found.values()]
    drawn = [line for line in lines if len(line.points) > 1]
    if not drawn:
        raise UsageError(
            f"no two of the {len(runs)} runs below {folder} have a figure for {metric} on the same images under the same condition: "
            "run with the same --data, --limit, --attack and --eps"
        )
    return History(metric, folder, drawn, skipped, len(lines) - len(drawn))


def _runs(folder: Path) -> tuple[list[Run], list[tuple[Path, str]]]:
    """The finished runs, and the folders that look like runs and are none of these."""
    runs, skipped = [], []
    for place in sorted(file.parent for file in folder.rglob("run.json")):
        try:
            run = Run.read("", place)
            _created(run)
            if run.finished and run.result.trust:
                runs.append(run)
            else:
                skipped.append((place, "unfinished" if not run.finished else "has no verdict"))
        except RobustEvalError as error:
            skipped.append((place, str(error)))
        except (KeyError, TypeError, ValueError, sqlite3.Error) as error:  # what was written by something else can be anything
            skipped.append((place, f"cannot be read ({type(error).__name__}: {error})"))
    return runs, skipped


def _created(run: Run) -> datetime:
    return datetime.fromisoformat(run.result.config["created"]).astimezone(UTC)


def _called(c: Condition) -> set[str]:
    """What a condition can be chosen by."""
    return {c.name, c.kind, c.name.partition("[")[0], *([c.attack.partition(":")[0]] if c.attack else [])}


def _check_condition(asked: str | None, runs: Iterable[Run]) -> None:
    known = {name for run in runs for c in run.conditions.values() for name in _called(c)}
    if asked is not None and asked not in known:
        raise UnknownName("condition", asked, known)


def _line(found: Sequence[tuple[Run, Condition]], metric: str) -> Line:
    points: list[Point] = []
    for run, c in found:
        point = _point(run, c, metric, points[-1] if points else None)
        if point is not None:
            points.append(point)
    data = found[0][0].result.config["data"]
    return Line(data["name"], data["digest"], found[0][1], points)


def _point(run: Run, c: Condition, metric: str, before: Point | None) -> Point | None:
    """None where the metric has no value: the accuracy always has, a distance only under the goal `closest`."""
    result = run.result
    right = standing(result, c.name)
    share = Share(sum(right.values()), len(right))
    interval, change, trust = None, None, result.trust[c.name].level
    searched = frozenset(run.searches(c) if c.kind in SEARCHED else ())
    if metric == "accuracy":
        value, interval = share.accuracy, share.interval
        if before is not None and (before.searched == searched or (c.kind == "attack" and "refuted" not in (before.trust, trust))):
            both = [(before.right[key], right[key]) for key in before.right if key in right]
            change = Paired.of(both).difference if both else None
    else:
        table = result.table
        cell = table.loc[table.condition == c.name, metric].iloc[0]
        value = math.nan if cell is None else float(cell)
    if not math.isfinite(value):
        return None
    model = result.config["model"]
    assert result.folder is not None  # runs are read from folders
    return Point(result.folder, _created(run), model["name"], model["digest"], share.n, value, interval, trust, change, right, searched)
