"""Attacks that trust a tangent plane broke next to nothing of what others broke: the model is jagged, as k-WTA is."""

from collections.abc import Iterator, Set
from dataclasses import dataclass

from robustbench_lite.diagnostics import Counter, Evidence, Finding
from robustbench_lite.registry import diagnostic
from robustbench_lite.results import Condition
from robustbench_lite.telling import doubted, tells

NEXT_TO_NOTHING = 0.1
"""Share of what others broke, of the same images. FAB and DeepFool break less than APGD on honest models too, but not so little."""


@diagnostic("local-linear")
@dataclass(frozen=True)
class LocalLinear:
    """FAB or DeepFool against all other attacks in the ball, over the images that both met.

    In a cascade FAB meets only what the attacks before it left, so it is held to what the ones after it broke of that.
    """

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        for (norm, eps), asked in evidence.balls.items():
            for row in asked:
                for part in (part or str(row.attack) for part in row.doors):
                    if part.startswith("fab") or "deepfool" in part.lower():
                        met, broken = _fate(evidence, row, part)
                        others = _others(evidence, row, part) & met
                        missed = others - broken
                        if len(broken & met) <= NEXT_TO_NOTHING * len(others | broken) and tells(len(missed), len(met)):
                            yield Finding(
                                "local-linear",
                                "doubts",
                                doubted(evidence, norm, eps),
                                f"{part} broke {len(broken)} of {len(met)} images, and other attacks {len(others)} of the same",
                                "the model is not smooth at the scale of a gradient step: an attack made for that may break far more",
                                (Counter("es-pgd:samples=500,iterations=40"),),
                                {"met": len(met), "broken": len(broken), "others": len(others)},
                                tuple(sorted(missed)),
                            )


def _fate(evidence: Evidence, row: Condition, part: str) -> tuple[Set[str], Set[str]]:
    """The images that a part of an attack met, and those of them that it broke."""
    verdicts = evidence.verdicts(row)
    if len(row.doors) < 2:
        return {v.sample_id for v in verdicts}, set(evidence.broken(row))
    met = [v for v in verdicts if part in v.stages]
    return {v.sample_id for v in met}, {v.sample_id for v in met if v.broken_by == f"{row.attack}/{part}"}


def _others(evidence: Evidence, row: Condition, part: str) -> Set[str]:
    """What other attacks in the ball broke, and the other parts of this one."""
    found = {key for key, v in evidence.broken(row).items() if len(row.doors) > 1 and v.broken_by != f"{row.attack}/{part}"}
    for other in evidence.tried(row):
        if other.name != row.name:
            found |= set(evidence.broken(other))
    return found
