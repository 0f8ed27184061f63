"""When a count of images tells something, and which attacks it may be told by."""

from __future__ import annotations

from collections.abc import Iterable, Set

from .diagnostics import Evidence
from .results import Condition

LUCK = 0.02
"""Share of the images that two good attacks may well differ by, each having random draws of its own."""


def tells(count: int, of: int) -> bool:
    """Whether so many of these images are more than luck: two or more, and more than `LUCK` of them."""
    return count >= 2 and count > LUCK * of


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


def base(condition: Condition) -> str:
    """An attack's name without its parameters."""
    return str(condition.attack).partition(":")[0]
