"""Adversarial patch of an image's own (after Brown et al., NIPS workshop 2017, https://arxiv.org/abs/1712.09665)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.losses import Loss
from robustbench_lite.oracle import WhiteBox
from robustbench_lite.pasting import Shape, Window
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.streams import Streams


@dataclass(frozen=True)
class Stuck(State):
    inside: Tensor  # (B, 1, H, W) bool, the pixels of the patch


@attack("own-patch")
@dataclass(frozen=True)
class OwnPatch:
    """Climb the loss by the pixels of a disc or square that lies at a random place of the image; whatever is in them may change.

    The strongest use of a patch, since each image gets one of its own: `patch` is what can be printed beforehand. Other places may be
    worse for the model: add restarts. The square stands upright, for then it is largest.

    Args:
        steps: gradient steps of a restart.
        shape: disc or square.
        step_size: of a step by the gradient's sign, as a share of a pixel's range; by default 2.5 / steps.
        restarts: random places.
        loss: ce, dlr or margin.
    """

    access = WhiteBox
    norms = ("patch",)
    usual_eps = {"patch": 0.4}
    cost = "steps + 1 forwards, steps backwards, times restarts"

    steps: Annotated[int, Field(ge=1)] = 100
    shape: Shape = "disc"
    step_size: Annotated[float, Field(gt=0)] | None = None
    restarts: Annotated[int, Field(ge=1)] = 1
    loss: Loss = "ce"

    def start(self, oracle: WhiteBox, draw: Streams) -> Stuck:
        origin = oracle.origin
        window = Window.drawn(origin, oracle.threat.side(origin), draw, "place")  # type: ignore[attr-defined]  # of this norm alone
        inside = window.disc(origin) if self.shape == "disc" else window.square(origin)
        noise = draw.uniform("pixels", *origin.shape[1:]).to(origin)
        return Stuck.at(torch.where(inside, noise, origin), inside=inside)

    def step(self, oracle: WhiteBox, state: Stuck, draw: Streams) -> Stuck:
        _, gradient = oracle.gradient(state.x, self.loss)
        ascent = oracle.threat.ascent(gradient, self.step_size or oracle.threat.usual_share(self.steps), state.x)
        return state.moved(torch.where(state.inside, (state.x + ascent).clamp(0, 1), oracle.origin))
