"""What functions and methods that a network calls mean for bounds: each becomes an operation on values, or a plain value such as a size.

A rule takes the call's own arguments and returns None where it has no bounds for them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .bounded_layers import MaxPool, Operation, Positive, Rectifier, Scaled, Sum


@dataclass(frozen=True)
class Value:
    """What hangs on the image: the place of its node, and its shape in a batch of PROBE."""

    place: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """What does not: a parameter or a buffer, looked up when it is used."""

    look_up: Callable[[], Tensor]


class Batch(int):
    """The number of images, or what was made of it: another in the next batch, so that no arithmetic on values may hang on it."""


@dataclass(frozen=True)
class Step:
    """An operation on values; None does nothing to the first."""

    operation: Operation | None
    inputs: tuple[Value, ...]


@dataclass(frozen=True)
class Plain:
    """A size, or sizes."""

    value: Any


Outcome = Step | Plain | None
RULES: dict[str, Callable[..., Outcome]] = {}
ARITHMETIC = frozenset(("add", "iadd", "sub", "isub", "mul", "imul", "truediv", "itruediv", "div"))
"""Rules that take weights."""
SIZES = frozenset((*ARITHMETIC, "floordiv", "getattr", "size", "getitem", "reshape", "view"))
"""Rules that take the number of images."""
IN_PLACE = frozenset(("iadd", "isub", "imul", "itruediv", "relu_", "add_", "sub_", "mul_", "div_"))
PROBE = 2
"""Images in the batch that shapes are found with."""


def called(name: str, *args: Any, **kwargs: Any) -> Outcome:
    """What a call means, None where no bounds are known for it."""
    given = (*args, *kwargs.values())
    if name not in RULES or (name not in ARITHMETIC and any(isinstance(each, Weight) for each in given)):
        return None
    if name not in SIZES and any(isinstance(each, Batch) for each in given):
        return None
    try:
        return RULES[name](*args, **kwargs)
    except (TypeError, ArithmeticError):  # arguments that the rule does not know, a division by 0
        return None


def _rule(*names: str) -> Callable[[Callable[..., Outcome]], Callable[..., Outcome]]:
    def registered(rule: Callable[..., Outcome]) -> Callable[..., Outcome]:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return registered


def _terms(other: Any) -> Callable[[], Tensor | float] | None:
    if isinstance(other, Weight):
        return other.look_up
    if isinstance(other, Batch) or not isinstance(other, int | float):
        return None
    number = float(other)
    return lambda: number


def _plain(*values: Any) -> bool:
    return all(isinstance(value, int) for value in values)


def _sized(function: Callable[[int, int], int], one: int, other: int) -> Plain:
    value = function(one, other)
    return Plain(Batch(value) if isinstance(one, Batch) or isinstance(other, Batch) else value)


@_rule("add", "iadd")
def _add(one: Any, other: Any) -> Outcome:
    if _plain(one, other):
        return _sized(operator.add, one, other)
    if isinstance(one, Value) and isinstance(other, Value):
        return Step(Sum(), (one, other))
    value, rest = (one, _terms(other)) if isinstance(one, Value) else (other, _terms(one))
    return Step(Scaled(lambda: (1.0, rest())), (value,)) if rest is not None and isinstance(value, Value) else None


@_rule("sub", "isub")
def _subtract(one: Any, other: Any) -> Outcome:
    if _plain(one, other):
        return _sized(operator.sub, one, other)
    value, rest = (one, _terms(other)) if isinstance(one, Value) else (other, _terms(one))
    if rest is None or not isinstance(value, Value):
        return None
    return Step(Scaled((lambda: (1.0, -rest())) if value is one else (lambda: (-1.0, rest()))), (value,))


@_rule("mul", "imul")
def _multiply(one: Any, other: Any) -> Outcome:
    if _plain(one, other):
        return _sized(operator.mul, one, other)
    value, rest = (one, _terms(other)) if isinstance(one, Value) else (other, _terms(one))
    return Step(Scaled(lambda: (rest(), 0.0)), (value,)) if rest is not None and isinstance(value, Value) else None


@_rule("truediv", "itruediv", "div")
def _divide(one: Any, other: Any) -> Outcome:
    rest = _terms(other)
    if rest is None or not isinstance(one, Value) or other == 0:
        return None
    return Step(Scaled(lambda: (1 / rest(), 0.0)), (one,))


@_rule("neg")
def _negative(one: Any) -> Outcome:
    return Step(Scaled(lambda: (-1.0, 0.0)), (one,)) if isinstance(one, Value) else None


@_rule("floordiv")
def _quotient(one: Any, other: Any) -> Outcome:
    return _sized(operator.floordiv, one, other) if _plain(one, other) else None


@_rule("getattr")
def _attribute(one: Any, name: str) -> Outcome:
    return Plain(one.shape) if isinstance(one, Value) and name == "shape" else None


@_rule("size")
def _size(one: Any, dim: int | None = None) -> Outcome:
    return Plain(one.shape if dim is None else one.shape[dim])


@_rule("getitem")
def _item(one: Any, which: Any) -> Outcome:
    return Plain(operator.getitem(one, which)) if isinstance(one, tuple) else None


@_rule("relu", "relu_")
def _relu(input: Value, inplace: bool = False) -> Outcome:
    return Step(Rectifier(), (input,))


@_rule("flatten")
def _flatten(input: Value, start_dim: int = 0, end_dim: int = -1) -> Outcome:
    return Step(Positive(lambda x: x.flatten(start_dim, end_dim)), (input,)) if start_dim == 1 else None


@_rule("reshape", "view")
def _reshape(input: Value, *sizes: Any) -> Outcome:
    asked = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
    if any(isinstance(size, Batch) for size in asked[1:]):
        return None
    shape = torch.zeros(input.shape).reshape(asked).shape
    return Step(Positive(lambda x: x.reshape(len(x), *shape[1:])), (input,)) if shape[0] == PROBE else None


@_rule("mean")
def _mean(input: Value, dim: Any, keepdim: bool = False) -> Outcome:
    places = {place % len(input.shape) for place in ((dim,) if isinstance(dim, int) else dim)}
    return None if 0 in places else Step(Positive(lambda x: x.mean(tuple(places), keepdim=keepdim)), (input,))


@_rule("adaptive_avg_pool2d")
def _adaptive(input: Value, output_size: Any) -> Outcome:
    return Step(Positive(lambda x: functional.adaptive_avg_pool2d(x, output_size)), (input,))


@_rule("avg_pool2d")
def _average(input: Value, *args: Any, **kwargs: Any) -> Outcome:
    divisor = kwargs.get("divisor_override", args[5] if len(args) > 5 else None)
    if divisor is not None and divisor < 0:
        return None
    return Step(Positive(lambda x: functional.avg_pool2d(x, *args, **kwargs)), (input,))


@_rule("max_pool2d")
def _largest(
    input: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Outcome:
    return None if ceil_mode or return_indices else Step(max_pool(kernel_size, stride, padding, dilation), (input,))


@_rule("dropout", "dropout2d")
def _dropout(input: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Outcome:
    return None if training and p > 0 else Step(None, (input,))


@_rule("contiguous")
def _as_it_is(input: Value) -> Outcome:
    return Step(None, (input,))


def max_pool(kernel: Any, stride: Any, padding: Any, dilation: Any) -> MaxPool:
    """Sizes as torch takes them, one number or two."""
    sizes = [(each, each) if isinstance(each, int) else tuple(each) for each in (kernel, stride or kernel, padding, dilation)]
    return MaxPool(*sizes)
