"""Proofs by zonotopes, DeepZ (Singh et al., NeurIPS 2018, https://papers.nips.cc/paper/8278-fast-and-effective-robustness-certification)."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustbench_lite.bound_proofs import fits
from robustbench_lite.certifying import Proof
from robustbench_lite.classifier import Classifier, Images, Labels, one_a_class
from robustbench_lite.errors import UsageError
from robustbench_lite.plain_bounds import ball_in_box, bounded_layers, bounds_after, interval_margins, label_less_others, normalised
from robustbench_lite.registry import certificate
from robustbench_lite.streams import Streams
from robustbench_lite.threat import Ball
from robustbench_lite.zonotope import Zonotope

ROUNDING = 1e-5
"""By which share of the sizes that are summed a float32 logit of the model may differ from that in float64 here: more than a hundred
roundings, all to the same side."""


@certificate("zonotope")
@dataclass(frozen=True)
class ZonotopeProof:
    """Follow the ball through the network as a zonotope, and as intervals wherever these are tighter.

    Holds a number for every pair of an input value or unstable ReLU and a value of a layer: seconds an image on networks of a few
    thousand values a layer, such as small_cnn, and too much for larger ones. For plain sequences of convolutions, linear layers and ReLUs.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf",)
    confidence: ClassVar[float] = 1.0

    def fits(self, classifier: Classifier) -> None:
        """
        Raises:
            ModelError: a layer cannot be followed; it is named.
        """
        bounded_layers(classifier.model)
        fits(classifier)  # hooks, layers of somebody's own and the like are refused as for other bounds

    def holds_for(self, classifier: Classifier) -> str:
        return classifier.digest

    @torch.no_grad()
    def prove(self, classifier: Classifier, images: Images, labels: Labels, ball: Ball, draw: Streams) -> Proof:
        """
        Raises:
            UsageError: the ball is of another norm, or an image has several labels.
        """
        if ball.norm not in self.norms:
            raise UsageError(f"zonotope proves linf balls, not {ball.norm}: take --norm linf")
        if labels.dim() != 1:
            raise UsageError("zonotope proves one class an image, and these images have several labels")
        exact, eps = copy.deepcopy(classifier).double(), ball.reach.double().expand(len(images))
        followed = normalised(classifier, images)
        for layer in bounded_layers(classifier.model):
            followed = layer(followed)
        logits = one_a_class(classifier(images))
        if ((one_a_class(followed) - logits).abs() > 1e-3 * logits.abs().amax()).any():
            raise UsageError(f"{classifier.name} answers otherwise than its layers do, one after the other: take crown")
        margin = torch.stack([_margin(exact, images[k : k + 1].double(), labels[k : k + 1], eps[k]) for k in range(len(images))])
        proven = (margin[:, 0] > margin[:, 1]) & (logits.argmax(1) == labels)  # never where either is no number
        return Proof(proven, logits.argmax(1), torch.where(proven, ball.eps.to(images), 0.0), margin[:, 0].to(images))


def _margin(classifier: Classifier, image: Images, label: Labels, eps: Tensor) -> Tensor:
    """The least margin that bounds allow one image, and how far rounding may move it, (2,)."""
    layers, bounds = bounded_layers(classifier.model), ball_in_box(classifier, image, eps)
    inputs, zonotope = [bounds], Zonotope.of_box(*bounds)
    for layer in layers[:-1]:
        zonotope, bounds = zonotope.after(layer, bounds), bounds_after(layer, bounds)
        lower, upper = zonotope.bounds
        bounds = torch.maximum(bounds[0], lower), torch.minimum(bounds[1], upper)
        inputs.append(bounds)
    lead, offset = label_less_others(layers[-1], label)
    middle = (lead @ zonotope.centre[:, :, None])[..., 0] + offset
    zonotopes = middle - torch.einsum("bkd,bed->bek", lead, zonotope.errors).abs().sum(1)
    found = torch.maximum(zonotopes, interval_margins(layers, inputs, label))
    last: nn.Linear = layers[-1]  # type: ignore[assignment]  # bounded_layers has seen to it
    size = torch.maximum(bounds[0].abs(), bounds[1].abs())[0] @ last.weight.abs().T + (0 if last.bias is None else last.bias.abs())
    others = torch.arange(found.shape[1], device=found.device) != label
    return torch.stack([found[0, others].amin(), 2 * ROUNDING * size.amax()])
