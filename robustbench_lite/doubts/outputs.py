"""Outputs that hide gradients: probabilities in place of logits, or logits so far apart that cross-entropy is flat in float32
(Carlini & Wagner, https://arxiv.org/abs/1607.04311)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from robustbench_lite.diagnostics import Counter, Evidence, Finding, Look
from robustbench_lite.errors import RobustEvalError
from robustbench_lite.registry import ATTACKS, diagnostic
from robustbench_lite.results import Condition
from robustbench_lite.settlement import settled

SATURATED = 0.1
"""Share of images with a probability of exactly 1 in float32 from which on a figure by cross-entropy is doubted."""

SUMS = 1e-3
"""How near to 1 the outputs of an image must sum to be called probabilities; half precision is that near."""

SETTLE = (Counter("apgd-t"), Counter("pgd:loss=margin"))
"""Losses that do not go through a probability."""


@diagnostic("outputs")
@dataclass(frozen=True)
class Outputs:
    """Probabilities, or saturated logits, under attacks that climb cross-entropy only.

    Probabilities that are rounded to 1 have lost what any attack on the model could follow, so that nothing settles these but the logits.
    Logarithms of probabilities are as good as logits.
    """

    def observe(self, look: Look) -> Mapping[str, Any]:
        from robustbench_lite.classifier import one_a_class

        logits = look.logits.float()
        if not len(logits) or isinstance(look.images.labels[0], tuple):  # several labels an image: no probabilities that sum to 1
            return {}
        softmaxed = logits.shape[1] > 1 and bool((logits >= 0).all() and ((logits.sum(1) - 1).abs() < SUMS).all())
        top = (logits if softmaxed else one_a_class(logits).softmax(1)).amax(1)
        saturated = int((top >= 1).sum())
        return {"softmaxed": softmaxed, "saturated": saturated, "n": len(logits)} if softmaxed or saturated else {}

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        seen = evidence.observed("outputs")
        if not seen:
            return
        softmaxed, lost = bool(seen["softmaxed"]), seen["saturated"] >= SATURATED * seen["n"]
        what = f"a probability of exactly 1 for {seen['saturated']} of {seen['n']} clean images"
        what = f"the model answers with probabilities in place of logits, {what}" if softmaxed else f"the model gives {what}"
        for (norm, eps), asked in evidence.balls.items():
            worst, rows = evidence.worst(norm, eps), [row for row in asked if row.source is None and evidence.standing(row)]
            misled = [row for row in rows if _misled(evidence, row, softmaxed=softmaxed, lost=lost)]
            names = [row.name for row in misled or rows]
            if (
                worst is not None and evidence.standing(worst) and len(misled) in (0, len(rows))
            ):  # one attack that is not misled clears the worst case
                names.append(worst.name)
            if rows and (misled or softmaxed):
                yield Finding(
                    "outputs",
                    "doubts" if misled else "notes",
                    tuple(names),
                    what,
                    _means(softmaxed=softmaxed, lost=lost),
                    SETTLE if misled else (),
                    {"softmaxed": float(softmaxed), "saturated": seen["saturated"], "n": seen["n"]},
                )


def _misled(evidence: Evidence, row: Condition, *, softmaxed: bool, lost: bool) -> bool:
    """Whether such outputs may have misled a row and nothing has settled that."""
    if all(door == "labels" for door in evidence.doors(row)) or not (softmaxed or lost):
        return False
    if softmaxed and lost:
        return True
    return not (evidence.is_black_box(row) or _scale_free(row) or settled(evidence, row, SETTLE))


def _scale_free(row: Condition) -> bool:
    """Whether a part of the attack climbs gradients of a loss other than cross-entropy."""
    from robustbench_lite.plan import parts

    try:
        made = parts(ATTACKS.build(str(row.attack)), str(row.norm))
    except RobustEvalError:  # an attack that is not registered here: nobody knows its losses
        return False
    climbing = [part for name, part in made.items() if row.doors.get(name) in ("white box", "stand-ins")]
    return any(getattr(part, "loss", "ce") in ("dlr", "margin") for part in climbing)


def _means(*, softmaxed: bool, lost: bool) -> str:
    if softmaxed and lost:
        return "what an attack would follow was rounded away, so the figure may be too high: give the model without its softmax"
    if softmaxed:
        return "a probability near 0 or 1 hardly changes, so attacks are weaker than on logits: give the model without its softmax"
    return "the gradient of cross-entropy is lost in rounding, so an attack that climbs nothing else may be misled"
