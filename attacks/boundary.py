"""Boundary attack (Brendel, Rauber & Bethge, ICLR 2018, https://arxiv.org/abs/1712.04248)."""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.oracle import Labels
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.rows import per_sample, pick
from robustbench_lite.starting import bisected, broken_start
from robustbench_lite.streams import Streams

PROBED_EVERY = 10  # steps after which the move around the origin is asked about by itself
CONVERGED = 1e-7  # a step this short, as a share of the distance, goes nowhere


@dataclass(frozen=True)
class Tally(State):
    """Each row's own step sizes, and what it met in the window of answers that it is in.

    around, inward: (B,) step sizes, as shares of the distance. probes, probes_met, trials, trials_met: (B,) answers about moves around the
    origin and about whole steps, and how many of them were broken.
    """

    around: Tensor
    inward: Tensor
    probes: Tensor
    probes_met: Tensor
    trials: Tensor
    trials_met: Tensor


@attack("boundary")
@dataclass(frozen=True)
class Boundary:
    """Walk at random along the boundary, on a sphere around the clean image and a little inward, and keep what is still broken.

    The first decision-based attack. It needs tens of thousands of queries; Chen et al. (2020) measured `hopskipjump` to need fewer.
    Unlike the paper's, the walk begins at the boundary, on the way from the clean image to the start.

    Args:
        steps: at most; it ends where the step inward has become nothing.
        around: first size of the random move, as a share of the distance.
        inward: first size of the move towards the clean image, as a share of the distance.
        factor: by which both grow when most moves succeed, and shrink when few do.
        probes: answers about moves around the origin after which both sizes are set anew.
        trials: answers about whole steps after which the size inward is.
    """

    access = Labels
    norms = ("l2",)
    goal = "closest"
    cost = "about 1.1 x steps forwards"

    steps: Annotated[int, Field(ge=1)] = 25000
    around: Annotated[float, Field(gt=0, le=1)] = 0.01
    inward: Annotated[float, Field(gt=0, le=1)] = 0.01
    factor: Annotated[float, Field(gt=1)] = 1.5
    probes: Annotated[int, Field(ge=1)] = 100
    trials: Annotated[int, Field(ge=1)] = 30

    def start(self, oracle: Labels, draw: Streams) -> Tally:
        far, found = broken_start(oracle, draw)
        distance = oracle.threat.distance(far, oracle.origin)
        x, none = bisected(oracle, oracle.origin, far, distance / 1000), torch.zeros_like(distance)
        state = Tally.at(
            x,
            around=torch.full_like(distance, self.around),
            inward=torch.full_like(distance, self.inward),
            probes=none,
            probes_met=none.clone(),
            trials=none.clone(),
            trials_met=none.clone(),
        )
        return replace(state, done=~found)

    def step(self, oracle: Labels, state: Tally, draw: Streams) -> Tally:
        turned, tried = self._proposed(oracle, state, draw)
        due = state.t % PROBED_EVERY == 0
        probed = torch.zeros_like(state.done)
        if due.any():
            rows = due.nonzero()[:, 0]
            with oracle.among(rows) as some:
                probed[rows] = some.broken(turned[rows])
        met = oracle.broken(tried) & ~state.done
        return self._resized(state.moved(pick(met, tried, state.x)), due, probed, met)

    def _proposed(self, oracle: Labels, state: Tally, draw: Streams) -> tuple[Images, Images]:
        """x moved around the origin, at its distance; and from there inward."""
        x, origin = state.x, oracle.origin
        outward = x - origin
        distance = oracle.threat.distance(x, origin).clamp(min=1e-12)
        noise = draw.normal("around", *x.shape[1:]).to(x)
        noise = noise - per_sample((noise * outward).flatten(1).sum(1) / distance**2, x) * outward
        noise = noise * per_sample(state.around * distance / noise.flatten(1).norm(dim=1).clamp(min=1e-12), x)
        turned = (origin + (outward + noise) / per_sample((1 + state.around**2).sqrt(), x)).clamp(0, 1)
        # clipped, it may lie at another distance: inward means nearer than x
        share = (1 - state.inward) * distance / oracle.threat.distance(turned, origin).clamp(min=1e-12)
        return turned, origin.lerp(turned, per_sample(share.clamp(0, 1), x))

    def _resized(self, state: Tally, due: Tensor, probed: Tensor, met: Tensor) -> Tally:
        """Half of the moves around the origin should succeed, where the boundary is flat, and a quarter of all steps (section 2.4)."""
        probes, probes_met = state.probes + due, state.probes_met + probed
        trials, trials_met = state.trials + 1, state.trials_met + met
        turn, window = probes >= self.probes, trials >= self.trials
        both = self._factor(turn, probes_met / self.probes, 0.2, 0.5)
        inward = both * self._factor(window, trials_met / self.trials, 0.1, 0.25)
        resized = replace(
            state,
            around=(state.around * both).clamp(max=1),
            inward=(state.inward * inward).clamp(max=0.5),
            probes=probes.masked_fill(turn, 0),
            probes_met=probes_met.masked_fill(turn, 0),
            trials=trials.masked_fill(window, 0),
            trials_met=trials_met.masked_fill(window, 0),
        )
        return replace(resized, done=state.done | (resized.inward < CONVERGED))

    def _factor(self, due: Tensor, share: Tensor, few: float, many: float) -> Tensor:
        """(B,) of the step size, where a window is full."""
        grown = torch.where(share > many, self.factor, torch.where(share < few, 1 / self.factor, 1.0))
        return torch.where(due, grown, 1.0)
