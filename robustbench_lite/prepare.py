"""Make a frozen model faster without changing what it says: fold batch normalisation, channels last, micro-batches.

Only where that is safe: the model can be traced, has no hooks, nothing random and nothing non-smooth in it, and its logits agree
on a first batch. Whatever the prepared model finds is settled on the model as given, so a mistake here costs time and not truth.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from .classifier import Images
from .errors import InvalidEvaluation
from .passes import Passes

CACHE = 32 * 2**20
"""Bytes above which glibc takes an activation from the system and gives it back at every layer, with a page fault for every page."""

UNSAFE = frozenset(
    ("topk", "kthvalue", "sort", "argsort", "round", "floor", "floor_divide", "ceil", "trunc", "frac", "fix", "sign", "sgn", "heaviside",
     "argmax", "argmin", "one_hot", "bucketize", "searchsorted", "int", "long", "short", "byte", "char", "gt", "lt", "ge", "le", "eq", "ne",
     "greater", "less", "greater_equal", "less_equal", "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like",
     "bernoulli", "multinomial", "normal", "uniform", "poisson", "exponential", "gumbel_softmax")
)  # fmt: skip
"""Operations that a rounding error can tip over, or that draw: a model with one of these is run as given."""


@dataclass(frozen=True)
class Preparation:
    """What was done, for the run's record."""

    passes: Passes
    folded: int = 0
    channels_last: bool = False
    reason: str | None = None  # why not more

    def described(self) -> dict[str, Any]:
        p = self.passes
        return {
            "folded_layers": self.folded,
            "channels_last": self.channels_last,
            "micro_batch": p.micro,
            "as_given_because": self.reason,
        }


def prepare(model: nn.Module, probe: Images, *, cut: bool = True) -> Preparation:
    """The fastest safe way to run `model`.

    Args:
        model: images in [0, 1] -> logits, in eval mode.
        probe: (B, C, H, W) a few images that both models must agree on.
        cut: cut batches so that activations stay in the allocator's own memory; for a CPU.
    """
    micro = _micro_batch(model, probe) if cut else None
    given = Passes(model, micro)
    reason = unsafe(model)
    if reason:
        return Preparation(given, reason=reason)
    try:
        folded = copy.deepcopy(model)  # before it is traced: a module may keep what passes through it
        pairs = list(_foldable(folded))
        _fold(folded, pairs)
    except NotSmooth as error:
        return Preparation(given, reason=str(error))
    except Exception as error:  # copying and tracing run the model's own code, on stand-ins, which may fail in any way
        return Preparation(given, reason=f"the model cannot be traced ({briefly(error)})")
    exact = Passes(model).logits(probe)
    for layout in (torch.channels_last, torch.contiguous_format):
        fast = replace(given, model=folded.to(memory_format=layout), prepared=True)
        try:
            gap = (fast.logits(probe) - exact).abs().amax()
        except (
            InvalidEvaluation,
            RuntimeError,
            MemoryError,
        ):  # `view` refuses channels last; there may be no room for two
            continue
        if gap <= 1e-3 * exact.abs().amax().clamp(min=1e-6):
            return Preparation(fast, len(pairs), layout is torch.channels_last)
        return Preparation(given, reason=f"the folded model's logits differ by {float(gap):.2g}")
    return Preparation(given, reason="the folded model does not run")


def briefly(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:80]}"


def unsafe(model: nn.Module) -> str | None:
    """What forbids to run another model in its place, as far as its modules show it."""
    for name, module in model.named_modules():
        if isinstance(module, (torch.jit.ScriptModule, fx.GraphModule)):
            return "the model is an archive"
        if hasattr(module, "surrogate_backward") or hasattr(module, "stand_ins"):
            return f"{type(module).__name__} is not smooth"
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return f"{name or 'the model'} has hooks"
        if module.training:
            return f"{name or 'the model'} is in training mode"
    return None


class NotSmooth(Exception):
    """The model has an operation of `UNSAFE`, which is named."""


def refuse_unsafe(graph: fx.Graph) -> None:
    """
    Raises:
        NotSmooth: it has an operation of `UNSAFE`.
    """
    for node in graph.nodes:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        only_checked = node.users and all(user.target is torch._assert for user in node.users)  # such as a shape, which no answer follows
        if node.op in ("call_function", "call_method") and name.strip("_") in UNSAFE and not only_checked:
            raise NotSmooth(f"{name} is not smooth")


class _Tracer(fx.Tracer):
    """Traces into everything but layers, so that a subclass of a layer (timm's padded convolution) counts as one."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) or super().is_leaf_module(module, name)


def _foldable(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of (convolution, batch normalisation) where the second sees the first's output and nobody else does."""
    graph = _Tracer().trace(model)
    refuse_unsafe(graph)
    modules = dict(model.named_modules())
    called: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            called[str(node.target)] = called.get(str(node.target), 0) + 1
    for node in graph.nodes:
        if node.op != "call_module" or not node.args:
            continue
        norm, before = modules[str(node.target)], node.args[0]
        if not (isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats):
            continue
        if not (isinstance(before, fx.Node) and before.op == "call_module"):
            continue
        conv = modules[str(before.target)]
        if (
            isinstance(conv, nn.Conv2d)
            and not is_parametrized(conv)
            and len(before.users) == 1
            and called[str(node.target)] == called[str(before.target)] == 1
        ):
            yield str(before.target), str(node.target)


def _fold(model: nn.Module, pairs: list[tuple[str, str]]) -> None:
    """Make each pair's normalisation part of its convolution."""
    for conv_name, norm_name in pairs:
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        conv.weight, conv.bias = weight.requires_grad_(False), bias.requires_grad_(False)
        parent, _, leaf = norm_name.rpartition(".")
        # timm's normalisation carries the activation that follows it
        rest = [m for m in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(m, nn.Module)]
        setattr(model.get_submodule(parent), leaf, (nn.Sequential(*rest) if rest else nn.Identity()).eval())


def _micro_batch(model: nn.Module, probe: Images) -> int | None:
    """The largest power of two of images whose largest activation is smaller than CACHE."""
    largest = 0

    def look(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, torch.Tensor):
            largest = max(largest, output[:1].numel() * 4)

    layers = [m for m in model.modules() if not any(m.children())]
    if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        return None  # archives take no hooks
    handles = [m.register_forward_hook(look) for m in layers]
    try:
        with torch.no_grad():
            model(probe[:1])
    finally:
        for handle in handles:
            handle.remove()
    return 1 << max(0, ((CACHE - 1) // largest).bit_length() - 1) if largest else None
