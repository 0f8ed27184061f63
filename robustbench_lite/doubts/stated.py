"""A clean accuracy that is not the stated one: a model that is fed otherwise than it was trained says nothing about itself."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from robustbench_lite.diagnostics import Evidence, Finding, Look
from robustbench_lite.registry import diagnostic

CHANCE = 1e-3
"""Probability, at most, of doubting a model that has the stated accuracy."""

IMAGENET_CLASSES = 1000


@diagnostic("stated-accuracy")
@dataclass(frozen=True)
class StatedAccuracy:
    """An exact two-sided binomial test of the clean accuracy against the stated one.

    What was published for a model is compared on the data that it was published for. On other images of ImageNet's 1000 classes a
    difference is only noted: they may be harder.
    """

    def observe(self, look: Look) -> Mapping[str, Any]:
        stated = getattr(look.model, "stated", None)
        if stated is None:
            return {}
        accuracy, data = stated
        same = look.result.config["data"]["spec"] == data
        alike = data == "imagenet" and look.images.classes == IMAGENET_CLASSES and look.images.readout is None
        return {"accuracy": accuracy, "data": data, "same": same} if same or alike else {}

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        told, known = evidence.result.config.get("stated_accuracy"), evidence.observed("stated-accuracy")
        stated = known.get("accuracy") if told is None else told
        decided = [v for v in evidence.result.of("clean") if v.broken is not None]
        if stated is None or not decided:
            return
        n, right = len(decided), sum(v.broken is False for v in decided)
        chance = _chance(right, n, stated)
        if chance < CHANCE:
            doubted = told is not None or bool(known["same"])
            yield Finding(
                "stated-accuracy",
                "doubts" if doubted else "notes",
                tuple(c.name for c in evidence.result.conditions if c.kind != "doubt"),
                f"the clean accuracy is {right / n:.2%} of {n} images and is stated as {stated:.2%}"
                + ("" if told is not None else f" on {known['data']}"),
                "images may be prepared otherwise than the model needs (size, normalisation, order of channels or classes)"
                if doubted
                else "these images may be others than those, or prepared otherwise than the model needs",
                figures={"accuracy": right / n, "n": n, "stated": stated, "p": chance},
            )


def _chance(right: int, n: int, stated: float) -> float:
    """Twice the smaller tail of the binomial distribution, at most 1."""
    from scipy.special import bdtr, bdtrc

    low = float(bdtr(right, n, stated))
    high = 1.0 if right == 0 else float(bdtrc(right - 1, n, stated))
    return min(1.0, 2 * min(low, high))
