"""How long, in which steps and from which seed a network is trained, and the tricks that go with it.

The tricks are those of He et al. (CVPR 2019, https://arxiv.org/abs/1812.01187), unless another paper is named.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from robustbench_lite.errors import UsageError

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "steps", "cyclic", "constant"]
Precision = Literal["fp32", "bf16", "fp16"]
Augment = Literal["auto", "none", "flip", "crop-flip", "turn-shift", "resized-crop-flip"]


def _between(name: str, value: float, low: float, high: float) -> None:
    if not (low <= value < high):
        raise UsageError(f"{name} must be at least {low} and below {high}, got {value}")


@dataclass(frozen=True)
class Tricks:
    """What may be added to a recipe; nothing of it is on by default but the schedule and the usual augmentation of the data.

    Args:
        schedule: cosine falls to 0 along half a cosine; steps divides by ten at each of `drops`; cyclic rises to the learning rate
            until two fifths of the training and falls to 0 after (Wong et al., ICLR 2020, https://arxiv.org/abs/2001.03994).
        drops: shares of the training at which `steps` divides the learning rate.
        warmup: epochs in which the learning rate rises in a straight line from 0.
        scale_lr: multiply the learning rate by batch size / 256.
        momentum: of sgd, with Nesterov's form.
        zero_gamma: the last normalisation of every residual branch starts at 0, so that a block starts as its skip.
        no_bias_decay: weight decay only on the weights of convolutions and linear layers.
        clip: largest l2 norm of the gradient of all weights; None does not clip.
        ema: share of the old that an exponential moving average of the weights keeps at a step; the average is what is tested and
            written. None: the weights themselves.
        augment: what is done to images before any defense; auto is the usual for the data.
        precision: bf16 and fp16 compute most layers in half precision (torch.autocast), the losses in float32.
    """

    schedule: Schedule = "cosine"
    drops: tuple[float, ...] = (0.5, 0.75)
    warmup: float = 0.0
    scale_lr: bool = False
    momentum: float = 0.9
    zero_gamma: bool = False
    no_bias_decay: bool = False
    clip: float | None = None
    ema: float | None = None
    augment: Augment = "auto"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        _between("warmup", self.warmup, 0, math.inf)
        _between("momentum", self.momentum, 0, 1)
        if any(not 0 < drop < 1 for drop in self.drops):
            raise UsageError(f"drops are shares of the training between 0 and 1, got {', '.join(map(str, self.drops))}")
        if self.clip is not None and not (math.isfinite(self.clip) and self.clip > 0):
            raise UsageError(f"clip must be a number above 0, got {self.clip}")
        if self.ema is not None:
            _between("ema", self.ema, 0, 1)


@dataclass(frozen=True)
class Recipe:
    """An optimizer, its learning rate, and for how long.

    Args:
        optimizer: sgd, or adamw.
        epochs: passes over the training images.
        batch_size: most images in a step, over all processes; an epoch is cut into steps of nearly equal size.
        lr: highest learning rate.
        weight_decay: of sgd, added to the gradient; of adamw, decoupled: a step shrinks the weights by lr * weight_decay of themselves.
        label_smoothing: share of the target that is spread evenly over the other classes.
        seed: of the first weights, the order of the images and every other draw.

    Raises:
        UsageError: a number outside its range.
    """

    optimizer: Optimizer = "sgd"
    epochs: int = 100
    batch_size: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    seed: int = 0
    tricks: Tricks = field(default_factory=Tricks)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', '-')} must be 1 or more, got {getattr(self, name)}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"lr must be a number above 0, got {self.lr}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UsageError(f"weight-decay must be a number of 0 or more, got {self.weight_decay}")
        _between("label-smoothing", self.label_smoothing, 0, 1)
        if self.tricks.warmup >= self.epochs:
            raise UsageError(f"warmup of {self.tricks.warmup:g} epochs leaves nothing of the {self.epochs}: make it shorter")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed must be a whole number in 0..2^63-1, got {self.seed}")

    @property
    def peak(self) -> float:
        """The highest learning rate, scaled where that is asked for."""
        return self.lr * (self.batch_size / 256 if self.tricks.scale_lr else 1)

    def learning_rate(self, step: int, per_epoch: int, phases: int = 1) -> float:
        """Of a step, counted from 0, with so many steps an epoch; of several phases of equal length each has the whole schedule."""
        tricks, total = self.tricks, self.epochs * per_epoch / phases
        within = step * phases % (self.epochs * per_epoch) / phases
        rising = round(tricks.warmup * per_epoch)
        if within < rising:
            return self.peak * (within + 1) / rising
        done = (within - rising) / max(1, total - rising)
        if tricks.schedule == "cosine":
            return self.peak * (1 + math.cos(math.pi * done)) / 2
        if tricks.schedule == "steps":
            return self.peak * 0.1 ** sum(done >= drop for drop in tricks.drops)
        if tricks.schedule == "cyclic":
            return self.peak * min((done + 1 / total) / 0.4, (1 - done) / 0.6, 1)
        return self.peak


RECIPES = {"digits": Recipe("adamw", epochs=40, batch_size=32, lr=3e-3, weight_decay=1.0, label_smoothing=0.1)}
"""What a data set is trained with unless another recipe is asked for; sgd for all others."""
