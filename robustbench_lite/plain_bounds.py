"""Bounds of a plain sequence over a box: intervals layer by layer, and one linear pass back from the logits. With gradients, for training.

Both are bounds of exact arithmetic; rounding is not counted, so that certifying has to do more than compare them with 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .classifier import Classifier, Images, Labels, one_a_class
from .errors import ModelError
from .zonotope import layers_of, linear, relaxed

Bounds = tuple[Tensor, Tensor]
"""(B, ...) least and (B, ...) largest values."""


def bounded_layers(model: nn.Module) -> tuple[nn.Module, ...]:
    """The layers of a plain sequence that ends in a linear layer.

    Raises:
        ModelError: it is none, or has a layer that cannot be followed, which is named.
    """
    layers = layers_of(model)
    if not layers or not isinstance(layers[-1], nn.Linear):
        raise ModelError("bounds are of the margins that a linear layer makes, and this network does not end in one: take small_cnn")
    return layers


def normalised(classifier: Classifier, images: Images) -> Tensor:
    """As the network inside gets them; a scale above 0 keeps the order of two images."""
    shifted = images if classifier.mean is None else images - classifier.mean
    return shifted if classifier.std is None else shifted / classifier.std


def ball_in_box(classifier: Classifier, images: Images, eps: float | Tensor) -> Bounds:
    """What the network gets of an image's linf ball, which ends where pixels do."""
    ends = normalised(classifier, (images - eps).clamp(min=0)), normalised(classifier, (images + eps).clamp(max=1))
    return torch.minimum(*ends), torch.maximum(*ends)  # a std may be negative


def interval_bounds(layers: Sequence[nn.Module], box: Bounds) -> list[Bounds]:
    """Of the input of every layer (Gowal et al., ICCV 2019, equations 6 and 7)."""
    found = [box]
    for layer in layers[:-1]:
        found.append(bounds_after(layer, found[-1]))
    return found


def bounds_after(layer: nn.Module, bounds: Bounds) -> Bounds:
    """Of what a layer makes of values that lie apart from each other within their bounds."""
    lower, upper = bounds
    if isinstance(layer, nn.ReLU):
        return lower.relu(), upper.relu()
    centre, radius = layer((lower + upper) / 2), linear(layer, (upper - lower) / 2, absolute=True)
    return centre - radius, centre + radius


def interval_margins(layers: Sequence[nn.Module], inputs: Sequence[Bounds], labels: Labels) -> Tensor:
    """(B, K) lower bounds of the label's logit less every other's; 0 at the label.

    The last layer is elided: a difference of two logits is bounded as one linear function, and not by the bounds of both.

    Args:
        inputs: bounds of the input of every layer.
    """
    return _least(*label_less_others(layers[-1], labels), inputs[-1])


def backward_margins(layers: Sequence[nn.Module], inputs: Sequence[Bounds], labels: Labels) -> Tensor:
    """The same by one pass of linear bounds back to the box (CROWN, Zhang et al., NeurIPS 2018, https://arxiv.org/abs/1811.00866).

    A ReLU of unknown sign lies below its chord, and above 0 or above its input, whichever leaves the smaller area.
    """
    slopes, offset = label_less_others(layers[-1], labels)
    for layer, (lower, upper) in list(zip(layers, inputs, strict=True))[-2::-1]:
        if isinstance(layer, nn.ReLU):
            slope, above = relaxed(lower, upper)
            below = torch.where(above > 0, (upper > -lower).to(slope.dtype), slope)
            falling = slopes.clamp(max=0)
            offset = offset + (falling * (2 * above)[:, None]).flatten(2).sum(2)
            slopes = slopes.clamp(min=0) * below[:, None] + falling * slope[:, None]
        else:
            slopes, offset = _back(layer, slopes, offset, lower)
    return _least(slopes, offset, inputs[0])


def label_less_others(last: nn.Module, labels: Labels) -> tuple[Tensor, Tensor]:
    """(B, K, F) and (B, K): the label's logit less every other's as a linear function of what comes into the last layer.

    One output tells two classes apart, of which the first has the logit 0.
    """
    assert isinstance(last, nn.Linear)
    weight, bias = one_a_class(last.weight.T).T, None if last.bias is None else one_a_class(last.bias[None])[0]
    slopes = weight[labels][:, None] - weight
    return slopes, torch.zeros_like(slopes[..., 0]) if bias is None else bias[labels][:, None] - bias


def _least(slopes: Tensor, offset: Tensor, box: Bounds) -> Tensor:
    """(B, K) the least values of linear functions (B, K, ...) over a box."""
    centre, radius = ((box[1] + box[0]) / 2)[:, None], ((box[1] - box[0]) / 2)[:, None]
    return offset + (slopes * centre - slopes.abs() * radius).flatten(2).sum(2)


def _back(layer: nn.Module, slopes: Tensor, offset: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """The same linear functions before an affine layer, whose inputs have the shape of `probe`."""
    count, each = slopes.shape[:2]
    answered = torch.func.vjp(lambda x: linear(layer, x), probe.new_zeros(count * each, *probe.shape[1:]))
    slopes = slopes.reshape(count, each, *answered[0].shape[1:])
    bias = getattr(layer, "bias", None)
    if bias is not None:
        offset = offset + (slopes.flatten(3).sum(3) if slopes.ndim > 3 else slopes) @ bias
    (before,) = answered[1](slopes.flatten(0, 1))
    return before.reshape(count, each, *probe.shape[1:]), offset
