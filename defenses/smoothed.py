"""A smoothed classifier to attack (Cohen et al., ICML 2019, https://arxiv.org/abs/1902.02918; Salman et al., NeurIPS 2019)."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robustbench_lite.classifier import Classifier, Images, Logits, one_a_class
from robustbench_lite.defending import Kind
from robustbench_lite.registry import defense

from .around import in_place_of

AT_ONCE = 256
"""Noisy images in one pass."""


class _Shares(torch.autograd.Function):
    """Logarithms of the votes' shares, with the gradient of the logarithms of the mean probabilities."""

    @staticmethod
    def forward(_: Any, votes: Tensor, log_mean: Tensor, samples: int) -> Tensor:
        return ((votes + log_mean.exp()) / (samples + 1)).clamp(min=1e-30).log()

    @staticmethod
    def backward(_: Any, *gradients: Any) -> Any:
        return None, gradients[0], None


class Voting(nn.Module):
    """Log shares of the classes (B, K) that a classifier gives to noisy versions of an image.

    The mean of the probabilities counts as one vote more. So no share is 0, equal counts are decided by it, and no count is overruled.
    Its logarithm is what gradients are of: counts have none (Salman et al., https://arxiv.org/abs/1906.04584, section 2.2). Noise comes
    from torch's random state, as that of dropout does, since a model has no other; an evaluation sets it per vote.

    An image of which any answer is NaN gets NaN, so that nobody takes it for decided.
    """

    def __init__(self, classifier: Classifier, sigma: float, samples: int) -> None:
        super().__init__()
        self.classifier, self.sigma, self.samples = classifier, sigma, samples
        self.training = False  # not .eval(): an exported program refuses it, and the classifier has been checked

    def forward(self, x: Images) -> Logits:
        at_once = max(1, AT_ONCE // len(x))
        each = [self._answers(x, min(at_once, self.samples - done)) for done in range(0, self.samples, at_once)]
        log_p = torch.cat(each).log_softmax(-1)  # (samples, B, K)
        log_mean = log_p.logsumexp(0) - torch.tensor(float(self.samples)).log().to(log_p)
        votes = nn.functional.one_hot(log_p.argmax(-1), log_p.shape[-1]).sum(0)
        shares: Tensor = _Shares.apply(votes, log_mean, self.samples)
        return shares

    def _answers(self, x: Images, count: int) -> Logits:
        """(count, B, K)."""
        noisy = x + self.sigma * torch.randn(count, *x.shape, device=x.device, dtype=x.dtype)
        logits = one_a_class(self.classifier(noisy.flatten(0, 1)))
        return logits.view(count, len(x), -1)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}, samples={self.samples}"


@defense("smoothed")
@dataclass(frozen=True)
class Smoothed:
    """Answer as most of the noisy versions of an image are answered, with the logarithms of the classes' shares.

    Costs `samples` passes an answer. It is random: an evaluation asks it several times an image, and attacks take the mean of `--eot`
    gradients, 20 by default, each of which is a mean over the samples already: `--eot 1` is often enough. What attacks leave standing is
    no proof: the certificate `smoothing` is one, of the same classifier with any number of samples. It never abstains.

    Args:
        sigma: standard deviation of the noise, in units of a pixel's full range.
        samples: noisy versions of an image; few make it random in its answers, and weaker than what the certificate speaks of.
    """

    kind: ClassVar[Kind] = "input"

    sigma: Annotated[float, Field(gt=0)] = 0.25
    samples: Annotated[int, Field(ge=1)] = 32

    def wrap(self, classifier: Classifier) -> Classifier:
        """Adds its noise to images in [0, 1]; the classifier inside normalises."""
        return in_place_of(classifier, voting=Voting(classifier, self.sigma, self.samples))
