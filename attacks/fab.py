"""Fast adaptive boundary attack (Croce & Hein, ICML 2020, https://arxiv.org/abs/1907.02044)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.criteria import Misclassified
from robustbench_lite.oracle import WhiteBox
from robustbench_lite.plan import State
from robustbench_lite.planes import length, plane_distance, step_to_plane
from robustbench_lite.registry import attack
from robustbench_lite.rows import per_sample
from robustbench_lite.streams import Streams


@dataclass(frozen=True)
class Search(State):
    """What a search for the nearest broken point remembers.

    x: that point (before there is one, the last that was tried); where it is outside the ball, what lies before it on the ball's edge.
    point: like x, where the search stands, in the ball or not. nearest: (B,) the distance of the nearest broken point, inf without one.
    """

    point: Images
    nearest: Tensor


@attack("fab")
@dataclass(frozen=True)
class FAB:
    """Look for the nearest broken image: step just beyond the boundary's tangent plane, drawn towards the clean image, then back off.

    It needs no eps but for its restarts, so it suits the goal `closest`. It trusts the length of gradients and fails where they are masked.
    Without targets every step takes the gradients of all classes: where there are more than a few tens, use `fab-t`.

    Args:
        steps: steps of each restart and target.
        restarts: the first is from the clean image, the others from random points at half of eps.
        targets: the classes aimed at one after the other, nearest first (FAB-T); 0: in every step the class whose boundary is nearest.
        alpha_max: the greatest bias towards the clean image.
        eta: how far a step goes, in multiples of the way to the plane.
        beta: the share of its distance that a broken image keeps when the search backs off.
    """

    access = WhiteBox
    norms = ("linf", "l2", "l1")
    cost = "2 x steps + 1 forwards, steps x K backwards (steps where K = 2), times restarts"

    steps: Annotated[int, Field(ge=1)] = 100
    restarts: Annotated[int, Field(ge=1)] = 1
    targets: Annotated[int, Field(ge=0)] = 0
    alpha_max: Annotated[float, Field(ge=0, le=1)] = 0.1
    eta: Annotated[float, Field(ge=1)] = 1.05
    beta: Annotated[float, Field(gt=0, le=1)] = 0.9

    def start(self, oracle: WhiteBox, draw: Streams) -> Search:
        origin, point = oracle.origin, oracle.origin
        again = torch.tensor([restart > 0 for _, restart in draw.rows], device=origin.device)
        if again.any():
            other = oracle.threat.random_point(origin, draw)
            share = 0.5 * oracle.threat.eps / oracle.threat.distance(other, origin).clamp(min=1e-12)
            point = (origin + per_sample(share * again, origin) * (other - origin)).clamp_(0, 1)
        return Search.at(origin, point=point, nearest=torch.full_like(origin[:, 0, 0, 0], torch.inf))

    def step(self, oracle: WhiteBox, state: Search, draw: Streams) -> Search:
        origin, threat = oracle.origin, oracle.threat
        height, normal = self._plane(oracle, state.point)
        tried = self._towards_boundary(origin, state.point, height, normal, threat.norm)
        broken = oracle.criterion.margin(oracle.logits(tried)) > 0
        distance = threat.distance(tried, origin)
        kept = broken & (distance < state.nearest) | state.nearest.isinf()
        reach = per_sample((threat.eps / distance.clamp(min=1e-12)).clamp_(max=1), tried)
        # chosen by products, here and in `planes`: on a CPU `where` takes thirty times as long (measured)
        chosen, back = kept.to(tried.dtype), 1 - (1 - self.beta) * broken.to(tried.dtype)
        return state.moved(
            state.x.lerp(origin.lerp(tried, reach), per_sample(chosen, tried)),
            point=origin.lerp(tried, per_sample(back, tried)),
            nearest=torch.where(broken, torch.minimum(distance, state.nearest), state.nearest),
        )

    def _plane(self, oracle: WhiteBox, x: Images) -> tuple[Tensor, Images]:
        """Height (B,) and gradient at x of the linear function whose zero is taken for the boundary: positive where broken."""
        criterion = oracle.criterion
        if self.targets or not isinstance(criterion, Misclassified) or oracle.ledger.logits.shape[1] == 2:
            # towards a wrong class this is its logit minus the label's; for other criteria, the part of the margin that decides
            logits, normal = oracle.gradient(x, "margin")
            return oracle.loss(logits, "margin").to(x.dtype), normal
        rows, label = torch.arange(len(x), device=x.device), criterion.labels
        classes = torch.arange(oracle.ledger.logits.shape[1], device=x.device).expand(len(x), -1)
        logits, slopes = oracle.jacobian(x, classes)
        heights, normals = logits - logits[rows, label, None], slopes.sub_(slopes[rows, label][:, None])
        distances = plane_distance(heights, normals, oracle.threat.norm)
        rival = distances.scatter_(1, label[:, None], torch.inf).argmin(1)
        return heights[rows, rival].to(x.dtype), normals[rows, rival]

    def _towards_boundary(self, origin: Images, x: Images, height: Tensor, normal: Images, norm: str) -> Images:
        """Beyond the plane by eta from x, drawn by alpha to where the origin would go, the more so the farther x is from the plane."""
        here = step_to_plane(x, normal, height, norm)
        there = step_to_plane(origin, normal, height + (normal * (origin - x)).flatten(1).sum(1), norm)
        far, farther = (length(step.flatten(1), norm).clamp_(min=1e-8) for step in (here, there))
        alpha = (far / (far + farther)).clamp_(max=self.alpha_max)
        end, anchor = here.mul_(self.eta).add_(x), there.mul_(self.eta).add_(origin)
        return end.lerp_(anchor, per_sample(alpha, x)).clamp_(0, 1)


@attack("fab-t")
@dataclass(frozen=True)
class FABT(FAB):
    """FAB towards each of the nearest wrong classes: one gradient a step whatever the number of classes, and stronger than `fab`.

    Args: as those of `fab`.
    """

    cost = "2 x steps + 1 forwards, steps backwards, times restarts x targets"
    targets: Annotated[int, Field(ge=0)] = 9
