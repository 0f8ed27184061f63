"""What a certificate is: a proof that no image of a ball is classified otherwise.

A certificate is a frozen dataclass, registered in a file of its own in `certificates/`:

    @certificate("crown")
    @dataclass(frozen=True)
    class Crown:
        norms = ("linf",)
        confidence = 1.0  # 1 - alpha where it rests on samples
        radial = False  # whether a radius is the image's own, so that one proof serves every size

        def fits(self, classifier) -> None           raises UsageError where the model cannot be certified, and names the layer
        def holds_for(self, classifier) -> str       digest of the model that the proof is of
        def prove(self, classifier, images, labels, ball, draw) -> Proof

A bound is of the classifier itself. Smoothing is of another one, that which votes under noise: its proofs say nothing of an attack on
the classifier that it samples from, so that the two have different digests and no bracket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .classifier import Classifier, Images, Labels
from .streams import Streams
from .threat import Ball


@dataclass(frozen=True)
class Proof:
    """What a certificate says of a batch.

    Args:
        proven: (B,) bool: every image of the ball is predicted as its label; of the ball that attacks have, `Ball.reach` of it.
        prediction: (B,) int64, the class that the certified model predicts; -1 where it abstains.
        radius: (B,) the eps of a ball that is proven as far as `Ball.reach`, 0 where none is. A bound proves the radius that it was asked
            about; smoothing has a radius of each image's own, that may be larger than the ball.
        margin: (B,) a lower bound on the label's logit less any other's inside the ball, NaN where the method knows none.
    """

    proven: Tensor
    prediction: Tensor
    radius: Tensor
    margin: Tensor


class Certificate(Protocol):
    """See the top of this file."""

    norms: tuple[str, ...]

    @property
    def confidence(self) -> float:
        """The probability, over its own draws, with which a proof of one image is true; 1 for bounds."""

    def fits(self, classifier: Classifier) -> None: ...

    def holds_for(self, classifier: Classifier) -> str: ...

    def prove(self, classifier: Classifier, images: Images, labels: Labels, ball: Ball, draw: Streams) -> Proof: ...
