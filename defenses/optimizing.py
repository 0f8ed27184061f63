"""Which weights an optimizer moves, which of them decay, and where they start."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from robustbench_lite.residual import residual_branches

from .recipe import Recipe


def optimizer_for(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer over the weights of a model. Without bias decay, those that do not decay are a group of their own: every bias, and
    the scales and shifts of normalisations."""
    weights = list(model.parameters())
    groups: list[dict[str, object]] = [{"params": weights}]
    if recipe.tricks.no_bias_decay:
        decayed = {id(module.weight) for module in model.modules() if isinstance(module, (nn.Linear, _ConvNd))}
        groups = [
            {"params": [each for each in weights if id(each) in decayed]},
            {"params": [each for each in weights if id(each) not in decayed], "weight_decay": 0.0},
        ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.peak, weight_decay=recipe.weight_decay)
    momentum = recipe.tricks.momentum
    return torch.optim.SGD(groups, lr=recipe.peak, momentum=momentum, nesterov=momentum > 0, weight_decay=recipe.weight_decay)


def start_at_zero(model: nn.Module, probe: Tensor) -> int:
    """Zero-gamma: the last normalisation of every residual branch starts at 0, so that a block starts as its skip.

    Args:
        probe: (1, C, H, W) any image that it takes.

    Returns:
        How many there are.
    """
    last = [model.get_submodule(name) for name in residual_branches(model, probe) if name]
    norms = [module for module in last if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm))]
    for norm in norms:
        nn.init.zeros_(norm.weight)
    return len(norms)
