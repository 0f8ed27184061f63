"""Images still fell in the second half of a search: more steps would break more."""

import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, fields, replace

from robustbench_lite.diagnostics import Counter, Evidence, Finding
from robustbench_lite.errors import RobustEvalError
from robustbench_lite.registry import ATTACKS, diagnostic
from robustbench_lite.results import REDUCED, Condition, Verdict, reach
from robustbench_lite.settlement import carried_out
from robustbench_lite.telling import climbers, climbs, tells

NEARER = 0.1
"""Share by which an image comes nearer that has not come to its end; approaches are kept in steps of a twentieth."""
LONGER = 5
"""How many times as long the search is that would settle it."""


@diagnostic("converged")
@dataclass(frozen=True)
class Converged:
    """Of the images that stood at half of a gradient search, how many its second half broke.

    More than 2 % (and two or more) means that it was broken off while it still found something. In a cascade, all its attacks on
    gradients together are the search. Under the goal `closest`, an image fell when the nearest broken one had come within eps; under `full`
    none leaves early, so that nothing is known of when it fell.
    A search five times as long settles it: if that breaks no more than luck would, there is no finding.

    A search for the nearest had not come to its end either where as many images came nearer by more than a tenth in its second half: its
    distances are too long, and accuracies at other sizes that are read off them too high. Only a longer search in its place has others.
    """

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        for row in (row for balls in evidence.balls.values() for row in balls):
            if climbs(evidence, row) and tells(*map(len, halves := _approaching(evidence, row))):
                late, reached = halves
                yield Finding(
                    "converged",
                    "doubts",
                    (row.name,),
                    f"in the second half of {row.name}'s search {len(late)} of {len(reached)} images came nearer by more than a tenth",
                    "the search ended while it still came nearer: distances are too long, and accuracies that are read off them too high",
                    figures={"late": len(late), "reached": len(reached)},
                    samples=tuple(sorted(late)),
                )
        for norm, eps in evidence.balls:
            climbing = climbers(evidence, norm, eps)
            unended = {row.name: halves for row in climbing if tells(*map(len, halves := _halves(evidence, row)))}
            # one search that came to its end is enough for the worst case
            worst = evidence.worst(norm, eps) if len(unended) == len(climbing) else None
            for row in (c for c in climbing if c.name in unended):
                late, reached = unended[row.name]
                yield Finding(
                    "converged",
                    "doubts",
                    (row.name, *([worst.name] if worst and evidence.standing(worst) else [])),
                    f"the second half of {row.name}'s search broke {len(late)} of the {len(reached)} images that stood at its middle",
                    "the search ended while it was still finding something: more steps would break more",
                    (Counter(_longer(row)),),
                    {"late": len(late), "reached": len(reached)},
                    tuple(sorted(late)),
                )


def _halves(evidence: Evidence, row: Condition) -> tuple[Set[str], Set[str]]:
    """The images that fell in the second half of a search, and those that reached it; none where this is not known or is settled."""
    if not evidence.standing(row) or row.goal == "full" or _settled(evidence, row):
        return set(), set()
    spent = {v.sample_id: _passes(row, v) for v in evidence.verdicts(row)}
    if row.goal == "closest":
        if len(row.doors) > 1:
            return set(), set()  # the passes of its approach are those of all parts
        middle = max(spent.values()) / 2
        fell_at = {key: _within(v, v.radius or float(row.eps or 0)) for key, v in evidence.broken(row).items()}
        late = {key for key, passes in fell_at.items() if passes > middle}
        return late, spent.keys() - fell_at.keys() | late
    fell = {key: v for key, v in evidence.broken(row).items() if not evidence.blind(row, v)}
    longest = max(spent.values())
    late = {key for key, ahead in _ahead(evidence, row, fell).items() if spent[key] + ahead > longest / 2}
    return late, spent.keys() - fell.keys() | late


def _ahead(evidence: Evidence, row: Condition, fell: Mapping[str, Verdict]) -> dict[str, int]:
    """What is to be added to the passes of an image, so that they say how far the search was that broke it. A part of an attack with a
    first pass in reduced precision searches twice, and a find of either search counts as if both had come so far."""
    twice = {evidence.part(row, v) for v in fell.values() if v.precision in REDUCED}
    whole = {part: max(_passes_of(row, v, part) for v in evidence.verdicts(row)) for part in twice}
    found = dict.fromkeys(fell, 0)
    for key, v in fell.items():
        if (part := evidence.part(row, v)) in twice:
            found[key] = _passes_of(row, v, part) - (0 if v.precision in REDUCED else whole[part])
    return found


def _approaching(evidence: Evidence, row: Condition) -> tuple[Set[str], Set[str]]:
    """The images that a search for the nearest came nearer by more than a tenth in its second half, and those that it searched."""
    searched = [v for v in evidence.verdicts(row) if v.broken_by != "clean" and v.broken is not None]
    if row.goal != "closest" or len(row.doors) > 1 or not searched:
        return set(), set()
    middle, steps = max(_passes(row, v) for v in searched) / 2, max(v.steps for v in searched)
    unended = [v for v in searched if v.approach and v.steps == steps]  # an attack that ends of itself has nothing more to find
    late = {v.sample_id for v in unended if _reached(v, middle) > (1 + NEARER) * v.approach[-1][1]}
    return late, {v.sample_id for v in searched}


def _reached(verdict: Verdict, passes: float) -> float:
    """How near it had come after so many passes; infinite before it found anything."""
    return min((distance for spent, distance in verdict.approach if spent <= passes), default=math.inf)


def _within(verdict: Verdict, eps: float) -> float:
    """Passes until the nearest broken image had come within eps."""
    return next((passes for passes, distance in verdict.approach or () if distance <= reach(eps)), 0)


def _passes(row: Condition, verdict: Verdict) -> int:
    """Forwards and backwards of the parts that follow gradients."""
    parts = [part for part, door in row.doors.items() if door == "white box"] if len(row.doors) > 1 else [""]
    return sum(_passes_of(row, verdict, part) for part in parts)


def _passes_of(row: Condition, verdict: Verdict, part: str) -> int:
    return verdict.forwards + verdict.backwards if len(row.doors) < 2 else sum(verdict.stages.get(part, ()))


def _longer(row: Condition) -> str:
    """The attack with more steps; for one that has no steps of its own to set, a long one of another kind."""
    try:
        attack = ATTACKS.build(str(row.attack))
    except RobustEvalError:  # of a package that is not installed where the run is read
        return "apgd:steps=500"
    if any(field.name == "steps" for field in fields(attack)):
        return ATTACKS.spec_of(replace(attack, steps=LONGER * attack.steps))
    return "apgd:steps=500"


def _settled(evidence: Evidence, row: Condition) -> bool:
    """Whether the longer search met every image that is left, and broke no more of what it met than luck would."""
    longer = carried_out(evidence, row, Counter(_longer(row)))
    return any(not tells(len(evidence.broken(c)), len(evidence.verdicts(c))) for c in longer)
