"""Whether the attacks that would settle a finding were tried on everything that a ball has left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .diagnostics import Counter, Evidence
from .registry import ATTACKS
from .results import Condition


def carried_out(evidence: Evidence, row: Condition, counter: Counter) -> Sequence[Condition]:
    """The attacks on the model that did what a counter asks, in the ball of a row, and that met every image left there."""
    worst = evidence.worst(str(row.norm), float(row.eps or 0))
    left = evidence.standing(worst or row)
    return [
        c
        for c in evidence.tried(row)
        if c.attack == counter.attack and c.source is None and counter.eot in (None, c.eot) and left <= evidence.standing(c)
    ]


def settled(evidence: Evidence, row: Condition, settle: Iterable[Counter]) -> bool:
    """Whether all counters that have the row's norm were carried out, and there is one; what they broke is counted elsewhere."""
    possible = [counter for counter in settle if row.norm in ATTACKS.build(counter.attack).norms]
    return bool(possible) and all(carried_out(evidence, row, counter) for counter in possible)
