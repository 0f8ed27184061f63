"""Gradients that are zero, lost in rounding, or not finite: an attack that follows them leaves the image where it is."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from robustbench_lite.diagnostics import Counter, Evidence, Finding
from robustbench_lite.registry import diagnostic
from robustbench_lite.results import Condition
from robustbench_lite.telling import searches

TINY = 1e-7
"""Below this a gradient is mostly rounding: cross-entropy's is a difference of a probability and 1, known to 6e-8 in float32."""

SHARE = 0.01
"""Of the images that stand, from which on a figure is doubted; fewer change it by less than a point."""


@diagnostic("gradients")
@dataclass(frozen=True)
class Gradients:
    """Images that stand although no attack had a gradient to follow there, at any step; one that was broken all the same is no problem.

    An attack tried in doubt that did have one clears the row; a black box that fails does not, for none is as strong as a gradient.
    """

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        for (norm, eps), asked in evidence.balls.items():
            doubts = [c for c in evidence.tried(asked[0]) if c.kind == "doubt" and c.source is None]
            worst = evidence.worst(norm, eps)
            for row in asked:
                # a surrogate's gradients are what its row rests on, whatever gradients the model itself has
                yield from _findings(evidence, row, [row, *(doubts if row.source is None else ())])
            if worst is not None:
                yield from _findings(evidence, worst, [*asked, *doubts])


def _findings(evidence: Evidence, row: Condition, own: Sequence[Condition]) -> Iterator[Finding]:
    from robustbench_lite.oracle import BAD_GRADIENT, BAD_SOURCE, TROUBLE

    verdicts, standing = evidence.verdicts(row), evidence.standing(row)
    slopes = _slopes(evidence, own)
    zero = [v.sample_id for v in verdicts if v.sample_id in standing and slopes.get(v.sample_id) == 0]
    tiny = [v.sample_id for v in verdicts if v.sample_id in standing and 0 < slopes.get(v.sample_id, TINY) < TINY]
    bad = [v.sample_id for v in verdicts if v.broken is None and v.reason in (TROUBLE[BAD_GRADIENT], TROUBLE[BAD_SOURCE])]
    if zero or tiny or bad:
        doubted = len(zero) + len(tiny) >= SHARE * max(len(standing), 1) or len(bad) >= SHARE * len(verdicts)
        yield Finding(
            "gradients",
            "doubts" if doubted else "notes",
            (row.name,),
            _seen(row.name, len(standing), len(zero), len(tiny), len(bad)),
            "an attack cannot follow such gradients, so these images say nothing about robustness",
            _settling(str(row.norm)) if doubted else (),
            {"standing": len(standing), "zero": len(zero), "tiny": len(tiny), "not_finite": len(bad)},
            (*zero, *tiny, *bad),
        )


def _settling(norm: str) -> tuple[Counter, ...]:
    return Counter("apgd-t"), *searches(norm), Counter("es-pgd:samples=500,iterations=40")


def _slopes(evidence: Evidence, conditions: Iterable[Condition]) -> dict[str, float]:
    """By image, the largest absolute gradient that any of these attacks saw. Attacks of others do not tell what they saw."""
    found: dict[str, float] = {}
    for c in conditions:
        if "whole model" not in evidence.doors(c):
            for v in evidence.verdicts(c):
                if v.gradient is not None:
                    found[v.sample_id] = max(v.gradient, found.get(v.sample_id, 0.0))
    return found


def _seen(name: str, standing: int, zero: int, tiny: int, bad: int) -> str:
    kinds = [f"exactly zero for {zero}", f"below {TINY:g} for {tiny}"]
    still = " and ".join(kind for kind, count in zip(kinds, (zero, tiny), strict=True) if count)
    parts = [f"of the {standing} images that {name} counts as right, every gradient was {still}"] if still else []
    parts += [f"{bad} images of {name} are undecided because a gradient was NaN or infinite"] if bad else []
    return "; ".join(parts)
