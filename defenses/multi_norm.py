"""Adversarial training against several norms at once (Tramèr & Boneh, NeurIPS 2019, https://arxiv.org/abs/1904.13000).

Its third way, msd, is multi steepest descent (Maini, Wong, Kolter, ICML 2020, https://arxiv.org/abs/1909.04068).
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.defending import About, Kind, Step, soft_cross_entropy
from robustbench_lite.errors import UsageError, did_you_mean
from robustbench_lite.oracle import WhiteBox
from robustbench_lite.plan import State
from robustbench_lite.registry import defense
from robustbench_lite.streams import Streams
from robustbench_lite.threat import Ball, ball

from .adversary import attack_for_training, attacked, evaluating

NORMS = ("linf", "l2", "l1")
Radius = Annotated[float, Field(gt=0)] | None


def strongest(candidates: list[Images], losses: list[Tensor]) -> Images:
    """(B, C, H, W) of each image the candidate of highest loss (B,); of equals, the first."""
    best = torch.stack(losses).argmax(0)
    return torch.stack(candidates)[best, torch.arange(len(best), device=best.device)]


@dataclass(frozen=True)
class SteepestOfAll:
    """Algorithm 1 of Maini et al.: from the image, each step is that of one norm, into its ball, whichever leads to the highest loss."""

    access = WhiteBox
    norms = NORMS

    threats: tuple[Ball, ...]
    steps: int
    step_size: float

    def start(self, oracle: WhiteBox, draw: Streams) -> State:
        return State.at(oracle.origin)

    def step(self, oracle: WhiteBox, state: State, draw: Streams) -> State:
        _, slope = oracle.gradient(state.x, "ce")
        reached = [t.project(state.x + t.ascent(slope, self.step_size, state.x), oracle.origin) for t in self.threats]
        return state.moved(strongest(reached, [oracle.loss(oracle.logits(x), "ce") for x in reached]))


@defense("multi-norm")
@dataclass(frozen=True)
class MultiNorm:
    """Learn from attacks in balls of several norms, in place of every image.

    Costs the attack of each norm, so that three take three times as long as pgd-at, msd even somewhat longer. In every single norm it
    is less robust than pgd-at in that norm alone. --validation attacks in one norm only: name it with --validation-norm.

    Args:
        how: max learns from the attack of highest loss, for each image; average from all of them alike, which takes as many times the
            memory; msd from one attack whose every step is in the norm that raises the loss most.
        norms: two or three of linf, l2 and l1, with commas between.
        linf: radius of that ball, in units of a pixel's full range; by default the usual one of the data.
        l2: as linf.
        l1: as linf.
        steps: of an attack in each norm, and of the attack of msd.
        step_size: in multiples of the ball's radius; by default 2.5 / steps. In l1 a step spreads over a hundredth of the values.
    """

    kind: ClassVar[Kind] = "adversarial"

    how: Literal["max", "average", "msd"] = "max"
    norms: str = ",".join(NORMS)
    linf: Radius = None
    l2: Radius = None
    l1: Radius = None
    steps: Annotated[int, Field(ge=1)] = 10
    step_size: Annotated[float, Field(gt=0)] | None = None

    def __post_init__(self) -> None:
        chosen = self.norms.split(",")
        for norm in chosen:
            if norm not in NORMS:
                raise UsageError(f"multi-norm has no norm {norm!r}{did_you_mean(norm, NORMS)}: it has {', '.join(NORMS)}")
        if len(chosen) < 2 or len(set(chosen)) < len(chosen):
            raise UsageError(f"multi-norm is against several norms, each named once, got {self.norms!r}: against one, take pgd-at")
        for norm in NORMS:
            radius = getattr(self, norm)
            if radius is not None and norm not in chosen:
                raise UsageError(
                    f"multi-norm has a radius in {norm}, which is not among its norms {self.norms}: add it, or leave {norm}= out"
                )
            if radius is not None:
                ball(norm, radius)  # refuses what is no radius in this norm

    @property
    def threats(self) -> tuple[Ball, ...]:
        """Known once the defense is informed."""
        return tuple(ball(norm, getattr(self, norm)) for norm in self.norms.split(","))

    def informed(self, about: About) -> Self:
        """
        Raises:
            UsageError: a norm has no radius, and the data have no usual one in it.
        """
        radii: dict[str, Any] = {norm: getattr(self, norm) or about.eps.get(norm) for norm in self.norms.split(",")}
        for norm, radius in radii.items():
            if radius is None:
                raise UsageError(f"these data have no usual radius in {norm}: give the defense one, {norm}=..., or name other norms=")
        return replace(self, **radii)

    def fit(self, step: Step) -> Tensor:
        # all attacks are in eval mode, and so is the choice among them: batch statistics are of images that are learnt from
        if self.how == "msd":
            return self._loss(step, [self._steepest(step)])
        candidates = [self._attacked(step, threat) for threat in self.threats]
        if self.how == "max":
            with evaluating(step.classifier), torch.no_grad():
                losses = [soft_cross_entropy(step.classifier(x).float(), step.batch.targets) for x in candidates]
            candidates = [strongest(candidates, losses)]
        return self._loss(step, candidates)

    def _attacked(self, step: Step, threat: Ball) -> Images:
        batch, norm = step.batch, threat.norm
        size = "" if self.step_size is None else f",step_size={self.step_size}"
        draw = replace(step.draw, condition=f"{step.draw.condition} {norm}")  # a start of its own in each norm
        return attacked(
            step.classifier, batch.images, batch.labels, threat, attack_for_training(f"pgd:steps={self.steps}{size}", norm), draw
        )

    def _steepest(self, step: Step) -> Images:
        batch = step.batch
        attack: Any = SteepestOfAll(self.threats, self.steps, self.step_size or self.threats[0].usual_share(self.steps))
        # a union of balls is no ball: every step lies in one of them already, and the box is all that is left to hold it in
        return attacked(step.classifier, batch.images, batch.labels, ball("linf", 1.0), attack, step.draw)

    def _loss(self, step: Step, candidates: list[Images]) -> Tensor:
        """(B,) cross-entropy, its mean over the candidates; in training mode, in one pass, so that batch statistics are over all."""
        logits: Tensor = step.classifier(torch.cat(candidates))
        losses = [soft_cross_entropy(part.float(), step.batch.targets) for part in logits.chunk(len(candidates))]
        return torch.stack(losses).mean(0)
