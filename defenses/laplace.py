"""A Laplace approximation of the last layer (Kristiadi, Hein, Hennig, ICML 2020, https://arxiv.org/abs/2002.10118)."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from robustbench_lite.classifier import Classifier, Labels, Logits
from robustbench_lite.defending import Kind
from robustbench_lite.errors import ModelError
from robustbench_lite.labelled import LabelledImages
from robustbench_lite.laplace import Factors, Posterior, best_by_evidence, best_on_held_out
from robustbench_lite.registry import defense
from robustbench_lite.streams import generator

from .around import batches, fitted_on, in_place_of

SAMPLES = 100
"""Draws of the weights, as in the paper."""


class BayesianLinear(nn.Module):
    """A linear layer whose weights are uncertain: logarithms of the predictive's probabilities, up to a constant of the image.

    Its posterior is no part of its state, but follows from what its description names, which is in the classifier's digest: so the
    digest does not hang on how a machine rounds.

    Args:
        layer: as it was trained.
        samples: draws that are averaged; 0 takes the probit approximation.
        described: how the posterior was found.
    """

    def __init__(self, layer: nn.Linear, posterior: Posterior, samples: int, described: str) -> None:
        super().__init__()
        self.layer, self.posterior, self.described = layer, posterior, described
        self.fitted_on: frozenset[str] = frozenset()  # ids of the images
        drawn = generator("laplace").standard_normal((samples, layer.out_features))
        self.noise: Tensor
        self.register_buffer("noise", torch.from_numpy(drawn).float(), persistent=False)

    def forward(self, features: Tensor) -> Logits:
        logits: Logits = self.layer(features)
        if len(self.noise):
            return self.posterior.sampled(features, logits, self.noise)
        return self.posterior.probit(features, logits)

    def _apply(self, fn: Any, recurse: bool = True) -> "BayesianLinear":
        self.posterior = self.posterior.moved(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # so in torch
        return self

    def extra_repr(self) -> str:
        return f"{self.described}, samples={len(self.noise)}"


@defense("laplace")
@dataclass(frozen=True)
class Laplace:
    """Make the last layer's weights uncertain, as far as the training images leave them so, and average over what they may be.

    Costs a pass over the images once, and little afterwards. It mends confidences, above all far from the training images, where those of
    a plain ReLU network go to 1 and these do not; it is no defense against an adversary. Predictions stay as they are where the
    classes' variances are equal, as they are for one logit or two classes; else those of a few close images change.

    The Hessian is the mean over all images, not a running one, and the bias is a weight like the others. The prior's precision is added to
    the eigenvalues of the product, while the published code adds its root to each factor.

    Args:
        data: spec of the images that the model was trained on; None takes what it says itself.
        variance: the prior's, of a weight; None chooses it from 1e-6 to 1e6.
        validation: spec of images that it was not trained on, by whose cross-entropy the variance is chosen; None chooses it by the
            marginal likelihood of `data`.
        predictive: probit divides each logit by what its variance asks for; samples averages the probabilities of 100 draws, always the
            same ones.
    """

    kind: ClassVar[Kind] = "output"

    data: str | None = None
    variance: Annotated[float, Field(gt=0)] | None = None
    validation: str | None = None
    predictive: Literal["probit", "samples"] = "probit"

    def __post_init__(self) -> None:
        if self.variance is not None and self.validation is not None:
            raise ValueError("variance and validation both say what the prior is: give one of the two")

    def wrap(self, classifier: Classifier) -> Classifier:
        """A copy of the classifier with another last layer.

        Raises:
            ModelError: its last layer is no linear one of features (B, n), or it does not say what it was trained on.
            UsageError: the images have several labels each, or other classes.
        """
        if self.data is None and len(classifier.learnt_from) != 1:
            raise ModelError(f"laplace: {classifier.name} does not say what it was trained on: write laplace:data=SPEC")
        data = self.data or classifier.learnt_from[0]
        images = fitted_on(data, classifier, "laplace")
        copied = copy.deepcopy(classifier)
        name = _last_linear(copied, torch.stack([image for image, _ in images[:2]]).to(classifier.device))
        layer = copied.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        factors = Factors.of((features, logits) for features, logits, _ in _answers(copied, layer, images))
        held_out = None if self.validation is None else fitted_on(self.validation, classifier, "laplace")
        chosen_on = [] if held_out is None else held_out.ids
        variance = self.variance or _chosen(factors, copied, layer, held_out)
        described = f"data={data}, digest={images.digest[:16]}, variance={variance:.6g}"
        parent, _, leaf = name.rpartition(".")
        samples = SAMPLES if self.predictive == "samples" else 0
        bayesian = BayesianLinear(layer, Posterior.of(factors, variance), samples, described).eval()
        bayesian.fitted_on = frozenset([*images.ids, *chosen_on])
        setattr(copied.get_submodule(parent), leaf, bayesian)
        return in_place_of(classifier, classifier=copied)


def _chosen(factors: Factors, classifier: Classifier, layer: nn.Linear, held_out: LabelledImages | None) -> float:
    """The prior variance that was not given."""
    if held_out is None:
        bias = layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_features)
        return best_by_evidence(factors, torch.cat([layer.weight, bias[:, None]], 1).detach())
    features, logits, labels = (torch.cat(parts) for parts in zip(*_answers(classifier, layer, held_out), strict=True))
    return best_on_held_out(factors, features, logits, labels)


def _answers(classifier: Classifier, layer: nn.Linear, images: LabelledImages) -> Iterator[tuple[Tensor, Logits, Labels]]:
    """Of batches of images: what the last layer takes (B, n), what it gives (B, K), and the labels."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        for x, labels in batches(images, classifier.device):
            with torch.no_grad():
                logits = classifier(x)
            yield seen.pop(), logits, labels
    finally:
        handle.remove()


def _last_linear(classifier: Classifier, x: Tensor) -> str:
    """Name of the linear layer whose answer is the classifier's.

    Raises:
        ModelError: there is none.
    """
    given: dict[str, list[tuple[Tensor, Tensor]]] = {}
    linear = [(name, module) for name, module in classifier.named_modules() if isinstance(module, nn.Linear)]
    handles = [
        module.register_forward_hook(lambda _, inputs, output, name=name: given.setdefault(name, []).append((inputs[0], output)))
        for name, module in linear
    ]
    try:
        with torch.no_grad():
            logits = classifier(x)
    finally:
        for handle in handles:
            handle.remove()
    for name, calls in given.items():
        if len(calls) == 1 and calls[0][0].dim() == 2 and torch.equal(calls[0][1], logits):
            return name
    raise ModelError(f"laplace needs a network that ends in a linear layer of features, and {classifier.name} does not: take temperature")
