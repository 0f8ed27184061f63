"""Interval bound propagation, IBP (Gowal et al., ICCV 2019, https://arxiv.org/abs/1810.12715)."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from robustbench_lite import intervals
from robustbench_lite.bound_proofs import fits, prove
from robustbench_lite.certifying import Proof
from robustbench_lite.classifier import Classifier, Images, Labels
from robustbench_lite.errors import UsageError
from robustbench_lite.registry import certificate
from robustbench_lite.streams import Streams
from robustbench_lite.threat import Ball


@certificate("ibp")
@dataclass(frozen=True)
class IBP:
    """Prove by intervals, layer by layer, the last one merged with the difference of two logits.

    Costs about ten passes an image, half of them in float64. It proves next to nothing of networks that were not trained for it, whatever
    their robustness: take `crown` for those, and robust-train --defense ibp for a network that this proves something of.

    Args:
        batch: images at once. The proof does not depend on it.
    """

    norms = ("linf",)
    confidence = 1.0

    batch: Annotated[int, Field(ge=1)] = 64

    def fits(self, classifier: Classifier) -> None:
        """
        Raises:
            UsageError: a layer that bounds cannot follow, or that is in training mode; it is named.
        """
        fits(classifier)

    def holds_for(self, classifier: Classifier) -> str:
        return classifier.digest

    def prove(self, classifier: Classifier, images: Images, labels: Labels, ball: Ball, draw: Streams) -> Proof:
        """
        Raises:
            UsageError: the ball is of another norm, an image has several labels, or the classifier is random or cannot be followed.
        """
        if ball.norm not in self.norms:
            raise UsageError(f"ibp proves linf balls, not {ball.norm}: take --norm linf")
        return prove(
            classifier, images, labels, ball, lambda graph, r, labels: intervals.margins(graph, r.lower, r.upper, labels), batch=self.batch
        )
