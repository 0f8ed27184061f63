"""A model's two passes, forward and backward, in micro-batches; as given or prepared for speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from .classifier import Images, Logits
from .criteria import Criterion
from .engines import local
from .errors import InvalidEvaluation, RobustEvalError, first_line
from .results import Reduced

Answers = TypeVar("Answers", bound=tuple[Tensor, ...])


@dataclass(frozen=True)
class Passes:
    """How a model is run. Parameters never require gradients here: that alone is worth 1.5x over libraries that let them.

    Args:
        model: images in [0, 1] -> logits, in eval mode.
        micro: images in one pass; larger batches are cut. None: as they come.
        reduced: bfloat16 by autocast, or products in TF32; None for float32 as it is.
        prepared: the model is not the one that was given (folded, or in reduced precision), so what it says is to be settled.
        draws: how often a randomised model is asked; answers and gradients are means over them (Athalye et al., ICML 2018, EOT).
    """

    model: nn.Module
    micro: int | None = None
    reduced: Reduced | None = None
    prepared: bool = False
    draws: int = 1

    def logits(self, x: Images) -> Logits:
        """(B, K), float32 unless the model computes in float64."""
        with torch.no_grad():
            return self._mean(lambda: (torch.cat([self._forward(x[rows]) for rows in self._chunks(len(x))]),))[0]

    def gradient(self, x: Images, criterion: Criterion, loss: str | Callable[..., Tensor]) -> tuple[Logits, Images]:
        """Logits at x, and the gradient of the criterion's loss there: one forward and one backward a draw."""

        def slope(answer: Logits, part: Images, rows: slice) -> Images:
            return torch.autograd.grad(criterion.take(rows).loss(answer, loss).sum(), part)[0]

        return self._with_slopes(x, slope)

    def jacobian(self, x: Images, classes: Tensor) -> tuple[Logits, Tensor]:
        """Logits at x, and the gradients (B, M, C, H, W) of the logits named in classes (B, M): one forward, M backwards a draw."""

        def slopes(answer: Logits, part: Images, rows: slice) -> Tensor:
            wanted = answer.gather(1, classes[rows]).unbind(1)
            last = len(wanted) - 1
            return torch.stack([torch.autograd.grad(w.sum(), part, retain_graph=m < last)[0] for m, w in enumerate(wanted)], 1)

        return self._with_slopes(x, slopes)

    def _with_slopes(self, x: Images, slope: Callable[[Logits, Images, slice], Tensor]) -> tuple[Logits, Tensor]:
        """Logits at x, and what `slope` makes of them, of the images that they are of and of the rows that these are."""

        def once() -> tuple[Logits, Tensor]:
            logits, gradients = [], []
            for rows in self._chunks(len(x)):
                part = x[rows].detach().requires_grad_()
                with torch.enable_grad():
                    answer = self._forward(part)
                    gradients.append(slope(answer, part, rows).contiguous())  # else the attack's pixel operations would mix two layouts
                logits.append(answer.detach())
            return (torch.cat(logits), torch.cat(gradients)) if len(logits) > 1 else (logits[0], gradients[0])

        return self._mean(once)

    def _mean(self, once: Callable[[], Answers]) -> Answers:
        with local.tf32() if self.reduced == "tf32" else nullcontext():  # backward passes too
            first = once()
            if self.draws == 1:
                return first
            sums = list(first)
            for _ in range(self.draws - 1):
                sums = [total + more for total, more in zip(sums, once(), strict=True)]
        return cast(Answers, tuple(total / self.draws for total in sums))

    def _chunks(self, rows: int) -> Iterator[slice]:
        step = self.micro or rows
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))

    def _forward(self, x: Images) -> Logits:
        # channel by channel also where the model has channels last: to normalise the other way round takes five times as long (measured)
        x = x.contiguous()
        try:
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.reduced == "bf16"):
                answer: Logits = self.model(x)
        except RobustEvalError:
            raise
        except Exception as error:  # whatever the model's own code raises
            if local.out_of_memory(error):
                raise
            raise InvalidEvaluation(
                f"{getattr(self.model, 'name', 'the model')} took the first few images and fails on a batch of {len(x)} "
                f"({first_line(error)}): where it takes no batch that large, use a smaller --batch-size; --debug shows where it fails"
            ) from error
        return answer if answer.dtype == torch.float64 else answer.float()
