"""A traced network as a graph of few operations, so that bounds can be followed through it.

What a graph does not hold cannot be bounded: a layer without a rule is refused by name, never passed over. Batch normalisation always has
its running statistics. One graph serves a whole training, since operations look their weights up when they are used.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from .bounded_calls import IN_PLACE, PROBE, RULES, Batch, Plain, Step, Value, Weight, called, max_pool
from .bounded_layers import Convolution, Dense, Image, MaxPool, Operation, Positive, Rectifier, Scaled, Sum
from .classifier import Images, Logits, one_a_class
from .errors import UsageError

FOLLOWED = "Conv2d padded by zeros, Linear, BatchNorm, ReLU, average and max pooling, sums, scaling, Flatten and Dropout in eval mode"


@dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Args:
        inputs: places of the nodes that it takes, all before its own.
        shape: of its output, without the batch.
        name: the path of its layer, or what the function is called.
    """

    operation: Operation
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    name: str


@dataclass(frozen=True)
class Graph:
    """Operations in an order in which each comes after what it takes; the first is the image, the last gives the logits."""

    nodes: tuple[Node, ...]

    @property
    def classes(self) -> int:
        return self.nodes[-1].shape[0]

    def logits(self, images: Images) -> Logits:
        """(B, K), by the graph's own operations."""
        values = [images]
        for node in self.nodes[1:]:
            values.append(node.operation.forward(*(values[place] for place in node.inputs)))
        return values[-1]


def graph(model: nn.Module, shape: Sequence[int]) -> Graph:
    """The graph of a classifier or of a bare network; its weights stay the model's own.

    A network with one output, whose sign tells two classes apart, has two in its graph: 0 and its own.

    Args:
        model: images -> logits. It is traced, not run, and not changed.
        shape: (C, H, W) of an image.

    Raises:
        UsageError: a layer that no bounds are known for, or a network that cannot be traced; it is named.
    """
    traced = _traced(model)
    like = next(model.parameters(), torch.zeros(()))
    growing = _Growing(model, [Node(Image(), (), tuple(shape), "image")], [like.new_zeros(PROBE, *shape)])
    try:
        with torch.no_grad():
            for node in traced.nodes:
                growing.follow(node)
            made = Graph(tuple(growing.nodes))
            made.logits(like.new_zeros(PROBE + 1, *shape))  # fails where a weight is of one number of images
    except (RuntimeError, TypeError, ValueError, IndexError) as error:  # torch's own complaints about shapes
        reason = str(error).partition("\n")[0][:120]
        raise UsageError(
            f"the network does not take images of {tuple(shape)} ({reason}): take images of the shape that it was made for"
        ) from error
    return made


def refuse_unbounded(model: nn.Module) -> None:
    """Whatever `graph` refuses for every shape.

    Raises:
        UsageError: a layer that no bounds are known for, or a network that cannot be traced; it is named.
    """
    for node in _traced(model).nodes:
        if node.op == "call_module":
            _operation(model.get_submodule(str(node.target)), str(node.target))
        elif node.op in ("call_function", "call_method") and _name(node) not in RULES:
            raise _unfollowed(*_called_in(node))


