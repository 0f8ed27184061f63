"""Backward pass differentiable approximation (Athalye et al., ICML 2018, https://arxiv.org/abs/1802.00420)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _StraightThrough(torch.autograd.Function):
    """The value of `exact`, with the gradient of `smooth`."""

    @staticmethod
    def forward(_: Any, smooth: Tensor, exact: Tensor) -> Tensor:
        return exact.clone()

    @staticmethod
    def backward(_: Any, *gradients: Any) -> Any:
        return gradients[0], None


@contextmanager
def straight_through(model: nn.Module) -> Iterator[list[str]]:
    """For as long as this lasts, gradients pass the model's non-differentiable modules by the stand-ins that they declare.

    A module declares one by a method `surrogate_backward(x)`: a smooth function with values of the shape of its own output, such as
    `return x` for rounding. What the model answers does not change.

    Yields:
        The names of these modules.
    """
    declared = {name: m for name, m in model.named_modules() if callable(getattr(m, "surrogate_backward", None))}

    def swap(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not (torch.is_grad_enabled() and inputs[0].requires_grad):
            return None
        straight: Tensor = _StraightThrough.apply(module.surrogate_backward(*inputs), output.detach())
        return straight

    handles = [module.register_forward_hook(swap) for module in declared.values()]
    try:
        yield list(declared)
    finally:
        for handle in handles:
            handle.remove()
