"""The linear function that an attack takes a model for at an image: its zero is the nearest piece of boundary there."""

from __future__ import annotations

import torch
from torch import Tensor

from .classifier import Images
from .criteria import Misclassified
from .oracle import WhiteBox
from .planes import length, plane_distance, step_to_plane
from .rows import per_sample

FARTHER = 1e-4
"""How much farther than a plane DeepFool's authors step at least, in the norm: by a share alone it may near the boundary for ever."""


def contenders(oracle: WhiteBox, count: int) -> Tensor:
    """(B, M) the classes whose boundaries `tangent` compares: the label's, then the `count` likeliest others, at a forward.

    Where there is one boundary or the criterion does not name a label (a target, a single logit, findings): M is 0.

    Args:
        count: as many as there are, where it is more.
    """
    criterion, logits = oracle.criterion, oracle.logits(oracle.origin)
    if not isinstance(criterion, Misclassified) or logits.shape[1] == 2:
        return torch.empty(len(logits), 0, dtype=torch.long, device=logits.device)
    first = logits.scatter(1, criterion.labels[:, None], torch.inf)
    return first.topk(min(1 + count, logits.shape[1]), dim=1).indices


def tangent(oracle: WhiteBox, x: Images, classes: Tensor) -> tuple[Tensor, Images]:
    """Height (B,) and gradient at x of the linear function whose zero is taken for the boundary: positive where broken.

    Args:
        classes: (B, M) of `contenders`: the boundary is the one nearest to x, at a price of M backwards; with M = 0 that of the margin,
            towards the row's target where it has one.
    """
    if not classes.shape[1]:
        logits, normal = oracle.gradient(x, "margin")
        return oracle.loss(logits, "margin").to(x.dtype), normal
    logits, slopes = oracle.jacobian(x, classes)
    ahead = logits.gather(1, classes)
    heights, normals = ahead[:, 1:] - ahead[:, :1], slopes[:, 1:].sub_(slopes[:, :1])
    row, rival = torch.arange(len(x), device=x.device), plane_distance(heights, normals, oracle.threat.norm).argmin(1)
    return heights[row, rival].to(x.dtype), normals[row, rival]


def over(x: Images, normal: Images, height: Tensor, overshoot: float, norm: str) -> Images:
    """DeepFool's step: past the plane by a share `overshoot` of the way, as if there were no box, and cut off at the box."""
    if norm == "l1":  # the free step is in one value, and of it the box may leave nothing
        return beyond(x, normal, height, overshoot, norm)
    way = plane_distance(height[:, None], normal[:, None], norm)[:, 0]
    direction = normal.sign() if norm == "linf" else normal / per_sample(length(normal.flatten(1), norm).clamp(min=1e-30), normal)
    return (x - direction * per_sample(height.sign() * (way * (1 + overshoot) + FARTHER), x)).clamp_(0, 1)


def projected(oracle: WhiteBox, edge: Images) -> Images:
    """The point nearest to the clean image on the tangent plane at `edge`, a point of the boundary."""
    origin = oracle.origin
    logits, normal = oracle.gradient(edge, "margin")
    height = oracle.loss(logits, "margin").to(edge) + (normal * (origin - edge)).flatten(1).sum(1)
    return step_to_plane(origin, normal, height, oracle.threat.norm).add_(origin).clamp_(0, 1)


def beyond(x: Images, normal: Images, height: Tensor, overshoot: float, norm: str) -> Images:
    """Past the plane by a share `overshoot` of the way. Where that would leave the box, the shortest way within it."""
    step = step_to_plane(x, normal, height, norm)
    way = length(step.flatten(1), norm)
    return (x + step * per_sample(1 + overshoot + FARTHER / way.clamp(min=FARTHER), x)).clamp_(0, 1)
