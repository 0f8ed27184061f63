"""PGD on gradients estimated by sampling, against masked ones (Tramèr et al., NeurIPS 2020, https://arxiv.org/abs/2002.08347)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.estimates import slope
from robustbench_lite.oracle import Scores
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.rows import per_sample
from robustbench_lite.streams import Streams

BLOCK = 100  # queries of one step of the scheduler
GROWTH = ((20, 100), (40, 1000))  # before this iteration, at most so many samples: far off a rough direction is enough


@dataclass(frozen=True)
class Sampling(State):
    total: Tensor  # like x: the estimates of this iteration so far


@attack("es-pgd")
@dataclass(frozen=True)
class ESPGD:
    """Signed steps along the gradient of the margin smoothed over a wide Gaussian, which a model cannot mask by being jagged.

    Made for k-WTA and the like: dear (143,000 forwards an image by default), and no stronger than `pgd` where gradients are honest, or
    where there are far fewer samples than an image has values: then the estimate is mostly noise.

    Args:
        samples: queries per gradient from iteration 40 on, in whole hundreds; the paper's 20000 is for a last word.
        iterations: gradient steps.
        step_size: in multiples of eps.
        sigma: standard deviation of the queries around the image.
    """

    access = Scores
    norms = ("linf", "l2")
    cost = "101 forwards for every 100 samples: 100 for 20 iterations, 1000 for 20, then `samples`"

    samples: Annotated[int, Field(ge=BLOCK, multiple_of=BLOCK)] = 2000
    iterations: Annotated[int, Field(ge=1)] = 100
    step_size: Annotated[float, Field(gt=0)] = 0.01 / 0.031
    sigma: Annotated[float, Field(gt=0)] = 8 / 255

    def blocks(self, iteration: int) -> int:
        """How many blocks of queries an iteration takes."""
        return min([self.samples, *(most for end, most in GROWTH if iteration < end)]) // BLOCK

    @property
    def steps(self) -> int:
        return sum(map(self.blocks, range(self.iterations)))

    def start(self, oracle: Scores, draw: Streams) -> Sampling:
        return Sampling.at(oracle.origin, total=torch.zeros_like(oracle.origin))

    def step(self, oracle: Scores, state: Sampling, draw: Streams) -> Sampling:
        """One block of queries; the image moves when its iteration has all of them."""
        x, shape = state.x, state.x.shape[1:]
        total = state.total + slope(oracle, x, BLOCK // 2, self.sigma, lambda name, count: draw.normal(name, count, *shape))
        ends = torch.tensor([self.blocks(i) for i in range(self.iterations)], device=x.device).cumsum(0)
        over = per_sample(torch.isin(state.t + 1, ends), x)
        ascent = oracle.threat.ascent(total, self.step_size, x)
        x = torch.where(over, oracle.threat.project(x + ascent, oracle.origin), x)
        oracle.logits(x)  # the queries around it lie outside the ball
        return state.moved(x, total=total.masked_fill(over, 0))
