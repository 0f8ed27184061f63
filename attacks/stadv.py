"""Spatially transformed adversarial examples, StAdv (Xiao et al., ICLR 2018, https://arxiv.org/abs/1801.02612)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.flows import Flow
from robustbench_lite.losses import Loss
from robustbench_lite.oracle import WhiteBox
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.rows import per_sample
from robustbench_lite.streams import Streams

DECAYS = 0.9, 0.99
"""Of Adam's two means."""


@dataclass(frozen=True)
class Bent(State):
    flow: Tensor  # (B, 2, H, W), how far down and to the right each pixel is taken from, in pixels
    mean: Tensor  # like flow, of its gradients
    square: Tensor  # like flow, of their squares


@attack("stadv")
@dataclass(frozen=True)
class StAdv:
    """Bend the picture: take every pixel from a place at most eps pixels away, with neighbours going much the same way.

    Values are not changed but moved, so that a bound on values says nothing about it. eps is in pixels: what bends a picture of 32
    pixels visibly is little for one of 224.

    Args:
        steps: of Adam, where the paper has L-BFGS, in which the images of a batch would depend on each other.
        step_size: as a share of eps.
        tau: weight of the flow's roughness, per pixel.
        restarts: random starts.
        loss: ce, dlr or margin.
    """

    access = WhiteBox
    norms = ("flow",)
    usual_eps = {"flow": 1.0}
    cost = "steps + 1 forwards, steps backwards, times restarts"

    steps: Annotated[int, Field(ge=1)] = 100
    step_size: Annotated[float, Field(gt=0)] = 0.1
    tau: Annotated[float, Field(ge=0)] = 0.05
    restarts: Annotated[int, Field(ge=1)] = 1
    loss: Loss = "margin"

    def start(self, oracle: WhiteBox, draw: Streams) -> Bent:
        origin, threat = oracle.origin, self._threat(oracle)
        # at flows of zero, between two pixels, the gradient would be that of one side
        drawn = draw.uniform("flow", 2, *origin.shape[-2:], low=-0.25, high=0.25).to(origin)
        flow = threat.bounded(drawn * per_sample(threat.eps.to(origin.dtype), origin))
        return Bent.at(threat.warped(origin, flow), flow=flow, mean=torch.zeros_like(flow), square=torch.zeros_like(flow))

    def step(self, oracle: WhiteBox, state: Bent, draw: Streams) -> Bent:
        origin, threat = oracle.origin, self._threat(oracle)
        with torch.enable_grad():
            flow = state.flow.detach().requires_grad_()
            x, rough = threat.warped(origin, flow), roughness(flow)
        _, ascent = oracle.gradient(x.detach(), self.loss)
        (gradient,) = torch.autograd.grad([x, rough], flow, [ascent, torch.full_like(rough, -self.tau)])
        mean = DECAYS[0] * state.mean + (1 - DECAYS[0]) * gradient
        square = DECAYS[1] * state.square + (1 - DECAYS[1]) * gradient**2
        corrected = [per_sample(1 - decay ** (state.t + 1).to(flow.dtype), flow) for decay in DECAYS]
        way = (mean / corrected[0]) / ((square / corrected[1]).sqrt() + torch.finfo(flow.dtype).tiny ** 0.5)
        moved = threat.bounded(state.flow + self.step_size * per_sample(threat.eps.to(flow.dtype), flow) * way)
        return state.moved(threat.warped(origin, moved), flow=moved, mean=mean, square=square)

    @staticmethod
    def _threat(oracle: WhiteBox) -> Flow:
        assert isinstance(oracle.threat, Flow)
        return oracle.threat


def roughness(flow: Tensor) -> Tensor:
    """(B,) how much neighbours differ, per pixel: the length of the difference, summed over the neighbours below and to the right."""
    count = flow.shape[-2] * flow.shape[-1]
    sides = (flow.diff(dim=2), flow.diff(dim=3))
    # the root has no slope at zero
    lengths = [(side.square().sum(1) + 1e-12).sqrt().flatten(1).sum(1) for side in sides]
    return sum(lengths[1:], lengths[0]) / count
