"""Which images are mixed with each other, and how much each of two keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_lite.defending import Batch
from robustbench_lite.rows import per_sample
from robustbench_lite.streams import Streams


def partnered(draw: Streams, alpha: float, stream: str = "mixing") -> tuple[Tensor, Tensor]:
    """(B,) the row of every image's partner, and (B,) the share that it keeps of itself, of the distribution Beta(alpha, alpha).

    The images stand in a ring by a number drawn for each, and the next one is the partner; so every image is a partner once, and none its
    own unless it is alone. The published codes shuffle the batch, where some meet themselves, and draw one share for the whole batch.
    Partners come from this process's images: with other images beside it, an image is mixed with another one. Under another `stream`
    they are others.
    """
    gammas = draw.gamma(stream, alpha, 3)
    ring = gammas[:, 2].argsort(stable=True)
    partner = torch.empty_like(ring)
    partner[ring] = ring.roll(-1)
    return partner, (gammas[:, 0] / gammas[:, :2].sum(1)).float()


def mixed(batch: Batch, partner: Tensor, share: Tensor, kept: Tensor) -> Batch:
    """Images and views that keep `share` of themselves and targets that keep `kept` of theirs; the rest is the partner's.

    Args:
        share: (B,), or (B, 1, H, W) where it differs from place to place.
        kept: (B,).
    """

    def together(values: Tensor, own: Tensor) -> Tensor:
        own = per_sample(own, values) if own.dim() == 1 else own
        return own * values + (1 - own) * values[partner]

    return Batch(together(batch.images, share), together(batch.targets, kept), tuple(together(view, share) for view in batch.views))
