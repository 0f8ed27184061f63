"""The residual branches of any classifier, found in the autograd graph, and gradients that are damped in them.

A branch is a value f(z) that is added to z itself, or concatenated with it (each layer of a DenseNet). It is told by the graph of a
pass: one operand of the sum is computed from the other. So it is found whatever the model's modules are called, however often one is
used, and where the sum is made in place. A block whose skip has layers of its own (a projection) is none for skip gradients, since its
skip is no identity; `block_ends` finds it too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from graphlib import TopologicalSorter
from operator import or_
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from .classifier import Images
from .errors import ModelError

SUM = "AddBackward0"
JOINS = (SUM, "CatBackward0")
"""What a sum, also one in place, and a concatenation are called in the graph."""

LAYERS = ("Convolution", "Addmm", "Mm", "Bmm", "Linear")
"""What layers are called there that belong to no module, as in an exported program: how these names begin."""

Value = tuple[Node, int]
"""What a node of the graph computes: the node, and which of its outputs."""


@dataclass(frozen=True)
class Branch:
    """A residual branch in the graph of one pass: its last module that has weights ("" without), and the value that meets the skip."""

    name: str
    value: Value


def residual_branches(model: nn.Module, probe: Images) -> list[str]:
    """The residual branches of `model`, each named by the last module with weights in it, or "" where its layers are no modules.

    Args:
        model: (B, C, H, W) -> (B, K), in eval mode; it is not changed.
        probe: (B, C, H, W) any images that it takes; one will do.
    """
    found: list[str] = []
    with torch.enable_grad(), _watched(model, lambda branches: found.extend(branch.name for branch in branches)):
        model(probe.detach().requires_grad_())
    return found


def block_ends(model: nn.Module, probe: Images) -> list[Node]:
    """What the branch of every residual block computes last, in the graph of one pass; also where the skip is a projection.

    Of two summands the branch is the one with more layers of its own. The other is a skip if it is computed on the way to the branch (the
    identity), or if it has one layer of its own at most and the branch more than one: a projection, or a cut and padded identity.

    Args:
        model: (B, C, H, W) -> (B, K), in eval mode, its parameters with gradients; it is not changed.
        probe: (B, C, H, W) any images that it takes; one will do.
    """
    x = probe.detach().requires_grad_()
    with torch.enable_grad():
        history = _history(x, model(x))
    layers, ends = history.layers, []
    for node, operands in history.joined:
        if node.name() != SUM or len(operands) != 2:
            continue
        one, other = (history.bit[value] | history.past[value[0]] for value in operands)
        own = [(layers & one & ~other).bit_count(), (layers & other & ~one).bit_count()]
        branch, skip = operands if own[0] > own[1] else reversed(operands)
        identity = history.bit[skip] & history.past[branch[0]]
        if min(own) <= 1 and max(own) > (0 if identity else 1):
            ends.append(branch[0])
    return ends


@contextmanager
def skip_gradient(model: nn.Module, branches: Sequence[str], gamma: float) -> Iterator[None]:
    """A context in which `model` answers as always, and gradients through the named branches are multiplied by `gamma`.

    Every pass is looked at anew, which costs some milliseconds on a deep model: batches and parameters that are frozen may change.

    Args:
        branches: as `residual_branches` names them, all or some.
        gamma: 1 changes nothing; 0 lets gradients through the skips only.

    Raises:
        ModelError: in a pass that has not just these branches.
    """
    expected = Counter(branches)

    def damp(found: list[Branch]) -> None:
        here = [branch for branch in found if branch.name in expected]
        if Counter(branch.name for branch in here) != expected:
            raise ModelError(
                f"the model showed {len(branches)} residual branches and, in a later pass, {len(here)} of them, so that no skip gradients "
                "are to be had: give it as a module and not as an archive, and in eval mode"
            )
        for branch in here:
            # on the node and not on the tensor, which may be a view and is often modified in place
            branch.value[0].register_prehook(partial(_scaled, output=branch.value[1], gamma=gamma))

    with _watched(model, damp):
        yield


def _scaled(gradients: tuple[Tensor | None, ...], output: int, gamma: float) -> tuple[Tensor | None, ...]:
    return tuple(g if g is None or number != output else gamma * g for number, g in enumerate(gradients))


@contextmanager
def _watched(model: nn.Module, then: Callable[[list[Branch]], None]) -> Iterator[None]:
    """A context in which `then` is told the branches of every pass that has a graph, before any gradient is taken."""
    outputs: list[tuple[str, Value]] = []

    def record(name: str, module: nn.Module, inputs: Any, answer: Any) -> None:
        for tensor in answer if isinstance(answer, tuple | list) else (answer,):
            if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
                outputs.append((name, (tensor.grad_fn, tensor.output_nr)))

    def finish(module: nn.Module, inputs: tuple[Tensor, ...], answer: Tensor) -> None:
        if answer.requires_grad and inputs[0].requires_grad:
            then(_branches(inputs[0], answer, outputs))
        outputs.clear()  # it keeps the pass's activations alive

    with ExitStack() as hooks:
        hooks.enter_context(model.register_forward_pre_hook(lambda *_: outputs.clear()))  # of a pass that did not come to its end
        for name, module in model.named_modules():
            if name and next(module.parameters(), None) is not None:
                hooks.enter_context(module.register_forward_hook(partial(record, name)))
        hooks.enter_context(model.register_forward_hook(finish))
        yield


def _branches(x: Tensor, logits: Tensor, outputs: list[tuple[str, Value]]) -> list[Branch]:
    """The branches between x and logits, given what the modules with weights returned."""
    history = _history(x, logits)
    bit, past = history.bit, history.past
    nameless = [("", (node, 0)) for node in past if node.name().startswith(LAYERS)]
    layers = [layer for layer in nameless + outputs if layer[1] in bit]  # from the end on, modules come first
    found: dict[Value, str] = {}
    for _, operands in history.joined:
        everything = reduce(or_, (bit[value] for value in operands), 0)
        for value in operands:
            others = everything & ~bit[value] & past[value[0]]  # operands that this one is computed from
            if not others or value in found:
                continue
            skips = reduce(or_, (bit[v] | past[v[0]] for v in operands if bit[v] & others))
            own = (bit[value] | past[value[0]]) & ~skips
            # without a layer of its own it is a formula, as in x + 0.04 x ** 3, and no branch
            name = next((name for name, output in reversed(layers) if bit[output] & own), None)
            if name is not None:
                found[value] = name
    return [Branch(name, value) for value, name in found.items()]


@dataclass(frozen=True)
class _History:
    """What was computed from what in one pass, as far as it was computed from its images.

    Sets of values are whole numbers with one bit for every value: with thousands of nodes that is what keeps this fast.

    Args:
        bit: of every value.
        past: all that a node's outputs are computed from.
        joined: sums and concatenations, each with its operands.
    """

    bit: dict[Value, int]
    past: dict[Node, int]
    joined: list[tuple[Node, list[Value]]]

    @property
    def layers(self) -> int:
        """The set of what layers computed."""
        return reduce(or_, (bit for (node, _), bit in self.bit.items() if node.name().startswith(LAYERS)), 0)


def _history(x: Tensor, logits: Tensor) -> _History:
    source = _value(x)
    bit: dict[Value, int] = {source: 1}
    past: dict[Node, int] = {}
    joined: list[tuple[Node, list[Value]]] = []
    for node, inputs in _ordered(_value(logits)[0], source[0]):
        used = [value for value in inputs if value == source or past[value[0]]]
        past[node] = 0
        for value in used:
            past[node] |= bit.setdefault(value, 1 << len(bit)) | past[value[0]]
        if node.name() in JOINS:
            joined.append((node, used))
    return _History(bit, past, joined)


def _value(tensor: Tensor) -> Value:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _ordered(end: Node, start: Node) -> Iterator[tuple[Node, list[Value]]]:
    """The nodes that `end` is computed from, each after its inputs, and the values that are its inputs; not beyond `start`."""
    inputs: dict[Node, list[Value]] = {start: []}
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node not in inputs:
            inputs[node] = [(before, output) for before, output in node.next_functions if before is not None]
            waiting.extend(before for before, _ in inputs[node])
    order = TopologicalSorter({node: [before for before, _ in values] for node, values in inputs.items()}).static_order()
    return ((node, inputs[node]) for node in order)
