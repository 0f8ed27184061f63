"""COLT, convex layerwise adversarial training (Balunović, Vechev, ICLR 2020, https://openreview.net/forum?id=SJxSDxrKDr)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustbench_lite.classifier import Labels, Logits
from robustbench_lite.defending import Step, soft_cross_entropy
from robustbench_lite.errors import ModelError, UsageError
from robustbench_lite.plain_bounds import ball_in_box
from robustbench_lite.registry import defense
from robustbench_lite.streams import Streams, generator
from robustbench_lite.zonotope import Noise, Projected, Region, cauchy, estimated_region, layers_of

from .adversary import Within, evaluating


@dataclass(frozen=True)
class Phase:
    """Where a training is.

    Args:
        number: from 0; so many blocks of layers are frozen, and the adversary moves what comes out of them.
        left: phases after this one.
        kappa: weight of this phase's adversary; the rest is for the one of the phase before.
    """

    number: int
    left: int
    kappa: float


@defense("colt")
@dataclass(frozen=True)
class COLT(Within):
    """Learn, layer by layer, to withstand an adversary that may move what is inside the network anywhere in a convex region.

    First the adversary is PGD on the image. Then the layers up to the first ReLU are frozen, and the adversary moves their outputs in the
    zonotope that the ball becomes there; then those up to the second, up to the last ReLU but one. What withstands it is nearly proven:
    judge it by a certificate such as crown. The regions rest on estimates, and training proves nothing.

    A step costs about forty times one without a defense. It is for small plain sequences (small_cnn), in one process, and each
    phase needs its epochs: --epochs is shared out evenly, and the learning rate's schedule starts again with each phase.

    Args:
        eps: radius of the ball, in units of a pixel's full range; by default the usual one of the data.
        norm: linf.
        steps: of the adversary, each a quarter of a symbol's range to either side.
        step_size: in multiples of that range.
        mix: share of a phase in which its adversary takes over from the one before.
        excess: the radius of the last phase, in multiples of eps.
        decay: that of a phase, in multiples of the next one's.
        l1: weight of the sum of absolute weights of the layers that learn.
        stability: weight of the next layer's ReLUs on either side of 0, of which each costs the product of its two bounds.
        growth: of that weight, from one phase to the next.
        projections: of which a region's bounds are estimated.
    """

    norm: Literal["linf"] = "linf"
    steps: Annotated[int, Field(ge=1)] = 8
    step_size: Annotated[float, Field(gt=0, le=2)] = 0.25
    mix: Annotated[float, Field(ge=0, le=1)] = 0.3
    excess: Annotated[float, Field(ge=1)] = 1.05
    decay: Annotated[float, Field(ge=1)] = 1.1
    l1: Annotated[float, Field(ge=0)] = 1e-5
    stability: Annotated[float, Field(ge=0)] = 0.005
    growth: Annotated[float, Field(gt=0)] = 1.5
    projections: Annotated[int, Field(ge=1)] = 50

    def phases(self, model: nn.Module) -> int:
        """
        Raises:
            ModelError: the network is no plain sequence, or has too few ReLUs.
        """
        return len(blocks_of(model)) - 1

    def settled(self, model: nn.Module, progress: float) -> bool:
        phase = self.phase(progress, self.phases(model))
        return phase.left == 0 and phase.kappa == 1

    def phase(self, progress: float, phases: int) -> Phase:
        """Of so many phases of equal length, where this share of the training is done."""
        done = progress * phases
        number = min(int(done), phases - 1)
        within = max(0.0, done - number)
        return Phase(number, phases - 1 - number, min(1.0, within / self.mix) if self.mix else 1.0)

    def radius(self, phase: Phase) -> float:
        """Larger in early phases, whose layers will be followed by more relaxations (the authors' code)."""
        assert self.eps is not None
        return float(self.eps * self.excess * self.decay**phase.left)

    def fit(self, step: Step) -> Tensor:
        """
        Raises:
            ModelError: the network is no plain sequence, or has too few ReLUs; before the first step.
            UsageError: several processes train.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise UsageError(
                "colt freezes one layer after another, which several processes cannot share: train it in one, without torchrun"
            )
        blocks = blocks_of(step.classifier.model)
        phase = self.phase(step.progress, len(blocks) - 1)
        weight, number = phase.kappa, phase.number
        region, projected = self.region(step, phase, blocks[:number])
        losses = weight * self._worst_in(region, step, blocks, learning=number)
        if weight < 1 and number == 0:
            losses = losses + (1 - weight) * soft_cross_entropy(step.logits, step.batch.targets)
        elif weight < 1:
            before = region.cut(sum(map(len, blocks[: number - 1])))
            losses = losses + (1 - weight) * self._worst_in(before, step, blocks, learning=number)
        if self.stability:
            losses = losses + weight * self.stability * self.growth**number * unstable(projected, blocks[number])
        return losses + self.l1 * total_weight(blocks[number:])

    @torch.no_grad()
    def region(self, step: Step, phase: Phase, frozen: Sequence[nn.Sequential]) -> tuple[Region, Projected]:
        """Where the phase's adversary may move what comes out of these layers, and the projections of it."""
        lower, upper = ball_in_box(step.classifier, step.batch.images, self.radius(phase))
        layers = [layer for block in frozen for layer in block]
        return estimated_region((lower + upper) / 2, (upper - lower) / 2, layers, self.projections, _noise(step))

    def _worst_in(self, region: Region, step: Step, blocks: Sequence[nn.Sequential], learning: int) -> Tensor:
        """(B,) cross-entropy at the point of a region that the adversary finds; the blocks from number `learning` on get gradients."""
        begins = sum(isinstance(layer, nn.ReLU) for layer in region.layers)
        with evaluating(step.classifier):
            answers = nn.Sequential(*blocks[begins:])
            symbols = self.worst(region, answers, step.batch.labels, step.draw)
            latent: Tensor = nn.Sequential(*blocks[begins:learning])(region.at(symbols))
        logits: Logits = nn.Sequential(*blocks[learning:])(latent)
        return soft_cross_entropy(logits.float(), step.batch.targets)

    def worst(self, region: Region, answers: nn.Module, labels: Labels, draw: Streams) -> tuple[Tensor, ...]:
        """Symbols in [-1, 1], (B, ...) each, that climb the cross-entropy of `answers` from a random point of the region."""
        names = (f"{len(region.relaxations)} {k}" for k in range(len(region.shapes)))
        symbols = tuple(draw.uniform(name, *shape, low=-1, high=1) for name, shape in zip(names, region.shapes, strict=True))
        for _ in range(self.steps):
            with torch.enable_grad():
                symbols = tuple(symbol.detach().requires_grad_() for symbol in symbols)
                loss = cross_entropy(answers(region.at(symbols)).float(), labels, reduction="sum")
                slopes = torch.autograd.grad(loss, symbols)
            symbols = tuple((symbol + self.step_size * slope.sign()).clamp(-1, 1) for symbol, slope in zip(symbols, slopes, strict=True))
        return tuple(symbol.detach() for symbol in symbols)


def blocks_of(model: nn.Module) -> list[nn.Sequential]:
    """The layers of a plain sequence, cut after each of its ReLUs.

    Raises:
        ModelError: it is no plain sequence, has no ReLU, or ends in one.
    """
    blocks: list[list[nn.Module]] = [[]]
    for layer in layers_of(model):
        blocks[-1].append(layer)
        if isinstance(layer, nn.ReLU):
            blocks.append([])
    if len(blocks) < 2 or not any(True for layer in blocks[-1] for _ in layer.parameters()):
        raise ModelError("colt trains the layers between ReLUs, and this network has no ReLU before its last layer: take small_cnn")
    return [nn.Sequential(*block) for block in blocks]


def unstable(projected: Projected, block: nn.Sequential) -> Tensor:
    """(B,) sum over the inputs of a block's ReLU of the product of their two bounds, where these lie on either side of 0."""
    for layer in block:
        if isinstance(layer, nn.ReLU):
            lower, upper = projected.estimated_bounds
            return (lower.neg().relu() * upper.relu()).flatten(1).sum(1)
        projected = projected.affine(layer)
    raise AssertionError("the block after a region ends in a ReLU: regions stop before the last one")


def total_weight(blocks: Sequence[nn.Sequential]) -> Tensor:
    """Sum of the absolute values of all weights that are no biases."""
    return torch.stack([weight.abs().sum() for block in blocks for weight in block.parameters() if weight.ndim > 1]).sum()


def _noise(step: Step) -> Noise:
    """Projections of this step, the same for all images of it and other ones in every step."""
    draws = generator(step.draw.seed, "projections", step.progress)
    device = step.batch.images.device
    return lambda shape: cauchy(torch.from_numpy(draws.random(shape, dtype=np.float32))).to(device)
