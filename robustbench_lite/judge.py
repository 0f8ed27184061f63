"""The last word on an image: the model as given, in float32, whoever else was in the batch, and whatever it draws at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .classifier import Images, Logits
from .criteria import Criterion
from .passes import Passes
from .streams import seeded


@dataclass(frozen=True)
class Judge:
    """Says what a model answers, for verdicts.

    Args:
        passes: the model as given, in float32.
        votes: for a randomised model, how often it is asked about an image, alone, under random state that depends on the seed, the
            image's id and the number of the vote and on nothing else. 0 for a model that always answers alike.
        seed: of those votes.
    """

    passes: Passes
    votes: int = 0
    seed: int = 0

    def logits(self, x: Images, criterion: Criterion, ids: Sequence[str]) -> Logits:
        """(B, K) the answers that verdicts are read off.

        Sums in a large batch are rounded otherwise than in a small one. Where the margin is not clear of that noise, the image is
        asked about once more, alone, as `verify` does; so too where two classes are that near to each other.

        Of several votes the one in the middle by margin: an image is broken where at least half of them say so.
        """
        if self.votes:
            return torch.cat([self._middle(x[row : row + 1], criterion.take(slice(row, row + 1)), ids[row]) for row in range(len(x))])
        logits = self.passes.logits(x)
        noise = 1e-4 * logits.abs().flatten(1).amax(1).clamp(min=1e-30)
        top = logits.topk(min(2, logits.shape[1]), dim=1).values
        near = (top[:, 0] - top[:, -1] <= noise) & (logits.shape[1] > 1)
        unclear = (criterion.margin(logits).abs() <= noise) | near
        for row in unclear.nonzero()[:, 0].tolist() if len(x) > 1 else ():
            logits[row] = self.passes.logits(x[row : row + 1])[0]
        return logits

    def _middle(self, x: Images, criterion: Criterion, sample_id: str) -> Logits:
        answers = []
        for vote in range(self.votes):
            with seeded(self.seed, sample_id, "vote", vote):
                answers.append(self.passes.logits(x))
        every: Tensor = torch.cat(answers)
        if not every.isfinite().all():
            return every[~every.isfinite().all(1)][:1]  # one answer that is no number leaves the image undecided
        margins = torch.cat([criterion.margin(answer) for answer in answers])
        return every[margins.argsort(descending=True)[(self.votes - 1) // 2]][None]
