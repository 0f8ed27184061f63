"""Layers of the model say themselves that their gradients mislead, and no attack went by what they offer instead."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from robustbench_lite.diagnostics import Counter, Evidence, Finding, Look
from robustbench_lite.registry import diagnostic
from robustbench_lite.telling import doubted


@diagnostic("stand-ins")
@dataclass(frozen=True)
class StandIns:
    """Layers that offer stand-ins for their gradients, such as those of k-WTA, and a ball in which `bpda` was not tried."""

    def observe(self, look: Look) -> Mapping[str, Any]:
        layers = sorted({type(module).__name__ for module in look.model.modules() if "smooth" in getattr(module, "stand_ins", {})})
        return {"layers": layers} if layers else {}

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        layers = evidence.observed("stand-ins").get("layers", ())
        for (norm, eps), asked in evidence.balls.items() if layers else ():
            rows = doubted(evidence, norm, eps)
            if rows and not any("stand-ins" in evidence.doors(c) for c in evidence.tried(asked[0])):
                yield Finding(
                    "stand-ins",
                    "doubts",
                    rows,
                    f"layers of the model ({', '.join(layers)}) offer stand-ins for their gradients, and no attack took them",
                    "the gradients of such layers mislead: the attack that is made for them may break more",
                    (Counter("bpda"),),
                )
