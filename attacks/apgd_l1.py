"""Auto-PGD for l1, which `apgd` is there (Croce & Hein, "Mind the box", ICML 2021, https://arxiv.org/abs/2103.01208)."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.losses import Loss
from robustbench_lite.oracle import WhiteBox
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.rows import per_sample
from robustbench_lite.streams import Streams

WIDTHS = (3.0, 2.0, 1.0)  # of the balls that a run goes through, in eps (section 4.2)


@dataclass(frozen=True)
class Sparse(State):
    """Where a climb is, and what the length and the sparsity of its steps are judged by."""

    gradient: Tensor  # at x
    best: Tensor  # the image of highest loss so far in the present ball
    slope: Tensor  # the gradient at `best`
    height: Tensor  # (B,) the loss at `best`
    share: Tensor  # (B,) length of a step, in the radius of the present ball
    density: Tensor  # (B,) share of the values that a step moves
    support: Tensor  # (B,) number of values in which `best` differed from the clean image at the last check


@attack("apgd-l1")
@dataclass(frozen=True)
class SparseAPGD:
    """Move only the values with the largest gradients, as many as two thirds of those that the best image has changed.

    The first steps are in balls three and two times as large: an l1 ball is so thin that they find a better place to start from.

    Args:
        steps, restarts, loss, targets: as in `apgd`. Three tenths of the steps are in each of the larger balls.
    """

    access = WhiteBox
    norms = ("l1",)
    cost = "steps + 2 forwards, steps + 1 backwards, times restarts and targets"
    shortest: ClassVar[float] = 0.1  # of the steps, in radii

    steps: Annotated[int, Field(ge=1)] = 100
    restarts: Annotated[int, Field(ge=1)] = 1
    loss: Loss = "ce"
    targets: Annotated[int, Field(ge=0)] = 0

    def start(self, oracle: WhiteBox, draw: Streams) -> Sparse:
        ball = replace(oracle.threat, eps=oracle.threat.eps * schedule(self.steps)[0][0])
        x = ball.surface_point(oracle.origin, draw)
        logits, gradient = oracle.gradient(x, self.loss)
        support = support_of(x, oracle.origin)
        return Sparse.at(
            x,
            gradient=gradient,
            best=x,
            slope=gradient,
            height=oracle.loss(logits, self.loss),
            share=torch.ones_like(x[:, 0, 0, 0]),
            density=density_of(support, x),
            support=support,
        )

    def step(self, oracle: WhiteBox, state: Sparse, draw: Streams) -> Sparse:
        widths, shrinks, check = (torch.tensor(column, device=state.t.device)[state.t] for column in schedule(self.steps))
        ball = replace(oracle.threat, eps=oracle.threat.eps * widths)
        ascent = per_sample(state.share * ball.eps, state.x) * sparse_sign(state.gradient, state.density)
        x = ball.project(torch.where(per_sample(shrinks, state.x), state.best, state.x + ascent), oracle.origin)
        logits, gradient = oracle.gradient(x, self.loss)
        loss = oracle.loss(logits, self.loss)
        higher = shrinks | (loss > state.height)
        best = torch.where(per_sample(higher, x), x, state.best)
        slope = torch.where(per_sample(higher, x), gradient, state.slope)
        height = torch.where(higher, loss, state.height)
        support = support_of(best, oracle.origin)
        sparser = shrinks | (support / state.support < 0.95)
        share = torch.where(sparser, 1.0, (state.share / 1.5).clamp(min=self.shortest))
        back = per_sample(check & sparser, x)
        last = per_sample(state.t + 1 == self.steps, x)  # where another model judges, it is asked about no other image
        return state.moved(
            torch.where(back | last, best, x),
            gradient=torch.where(back, slope, gradient),
            best=best,
            slope=slope,
            height=height,
            share=torch.where(check, share, state.share),
            density=torch.where(check, density_of(support, x), state.density),
            support=torch.where(check, support, state.support),
        )


def schedule(steps: int) -> tuple[list[float], list[bool], list[bool]]:
    """For each step: the ball's radius in eps, whether the step only shrinks into that ball, and whether length and sparsity are set anew.

    The last ball gets what the shares of the others leave over. Shrinking takes the place of a step, so that a run is as long as it says.
    """
    wide = 3 * steps // 10
    widths: list[float] = []
    shrinks: list[bool] = []
    checks: list[bool] = []
    for stage, (width, length) in enumerate(zip(WIDTHS, (wide, wide, steps - 2 * wide), strict=True)):
        every = max(4 * length // 100, 1)
        for step in range(length):
            shrunk = bool(widths) and step == 0
            climbed = step if stage and wide else step + 1
            widths.append(width)
            shrinks.append(shrunk)
            checks.append(shrunk or climbed % every == 0)
    return widths, shrinks, checks


def sparse_sign(gradient: Images, density: Tensor) -> Images:
    """The step of length 1 that moves a share `density` (B,) of the values, those with the largest gradients, all equally far."""
    size = gradient.flatten(1).abs()
    values = size.shape[1]
    first = ((1 - density) * values).clamp(0, values - 1).long()
    smallest = size.sort(1).values.gather(1, first[:, None])
    signs = gradient.flatten(1).sign() * (size >= smallest)
    return (signs / signs.abs().sum(1, keepdim=True).clamp(min=1)).view_as(gradient)


def support_of(x: Images, origin: Images) -> Tensor:
    """(B,) number of values in which they differ."""
    return (x != origin).flatten(1).sum(1)


def density_of(support: Tensor, x: Images) -> Tensor:
    """(B,) the share of values that a step moves where the best image moves `support`."""
    return support / x[0].numel() / 1.5
