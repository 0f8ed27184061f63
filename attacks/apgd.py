"""Auto-PGD: no step size to choose (Croce & Hein, ICML 2020, https://arxiv.org/abs/2003.01690)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.losses import Loss
from robustbench_lite.oracle import WhiteBox
from robustbench_lite.plan import State
from robustbench_lite.registry import ATTACKS, attack
from robustbench_lite.rows import per_sample, pick
from robustbench_lite.streams import Streams

MOMENTUM = 0.75  # the share of the new step, alpha of algorithm 1; the rest goes on as before


@dataclass(frozen=True)
class Climb(State):
    """Where a climb is, and what its step length is judged by."""

    gradient: Tensor  # at x
    loss: Tensor  # (B,) of the last image asked about, also where x went back to `best` since
    before: Tensor  # the image one step ago
    best: Tensor  # the image of highest loss so far
    slope: Tensor  # the gradient at `best`
    height: Tensor  # (B,) the loss at `best`
    share: Tensor  # (B,) length of a step, in eps
    rises: Tensor  # (B,) steps since the last checkpoint that raised the loss
    halved: Tensor  # (B,) whether the last checkpoint halved the step
    checked: Tensor  # (B,) `height` at the last checkpoint


def windows(steps: int) -> list[int]:
    """For 0..steps steps done: how many of them a checkpoint judges there, 0 where there is none (section 3.2)."""
    found = [0] * (steps + 1)
    window, shorter, shortest = (max(steps * percent // 100, 1) for percent in (22, 3, 6))
    done = window
    while done <= steps:
        found[done] = window
        window = max(window - shorter, shortest)
        done += window
    return found


@attack("apgd", "apgd-ce")
@dataclass(frozen=True)
class APGD:
    """Climb with momentum from the edge of the ball; halve the step and go back to the best image where progress stalls.

    Its first steps are 2 eps long, so a few of them say little: leave it its 100. In l1 it is another machine, `apgd-l1`.

    Args:
        steps: gradient steps of a restart; the schedule is cut to them.
        restarts: random starts.
        loss: ce, dlr or margin.
        rho: share of steps since a checkpoint that must raise the loss for the step to stay as long as it is.
        targets: wrong classes to aim at, one run each; 0 climbs away from the label. With loss=dlr and 9 this is APGD-T.
    """

    access = WhiteBox
    norms = ("linf", "l2", "l1")
    cost = "steps + 2 forwards, steps + 1 backwards, times restarts and targets"

    steps: Annotated[int, Field(ge=1)] = 100
    restarts: Annotated[int, Field(ge=1)] = 1
    loss: Loss = "ce"
    rho: Annotated[float, Field(gt=0, lt=1)] = 0.75
    targets: Annotated[int, Field(ge=0)] = 0

    def parts(self, norm: str) -> Mapping[str, Any]:
        return {"": ATTACKS.get("apgd-l1")(self.steps, self.restarts, self.loss, self.targets) if norm == "l1" else self}

    def start(self, oracle: WhiteBox, draw: Streams) -> Climb:
        x = oracle.threat.surface_point(oracle.origin, draw)
        logits, gradient = oracle.gradient(x, self.loss)
        loss = oracle.loss(logits, self.loss)
        return Climb.at(
            x,
            gradient=gradient,
            loss=loss,
            before=x,
            best=x,
            slope=gradient,
            height=loss,
            share=torch.full_like(loss, 2.0, dtype=x.dtype),
            rises=torch.zeros_like(loss, dtype=torch.long),
            halved=torch.ones_like(loss, dtype=torch.bool),  # the first checkpoint has no earlier one to compare with
            checked=loss,
        )

    def step(self, oracle: WhiteBox, state: Climb, draw: Streams) -> Climb:
        x = self._moved(oracle, state)
        logits, gradient = oracle.gradient(x, self.loss)
        loss = oracle.loss(logits, self.loss)
        higher = loss > state.height
        best = pick(higher, x, state.best)
        slope = pick(higher, gradient, state.slope)
        height = torch.where(higher, loss, state.height)
        # the authors' code compares the first loss with 0 and not with the loss at the start
        rises = state.rises + (loss > state.loss)
        window = torch.tensor(windows(self.steps), device=x.device)[state.t + 1]
        check = window > 0
        stalled = (rises <= self.rho * window) | (~state.halved & (height <= state.checked))
        halve = check & stalled
        return state.moved(
            # the last image is the best one: where another model judges, it is asked about no other
            pick(halve | (state.t + 1 == self.steps), best, x),
            gradient=pick(halve, slope, gradient),
            loss=loss,
            before=state.x,
            best=best,
            slope=slope,
            height=height,
            share=torch.where(halve, state.share / 2, state.share),
            rises=rises.masked_fill(check, 0),
            halved=torch.where(check, stalled, state.halved),
            checked=torch.where(check, height, state.checked),
        )

    def _moved(self, oracle: WhiteBox, state: Climb) -> Tensor:
        """The next image: a gradient step, mixed with the direction of the last one (algorithm 1, lines 7 and 8)."""
        threat, origin, x = oracle.threat, oracle.origin, state.x
        ahead = threat.project(x + per_sample(state.share * threat.eps, x) * threat.steepest(state.gradient), origin)
        new = per_sample(torch.where(state.t > 0, MOMENTUM, 1.0), x)
        return threat.project((x - state.before).mul_(1 - new).add_(x).add_(ahead.sub_(x).mul_(new)), origin)


@attack("apgd-dlr")
@dataclass(frozen=True)
class APGDDLR(APGD):
    """APGD on the difference of logits ratio, which no scaling of the logits can flatten.

    Below four classes, where the ratio is constant in places, it climbs the margin.
    """

    loss: Loss = "dlr"


@attack("apgd-t")
@dataclass(frozen=True)
class APGDT(APGD):
    """APGD towards each of the nearest wrong classes in turn, nearest first.

    The strongest of the family, at nine times the price; a model with fewer classes has fewer targets.
    """

    loss: Loss = "dlr"
    targets: Annotated[int, Field(ge=0)] = 9
