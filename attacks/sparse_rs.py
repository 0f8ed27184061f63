"""Sparse-RS (Croce et al., AAAI 2022, https://arxiv.org/abs/2006.12834)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.oracle import Scores
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.rows import pick
from robustbench_lite.streams import Streams

SCHEDULE = {0: 2, 50: 4, 200: 5, 500: 6, 1000: 8, 2000: 10, 4000: 12, 6000: 15, 8000: 20}
"""After so many of 10,000 queries, the first share of pixels that change places is divided by this."""


@dataclass(frozen=True)
class Searching(State):
    taken: Tensor  # (B, H x W) bool, the pixels that are used
    margin: Tensor  # (B,) at x


@attack("sparse-rs")
@dataclass(frozen=True)
class SparseRS:
    """Change eps pixels to extreme colours, exchange some of them for others at random, and keep what raises the margin.

    No gradient is needed, so masking one does not help. Thousands of forwards on a model that stands it.

    Args:
        queries: of a restart, after its start. Fewer pixels are exchanged the more of them are spent.
        alpha_init: share of the pixels that are exchanged at first.
        restarts: random starts.
    """

    access = Scores
    norms = ("pixels",)
    usual_eps = {"pixels": 10.0}
    cost = "queries + 2 forwards, times restarts"

    queries: Annotated[int, Field(ge=1)] = 5000
    alpha_init: Annotated[float, Field(gt=0, le=1)] = 0.3
    restarts: Annotated[int, Field(ge=1)] = 1

    @property
    def steps(self) -> int:
        return self.queries

    def start(self, oracle: Scores, draw: Streams) -> Searching:
        origin = oracle.origin.flatten(2)
        count = oracle.threat.eps.expand(len(origin)).clamp(max=origin.shape[2])
        none = torch.zeros_like(origin[:, 0], dtype=torch.bool)
        x, taken = self._exchanged(origin, origin, none, torch.zeros_like(count), count, draw)
        x = x.view_as(oracle.origin)
        return Searching.at(x, taken=taken, margin=oracle.criterion.margin(oracle.logits(x)))

    def step(self, oracle: Scores, state: Searching, draw: Streams) -> Searching:
        count = (self._share(state.t) * state.taken.sum(1)).floor().clamp(min=1)
        moved, taken = self._exchanged(state.x.flatten(2), oracle.origin.flatten(2), state.taken, count, count, draw)
        tried = moved.view_as(state.x)
        logits = oracle.logits(tried)
        margin = oracle.criterion.margin(logits)
        # clear of the noise of rounding: where pixels change nothing, the images in the batch would decide whether they are kept
        better = margin > state.margin + 8 * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
        return state.moved(
            pick(better, tried, state.x),
            taken=torch.where(better[:, None], taken, state.taken),
            margin=torch.where(better, margin, state.margin),
        )

    def _share(self, t: Tensor) -> Tensor:
        """(B,) of the pixels that are exchanged in this step; the first exchanges all of alpha_init."""
        query = t * 10_000 // self.queries
        level = torch.bucketize(query, torch.tensor(list(SCHEDULE), device=t.device))
        return self.alpha_init / torch.tensor([1, *SCHEDULE.values()], device=t.device)[level]

    def _exchanged(self, x: Tensor, origin: Tensor, taken: Tensor, given: Tensor, used: Tensor, draw: Streams) -> tuple[Tensor, Tensor]:
        """Images (B, C, H x W) with so many (B,) of the taken pixels given back and so many others used; and what is taken then.

        The paper's new pixels are never those just given back. Here they may be, with another colour: on small images there are no others.
        """
        most = int(used.max())
        places = draw.uniform("places", 2, x.shape[2]).to(x.device)
        free = self._first(places[:, 0].masked_fill(~taken, -1), given, most)
        kept = taken & ~free
        fresh = self._first(places[:, 1].masked_fill(kept, -1), used, most)
        colours = (draw.uniform("colours", x.shape[2], x.shape[1]).to(x.device) < 0.5).to(x).transpose(1, 2)
        # a pixel that has the colour already would be used for nothing: it gets the opposite one
        colours = torch.where((colours == origin).all(1, keepdim=True), 1 - colours, colours)
        back = torch.where(free[:, None], origin, x)
        return torch.where(fresh[:, None], colours, back), kept | fresh

    @staticmethod
    def _first(order: Tensor, count: Tensor, most: int) -> Tensor:
        """(B, H x W) bool, the `count` (B,) <= most places of the highest order (B, H x W)."""
        top = order.topk(most, dim=1).indices
        within = torch.arange(most, device=order.device) < count[:, None]
        return torch.zeros_like(order, dtype=torch.bool).scatter_(1, top, within)
