"""EAD: nearest images in l1 by an elastic net and a search for its constant (Chen et al., AAAI 2018, https://arxiv.org/abs/1709.04114)."""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.oracle import WhiteBox
from robustbench_lite.registry import attack
from robustbench_lite.rows import per_sample
from robustbench_lite.streams import Streams
from robustbench_lite.weighing import Weighing


@dataclass(frozen=True)
class Shrinking(Weighing):
    point: Images  # like x: where the next gradient is taken, ahead of x


@attack("ead")
@dataclass(frozen=True)
class EAD:
    """Minimise l1 and squared l2 distance plus a constant times what the margin lacks, by FISTA, for several constants in turn.

    The images change in few values. An image leaves once its searches are done, and a search ends once it stalls, so that the cost is a
    bound.

    Args:
        searches: constants that are tried.
        iterations: of FISTA, for each constant.
        step_size: of the gradient at the start of a search; it falls with the root of what is left.
        beta: how far a step draws every value back to the clean one, in units of a pixel's range: the weight of l1.
        confidence: the margin that is sought, in units of the logits; more than 0 makes images that transfer better and lie farther away.
    """

    access = WhiteBox
    norms = ("l1",)
    goal = "closest"
    cost = "up to 2 * searches * iterations + 2 forwards, half as many backwards"

    searches: Annotated[int, Field(ge=1)] = 9
    iterations: Annotated[int, Field(ge=1)] = 100
    step_size: Annotated[float, Field(gt=0)] = 0.01
    beta: Annotated[float, Field(ge=0)] = 0.01
    confidence: Annotated[float, Field(ge=0)] = 0.0

    @property
    def steps(self) -> int:
        return self.searches * self.iterations

    def start(self, oracle: WhiteBox, draw: Streams) -> Shrinking:
        origin = oracle.origin
        logits, gradient = oracle.gradient(origin, "margin")
        steepest = gradient.flatten(1).abs().amax(1).clamp(min=1e-30)
        # what breaks a linear model in its heaviest value, so that the units of the logits play no part; the paper begins with 1e-3
        constant = (self.beta / self.step_size + 2 * self._lack(oracle, logits).clamp(min=1e-30) / steepest) / steepest
        return Shrinking.begun(origin, constant, point=origin)

    def step(self, oracle: WhiteBox, state: Shrinking, draw: Streams) -> Shrinking:
        origin, point, turn = oracle.origin, state.point, per_sample(state.turn, state.x).to(state.x)
        logits, climb = oracle.gradient(point, "margin", aside=True)
        lack = self._lack(oracle, logits)
        delta = point - origin
        objective = delta.square().flatten(1).sum(1) + state.constant * lack.clamp(min=0)
        slope = 2 * delta - per_sample(state.constant * (lack > 0), point) * climb
        size = self.step_size * (1 - turn / self.iterations).sqrt()
        moved = delta - size * slope
        x = (origin + moved.sign() * (moved.abs() - self.beta).clamp(min=0)).clamp(0, 1)  # eq. 5
        # held in the box, other than in the paper: models are asked about images, and what breaks there counts as well
        ahead = (x + turn / (turn + 3) * (x - state.x)).clamp(0, 1)
        logits = oracle.logits(x)
        broken = (self._lack(oracle, logits) <= 0) & (oracle.criterion.margin(logits) > 0)
        state, ended = state.weighed(broken, objective, self.iterations, self.searches, growth=3)
        going = per_sample(~ended, x)
        x, ahead = torch.where(going, x, origin), torch.where(going, ahead, origin)
        return replace(state.moved(x), point=ahead)

    def _lack(self, oracle: WhiteBox, logits: Tensor) -> Tensor:
        """(B,) how far the margin is from the one that is sought."""
        return self.confidence - oracle.loss(logits, "margin")
