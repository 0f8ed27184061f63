"""Remix, mixup for classes of unequal size (Chou et al., ECCV Workshops 2020, https://arxiv.org/abs/2007.03943)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from robustbench_lite.defending import About, Batch
from robustbench_lite.registry import defense
from robustbench_lite.streams import Streams

from .mixing import mixed, partnered


@defense("remix")
@dataclass(frozen=True)
class Remix:
    """Mixup where a mixture of a rare and a frequent class may count as the rare one alone.

    Costs nothing. Where all classes are of like size it is mixup; what is said there of judging it holds here too.

    Args:
        alpha: of the Beta distribution of the weights, one an image.
        kappa: how many times as many images a class must have for the other one to be rare.
        tau: the rare class takes all where the frequent one has less than this share of the picture.
    """

    kind = "mixing"
    trained_on = ("mixup",)

    alpha: Annotated[float, Field(ge=0.05)] = 1.0
    kappa: Annotated[float, Field(gt=1)] = 3.0
    tau: Annotated[float, Field(ge=0, le=1)] = 0.5

    def informed(self, about: About) -> "Counted":
        return Counted(self, about.counts)


@dataclass(frozen=True)
class Counted:
    """Remix for training data with so many images of every class."""

    remix: Remix
    counts: tuple[int, ...]
    kind = "mixing"

    def augment(self, batch: Batch, draw: Streams) -> Batch:
        partner, share = partnered(draw, self.remix.alpha)
        own = torch.tensor(self.counts, device=share.device, dtype=torch.float64)[batch.labels]
        other, kappa, tau = own[partner], self.remix.kappa, self.remix.tau
        kept = share.masked_fill((own >= kappa * other) & (share < tau), 0)  # equation 7
        kept = kept.masked_fill((other >= kappa * own) & (1 - share < tau), 1)
        return mixed(batch, partner, share, kept)
