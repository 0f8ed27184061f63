"""Backward pass differentiable approximation (Athalye et al., ICML 2018, https://arxiv.org/abs/1802.00420)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .registry import split

StandIn = Callable[..., Tensor]


class _StraightThrough(torch.autograd.Function):
    """The value of `exact`, with the gradient of `smooth`."""

    @staticmethod
    def forward(_: Any, smooth: Tensor, exact: Tensor) -> Tensor:
        return exact.clone()

    @staticmethod
    def backward(_: Any, *gradients: Any) -> Any:
        return gradients[0], None


@contextmanager
def straight_through(model: nn.Module, offered: str | None = None) -> Iterator[list[str]]:
    """For as long as this lasts, gradients pass the model's non-differentiable modules by stand-ins of theirs.

    A stand-in is a smooth function with values of the shape of the module's own output, such as `return x` for rounding. A module declares
    one that is always taken by a method `surrogate_backward(x)`. One whose own gradients are a result in themselves offers several instead,
    by name, in a mapping `stand_ins`. What the model answers does not change.

    Args:
        offered: name of the stand-in among those that modules offer; None takes only those that are declared.

    Yields:
        The names of these modules.
    """
    found = {name: _stand_in(module, offered) for name, module in model.named_modules()}

    def swap(stand_in: StandIn, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not (torch.is_grad_enabled() and inputs[0].requires_grad):
            return None
        straight: Tensor = _StraightThrough.apply(stand_in(*inputs), output.detach())
        return straight

    with _hooked(model, {name: partial(swap, stand_in) for name, stand_in in found.items() if stand_in is not None}) as names:
        yield names


@contextmanager
def as_they_are(model: nn.Module) -> Iterator[None]:
    """For as long as this lasts, modules that declare a stand-in and have no gradient at all have one of zero, as rounding has: code that
    follows it goes nowhere, where it would be told otherwise that there is nothing to follow."""

    def stop(stand_in: StandIn, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if output.requires_grad or not (torch.is_grad_enabled() and inputs[0].requires_grad):
            return None
        stopped: Tensor = _StraightThrough.apply(0 * stand_in(*inputs), output)
        return stopped

    found = {name: _stand_in(module, None) for name, module in model.named_modules()}
    with _hooked(model, {name: partial(stop, stand_in) for name, stand_in in found.items() if stand_in is not None}):
        yield


def declaring(model: nn.Module) -> list[str]:
    """The kinds of modules of a model that declare a stand-in, by name."""
    return sorted({type(module).__name__ for module in model.modules() if hasattr(module, "surrogate_backward")})


def unheeded(model: nn.Module, attacks: Sequence[str]) -> list[str]:
    """A sentence where layers of a model offer stand-ins for their gradients, and none of the attacks, which are specs, is `bpda`."""
    kinds = sorted({type(module).__name__ for module in model.modules() if getattr(module, "stand_ins", {})})
    if not kinds or not attacks or any(part.partition(":")[0] == "bpda" for spec in attacks for part in split(spec)):
        return []
    return [f"layers of the model ({', '.join(kinds)}) mislead attacks that follow gradients: add the attack bpda, which follows stand-ins"]


@contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, Callable[..., Tensor | None]]) -> Iterator[list[str]]:
    """Forward hooks on the modules of these names, gone afterwards; yields the names."""
    handles = [model.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        yield list(hooks)
    finally:
        for handle in handles:
            handle.remove()


def _stand_in(module: nn.Module, offered: str | None) -> StandIn | None:
    declared: StandIn | None = getattr(module, "surrogate_backward", None)
    choice: Mapping[str, StandIn] = getattr(module, "stand_ins", {})
    return declared if offered is None else choice.get(offered, declared)
