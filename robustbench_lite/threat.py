"""What an attacker may do to an image. The only place that knows norms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .balls import Ball, Threat, sized
from .classifier import Images
from .errors import UsageError, did_you_mean
from .flows import FARTHEST, LATTICE, Flow
from .listed import Colour, Handling, Listed, Spatial
from .pasting import Window, extent, holding_most
from .results import Norm
from .rows import per_sample

if TYPE_CHECKING:
    from .streams import Streams

__all__ = ["BALLS", "L0", "L1", "L2", "Ball", "Colour", "Flow", "Handling", "Linf", "Patch", "Pixels", "Spatial", "Threat", "ball", "sized"]


def movable(gradient: Images, x: Images) -> Images:
    """The gradient, zero where x is at the edge of the box and would leave it: a sparse step must not spend itself there."""
    stuck = ((x <= 0) & (gradient < 0)) | ((x >= 1) & (gradient > 0))
    return gradient.masked_fill(stuck, 0)


@dataclass(frozen=True)
class Linf(Ball):
    norm = "linf"

    def project(self, x: Images, origin: Images) -> Images:
        eps = per_sample(self.eps, x)
        top, bottom = origin + eps, origin - eps  # clamp by tensors takes longer
        return torch.maximum(torch.minimum(x, top, out=top), bottom, out=bottom).clamp_(0, 1)

    def distance(self, x: Images, origin: Images) -> Tensor:
        return (x - origin).abs_().flatten(1).amax(1)

    def steepest(self, gradient: Images) -> Images:
        return gradient.sign()

    def random_point(self, origin: Images, draw: Streams) -> Images:
        noise = draw.uniform("random point", *origin.shape[1:], low=-1.0, high=1.0)
        return self.project(origin + per_sample(self.eps, origin) * noise, origin)

    def surface_point(self, origin: Images, draw: Streams) -> Images:
        noise = draw.uniform("surface point", *origin.shape[1:], low=-1.0, high=1.0)
        noise = noise / per_sample(noise.flatten(1).abs().amax(1), noise)
        return self.project(origin + per_sample(self.eps, origin) * noise, origin)


@dataclass(frozen=True)
class L2(Ball):
    norm = "l2"

    def project(self, x: Images, origin: Images) -> Images:
        delta = x - origin
        length = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return (origin + delta * per_sample((self.eps / length.clamp(min=1e-30)).clamp(max=1), delta)).clamp_(0, 1)

    def distance(self, x: Images, origin: Images) -> Tensor:
        distance: Tensor = torch.linalg.vector_norm((x - origin).flatten(1), dim=1)
        return distance

    def steepest(self, gradient: Images) -> Images:
        # scaled by its largest value first: the squares of a saturated model's tiny gradients would vanish in float32
        scaled = gradient / per_sample(gradient.flatten(1).abs().amax(1).clamp(min=1e-38), gradient)
        return scaled / per_sample(torch.linalg.vector_norm(scaled.flatten(1), dim=1).clamp(min=1e-12), gradient)

    def random_point(self, origin: Images, draw: Streams) -> Images:
        # uniform in radius and not in volume: by volume nearly every start lies on the sphere, and was measured weaker
        direction = self.steepest(draw.normal("random point", *origin.shape[1:]))
        radius = per_sample(self.eps, origin) * per_sample(draw.uniform("radius", 1)[:, 0], origin)
        return self.project(origin + radius * direction, origin)

    def surface_point(self, origin: Images, draw: Streams) -> Images:
        noise = self.steepest(draw.normal("surface point", *origin.shape[1:]))
        return self.project(origin + per_sample(self.eps, origin) * noise, origin)


@dataclass(frozen=True)
class L1(Ball):
    norm = "l1"
    share: ClassVar[float] = 0.01  # of the values that one step moves (Tramèr & Boneh 2019, section 4: the sparse l1 descent)

    def distance(self, x: Images, origin: Images) -> Tensor:
        return (x - origin).flatten(1).abs().sum(1)

    def project(self, x: Images, origin: Images) -> Images:
        """The nearest point of ball and box together (Croce & Hein, ICML 2021, https://arxiv.org/abs/2103.01208).

        Every value gives up one and the same amount of its move and keeps at most its room in the box. The amount is the root of a
        falling, piecewise linear function: Newton's steps, and a halving now and then for safety, find it without a sort.
        """
        delta, start = (x - origin).flatten(1), origin.flatten(1)
        size, room = delta.abs(), torch.where(delta > 0, 1 - start, start)
        eps = self.eps.expand(len(delta))[:, None]
        rounding = torch.finfo(size.dtype).eps
        high = size.amax(1, keepdim=True)
        amount = low = torch.zeros_like(high)
        for turn in range(100):
            kept = torch.minimum((size - amount).clamp_(min=0), room)
            over = kept.sum(1, keepdim=True) - eps
            excess = over / ((kept > 0) & (kept < room)).sum(1, keepdim=True).clamp(min=1)
            low, high = torch.where(over > 0, amount, low), torch.where(over > 0, high, amount)
            searching = (over.abs() > 8 * rounding * eps) & (excess.abs() > rounding * amount) & ((over > 0) | (amount > 0))
            middle, newton = (low + high) / 2, amount + excess
            searching &= (middle > low) & (middle < high)
            if not searching.any():
                break
            usable = (newton > low) & (newton < high) & (turn % 4 < 3)
            amount = torch.where(searching, torch.where(usable, newton, middle), amount)
        # far outside, one rounding of the amount times the number of values is a good part of eps: so what it lacks is taken off after it
        kept = torch.minimum((size - amount - torch.where(amount > 0, excess, 0)).clamp_(min=0), room)
        return torch.addcmul(start, delta.sign(), kept).clamp_(0, 1).view_as(x)

    def ascent(self, gradient: Images, share: float, x: Images) -> Images:
        return super().ascent(movable(gradient, x), share, x)

    def steepest(self, gradient: Images) -> Images:
        flat = gradient.flatten(1)
        count = max(1, round(self.share * flat.shape[1]))
        top = flat.abs().topk(count, dim=1).indices
        return torch.zeros_like(flat).scatter_(1, top, flat.gather(1, top).sign() / count).view_as(gradient)

    def random_point(self, origin: Images, draw: Streams) -> Images:
        # exponential draws over their sum are uniform on the simplex
        shares = -torch.log1p(-draw.uniform("random point", *origin.shape[1:]))
        shares = shares / per_sample(shares.flatten(1).sum(1), shares)
        signs = draw.uniform("sign", *origin.shape[1:], low=-1.0, high=1.0).sign()
        radius = per_sample(self.eps, origin) * per_sample(draw.uniform("radius", 1)[:, 0], origin)
        return self.project(origin + radius * shares * signs, origin)


@dataclass(frozen=True)
class L0(Ball):
    norm: ClassVar[Norm] = "l0"
    counts = True

    def project(self, x: Images, origin: Images) -> Images:
        x = x.clamp(0, 1)  # first: a value that the box holds back is not worth one of the changes
        return torch.where(self._largest(self._sizes(x - origin), self.eps), x, origin)

    def distance(self, x: Images, origin: Images) -> Tensor:
        return (x != origin).flatten(1).sum(1).to(x.dtype)

    def usual_share(self, steps: int) -> float:
        """Half of the values: fewer newcomers would never displace the first ones, which have moved as far (measured)."""
        return 0.5

    def ascent(self, gradient: Images, share: float, x: Images) -> Images:
        """Its length is the number of values that move, each across the whole range; at least one."""
        gradient = movable(gradient, x)
        return self._largest(self._sizes(gradient), (share * self.eps).clamp(min=1)) * gradient.sign()

    def steepest(self, gradient: Images) -> Images:
        return self._largest(self._sizes(gradient), torch.ones_like(self.eps)) * gradient.sign()

    def random_point(self, origin: Images, draw: Streams) -> Images:
        # a small change: projection keeps what has moved most, so values that are far off from the start would never be given up
        chosen = self._largest(self._sizes(draw.uniform("place", *origin.shape[1:])), self.eps)
        return torch.where(chosen, (origin + 0.01 * draw.normal("random point", *origin.shape[1:])).clamp(0, 1), origin)

    def _sizes(self, delta: Images) -> Tensor:
        """(B, C or 1, H, W) how much each of the things that are counted moves."""
        return delta.abs()

    @staticmethod
    def _largest(size: Images, count: Tensor) -> Tensor:
        """Mask of the `count` (0-d or (B,)) largest values of each image; at equal values the first ones."""
        flat = size.flatten(1)
        order = flat.sort(dim=1, descending=True, stable=True).indices
        rank = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
        chosen = rank < count.expand(len(flat))[:, None]
        return torch.zeros_like(chosen).scatter_(1, order, chosen).view_as(size)


@dataclass(frozen=True)
class Pixels(L0):
    """As l0, but all channels of a pixel count as one change."""

    norm = "pixels"

    def distance(self, x: Images, origin: Images) -> Tensor:
        return (x != origin).any(1).flatten(1).sum(1).to(x.dtype)

    def _sizes(self, delta: Images) -> Tensor:
        return delta.abs().sum(1, keepdim=True)


@dataclass(frozen=True)
class Patch(Ball):
    """Any pixels within one square window. eps is the window's side, as a share of the shorter side of the image."""

    norm = "patch"

    def distance(self, x: Images, origin: Images) -> Tensor:
        """The side of the smallest square that holds all changed pixels."""
        return extent((x != origin).any(1)).to(x.dtype) / min(x.shape[-2:])

    def side(self, origin: Images) -> Tensor:
        """(B,) of the window, in pixels.

        Raises:
            UsageError: it is smaller than a pixel.
        """
        short = min(origin.shape[-2:])
        side = (self.reach * short).floor().long().expand(len(origin))
        if (side < 1).any():
            raise UsageError(f"a patch of this size is less than one pixel of {short}: its eps must be {1 / short:.3g} or more")
        return side

    def project(self, x: Images, origin: Images) -> Images:
        """What lies in the window that has changed most."""
        x = x.clamp(0, 1)
        most = holding_most((x - origin).abs().sum(1), self.side(origin)).square(x)
        within = self.distance(x, origin) <= self.reach  # as it is: the sums of two windows may differ by less than they are rounded
        return torch.where(most | per_sample(within, x), x, origin)

    def ascent(self, gradient: Images, share: float, x: Images) -> Images:
        """Its length is a share of a pixel's range: how far a pixel goes is not what eps limits."""
        return share * self.steepest(gradient)

    def steepest(self, gradient: Images) -> Images:
        return gradient.sign()

    def random_point(self, origin: Images, draw: Streams) -> Images:
        """Noise in a window that lies anywhere."""
        window = Window.drawn(origin, self.side(origin), draw, "place").square(origin)
        return torch.where(window, draw.uniform("random point", *origin.shape[1:]).to(origin), origin)


BALLS: dict[str, type[Ball]] = {b.norm: b for b in (Linf, L2, L1, L0, Pixels, Patch, Handling, Spatial, Colour, Flow)}


def ball(norm: str, eps: float) -> Ball:
    """The ball of this norm and size.

    Raises:
        UsageError: an unknown norm, or an eps that is not a size in it: eps must be positive, at most 1 for linf, patch,
            handling, spatial and colour, whole for l0 and pixels.
    """
    if norm not in BALLS:
        raise UsageError(f"unknown norm {norm!r}{did_you_mean(norm, BALLS)}")
    if not 0 < eps < math.inf:
        raise UsageError(f"eps must be positive and finite, got {eps:g} (accuracy without an attack is the row `clean`)")
    if norm == "linf" and eps > 1:
        raise UsageError(f"eps {eps:g} is more than the whole range of a pixel: images are in [0, 1], write 8/255 and not 8")
    if norm == "patch" and eps > 1:
        raise UsageError(f"eps {eps:g} is a patch larger than the image: it is a share of the image's shorter side, such as 0.4")
    if issubclass(BALLS[norm], Listed) and eps > 1:
        raise UsageError(f"eps {eps:g} is more than the whole range of {norm}, which is 1: eps is a share of it")
    if norm == "flow" and not 1 / LATTICE <= eps <= FARTHEST:
        raise UsageError(
            f"eps of flow is in pixels, at least {1 / LATTICE:g} and at most {FARTHEST:g}, got {eps:g}: 1 bends 32 pixels well"
        )
    if BALLS[norm].counts and eps != int(eps):
        raise UsageError(f"eps of {norm} counts {'pixels' if norm == 'pixels' else 'values'} and must be whole, got {eps:g}")
    return BALLS[norm](torch.tensor(eps, dtype=torch.float32))
