"""Bounds by linear functions, followed from the logits back to the image: CROWN (Zhang et al., NeurIPS 2018,
https://arxiv.org/abs/1811.00866), and CROWN-IBP (Zhang et al., ICLR 2020, https://arxiv.org/abs/1906.06316).

A row is a linear function of one node of one image. On its way back every ReLU and every largest value is replaced by a line below or above
it, whichever the row's sign asks for. The lines need bounds of what they take: by intervals in CROWN-IBP, by rows of their own in CROWN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from . import intervals
from .bounded import Graph
from .bounded_layers import Affine, Convolution, Dense, Image, MaxPool, Operation, Positive, Rectifier, Scaled, Sum
from .classifier import Images, Labels
from .intervals import Interval

MEMORY = 64 * 2**20
"""Bytes of the rows at one node, above which they are followed in parts."""

Back = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(N, ...) rows behind an operation and (N,) the images they are of: rows before it, and (N,) what is added."""


@dataclass(frozen=True)
class Region:
    """Images (B, C, H, W) between two others, and in an l2 ball as well where there is one.

    Args:
        centre, radius: of the ball, (B, C, H, W) and (B,).
    """

    lower: Images
    upper: Images
    centre: Images | None = None
    radius: Tensor | None = None

    def least(self, rows: Tensor, owner: Tensor) -> Tensor:
        """(N,) a lower bound on linear functions (N, C, H, W) of the images `owner`; attained by box and by ball, not where they meet."""
        flat = rows.flatten(1)
        centre, radius = ((self.lower + self.upper) / 2).flatten(1), ((self.upper - self.lower) / 2).flatten(1)
        least = (flat * centre[owner]).sum(1) - (flat.abs() * radius[owner]).sum(1)
        if self.centre is None or self.radius is None:
            return least
        in_ball = (flat * self.centre.flatten(1)[owner]).sum(1) - self.radius[owner] * torch.linalg.vector_norm(flat, dim=1)
        return torch.maximum(least, in_ball)


def margins(graph: Graph, region: Region, labels: Labels) -> Tensor:
    """(B, K) lower bounds on the label's logit less each other's, 0 at the label: CROWN, with bounds between by CROWN and intervals.

    Args:
        labels: (B,) int64.
    """
    known: list[Interval] = [(region.lower, region.upper)]
    for place, node in enumerate(graph.nodes[1:], start=1):
        known.append(intervals.through(node.operation, *(known[each] for each in node.inputs)))
        readers = [other.operation for other in graph.nodes if place in other.inputs]
        if not _exact(graph, place) or region.centre is not None:
            known[place] = _tightened(graph, place, known, region, readers)
    return _margins(graph, known, region, labels)


def crown_ibp_margins(graph: Graph, lower: Images, upper: Images, labels: Labels) -> Tensor:
    """The same with bounds between by intervals alone: one pass back, which can be differentiated."""
    return _margins(graph, intervals.node_bounds(graph, lower, upper), Region(lower, upper), labels)


def _margins(graph: Graph, known: list[Interval], region: Region, labels: Labels) -> Tensor:
    rows = intervals.differences(labels, graph.classes, region.lower)
    owner = torch.arange(len(labels), device=labels.device).repeat_interleave(graph.classes)
    least = _least(graph, len(graph.nodes) - 1, rows.flatten(0, 1), owner, _backs(graph, known), region)
    return least.reshape(len(labels), graph.classes)


def _exact(graph: Graph, place: int) -> bool:
    """Whether a node's interval is attained: behind at most one layer that mixes values, and nothing else."""
    mixing = 0
    while place:
        node = graph.nodes[place]
        if not isinstance(node.operation, Affine):
            return False
        mixing += not isinstance(node.operation, Scaled)
        (place,) = node.inputs
    return mixing <= 1


