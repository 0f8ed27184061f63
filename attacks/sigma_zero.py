"""Sigma-zero (Cinà et al., ICLR 2025, https://arxiv.org/abs/2402.01879)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.oracle import WhiteBox
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.rows import per_sample
from robustbench_lite.streams import Streams

BETAS = 0.9, 0.999  # of Adam


@dataclass(frozen=True)
class Thinning(State):
    mean: Images  # of the gradients, by Adam
    square: Images  # of their squares
    tau: Tensor  # (B,) changes below it are taken back


@attack("sigma-zero")
@dataclass(frozen=True)
class SigmaZero:
    """Look for the broken image with the fewest changed values: descend on a smooth stand-in for their number, and take back small changes.

    The strongest of the gradient attacks in l0; a few hundred steps do on small images. Values of exactly equal weight move together.

    Args:
        steps: gradients that are taken.
        eta: the first step size; it falls along a cosine to a tenth.
        sigma: smoothness of the stand-in, in squares of a pixel's range: a change of its root counts half.
        tau: the first threshold below which a change is taken back.
        factor: how fast the threshold follows: up where the image is broken and down where it is not, in multiples of the step size.
    """

    access = WhiteBox
    norms = ("l0",)
    goal = "closest"
    cost = "steps + 1 forwards, steps backwards"

    steps: Annotated[int, Field(ge=1)] = 1000
    eta: Annotated[float, Field(gt=0)] = 1.0
    sigma: Annotated[float, Field(gt=0)] = 1e-3
    tau: Annotated[float, Field(ge=0, le=1)] = 0.3
    factor: Annotated[float, Field(ge=0)] = 0.01

    def start(self, oracle: WhiteBox, draw: Streams) -> Thinning:
        still = torch.zeros_like(oracle.origin)
        return Thinning.at(oracle.origin, mean=still, square=still, tau=torch.full_like(still[:, 0, 0, 0], self.tau))

    def step(self, oracle: WhiteBox, state: Thinning, draw: Streams) -> Thinning:
        origin, delta = oracle.origin, state.x - oracle.origin
        logits, gradient = oracle.gradient(state.x, "margin")
        broken = oracle.criterion.margin(logits) > 0
        # the stand-in is the mean of delta^2 / (delta^2 + sigma), eq. 4; the margin counts as long as the image is not broken
        descent = 2 * self.sigma * delta / (delta.square() + self.sigma).square() / delta[0].numel()
        descent = descent - gradient * per_sample((~broken).to(delta.dtype), delta)
        descent = descent / per_sample(descent.flatten(1).abs().amax(1).clamp(min=1e-12), delta)
        mean = state.mean.lerp(descent, 1 - BETAS[0])
        square = state.square.lerp(descent.square(), 1 - BETAS[1])
        done = (state.t + 1).to(delta.dtype)
        size = (square / per_sample(1 - BETAS[1] ** done, delta)).sqrt() + 1e-8
        eta, before = self._eta(state.t, delta), self._eta((state.t - 1).clamp(min=0), delta)  # adv-lib's step lags behind its threshold
        x = (state.x - per_sample(before / (1 - BETAS[0] ** done), delta) * mean / size).clamp(0, 1)
        tau = (state.tau + torch.where(broken, eta, -eta) * self.factor).clamp(0, 1)
        x = torch.where((x - origin).abs() < per_sample(tau, x), origin, x)
        return state.moved(x, mean=mean, square=square, tau=tau)

    def _eta(self, t: Tensor, like: Images) -> Tensor:
        """(B,) step size after t steps."""
        return self.eta * (0.55 + 0.45 * torch.cos(torch.pi * t / self.steps).to(like.dtype))
