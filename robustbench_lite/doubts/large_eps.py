"""Where every image may become the same grey no accuracy can be left; if some is, gradients do not lead there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from robustbench_lite.diagnostics import Counter, Evidence, Finding
from robustbench_lite.registry import diagnostic
from robustbench_lite.results import Condition
from robustbench_lite.telling import climbs, doubted, tells

GREY = 0.5
"""The linf distance from which on every image of [0, 1] can become the same grey."""


@diagnostic("large-eps")
@dataclass(frozen=True)
class LargeEps:
    """What pgd, or an attack asked for at such an eps, leaves of all images in linf at 0.5 and more.

    In the other norms the radius depends on the number of pixels, and there is no such question. Nor for a target: grey need not be it.
    """

    def doubts(self, asked: Sequence[Condition]) -> Iterator[Counter]:
        if any(c.norm == "linf" and c.target is None and "white box" in c.doors.values() for c in asked):
            yield Counter("pgd", eps=GREY)

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        wide = [c for c in (*evidence.attacks, *evidence.doubts) if c.norm == "linf" and (c.eps or 0) >= GREY and c.target is None]
        rows = tuple(name for norm, eps in evidence.balls if norm == "linf" for name in doubted(evidence, norm, eps))
        images = sum(v.broken is False for v in evidence.result.of("clean"))
        for condition in wide:
            standing = evidence.standing(condition)
            if climbs(evidence, condition) and tells(len(standing), images):
                yield Finding(
                    "large-eps",
                    "doubts",
                    rows,
                    f"{len(standing)} of {images} images stand {condition.attack} at eps {condition.eps:g}, where all can be the same grey",
                    "the model masks its gradients: a true accuracy there is chance at best",
                    (Counter("square"),),
                    {"standing": len(standing), "images": images},
                    tuple(sorted(standing)),
                )
