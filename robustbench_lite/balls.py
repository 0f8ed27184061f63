"""What an attacker may do to an image, in general: a set of images around the origin that has a size."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from .classifier import Images
from .results import Norm, reach
from .rows import Rows, per_sample

if TYPE_CHECKING:
    from .streams import Streams


class Threat(Rows):
    """The set of images that an attacker may turn `origin` into."""

    @abstractmethod
    def contains(self, x: Images, origin: Images) -> Tensor:
        """(B,) whether x is an image in [0, 1] that the attacker may reach from origin."""


@dataclass(frozen=True)
class Ball(Threat):
    """All images within `eps` of the origin, by one norm.

    Args:
        eps: 0-d or (B,), in units of a pixel's full range [0, 1]; for `l0` the number of values (pixel x channel) that may change,
            for `pixels` of pixels; for `patch` and `handling` see there.
    """

    eps: Tensor
    norm: ClassVar[Norm]
    counts: ClassVar[bool] = False  # whether eps is a number of things, and whole

    @abstractmethod
    def project(self, x: Images, origin: Images) -> Images:
        """A point of the ball and of the box [0, 1] that is near to x."""

    def contains(self, x: Images, origin: Images) -> Tensor:
        return self.allows(x, self.distance(x, origin))

    def allows(self, x: Images, distance: Tensor) -> Tensor:
        """`contains`, for an x whose distance is known already."""
        flat = x.flatten(1)
        return (flat.amin(1) >= 0) & (flat.amax(1) <= 1) & (distance <= self.reach)

    @property
    def reach(self) -> Tensor:
        """eps, with the slack of rounding."""
        return reach(self.eps)

    @abstractmethod
    def distance(self, x: Images, origin: Images) -> Tensor:
        """(B,) how far x is from origin."""

    def ascent(self, gradient: Images, share: float, x: Images) -> Images:
        """The step from x that climbs fastest among those whose length is `share` of eps; zero where the gradient is."""
        return share * per_sample(self.eps, gradient) * self.steepest(gradient)

    def usual_share(self, steps: int) -> float:
        """The length of a step, as a share of eps, with which `steps` of them reach every point of the ball from any other."""
        return 2.5 / steps

    @abstractmethod
    def steepest(self, gradient: Images) -> Images:
        """The step of unit length that climbs fastest; zero where the gradient is."""

    @abstractmethod
    def random_point(self, origin: Images, draw: Streams) -> Images:
        """A random point of the ball and the box, the same for the same keys."""

    def edge_point(self, origin: Images, draw: Streams) -> Images:
        """A random point where as much changes as may, the same for the same keys."""
        direction = draw.normal("direction", *origin.shape[1:]).to(origin)
        return self.project(origin + self.ascent(direction, 1.0, origin), origin)

    def surface_point(self, origin: Images, draw: Streams) -> Images:
        """A random point as far out as ball and box go, the same for the same keys."""
        return self.project(origin + draw.normal("surface point", *origin.shape[1:]), origin)


def sized(ball: Ball, scale: Tensor | float) -> Ball:
    """The ball with its eps times a scale, 0-d or (B,); what counts things rounds down, to no less than one."""
    eps = ball.eps * scale
    return replace(ball, eps=eps.floor().clamp(min=1) if ball.counts else eps)
