"""Laplace's approximation of a last layer's posterior (MacKay, Neural Computation 1992, https://doi.org/10.1162/neco.1992.4.3.448), with
Kronecker factors (Ritter, Botev, Barber, ICLR 2018, https://openreview.net/forum?id=Skdvd2xAZ).

The weights W (K, n + 1) of the layer z = W phi, whose features phi end in a 1 for the bias, have a Gaussian prior of variance v an
entry. Around the trained weights the cross-entropy of N images has the Hessian sum_i phi_i phi_i^T (x) (diag(p_i) - p_i p_i^T), of
which the mean is taken factor by factor: N A (x) G. With A = Q diag(a) Q^T and G = U diag(g) U^T, the posterior covariance
(N A (x) G + I / v)^-1 is diagonal in the bases Q and U, and the logits of an image are Gaussian:

    z ~ N(W phi, U diag(s) U^T),   s_k = sum_i (Q^T phi)_i^2 / (N a_i g_k + 1 / v)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, pad

from .classifier import Labels, Logits, one_a_class

GRID: tuple[float, ...] = tuple(10.0 ** (step / 4) for step in range(-24, 25))
"""Prior variances that are tried."""


@dataclass(frozen=True)
class Factors:
    """The Hessian of a last layer, N A (x) G, in the bases in which it is diagonal.

    Args:
        count: N, images.
        features: (n + 1,) eigenvalues of A, the mean of phi phi^T; `feature_basis` (n + 1, n + 1) its eigenvectors in columns.
        classes: (K,) eigenvalues of G, the mean of diag(p) - p p^T, of one logit of p (1 - p); `class_basis` (K, K) its eigenvectors.
    """

    count: int
    features: Tensor
    feature_basis: Tensor
    classes: Tensor
    class_basis: Tensor

    @classmethod
    def of(cls, answers: Iterable[tuple[Tensor, Logits]]) -> Factors:
        """From the features (B, n) and logits (B, K) of batches of images, summed up in float64."""
        count, outer, curvature = 0, torch.tensor(0.0), torch.tensor(0.0)
        for features, logits in answers:
            phi, p = with_bias(features.double()), logits.double()
            count += len(phi)
            outer = outer.to(phi) + phi.T @ phi
            if p.shape[1] == 1:
                curvature = curvature.to(p) + (p.sigmoid() * (-p).sigmoid()).sum(0, keepdim=True)
            else:
                p = p.softmax(1)
                curvature = curvature.to(p) + torch.diag(p.sum(0)) - p.T @ p
        a, q = torch.linalg.eigh(outer / count)
        g, u = torch.linalg.eigh(curvature / count)
        return cls(count, a.clamp(min=0), q, g.clamp(min=0), u)

    @property
    def hessian(self) -> Tensor:
        """(n + 1, K) eigenvalues of N A (x) G."""
        return self.count * self.features[:, None] * self.classes

    def evidence(self, weights: Tensor, variance: float) -> float:
        """Logarithm of the share of the data's marginal likelihood that depends on the prior variance.

        Args:
            weights: (K, n + 1), taken for the posterior's mode.
        """
        # log N(W; 0, v) - log N(W; W, posterior): the likelihood at W is the same for every v
        return float(-weights.double().square().sum() / variance - torch.log1p(self.hessian * variance).sum()) / 2


def with_bias(features: Tensor) -> Tensor:
    """(B, n + 1): a 1 behind the features."""
    return pad(features, (0, 1), value=1.0)


@dataclass(frozen=True)
class Posterior:
    """What an image's logits may be, in float32, made for inference.

    Args:
        shrink: (n + 1, K) posterior variances in the bases.
        feature_basis, class_basis: of `Factors`.
    """

    shrink: Tensor
    feature_basis: Tensor
    class_basis: Tensor

    @classmethod
    def of(cls, factors: Factors, variance: float) -> Posterior:
        """With this prior variance."""
        shrink = 1 / (factors.hessian + 1 / variance)
        return cls(shrink.float(), factors.feature_basis.float(), factors.class_basis.float())

    def moved(self, move: Callable[[Tensor], Tensor]) -> Posterior:
        """With its tensors on another device, or in another type."""
        return Posterior(*(move(each) for each in (self.shrink, self.feature_basis, self.class_basis)))

    def spread(self, features: Tensor) -> Tensor:
        """(B, K) variances of the logits along the class basis, for features (B, n)."""
        return (with_bias(features) @ self.feature_basis).square() @ self.shrink

    def probit(self, features: Tensor, logits: Logits) -> Logits:
        """Logits whose softmax approximates the predictive: each divided by sqrt(1 + pi / 8 * its variance) (MacKay, section 4.3)."""
        variances = self.spread(features) @ self.class_basis.T.square()
        return logits / (1 + math.pi / 8 * variances).sqrt()

    def sampled(self, features: Tensor, logits: Logits, noise: Tensor) -> Logits:
        """Logarithms of the mean probabilities, or the log odds of the one logit's, over draws of the weights.

        Args:
            noise: (samples, K) standard normal, the same for every image.
        """
        # the symmetric root, which is the same whatever eigenvectors there are to choose from
        deviations = ((noise @ self.class_basis)[:, None] * self.spread(features).sqrt()) @ self.class_basis.T
        drawn = logits + deviations
        if logits.shape[1] == 1:
            yes, no = (logsigmoid(each).logsumexp(0) for each in (drawn, -drawn))
            return yes - no
        return drawn.log_softmax(2).logsumexp(0) - math.log(len(noise))


def best_by_evidence(factors: Factors, weights: Tensor) -> float:
    """The prior variance of the largest marginal likelihood, of `GRID`: asks for no images but those of the factors.

    Args:
        weights: (K, n + 1).
    """
    chances = [factors.evidence(weights, variance) for variance in GRID]
    return GRID[chances.index(max(chances))]


def best_on_held_out(factors: Factors, features: Tensor, logits: Logits, labels: Labels) -> float:
    """The prior variance whose probit predictive has the least cross-entropy on other images, of `GRID`; the smallest of equals."""

    def loss(variance: float) -> float:
        predicted = Posterior.of(factors, variance).probit(features, logits)
        return float(cross_entropy(one_a_class(predicted).double(), labels))

    losses = [loss(variance) for variance in GRID]
    return GRID[losses.index(min(losses))]
