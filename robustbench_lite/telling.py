"""When a count of images tells something, and which attacks it may be told by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Set

from .diagnostics import Counter, Evidence
from .errors import RobustEvalError
from .registry import ATTACKS, split
from .results import Condition

LUCK = 0.02
"""Share of the images that two good attacks may well differ by, each having random draws of its own."""

SEARCHES = {"linf": "square", "l2": "square", "l1": "square", "pixels": "sparse-rs"}
"""The random search on scores in a norm; there is none in the other norms."""


def tells(count: int, of: int) -> bool:
    """Whether so many of these images are more than luck: two or more, and more than `LUCK` of them."""
    return count >= 2 and count > LUCK * of


def searches(norm: str, queries: int | None = None) -> tuple[Counter, ...]:
    """What tells whether gradients mislead: the random search, of so many queries or its usual ones; empty where a norm has none."""
    return (Counter(SEARCHES[norm] + (f":queries={queries}" if queries else "")),) if norm in SEARCHES else ()


def doubted(evidence: Evidence, norm: str, eps: float) -> tuple[str, ...]:
    """The rows of a ball that a doubt can be about: those that count some image as right."""
    standing = {v.condition for v in evidence.result.verdicts if v.broken is False}
    return tuple(name for name in evidence.rows(norm, eps) if name in standing)


def longest(evidence: Evidence, condition: Condition) -> int:
    """Steps of an attack on the image that took most, all restarts, targets and stages together."""
    return max((v.steps for v in evidence.verdicts(condition)), default=0)


def climbs(evidence: Evidence, condition: Condition) -> bool:
    """Whether an attack follows the model's own gradients over several steps, which one step does not."""
    return evidence.follows_gradients(condition) and longest(evidence, condition) > 1


def climbers(evidence: Evidence, norm: str, eps: float) -> list[Condition]:
    """The attacks of a ball that were asked for and that climb."""
    return [c for c in evidence.balls.get((norm, eps), ()) if climbs(evidence, c)]


def left_by_gradients(evidence: Evidence, climbing: Iterable[Condition]) -> Set[str]:
    """Ids of the images that stood everything in these attacks that follows gradients; what broke one later in a cascade did without."""
    left = [{v.sample_id for v in evidence.verdicts(c) if v.broken is False or (v.broken and evidence.blind(c, v))} for c in climbing]
    return set.intersection(*left) if left else set()


def exhausted(evidence: Evidence, condition: Condition) -> Set[str]:
    """Ids of the images of which an attack has asked about every member of its threat, a finite list."""
    try:
        attack = ATTACKS.build(str(condition.attack))
    except RobustEvalError:  # of a package that is not installed where the run is read
        return set()
    whole = attack.steps if getattr(attack, "exhausts", False) else math.inf
    return {v.sample_id for v in evidence.verdicts(condition) if v.steps >= whole}


def by_stand_ins(condition: Condition) -> bool:
    """Whether an attack follows stand-ins for gradients."""
    return any(part.partition(":")[0] == "bpda" for part in split(str(condition.attack)))


def base(condition: Condition) -> str:
    """An attack's name without its parameters."""
    return str(condition.attack).partition(":")[0]
