"""From a broken image back towards the clean one, up to the boundary."""

from __future__ import annotations

import torch

from .classifier import Images
from .oracle import Scores
from .rows import per_sample


def retreated(oracle: Scores, x: Images, halvings: int) -> Images:
    """The broken image nearest to the origin that halving finds on the line to x, at a forward for each halving.

    Args:
        x: (B, C, H, W), broken.
    """
    origin, low = oracle.origin, torch.zeros_like(x[:, 0, 0, 0])
    high = torch.ones_like(low)
    for _ in range(halvings):
        middle = (low + high) / 2
        broken = oracle.criterion.margin(oracle.logits(origin.lerp(x, per_sample(middle, x)))) > 0
        low, high = torch.where(broken, low, middle), torch.where(broken, middle, high)
    return origin.lerp(x, per_sample(high, x))
