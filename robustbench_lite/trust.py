"""How far a row can be believed: sound, doubtful or refuted, with the reasons. docs/trust.md has the same table in words.

A row under attack is

    refuted     where some finding refutes it: an image that it counts as right has a witness in a ball no larger
    doubtful    where some finding doubts it, or where it lacks what a sound row must have had
    sound       otherwise; also where no image is left, for every broken one has its witness, or where each that is left is proven: that
                takes away what it lacks, and the doubts that a stronger attack would settle

A sound row must have had, over the images that stand: an attack that follows the model's gradients to its end, one that does without
them, and random points. Other rows are sound unless a finding is about them.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

from .diagnostics import Evidence, Finding
from .results import Condition, Result, Verdict
from .telling import SEARCHES, base, climbs, exhausted, longest

Level = Literal["sound", "doubtful", "refuted"]
SEARCH = 1000
"""Queries from which on a black box has been tried in earnest; a random search of this length has tried random points too."""

BLACK = {"labels", "scores"}
"""The doors of black boxes."""

STEPS = 10
"""Steps from which on a search that follows gradients has been tried in earnest."""
BLIND_STEPS = 100
"""The same under the goal `full`, where nobody knows whether the last steps still found something."""


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
    bracket = evidence.brackets.get(condition.name)
    proven = bracket is not None and bracket.confidence == 1 and bool(left) and left <= bracket.safe
    if proven:  # no attack is left to try; a doubt that no attack would settle remains
        about = [finding for finding in about if finding.weight == "refutes" or not finding.settle]
    missing = _missing(evidence, condition, left) if condition.kind in ("attack", "worst") and left and not proven else ()
    level: Level = "refuted" if refuting else "doubtful" if about or missing else "sound"
    reasons = (*(finding.seen for finding in about), *missing)
    return Trust(level, reasons, tuple(about), missing, len(left) / len(verdicts))


def _missing(evidence: Evidence, condition: Condition, left: Set[str]) -> tuple[str, ...]:
    """What a sound row must have had: of its own parts, or of what else was tried in its ball on every image that is left."""
    tried = evidence.tried(condition)
    if left <= {key for c in tried for key in exhausted(evidence, c)}:
        return ()  # every member of a finite set was asked about
    own = [c for c in tried if c.kind == "attack"] if condition.kind == "worst" else [condition]
    searched = {
        v.sample_id for c in tried if base(c) != "noise" for v in evidence.verdicts(c) if _queries(c, v) >= SEARCH * evidence.answers(c)
    }
    sprinkled = {v.sample_id for c in tried if base(c) == "noise" for v in evidence.verdicts(c)}
    lacking = []
    steps = max((longest(evidence, c) for c in own if climbs(evidence, c)), default=0)
    least = BLIND_STEPS if own[0].goal == "full" else STEPS
    if not steps:
        lacking.append("no attack followed the model's gradients over several steps: add pgd or autoattack")
    elif steps < least:
        lacking.append(f"gradients were followed for {steps} steps, and goal {own[0].goal} asks for {least}: give the attack more")
    if not left <= searched:
        search = SEARCHES.get(str(condition.norm))
        advice = f"add {search}, or --doubt" if search else f"there is none with norm {condition.norm}"
        lacking.append(f"no attack without gradients was tried ({SEARCH:,} queries an image or more): {advice}")
    if not left <= searched | sprinkled:
        lacking.append("random points were not tried: add noise, or --doubt")
    return tuple(lacking)


def _queries(condition: Condition, verdict: Verdict) -> int:
    """What the black boxes among an attack's parts asked about an image."""
    if len(condition.doors) < 2:
        return verdict.forwards if BLACK & set(condition.doors.values()) else 0
    return sum(cost[0] for part, cost in verdict.stages.items() if condition.doors.get(part) in BLACK)
