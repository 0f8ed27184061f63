"""Random points did as well as an attack: the attack does not work, or the gradients that it follows say nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from robustbench_lite.diagnostics import Counter, Evidence, Finding
from robustbench_lite.registry import diagnostic
from robustbench_lite.results import Condition
from robustbench_lite.telling import base, climbers, doubted, left_by_gradients, searches, tells


@diagnostic("noise")
@dataclass(frozen=True)
class RandomPoints:
    """Random points of the ball against what was asked for.

    Two questions: did they break images that every attack on gradients left, and did an attack break no more images than they did?
    Where they broke none there is no finding.
    """

    def doubts(self, asked: Sequence[Condition]) -> Iterator[Counter]:
        if not any(base(c) == "noise" for c in asked):
            yield Counter("noise")

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        for (norm, eps), asked in evidence.balls.items():
            for noise in (c for c in evidence.tried(asked[0]) if base(c) == "noise"):
                yield from self._found_more(evidence, noise, norm, eps)
                for row in (c for c in asked if noise.kind == "attack" and base(c) != "noise" and evidence.standing(c)):
                    broken, by_noise = len(evidence.broken(row)), len(evidence.broken(noise))
                    if broken <= by_noise and by_noise >= 2:
                        yield Finding(
                            "noise",
                            "doubts",
                            (row.name,),
                            f"{row.name} broke {broken} images and random points {by_noise}",
                            "the attack does not work on this model",
                            searches(norm),
                            {"broken": broken, "by noise": by_noise},
                        )

    def _found_more(self, evidence: Evidence, noise: Condition, norm: str, eps: float) -> Iterator[Finding]:
        left = left_by_gradients(evidence, climbers(evidence, norm, eps))
        broken = sorted(left & set(evidence.broken(noise)))
        if tells(len(broken), len(left)):
            yield Finding(
                "noise",
                "doubts",
                doubted(evidence, norm, eps),
                f"random points broke {len(broken)} of the {len(left)} images that all attacks on gradients left",
                "the model masks its gradients: chance finds what they should have shown",
                searches(norm),
                {"broken": len(broken), "left": len(left)},
                tuple(broken),
            )
