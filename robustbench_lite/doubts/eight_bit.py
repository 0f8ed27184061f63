"""Adversarial images that are harmless once they are stored as a picture of 8 bits a channel."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from robustbench_lite.diagnostics import Evidence, Finding, Look
from robustbench_lite.registry import diagnostic
from robustbench_lite.results import Condition

ASKED = 100
"""Witnesses per attack that are asked about: a forward pass each, against the tens or thousands that finding one took."""

BATCH = 32


@diagnostic("eight-bit")
@dataclass(frozen=True)
class EightBit:
    """Witnesses that are no longer wrong when each value is rounded to a whole 255th. The attacker of the row may send floats, so that
    the figure stands; one who must send pictures is weaker by these."""

    def observe(self, look: Look) -> Mapping[str, Any]:
        found = {c.name: _rounded(look, c) for c in look.result.conditions if c.kind == "attack"}
        return {name: counts for name, counts in found.items() if counts["asked"]}

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        for row in evidence.attacks:
            counts = evidence.observed("eight-bit").get(row.name, {})
            if counts.get("lost"):
                yield Finding(
                    "eight-bit",
                    "notes",
                    (row.name,),
                    f"rounding to 8 bits makes {counts['lost']} of {counts['asked']} adversarial images of {row.name} harmless",
                    "the figure holds for an attacker who may send floats; one who must send pictures breaks fewer images",
                    figures=counts,
                )


def _rounded(look: Look, condition: Condition) -> dict[str, int]:
    """How many kept witnesses were asked about, and how many of these are no longer broken when rounded."""
    import torch

    from robustbench_lite.conditions import criterion

    target = condition.target
    broken = [v.sample_id for v in look.result.of(condition.name) if v.broken and v.witness is not None][:ASKED]
    lost = 0
    for start in range(0, len(broken), BATCH):
        ids = broken[start : start + BATCH]
        kept = [look.result.witness(condition.name, key) for key in ids]
        images = torch.stack([witness.adversarial for witness in kept if witness is not None]).to(look.device)
        clean, labels = look.batch(ids)
        # of the clean answers, only the least likely class matters
        said = look.judge.passes.logits(clean) if target == "least-likely" else look.logits[:1].expand(len(ids), -1)
        rule = criterion(labels, target, said)
        answers = look.judge.logits((images * 255).round() / 255, rule, ids)
        lost += int((rule.margin(answers) <= 0).sum())
    return {"asked": len(broken), "lost": lost}
