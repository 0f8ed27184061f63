"""AugMix (Hendrycks et al., ICLR 2020, https://arxiv.org/abs/1912.02781)."""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Images, Logits
from robustbench_lite.defending import Batch, Step
from robustbench_lite.registry import defense
from robustbench_lite.streams import Streams

from .chains import ALL, USUAL, chained

PIXELS = 2**16
"""Images go through their chains in parts of about so many pixels, which stay in a processor's caches."""


@defense("augmix")
@dataclass(frozen=True)
class AugMix:
    """Mix every image with chains of random operations on it, and ask for the same answer on all versions.

    Three times the passes of standard training; as many without `jsd`. Not for data whose classes hang on colour or place. Training on
    autocontrast, equalize, posterize and the moves does something like the corruptions contrast, fog, color_quant, rotate, shear, translate
    and elastic_transform; with `all_ops` it does brightness and saturate themselves. Evaluating a model there says so. Operations work on
    8 bits: a value that is no whole 255th is rounded where a chain begins, and nowhere else.

    Args:
        severity: highest level of an operation, up to 10; 1 for ImageNet in the paper.
        width: chains.
        depth: operations in a chain; by default 1, 2 or 3.
        alpha: of the Dirichlet and Beta distributions of the weights.
        all_ops: color, contrast, brightness and sharpness too, which the paper leaves out.
        jsd: compare the answers on the image and two mixtures; without it, one mixture takes the image's place.
        weight: of that comparison in the loss.
    """

    kind = "augmentation"

    severity: Annotated[float, Field(ge=0.1, le=10)] = 3
    width: Annotated[int, Field(ge=1)] = 3
    depth: Annotated[int, Field(ge=1)] | None = None
    alpha: Annotated[float, Field(ge=0.05)] = 1.0
    all_ops: bool = False
    jsd: bool = True
    weight: Annotated[float, Field(ge=0)] = 12.0

    @property
    def trained_on(self) -> tuple[str, ...]:
        return ("augmix-all",) if self.all_ops else ("augmix",)

    def augment(self, batch: Batch, draw: Streams) -> Batch:
        mixtures = self.mixtures(batch.images, 2 if self.jsd else 1, draw)
        return replace(batch, views=mixtures) if self.jsd else replace(batch, images=mixtures[0])

    def penalty(self, step: Step) -> Tensor:
        if not self.jsd:
            return torch.zeros_like(step.batch.targets[:, 0])
        return self.weight * jensen_shannon(step.answers)

    def mixtures(self, images: Images, count: int, draw: Streams) -> tuple[Images, ...]:
        """So many mixtures of every image with its chains."""
        gammas = draw.gamma("augmix weights", self.alpha, count, self.width + 2)
        own = _shares(gammas[..., :2])[..., :1]  # Beta
        weights = torch.cat([own, (1 - own) * _shares(gammas[..., 2:])], -1).to(images)  # Dirichlet
        names, deepest = ALL if self.all_ops else USUAL, self.depth or 3
        chances = draw.uniform("augmix operations", count * self.width, 3 * deepest + 1)
        kind, level, sign = chances[..., 1:].tensor_split(3, -1)
        length = (chances[..., :1] * deepest).floor() + 1 if self.depth is None else deepest
        unused = torch.arange(deepest, device=images.device) >= length
        choice = (kind * len(names)).long().masked_fill(unused, len(names))
        level, sign = 0.1 + (self.severity - 0.1) * level, torch.where(sign > 0.5, -1.0, 1.0)
        at_once = max(1, PIXELS // images[0, 0].numel())
        parts = zip(*(torch.split(each, at_once) for each in (images, weights, choice, level, sign)), strict=True)
        return torch.cat([_mixed(x, w, chained((x * 255).round(), names, *how)) for x, w, *how in parts]).unbind(1)


def jensen_shannon(answers: tuple[Logits, ...]) -> Tensor:
    """(B,) the mean Kullback-Leibler divergence of the probabilities under each of several logits (B, K) from the mean of all."""
    logs = torch.stack([logits.log_softmax(1) for logits in answers])
    middle = logs.exp().mean(0).clamp(1e-7, 1).log()  # the official bound
    return (logs.exp() * (logs - middle)).sum(2).mean(0)


def _shares(gammas: Tensor) -> Tensor:
    return gammas / gammas.sum(-1, keepdim=True)


def _mixed(x: Images, weights: Tensor, ends: Tensor) -> Tensor:
    """(N, V, C, H, W) of images, the weights (N, V, 1 + S) of the image and of its chains, and their ends (N, V * S, C, H, W) in levels."""
    ends = ends.view(*weights.shape[:2], -1, *x.shape[1:])
    own, others = weights[:, :, 0, None, None, None], weights[:, :, 1:, None, None, None]
    return (own * x[:, None] + (others / 255 * ends).sum(2)).clamp_(0, 1)
