"""One step broke what many had left: following the gradients leads away from where they point."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from robustbench_lite.diagnostics import Counter, Evidence, Finding
from robustbench_lite.registry import diagnostic
from robustbench_lite.results import Condition
from robustbench_lite.telling import base, climbers, doubted, left_by_gradients, longest, searches, tells


@diagnostic("one-step")
@dataclass(frozen=True)
class OneStep:
    """Images that one gradient step breaks and that every attack of several steps in the same ball left."""

    def doubts(self, asked: Sequence[Condition]) -> Iterator[Counter]:
        if not any(base(c) == "fgsm" for c in asked):
            yield Counter("fgsm")

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        for norm, eps in evidence.balls:
            climbing = climbers(evidence, norm, eps)
            left = left_by_gradients(evidence, climbing)
            for one in evidence.tried(climbing[0]) if climbing else ():
                if evidence.follows_gradients(one) and longest(evidence, one) == 1:
                    broken = sorted(left & set(evidence.broken(one)))
                    if tells(len(broken), len(left)):
                        yield Finding(
                            "one-step",
                            "doubts",
                            doubted(evidence, norm, eps),
                            f"{one.name} broke {len(broken)} of the {len(left)} images that attacks of several steps left",
                            "gradients mislead: the more often they are followed, the further they lead astray",
                            searches(norm),
                            {"broken": len(broken), "left": len(left)},
                            tuple(broken),
                        )
