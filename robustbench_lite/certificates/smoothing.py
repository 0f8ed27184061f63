"""Randomised smoothing (Cohen, Rosenfeld, Kolter, ICML 2019, https://arxiv.org/abs/1902.02918)."""

import hashlib
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field

from robustbench_lite.certifying import Proof
from robustbench_lite.classifier import Classifier, Images, Labels
from robustbench_lite.errors import UsageError
from robustbench_lite.registry import certificate
from robustbench_lite.results import size_of
from robustbench_lite.smoothed import certified_radius, draws_itself, mixes_images, share_at_least, votes
from robustbench_lite.streams import Streams
from robustbench_lite.threat import Ball


@certificate("smoothing")
@dataclass(frozen=True)
class Smoothing:
    """Prove the majority's class under Gaussian noise, by counting, for any classifier (algorithm 1, CERTIFY).

    Costs n0 + n passes an image. The proof is of the smoothed classifier and says nothing of the one that it asks. A proof is wrong with
    a probability of at most alpha, over its own draws, for one image: of a thousand proofs at the defaults one may be. No radius is
    larger than sigma * Phi^-1(alpha^(1/n)), 3.2 sigma at the defaults. A classifier that was not trained on such noise is seldom right
    under it: robust-train --defense gaussian:sigma=... trains one. Sums are float32, as everywhere: what an adversary could do to their
    rounding is not part of the proof.

    Args:
        sigma: standard deviation of the noise, in units of a pixel's full range. More of it proves larger radii and fewer images.
        n0: draws that choose the class.
        n: further draws that bound its probability; the paper has 100,000.
        alpha: with which a proof may be wrong.
        batch: noisy images in one pass. The proof does not depend on it.
    """

    norms = ("l2",)
    radial = True

    sigma: Annotated[float, Field(gt=0)] = 0.25
    n0: Annotated[int, Field(ge=1)] = 100
    n: Annotated[int, Field(ge=1)] = 10_000
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.001
    batch: Annotated[int, Field(ge=1)] = 100

    @property
    def confidence(self) -> float:
        return 1 - self.alpha

    def fits(self, classifier: Classifier) -> None:
        """
        Raises:
            UsageError: a layer is in training mode.
        """
        for name, module in classifier.named_modules():
            if getattr(module, "training", False):  # a frozen TorchScript module has no such flag
                raise UsageError(
                    f"{name or type(module).__name__} of {classifier.name} is in training mode: call .eval() on the model first"
                )

    def holds_for(self, classifier: Classifier) -> str:
        """Digest of the smoothed classifier; how many draws it was examined by, and at which alpha, is no part of it."""
        return hashlib.sha256(f"{classifier.digest} under Gaussian noise of {self.sigma!r}".encode()).hexdigest()

    def prove(self, classifier: Classifier, images: Images, labels: Labels, ball: Ball, draw: Streams) -> Proof:
        """The class, and a radius where that is the label; another class has none, so that nobody takes it for the label's.

        Raises:
            UsageError: the ball is of another norm, an image has several labels, or the classifier is in training mode, draws numbers of
                its own, or answers otherwise where images share a pass: seen on these images and on noisy ones, and on no others.
        """
        if ball.norm not in self.norms:
            raise UsageError(f"smoothing proves l2 balls, not {ball.norm}: take --norm l2")
        if labels.dim() != 1:
            raise UsageError("smoothing proves one class an image, and these images have several labels")
        self.fits(classifier)
        noisy = images + self.sigma * draw.normal("asked again", *images.shape[1:]).to(images)
        if draws_itself(classifier, images) or draws_itself(classifier, noisy):
            raise UsageError(f"{classifier.name} answers otherwise when asked again: smoothing needs a model that draws nothing itself")
        if mixes_images(classifier, torch.cat([images, noisy])):
            raise UsageError(f"{classifier.name} answers otherwise where images share a pass, and smoothing counts independent answers")
        # keyed by the smoothed classifier: the same draws, and more of them, at another n, and a larger radius at a larger alpha
        draw = replace(draw, condition=f"smoothing: {self.sigma!r}")
        chosen = votes(classifier, images, self.sigma, self.n0, draw, "selection", batch=self.batch).argmax(1)
        # other draws than those that chose: a class that is chosen by its votes has had too many of them
        counts = votes(classifier, images, self.sigma, self.n, draw, "estimation", batch=self.batch)
        shares = [share_at_least(count, self.n, self.alpha) for count in counts.gather(1, chosen[:, None])[:, 0].tolist()]
        reached = torch.tensor([certified_radius(share, self.sigma) for share in shares], dtype=torch.float64, device=images.device)
        prediction = chosen.where(reached > 0, -1)
        # attacks may go a little beyond eps, so that a radius is that of the ball whose reach is proven
        radius = size_of(reached).clamp(min=0).where(prediction == labels, 0)
        proven = (prediction == labels) & (radius >= ball.eps)
        return Proof(proven, prediction, radius, torch.full_like(radius, torch.nan))
