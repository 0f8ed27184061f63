"""Gradients of the margin estimated from queries alone, for the attacks that have nothing better."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .classifier import Images
from .oracle import Scores

PORTION = 32
"""Pairs of queries asked about at once for every row: more would only take memory."""


def slope(oracle: Scores, x: Images, pairs: int, width: float, directions: Callable[[str, int], Tensor]) -> Images:
    """Mean over `pairs` directions u of u (margin(x + width u) - margin(x - width u)) / (2 width), per row; twice as many forwards.

    The queries may leave the box and the ball by `width`, as published: cut off at the box, the estimate would be biased at its edge.

    Args:
        x: (B, C, H, W).
        directions: (portion's name, count) -> (B, count, C, H, W).
    """
    total = torch.zeros_like(x)
    for first in range(0, pairs, PORTION):
        u = directions(f"direction {first}", min(PORTION, pairs - first))
        queries = torch.cat([x[:, None] + width * u, x[:, None] - width * u], 1)
        rows = torch.arange(len(x), device=x.device).repeat_interleave(queries.shape[1])
        margin = oracle.criterion.take(rows).margin(oracle.logits(queries).flatten(0, 1))
        ahead, behind = margin.view(len(x), 2, -1).unbind(1)
        total += torch.einsum("bp,bpchw->bchw", (ahead - behind) / (2 * width), u.to(x))
    return total / pairs
