"""How long, in which steps and from which seed a network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from robustbench_lite.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """AdamW with a learning rate that falls to 0 along half a cosine.

    Args:
        epochs: passes over the training images.
        batch_size: most images in a batch; an epoch is cut into batches of nearly equal size.
        lr: learning rate of the first step.
        weight_decay: AdamW's, decoupled; a step shrinks the weights by lr * weight_decay of themselves.
        seed: of the first weights, the order of the images and every other draw.

    Raises:
        UsageError: a number outside its range.
    """

    epochs: int = 40
    batch_size: int = 32
    lr: float = 3e-3
    weight_decay: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', '-')} must be 1 or more, got {getattr(self, name)}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"lr must be a number above 0, got {self.lr}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UsageError(f"weight-decay must be a number of 0 or more, got {self.weight_decay}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed must be a whole number in 0..2^63-1, got {self.seed}")
