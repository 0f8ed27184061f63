"""How far a row can be believed: sound, doubtful or refuted, with the reasons. docs/trust.md has the same table in words.

A row under attack is

    refuted     where some finding refutes it: an image that it counts as right has a witness in a ball no larger
    doubtful    where some finding doubts it, or where it lacks what a sound row must have had
    sound       otherwise; also where no image is left, for every broken one has its witness

A sound row must have had, over the images that stand: an attack that follows the model's gradients to its end, one that does without
them, and random points. Other rows are sound unless a finding is about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .diagnostics import Evidence, Finding
from .results import Condition, Result

Level = Literal["sound", "doubtful", "refuted"]
SEARCH = 1000
"""Queries from which on a black box has been tried in earnest; a random search of this length has tried random points too."""


@dataclass(frozen=True)
class Trust:
    """Args:
    level: sound, doubtful or refuted.
    reasons: why not sound, one sentence each; none where it is.
    findings: those that lower it.
    missing: what a sound row must have had and this one had not.
    at_most: correct / n once every image is taken away that is known to be broken; the accuracy itself unless refuted.
    """

    level: Level
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...]
    missing: tuple[str, ...]
    at_most: float


def trusts(result: Result) -> dict[str, Trust]:
    """The trust in every row of a run's table, by condition."""
    evidence = Evidence(result)
    return {c.name: _trust(evidence, c) for c in result.conditions if c.kind != "doubt"}


def _trust(evidence: Evidence, condition: Condition) -> Trust:
    verdicts = evidence.result.of(condition.name)
    about = [f for f in evidence.result.findings if condition.name in f.conditions and f.weight != "notes"]
    refuting = [f for f in about if f.weight == "refutes"]
    standing = evidence.standing(condition)
    left = standing - {key for finding in refuting for key in finding.samples}
    missing = _missing(evidence, condition) if condition.kind in ("attack", "worst") and standing else ()
    level: Level = "refuted" if refuting else "doubtful" if about or missing else "sound"
    reasons = (*(finding.seen for finding in about), *missing)
    return Trust(level, reasons, tuple(about), missing, len(left) / len(verdicts))


def _missing(evidence: Evidence, condition: Condition) -> tuple[str, ...]:
    """What a sound row must have had: of its own parts, or of what else was tried in its ball."""
    tried = evidence.tried(condition)
    own = [c for c in tried if c.kind == "attack"] if condition.kind == "worst" else [condition]
    lacking = []
    if not any(evidence.follows_gradients(c) for c in own):
        lacking.append("no attack followed the model's gradients: add pgd or autoattack")
    searched = max((_queries(evidence, c) for c in tried), default=0)
    if searched < SEARCH:
        lacking.append(f"no attack without gradients was tried ({SEARCH:,} queries an image or more): add square, or --doubt")
    if searched < SEARCH and not any(str(c.attack).partition(":")[0] == "noise" for c in tried):
        lacking.append("random points were not tried: add noise, or --doubt")
    return tuple(lacking)


def _queries(evidence: Evidence, condition: Condition) -> int:
    """Queries that the black box among an attack's parts spent on the image that took most."""
    blind = [part for part, door in condition.doors.items() if door == "scores"]
    if not blind:
        return 0
    spent: Sequence[int] = [0]
    if len(condition.doors) > 1:
        spent = [sum(_forwards(v.stages, part) for part in blind) for v in evidence.verdicts(condition)]
    else:
        spent = [v.forwards for v in evidence.verdicts(condition)]
    return max(spent, default=0)


def _forwards(stages: Mapping[str, Sequence[int]], part: str) -> int:
    return stages[part][0] if part in stages else 0
