"""More room or more effort broke less: accuracy must not rise with eps, steps or restarts."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, permutations

from robustbench_lite.diagnostics import Evidence, Finding
from robustbench_lite.registry import Spec, diagnostic, split
from robustbench_lite.results import Condition
from robustbench_lite.telling import longest, tells

EFFORT = ("steps", "restarts", "queries", "iterations")
"""Parameters that say how long an attack goes on, and not what it does."""


@diagnostic("rising")
@dataclass(frozen=True)
class Rising:
    """Images that one attack leaves with a larger eps or more steps, and breaks with less of both."""

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        # where nothing stands nobody knows how long an attack would have gone on
        known = [c for c in evidence.attacks if evidence.standing(c)]
        for _, alike in groupby(sorted(known, key=_kind), key=_kind):
            for less, more in permutations(list(alike), 2):
                if _is_more(evidence, less, more):
                    standing = evidence.standing(more)
                    broken = sorted(standing & set(evidence.broken(less)))
                    if tells(len(broken), len(standing)):
                        yield Finding(
                            "rising",
                            "doubts",
                            (more.name,),
                            f"of the {len(standing)} images that {more.name} leaves, {less.name} breaks {len(broken)} with less",
                            "the search gets lost where it has more room or time: it does not find what is there",
                            figures={"broken": len(broken), "standing": len(standing)},
                            samples=tuple(broken),
                        )


def _kind(condition: Condition) -> tuple[str, ...]:
    """What two rows must share to be the same attack, longer or in a larger ball."""
    specs = [Spec.parse(part) for part in split(str(condition.attack))]
    options = [f"{key}={value}" for spec in specs for key, value in sorted(spec.options.items()) if key not in EFFORT]
    return (str(condition.norm), str(condition.source), *(f"{spec.name}:{spec.first}" for spec in specs), *options)


def _is_more(evidence: Evidence, less: Condition, more: Condition) -> bool:
    steps = longest(evidence, less), longest(evidence, more)
    if less.attack == more.attack:  # the longest search of a cascade depends on what stands
        return (less.eps or 0) < (more.eps or 0)
    return (less.eps or 0) <= (more.eps or 0) and steps[0] < steps[1]
