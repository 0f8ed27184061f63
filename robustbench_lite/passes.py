"""A model's two passes, forward and backward, in micro-batches; as given or prepared for speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .classifier import Images, Logits
from .criteria import Criterion


@dataclass(frozen=True)
class Passes:
    """How a model is run. Parameters never require gradients here: that alone is worth 1.5x over libraries that let them.

    Args:
        model: images in [0, 1] -> logits, in eval mode.
        micro: images in one pass; larger batches are cut. None: as they come.
        memory_format: of the images that the model is given.
        reduced: dtype of autocast, None for float32 as it is.
        prepared: the model is not the one that was given (folded, or in reduced precision), so what it says is to be settled.
    """

    model: nn.Module
    micro: int | None = None
    memory_format: torch.memory_format = torch.contiguous_format
    reduced: torch.dtype | None = None
    prepared: bool = False

    def logits(self, x: Images) -> Logits:
        """(B, K) float32."""
        with torch.no_grad():
            parts = [self._forward(x[rows]).float() for rows in self._chunks(len(x))]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def gradient(self, x: Images, criterion: Criterion, loss: str | Callable[..., Tensor]) -> tuple[Logits, Images]:
        """Logits at x, and the gradient of the criterion's loss there: one forward and one backward."""
        logits, gradients = [], []
        for rows in self._chunks(len(x)):
            part = x[rows].detach().requires_grad_()
            with torch.enable_grad():
                answer = self._forward(part).float()
                (slope,) = torch.autograd.grad(criterion.take(rows).loss(answer, loss).sum(), part)
            logits.append(answer.detach())
            gradients.append(slope)
        return (torch.cat(logits), torch.cat(gradients)) if len(logits) > 1 else (logits[0], gradients[0])

    def jacobian(self, x: Images, classes: Tensor) -> tuple[Logits, Tensor]:
        """Logits at x, and the gradients (B, M, C, H, W) of the logits named in classes (B, M): one forward, M backwards."""
        logits, gradients = [], []
        for rows in self._chunks(len(x)):
            part = x[rows].detach().requires_grad_()
            with torch.enable_grad():
                answer = self._forward(part).float()
                wanted = answer.gather(1, classes[rows])
                last = wanted.shape[1] - 1
                slopes = [torch.autograd.grad(wanted[:, m].sum(), part, retain_graph=m < last)[0] for m in range(last + 1)]
            logits.append(answer.detach())
            gradients.append(torch.stack(slopes, 1))
        return torch.cat(logits), torch.cat(gradients)

    def _chunks(self, rows: int) -> Iterator[slice]:
        step = self.micro or rows
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))

    def _forward(self, x: Images) -> Logits:
        x = x.contiguous(memory_format=self.memory_format)
        if self.reduced is None:
            answer: Logits = self.model(x)
            return answer
        with torch.autocast(x.device.type, dtype=self.reduced):
            answer = self.model(x)
        return answer


def settle(given: Passes, x: Images, criterion: Criterion) -> Logits:
    """A fresh float32 forward on the model as given, whose verdict does not hang on who else was in the batch.

    Sums in a large batch are rounded otherwise than in a small one. Where the margin is not clear of that noise, the image is
    asked about once more, alone, as `verify` does; so too where two classes are that near to each other.
    """
    logits = given.logits(x)
    noise = 1e-4 * logits.abs().flatten(1).amax(1).clamp(min=1e-30)
    top = logits.topk(min(2, logits.shape[1]), dim=1).values
    unclear = (criterion.margin(logits).abs() <= noise) | (top[:, 0] - top[:, -1] <= noise)
    for row in unclear.nonzero()[:, 0].tolist() if len(x) > 1 else ():
        logits[row] = given.logits(x[row : row + 1])[0]
    return logits
