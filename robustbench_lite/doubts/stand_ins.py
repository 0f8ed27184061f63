"""Layers of the model say themselves that their gradients mislead, and no attack went by what they offer instead."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from robustbench_lite.diagnostics import Counter, Evidence, Finding, Look
from robustbench_lite.registry import diagnostic
from robustbench_lite.telling import by_stand_ins, doubted

MISLED = ("white box", "stand-ins", "whole model")
"""Doors through which gradients are seen; those seen through the second are changed in many ways, most of which stop at such layers too."""


@diagnostic("stand-ins")
@dataclass(frozen=True)
class StandIns:
    """Layers that offer stand-ins for their gradients, such as those of k-WTA, and a ball in which `bpda` was not tried.

    Also rows of attacks that were kept from the stand-ins which layers declare.
    """

    def observe(self, look: Look) -> Mapping[str, Any]:
        layers = sorted({type(module).__name__ for module in look.model.modules() if "smooth" in getattr(module, "stand_ins", {})})
        return {"layers": layers} if layers else {}

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        if evidence.hidden:
            yield from _hidden(evidence, evidence.hidden)
        layers = evidence.observed("stand-ins").get("layers", ())
        for (norm, eps), asked in evidence.balls.items() if layers else ():
            rows = doubted(evidence, norm, eps)
            if rows and not any(map(by_stand_ins, evidence.tried(asked[0]))):
                yield Finding(
                    "stand-ins",
                    "doubts",
                    rows,
                    f"layers of the model ({', '.join(layers)}) offer stand-ins for their gradients, and no attack took them",
                    "the gradients of such layers mislead: the attack that is made for them may break more",
                    (Counter("bpda"),),
                )


def _hidden(evidence: Evidence, layers: str) -> Iterator[Finding]:
    """About rows that followed gradients without stand-ins; about the worst case until something took these on all that is left."""
    for (norm, eps), asked in evidence.balls.items():
        misled = [row for row in asked if not by_stand_ins(row) and any(door in MISLED for door in evidence.doors(row))]
        worst = evidence.worst(norm, eps)
        if worst is not None and misled:
            left = evidence.standing(worst)
            if not any(by_stand_ins(c) and left <= evidence.standing(c) for c in evidence.tried(worst)):
                misled.append(worst)
        names = tuple(row.name for row in misled if evidence.standing(row))
        if names:
            yield Finding(
                "stand-ins",
                "doubts",
                names,
                f"gradients of {layers} were taken as they are: leave --no-stand-ins out",
                "such gradients mislead: an attack that takes the stand-ins for them may break more",
                (Counter("bpda"),),
            )
