"""Adversarial patch of an image's own (after Brown et al., NIPS workshop 2017, https://arxiv.org/abs/1712.09665)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.losses import Loss
from robustbench_lite.oracle import WhiteBox
from robustbench_lite.pasting import Window
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.streams import Streams


@dataclass(frozen=True)
class Stuck(State):
    disc: Tensor  # (B, 1, H, W) bool, the pixels of the patch


@attack("patch")
@dataclass(frozen=True)
class OwnPatch:
    """Climb the loss by the pixels of a disc that lies at a random place of the image; whatever is in them may change.

    The strongest use of a patch, since each image gets one of its own: `universal-patch` is what can be printed beforehand. Other places
    may be worse for the model: add restarts.

    Args:
        steps: gradient steps of a restart.
        step_size: of a step by the gradient's sign, as a share of a pixel's range; by default 2.5 / steps.
        restarts: random places.
        loss: ce, dlr or margin.
    """

    access = WhiteBox
    norms = ("patch",)
    usual_eps = {"patch": 0.4}
    cost = "steps + 1 forwards, steps backwards, times restarts"

    steps: Annotated[int, Field(ge=1)] = 100
    step_size: Annotated[float, Field(gt=0)] | None = None
    restarts: Annotated[int, Field(ge=1)] = 1
    loss: Loss = "ce"

    def start(self, oracle: WhiteBox, draw: Streams) -> Stuck:
        origin = oracle.origin
        disc = Window.drawn(origin, oracle.threat.side(origin), draw, "place").disc(origin)  # type: ignore[attr-defined]  # of this norm alone
        noise = draw.uniform("pixels", *origin.shape[1:]).to(origin)
        return Stuck.at(torch.where(disc, noise, origin), disc=disc)

    def step(self, oracle: WhiteBox, state: Stuck, draw: Streams) -> Stuck:
        _, gradient = oracle.gradient(state.x, self.loss)
        ascent = oracle.threat.ascent(gradient, self.step_size or oracle.threat.usual_share(self.steps), state.x)
        return state.moved(torch.where(state.disc, (state.x + ascent).clamp(0, 1), oracle.origin))
