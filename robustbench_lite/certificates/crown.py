"""CROWN, bounds by linear functions (Zhang et al., NeurIPS 2018, https://arxiv.org/abs/1811.00866)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite import crown, intervals
from robustbench_lite.bound_proofs import fits, prove
from robustbench_lite.bounded import Graph
from robustbench_lite.certifying import Proof
from robustbench_lite.classifier import Classifier, Images, Labels
from robustbench_lite.errors import UsageError
from robustbench_lite.registry import certificate
from robustbench_lite.streams import Streams
from robustbench_lite.threat import Ball


@certificate("crown")
@dataclass(frozen=True)
class Crown:
    """Prove by linear functions from the logits back to the image, and by intervals; the better of the two counts.

    Costs two passes back to the image for every ReLU that intervals leave undecided, and for every value that is pooled by its maximum, of
    every image, in float64: a second an image for three convolutions of digits, out of reach for ResNets on large images. What it proves
    without training for it is at small eps, and less with every layer.

    Args:
        batch: images at once. The proof does not depend on it.
    """

    norms = ("linf", "l2")
    confidence = 1.0

    batch: Annotated[int, Field(ge=1)] = 16

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
            raise UsageError(f"crown proves linf and l2 balls, not {ball.norm}: take --norm linf or --norm l2")
        return prove(classifier, images, labels, ball, _better, batch=self.batch)


def _better(graph: Graph, region: crown.Region, labels: Labels) -> Tensor:
    return torch.maximum(crown.margins(graph, region, labels), intervals.margins(graph, region.lower, region.upper, labels))