class _Written(fx.Proxy):
    """fx takes `x += y` for `x = x + y`, and another name of x would keep what x was."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    """Traces without a trace: a tensor that the network makes is refused, where fx would fix it and put it into the network."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        # what declares a stand-in for its gradient is no composition of smooth layers, whatever it calls
        return hasattr(module, "surrogate_backward") or hasattr(module, "stand_ins") or super().is_leaf_module(module, name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Written(node, self)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not any(a is own for own in (*self.root.parameters(), *self.root.buffers())):
            raise UsageError("the network makes a tensor of its own while it runs, and bounds hold for fixed ones: register it as a buffer")
        return super().create_arg(a)


def _traced(model: nn.Module) -> fx.Graph:
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise UsageError(f"{name or 'the network'} has hooks, which bounds cannot follow: remove them before certifying")
        if "forward" in vars(module) and (module is model or type(module).__module__.startswith("torch.nn")):  # a trace takes its class's
            raise UsageError(f"{name or 'the network'} has another forward than its class, and bounds follow the class's: derive a class")
    try:
        return _Tracer().trace(model)
    except UsageError:
        raise
    except Exception as error:  # tracing runs the model's own code, on stand-ins, which may fail in any way
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
        raise UsageError(
            f"the network cannot be traced, so bounds cannot follow it ({reason}): write it without branches on values"
        ) from error


def _unfollowed(path: str, what: str) -> UsageError:
    return UsageError(f"{path or 'the network'} {what}, and bounds follow {FOLLOWED} only: smoothing certifies any network")


def _operation(layer: nn.Module, path: str, dimensions: int = 4) -> Operation | None:
    """What a layer does, None for nothing.

    Args:
        dimensions: of what comes in, the batch among them.

    Raises:
        UsageError: no bounds are known for it.
    """
    kind = type(layer)  # and not isinstance: a class of somebody's own may compute anything
    if kind is nn.Conv2d:
        assert isinstance(layer, nn.Conv2d)
        if layer.padding_mode != "zeros":
            raise _unfollowed(path, f"is a Conv2d with padding_mode={layer.padding_mode!r}")
        return Convolution(layer, _padding(layer, path))
    if isinstance(layer, nn.Linear) and kind is nn.Linear:
        return Dense(layer)
    if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d) and kind in (nn.BatchNorm2d, nn.BatchNorm1d):
        if layer.running_mean is None:
            raise _unfollowed(path, f"is a {kind.__name__} without running statistics")
        return Scaled(partial(_normalising, layer, dimensions))
    if kind is nn.AvgPool2d and (layer.divisor_override or 1) < 0:  # type: ignore[operator]
        raise _unfollowed(path, "is an AvgPool2d with a negative divisor")
    if isinstance(layer, nn.AvgPool2d | nn.AdaptiveAvgPool2d) and kind in (nn.AvgPool2d, nn.AdaptiveAvgPool2d):
        return Positive(layer)
    if isinstance(layer, nn.MaxPool2d) and kind is nn.MaxPool2d and not (layer.return_indices or layer.ceil_mode):
        return max_pool(layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    if kind is nn.ReLU:
        return Rectifier()
    if isinstance(layer, nn.Flatten) and kind is nn.Flatten and layer.start_dim == 1:
        return Positive(layer)
    if isinstance(layer, nn.MaxPool2d) and kind is nn.MaxPool2d:
        raise _unfollowed(path, "is a MaxPool2d with ceil_mode or return_indices")
    if kind is nn.Identity or (kind in (nn.Dropout, nn.Dropout2d) and not layer.training):
        return None
    name = kind.__name__ if getattr(nn, kind.__name__, kind) is kind else f"{kind.__module__}.{kind.__name__}"
    raise _unfollowed(path, f"is a {name}{' in training mode' if kind in (nn.Dropout, nn.Dropout2d) else ''}")


def _padding(layer: nn.Conv2d, path: str) -> tuple[int, ...]:
    if not isinstance(layer.padding, str):
        return tuple(layer.padding)
    total = [d * (k - 1) if layer.padding == "same" else 0 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if any(each % 2 for each in total):
        raise _unfollowed(path, "is a Conv2d that is padded on one side more than on the other")
    return tuple(each // 2 for each in total)


def _normalising(layer: nn.BatchNorm2d | nn.BatchNorm1d, dimensions: int) -> tuple[Tensor, Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    factor = (layer.running_var + layer.eps).rsqrt()
    if layer.weight is not None:
        factor = factor * layer.weight
    shift = -layer.running_mean * factor
    if layer.bias is not None:
        shift = shift + layer.bias
    places = (1,) * (dimensions - 2)
    return factor.reshape(-1, *places), shift.reshape(-1, *places)


def _name(node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
    return str(name)


def _called_in(node: fx.Node) -> tuple[str, str]:
    """The path of the module that calls a function, and what it does."""
    path, kind = next(reversed(node.meta.get("nn_module_stack", {"": ("", None)}).values()))
    return str(path), f"{f'({kind.__name__}) ' if isinstance(kind, type) else ''}calls {_name(node)}"


@dataclass
class _Growing:
    """A graph while it is made.

    Args:
        values: of the nodes so far, for a batch of zeros.
        found: what each traced node is.
    """

    model: nn.Module
    nodes: list[Node]
    values: list[Tensor]
    found: dict[fx.Node, Any] = field(default_factory=dict)

    def follow(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if self.found:
                raise UsageError(f"the network takes {node.target} besides images, and bounds are for networks that take images alone")
            self.found[node] = self._value(0)
        elif node.op == "get_attr":
            self.found[node] = Weight(partial(operator.attrgetter(str(node.target)), self.model))
        elif node.op == "call_module":
            layer, path = self.model.get_submodule(str(node.target)), str(node.target)
            before, *more = (*self._seen(node.args), *self._seen(node.kwargs).values()) or (None,)
            if more or not isinstance(before, Value):
                raise UsageError(f"{path} is called with something else than one value made of the image, and bounds follow nothing else")
            operation = _operation(layer, path, len(before.shape))
            self.found[node] = self._after(Step(operation, (before,)), path)
            if getattr(layer, "inplace", False):
                self._write(node)
        elif node.op == "output":
            self._end(self._seen(node.args)[0])
        else:
            outcome = called(_name(node), *self._seen(node.args), **self._seen(node.kwargs))
            if outcome is None:
                raise _unfollowed(*_called_in(node))
            self.found[node] = outcome.value if isinstance(outcome, Plain) else self._after(outcome, _name(node))
            if isinstance(outcome, Step) and (_name(node) in IN_PLACE or node.kwargs.get("inplace")):
                self._write(node)

    def _write(self, node: fx.Node) -> None:
        """Whoever reads the written value later, by whatever name, reads what was written into it."""
        old, new = self.found[node.all_input_nodes[0]], self.found[node]
        if not isinstance(old, Value) or not isinstance(new, Value) or old.place == new.place:
            return
        shaped = [(place, made) for place, made in enumerate(self.nodes[: new.place]) if isinstance(made.operation, Positive)]
        for made, given in ((place, each) for place, reader in shaped for each in reader.inputs):
            # what has as many values as it was made of may be the same memory in another shape
            if old.place in (made, given) and self.values[made].numel() == self.values[given].numel():
                raise UsageError(f"{_name(node)} writes into a value that is also read in another shape: leave inplace out of the network")
        for each, value in self.found.items():
            if isinstance(value, Value) and value.place == old.place:
                self.found[each] = new

    def _seen(self, arguments: Any) -> Any:
        return fx.node.map_arg(arguments, lambda node: self.found[node])

    def _value(self, place: int) -> Value:
        count, *shape = self.values[place].shape
        return Value(place, (Batch(count), *shape))

    def _after(self, step: Step, name: str) -> Value:
        places = tuple(value.place for value in step.inputs)
        if step.operation is None:
            return step.inputs[0]
        given = [self.values[place] for place in places]
        if isinstance(step.operation, Convolution | MaxPool) and given[0].dim() != 4:  # torch would take the batch for the channels
            raise UsageError(f"{name} takes {tuple(given[0].shape)}, and bounds follow it on (N, C, H, W) only")
        value = step.operation.forward(*given)
        if len(value) != PROBE or (isinstance(step.operation, Scaled | Sum) and any(value.shape != each.shape for each in given)):
            raise UsageError(
                f"{name} makes {tuple(value.shape)} of {tuple(given[0].shape)}, and bounds follow sums and products of equal shapes"
            )
        self.nodes.append(Node(step.operation, places, tuple(value.shape[1:]), name))
        self.values.append(value)
        return self._value(len(self.nodes) - 1)

    def _end(self, logits: Any) -> None:
        """Keep what the logits hang on."""
        if not isinstance(logits, Value) or len(logits.shape) != 2 or logits.place == 0:
            raise UsageError("the network gives something else than logits (B, K), and bounds are of logits")
        needed = {0, logits.place}
        for place in range(logits.place, 0, -1):
            if place in needed:
                needed.update(self.nodes[place].inputs)
        now = {old: new for new, old in enumerate(sorted(needed))}
        self.nodes = [replace(self.nodes[old], inputs=tuple(now[each] for each in self.nodes[old].inputs)) for old in now]
        self.values = [self.values[old] for old in now]
        if logits.shape[1] == 1:
            self._after(Step(Positive(one_a_class), (self._value(len(now) - 1),)), "both classes")
