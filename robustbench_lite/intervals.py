"""Bounds by intervals, layer by layer: interval bound propagation, IBP (Gowal et al., ICCV 2019, https://arxiv.org/abs/1810.12715).

Every function here can be differentiated, with respect to weights too, and is exact for no network but the affine one; what rounding does
to it is for the caller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bounded import Graph
from .bounded_layers import Affine, Operation
from .classifier import Images, Labels, Logits

Interval = tuple[Tensor, Tensor]
"""(B, ...) the least and the largest value."""


def box(images: Images, eps: Tensor | float) -> Interval:
    """The images of [0, 1] that are within eps in the largest difference of a value; eps a number or (B,)."""
    size = eps.reshape(-1, 1, 1, 1) if isinstance(eps, Tensor) else eps
    return (images - size).clamp(min=0), (images + size).clamp(max=1)


def through(operation: Operation, *inputs: Interval) -> Interval:
    """An interval that holds whatever an operation makes of values between these."""
    if isinstance(operation, Affine):
        ((lower, upper),) = inputs
        centre, radius = operation.forward((lower + upper) / 2), operation.radius((upper - lower) / 2)
        return centre - radius, centre + radius
    # the rest is monotone
    return operation.forward(*(lower for lower, _ in inputs)), operation.forward(*(upper for _, upper in inputs))


def node_bounds(graph: Graph, lower: Images, upper: Images) -> list[Interval]:
    """The interval of every node, in the graph's order, shapes (B, *node.shape)."""
    known: list[Interval] = [(lower, upper)]
    for node in graph.nodes[1:]:
        known.append(through(node.operation, *(known[place] for place in node.inputs)))
    return known


def bounds(graph: Graph, lower: Images, upper: Images) -> tuple[Logits, Logits]:
    """(B, K) each: no image between `lower` and `upper`, (B, C, H, W), has a logit outside of these."""
    return node_bounds(graph, lower, upper)[-1]


def margins(graph: Graph, lower: Images, upper: Images, labels: Labels) -> Tensor:
    """(B, K) lower bounds on the label's logit less each other's, 0 at the label itself.

    The last layer is merged with the difference where it is affine, which is never looser than the difference of two bounds.

    Args:
        lower, upper: (B, C, H, W).
        labels: (B,) int64.
    """
    known = node_bounds(graph, lower, upper)
    rows, last = differences(labels, graph.classes, lower), graph.nodes[-1]
    if not isinstance(last.operation, Affine):
        return least(rows, *known[-1])
    (before,) = last.inputs
    flat = rows.flatten(0, 1)
    merged = last.operation.adjoint(flat, graph.nodes[before].shape).reshape(*rows.shape[:2], *graph.nodes[before].shape)
    return least(merged, *known[before]) + rows @ offset(last.operation, lower, graph.nodes[before].shape)


def differences(labels: Labels, classes: int, like: Tensor) -> Tensor:
    """(B, K, K): row k of an image takes the label's logit less that of class k."""
    one = torch.eye(classes, dtype=like.dtype, device=like.device)
    return one[labels][:, None] - one


def offset(operation: Affine, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(...) what an affine operation makes of zeros."""
    return operation.forward(like.new_zeros(1, *shape))[0]


def least(rows: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """(B, R) the least that linear functions (B, R, ...) take between (B, ...) and (B, ...); both ends are attained."""
    flat = rows.flatten(2)
    centre, radius = ((lower + upper) / 2).flatten(1), ((upper - lower) / 2).flatten(1)
    return (flat @ centre[..., None] - flat.abs() @ radius[..., None])[..., 0]
