"""Attacks that are tried to doubt or settle what others found, planned for the images that those had left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .conditions import Job, Target, job
from .diagnostics import Counter, counters
from .plan import parts
from .registry import ATTACKS
from .results import Condition, Result


@dataclass(frozen=True)
class Doubt:
    """An attack on the images that every one of the conditions `over` has left."""

    job: Job
    over: tuple[str, ...]

    def left(self, result: Result) -> list[str]:
        """Ids of those images, in the data set's order."""
        stood = [{v.sample_id for v in result.of(name) if v.broken is False} for name in self.over]
        return [v.sample_id for v in result.of(self.over[0]) if all(v.sample_id in each for each in stood)]


def doubts(asked: Sequence[Job], target: Target | None, twin: str | None, *, by_stand_ins: bool = False) -> list[Doubt]:
    """What `--doubt` tries besides the attacks that were asked for, on what these left in each ball; that of the largest eps first.

    Args:
        by_stand_ins: try stand-ins for gradients too, since the attacks that were asked for do without them.
    """
    balls: dict[tuple[str, float], list[Condition]] = {}
    for condition in sorted((each.condition for each in asked), key=lambda c: -(c.eps or 0)):
        balls.setdefault((str(condition.norm), float(condition.eps or 0)), []).append(condition)
    planned: list[Doubt] = []
    for (norm, eps), conditions in balls.items():
        over = tuple(c.name for c in conditions)
        planned += _planned([*counters(conditions), *([Counter("bpda")] if by_stand_ins else [])], norm, eps, over, target)
        if twin is not None:
            planned += _planned([Counter("pgd:loss=margin")], norm, eps, over, target, twin)
    taken = {each.condition.name for each in asked}
    return _each_once(planned, taken)


def settling(result: Result, target: Target | None) -> list[Doubt]:
    """The attacks that would settle a run's findings, on what is left of the rows that these are about."""
    taken = {c.name for c in result.conditions if c.kind == "attack"}
    planned: list[Doubt] = []
    for finding in result.findings:
        for c in (c for c in result.conditions if c.name in finding.conditions and c.kind in ("attack", "worst")):
            over = next(w.name for w in result.conditions if w.kind == "worst" and (w.norm, w.eps) == (c.norm, c.eps))
            planned += _planned(finding.settle, str(c.norm), float(c.eps or 0), (over,), target)
    return _each_once(planned, taken)


def _planned(
    tried: Iterable[Counter], norm: str, eps: float, over: tuple[str, ...], target: Target | None, source: str = ""
) -> Iterator[Doubt]:
    """A counter-attack that has not got the norm is left out; the row it would have been for says what it lacks."""
    for counter in tried:
        attack = ATTACKS.build(counter.attack)
        if norm in attack.norms and parts(attack, norm):
            size = eps if counter.eps is None else counter.eps
            yield Doubt(job(attack, norm, size, kind="doubt", target=target, source=source, eot=counter.eot), over)


def _each_once(planned: Iterable[Doubt], taken: set[str]) -> list[Doubt]:
    """The first of each name that is not taken."""
    found: dict[str, Doubt] = {}
    for each in planned:
        if each.job.condition.name not in taken:
            found.setdefault(each.job.condition.name, each)
    return list(found.values())
