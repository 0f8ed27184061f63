"""Outputs that tell little more than the class: a search on scores has nothing to follow, and clears no masked gradient."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from robustbench_lite.diagnostics import Evidence, Finding, Look
from robustbench_lite.registry import diagnostic
from robustbench_lite.telling import doubted

SHARE = 0.5
"""Different margins per image, up to which outputs are called coarse. Those of an honest model all differ."""

RESOLUTION = 1e-6
"""Of the largest output: what lies nearer together is lost in float32, and Square takes it for rounding."""

FEWEST = 8
"""Images, below which equal margins may be equal images."""


@diagnostic("coarse-scores")
@dataclass(frozen=True)
class CoarseScores:
    """Margins between the two highest outputs that are the same for many images, as with rounded or one-hot outputs.

    Such a model can give any gradient it likes with them, and no black box that follows scores would find out. Nothing settles this
    but the outputs before they were rounded.
    """

    def observe(self, look: Look) -> Mapping[str, Any]:
        logits = look.logits.float()
        if len(logits) < FEWEST or isinstance(look.images.labels[0], tuple):  # several labels an image: no two highest
            return {}
        margins = logits.topk(2).values.diff(dim=1)[:, 0] if logits.shape[1] > 1 else logits[:, 0]
        step = RESOLUTION * max(float(logits.abs().nan_to_num(0, 0, 0).amax()), 1e-30)
        values = len(set((margins / step).round().tolist()))
        return {"values": values, "n": len(margins)} if values <= SHARE * len(margins) else {}

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        seen = evidence.observed("coarse-scores")
        for norm, eps in evidence.balls if seen else ():
            if rows := doubted(evidence, norm, eps):
                yield Finding(
                    "coarse-scores",
                    "doubts",
                    rows,
                    f"the margins of {seen['n']} clean images take {seen['values']} values only",
                    "outputs that are rounded or one-hot give a search on scores nothing to follow: give the model without that",
                    figures=dict(seen),
                )
