"""Which weights an optimizer moves, which of them decay, and where they start."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from robustbench_lite.classifier import Classifier
from robustbench_lite.errors import UsageError
from robustbench_lite.residual import block_ends

from .recipe import Recipe


def optimizer_for(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer over the weights of a model. Without bias decay, those that do not decay are a group of their own: every bias, the
    scales and shifts of normalisations, and what else belongs to no convolution or linear layer (tokens, positions)."""
    weights = list(model.parameters())
    groups: list[dict[str, object]] = [{"params": weights}]
    if recipe.tricks.no_bias_decay:
        decayed = {id(weight) for weight in _matrices(model)}
        groups = [
            {"params": [each for each in weights if id(each) in decayed]},
            {"params": [each for each in weights if id(each) not in decayed], "weight_decay": 0.0},
        ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.peak, weight_decay=recipe.weight_decay)
    momentum = recipe.tricks.momentum
    return torch.optim.SGD(groups, lr=recipe.peak, momentum=momentum, nesterov=momentum > 0, weight_decay=recipe.weight_decay)


def _matrices(model: nn.Module) -> Iterator[Tensor | None]:
    """The weights of convolutions and linear layers; attention holds those of three linear layers as one."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, _ConvNd)):
            yield module.weight
        elif isinstance(module, nn.MultiheadAttention):
            yield module.in_proj_weight


def start_at_zero(classifier: Classifier, probe: Tensor) -> int:
    """Zero-gamma: the normalisation that ends the branch of a residual block starts at 0, so that the block starts as its skip.

    Args:
        classifier: in eval mode, its parameters with gradients.
        probe: (1, C, H, W) any image that it takes.

    Returns:
        How many there are.

    Raises:
        UsageError: there is none.
    """
    scales = []
    for node in block_ends(classifier, probe):
        # of input, scale and shift; a normalisation without weights of its own has no node for its scale
        if "Norm" in node.name() and (scale := node.next_functions[1][0]) is not None:
            scales.append(scale.variable)  # type: ignore[attr-defined]  # of the node where a parameter's gradient is collected
    if not scales:
        raise UsageError(f"--zero-gamma: no residual branch of {classifier.name} ends in a normalisation: leave it out")
    for scale in scales:
        nn.init.zeros_(scale)
    return len(scales)
