"""What every report says of trust: the findings in words, what was tried in doubt, what is missing, and one sentence on the whole run."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from robustbench_lite.diagnostics import Finding
from robustbench_lite.results import Condition, Result, eps_text

from .table import Row, percent

WEIGHTS = {"refutes": "refutes", "doubts": "makes doubtful", "notes": "note"}
"""What a finding does, as a reader is told."""


@dataclass(frozen=True)
class Doubted:
    """An attack that was tried on the images which those asked for had left: how many it met, broke, and left undecided."""

    condition: str
    attack: str | None
    norm: str | None
    eps: float | None
    met: int
    broken: int
    undecided: int
    mean_forwards: float
    mean_backwards: float


@dataclass(frozen=True)
class FindingRow:
    """A finding as a file holds it; `settle` are the attacks that would settle it, as they are written on the command line."""

    check: str
    weight: str
    conditions: list[str]
    seen: str
    means: str
    settle: list[str]
    figures: dict[str, float]
    samples: list[str]


def finding_rows(result: Result) -> list[FindingRow]:
    """One row per finding, what refutes first."""
    return [_row(finding) for finding in result.findings]


def doubted(result: Result) -> list[Doubted]:
    """One row per attack that was tried in doubt and met any image, in the order in which they ran."""
    return [_doubted(result, c) for c in result.conditions if c.kind == "doubt" and result.of(c.name)]


def lacking(result: Result) -> dict[str, list[str]]:
    """What sound rows must have had, and the rows that had it not."""
    found: dict[str, list[str]] = {}
    for condition, trust in result.trust.items():
        for what in trust.missing:
            found.setdefault(what, []).append(condition)
    return found


@dataclass(frozen=True)
class Group:
    """The findings of one check that mean the same, for a reader who need not be told it once for every row."""

    check: str
    weight: str
    seen: list[str]
    means: str
    conditions: list[str]
    settle: list[str]
    samples: list[str]


def grouped(found: Sequence[FindingRow]) -> list[Group]:
    """The findings in their order, those of one check that mean the same together."""
    together: dict[tuple[str, str, str], list[FindingRow]] = {}
    for finding in found:
        together.setdefault((finding.check, finding.weight, finding.means), []).append(finding)
    return [
        Group(
            check,
            weight,
            [finding.seen for finding in group],
            means,
            _each_once(finding.conditions for finding in group),
            _each_once(finding.settle for finding in group),
            _each_once(finding.samples for finding in group),
        )
        for (check, weight, means), group in together.items()
    ]


def summary(model: str, shown: Sequence[Row]) -> str:
    """The run in one sentence, for somebody who reads no further: clean, under the hardest attack and under the hardest corruption."""
    clean = [row for row in shown if row.kind == "clean"]
    hardest = [_hardest([row for row in shown if row.kind in kinds]) for kinds in (("attack", "worst"), ("corruption",))]
    told = [*clean, *(row for row in hardest if row is not None)]
    parts = [f"{'at most ' if row.trust == 'refuted' else ''}{percent(row.at_most)} %{_of(row, told[0])}" for row in told]
    return f"{model} is right on {', on '.join(parts[:-1])}{', and on ' if parts[1:] else ''}{parts[-1]}{_verdict(told)}."


def _hardest(candidates: Sequence[Row]) -> Row | None:
    """The row of fewest images left; among equals the smallest eps, and the worst case before an attack that reached it alone."""
    return min(candidates, key=lambda row: (row.at_most, row.eps or 0.0, row.kind != "worst"), default=None)


def _of(row: Row, first: Row) -> str:
    """Which images, and what was done to them."""
    images = f" of {row.n:,} images" if row is first or row.n != first.n else ""
    if row.kind == "clean":
        return f"{images} as they are"
    attacked = (
        f" under all attacks tried of size {eps_text(row.eps or 0)} in {row.norm}" if row.kind == "worst" else f" under {row.condition}"
    )
    return images + attacked + (", the hardest corruption" if row.kind == "corruption" else "")


def command_of(result: Result) -> str | None:
    """The command that gives the numbers again, where the run knows it."""
    command = result.config.get("command")
    return command if command is None or isinstance(command, str) else shlex.join(command)


def _verdict(about: Sequence[Row]) -> str:
    """What to make of the figures just said."""
    levels = [row.trust for row in about]
    if "refuted" in levels:
        return "; the attack alone left more than that, which other witnesses refute"
    if "doubtful" in levels:
        return "; that may be too high, for what was tried does not suffice to believe it"
    return "; nothing that was tried speaks against these figures"


def _each_once(lists: Iterable[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(chain.from_iterable(lists)))


def _row(finding: Finding) -> FindingRow:
    settle = [counter.words for counter in finding.settle]
    figures, samples = dict(finding.figures), list(finding.samples)
    return FindingRow(finding.check, finding.weight, list(finding.conditions), finding.seen, finding.means, settle, figures, samples)


def _doubted(result: Result, condition: Condition) -> Doubted:
    met = [v for v in result.of(condition.name) if v.broken_by != "clean"]
    n = max(len(met), 1)
    return Doubted(
        condition.name,
        condition.attack,
        condition.norm,
        condition.eps,
        len(met),
        sum(v.broken is True for v in met),
        sum(v.broken is None for v in met),
        sum(v.forwards for v in met) / n,
        sum(v.backwards for v in met) / n,
    )