def _tightened(graph: Graph, place: int, known: list[Interval], region: Region, readers: list[Operation]) -> Interval:
    """A node's interval, cut by rows of its own where one of its readers would draw better lines for it."""
    lower, upper = known[place]
    if any(isinstance(reader, MaxPool) for reader in readers):
        wanted = lower < upper
    elif any(isinstance(reader, Rectifier) for reader in readers):
        wanted = (lower < 0) & (upper > 0)
    else:
        return lower, upper
    owner, index = wanted.flatten(1).nonzero(as_tuple=True)
    backs, size = _backs(graph, known), graph.nodes[place].shape
    widest = max(lower[0].numel(), *(known[each][0][0].numel() for each in range(place)))
    count = max(1, MEMORY // (2 * widest * lower.element_size()))
    tight_lower, tight_upper = lower.flatten(1).clone(), upper.flatten(1).clone()
    for own, at in zip(torch.split(owner, count), torch.split(index, count), strict=True):
        one = functional.one_hot(at, lower[0].numel()).to(lower).reshape(-1, *size)
        least = _least(graph, place, torch.cat([one, -one]), own.repeat(2), backs, region)
        below, above = least.chunk(2)
        tight_lower[own, at] = torch.maximum(tight_lower[own, at], below)
        tight_upper[own, at] = torch.minimum(tight_upper[own, at], -above)
    return tight_lower.reshape_as(lower), tight_upper.reshape_as(upper)


def _least(graph: Graph, start: int, rows: Tensor, owner: Tensor, backs: list[Back], region: Region) -> Tensor:
    """(N,) lower bounds on rows (N, *shape) of the node `start`, each for the image `owner` of it."""
    waiting = {start: rows}
    constant = rows.new_zeros(len(rows))
    for place in range(start, 0, -1):
        if place not in waiting:
            continue
        before, added = backs[place](waiting.pop(place), owner)
        constant = constant + added
        for each in graph.nodes[place].inputs:
            waiting[each] = waiting[each] + before if each in waiting else before
    return constant + region.least(waiting[0], owner)


def _backs(graph: Graph, known: list[Interval]) -> list[Back]:
    """The way back through every node up to the last that is known."""
    return [_back(graph, place, known) for place in range(len(known))]


def _back(graph: Graph, place: int, known: list[Interval]) -> Back:
    node = graph.nodes[place]
    match node.operation:
        case Convolution() | Dense() | Scaled() | Positive() as affine:
            shape = graph.nodes[node.inputs[0]].shape
            offset = intervals.offset(affine, known[0][0], shape)
            return lambda rows, owner: (affine.adjoint(rows, shape), (rows * offset).flatten(1).sum(1))
        case Rectifier():
            return _past_rectifier(*known[node.inputs[0]])
        case MaxPool() as pool:
            return _past_max_pool(pool, *known[node.inputs[0]])
        case Sum() | Image():
            return lambda rows, owner: (rows, rows.new_zeros(len(rows)))


def _past_rectifier(lower: Tensor, upper: Tensor) -> Back:
    # a bound that is no number counts as unstable, and its line above as no number
    unstable = ~((lower >= 0) | (upper <= 0))
    always = (lower >= 0).to(lower.dtype)
    slope = torch.where(unstable, upper / torch.where(unstable, upper - lower, 1.0), always)
    added = torch.where(unstable, -lower * slope, 0.0)
    below = torch.where(unstable, (upper > -lower).to(lower.dtype), always)

    def back(rows: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        up, down = rows.clamp(min=0), rows.clamp(max=0)
        return up * below[owner] + down * slope[owner], (down * added[owner]).flatten(1).sum(1)

    return back


def _past_max_pool(pool: MaxPool, lower: Tensor, upper: Tensor) -> Back:
    """Below: the value with the highest lower bound. Above: the same where no other can be larger, else the highest upper bound."""
    channels, (top, left) = lower.shape[1], pool.padding
    padded = (left, left, top, top)
    least, most = (
        functional.unfold(functional.pad(bound, padded, value=-torch.inf), pool.kernel, dilation=pool.dilation, stride=pool.stride).reshape(
            len(bound), channels, pool.kernel[0] * pool.kernel[1], -1
        )
        for bound in (lower, upper)
    )  # (B, C, values of a window, windows)
    chosen = least.argmax(2, keepdim=True)
    certain = least.gather(2, chosen) >= most.scatter(2, chosen, -torch.inf).amax(2, keepdim=True)
    highest = most.amax(2, keepdim=True)
    size = (lower.shape[2] + 2 * top, lower.shape[3] + 2 * left)

    def back(rows: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        flat = rows.flatten(2)[:, :, None]
        through = torch.where(certain[owner] | (flat > 0), flat, 0.0)
        spread = flat.new_zeros(len(flat), channels, least.shape[2], flat.shape[3]).scatter(2, chosen[owner], through)
        image = functional.fold(spread.flatten(1, 2), size, pool.kernel, dilation=pool.dilation, stride=pool.stride)
        added = torch.where(certain[owner] | (flat > 0), 0.0, flat * highest[owner])
        return image[:, :, top : size[0] - top, left : size[1] - left], added.flatten(1).sum(1)

    return back
