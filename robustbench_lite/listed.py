"""Threats that are a finite list: a picture is changed as a whole, in one of so many ways. So it can be said of any image whether it
came about like this."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .balls import Ball
from .classifier import Images
from .errors import UsageError
from .handling import HANDLED, MOVED, TINTED, Setting, handled, moved, strength, tinted

if TYPE_CHECKING:
    from .streams import Streams

SAME_PICTURE = 1e-4
"""Two pictures that were changed alike differ by no more in any value: resampling is good to about this in float32."""

SAMPLE = 128
"""Pixels by which a setting is ruled out before the whole picture is made."""

TOGETHER = 16
"""Pictures for which this is done at once, in all settings."""


@dataclass(frozen=True)
class Listed(Ball):
    """A picture under one of `settings`, whose ranges are `eps` of the whole ones, in (0, 1].

    A distance is the strength of the weakest setting that gives the image, and infinite where none does.
    """

    settings: ClassVar[tuple[Setting, ...]]

    @abstractmethod
    def _changed(self, origin: Images, shares: Tensor, pixels: Tensor) -> Tensor:
        """(B, S, C, P) these pixels of the images under S settings, shares (B, S, R) of the whole ranges."""

    def made(self, origin: Images, setting: Tensor) -> Images:
        """The images under the settings of these numbers: (B,), or (B, Q) for (B, Q, C, H, W)."""
        if setting.dim() == 2:
            count = setting.shape[1]
            rows = torch.arange(len(origin), device=origin.device).repeat_interleave(count)
            return self.take(rows).made(origin[rows], setting.flatten()).view(len(origin), count, *origin.shape[1:])
        return self._some(origin, setting, torch.arange(origin[0, 0].numel(), device=origin.device)).view_as(origin)

    def distance(self, x: Images, origin: Images) -> Tensor:
        whole = torch.arange(origin[0, 0].numel(), device=origin.device)
        found = torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)
        alike = self._apart(x, origin) <= SAME_PICTURE
        for number, setting in enumerate(self.settings):  # the weakest first
            rows = (alike[:, number] & found.isinf()).nonzero()[:, 0]
            if len(rows):
                some, numbers = self.take(rows), torch.full_like(rows, number)
                apart = (some._some(origin[rows], numbers, whole) - x[rows].flatten(2)).abs().flatten(1).amax(1)
                size = strength(setting) * some.eps.to(x.dtype).expand(len(rows))
                found[rows] = torch.where(apart <= SAME_PICTURE, size, torch.inf)
        return found

    def project(self, x: Images, origin: Images) -> Images:
        """The image of that setting which comes nearest in the farthest of some pixels."""
        return self.made(origin, self._apart(x, origin).argmin(1))

    def steepest(self, gradient: Images) -> Images:
        raise TypeError("a picture goes from one setting to another: there are no steps along a gradient")

    def random_point(self, origin: Images, draw: Streams) -> Images:
        return self.made(origin, draw.integers("setting", 0, len(self.settings), 1)[:, 0].to(origin.device))

    def _some(self, origin: Images, setting: Tensor, pixels: Tensor) -> Tensor:
        shares = torch.tensor(self.settings, device=origin.device)[setting]
        return self._changed(origin, (shares * self.eps.expand(len(origin))[:, None])[:, None], pixels)[:, 0]

    def _apart(self, x: Images, origin: Images) -> Tensor:
        """(B, S) how far x is from what every setting makes of the origin, in the farthest of some pixels."""
        size = origin[0, 0].numel()
        pixels = torch.linspace(0, size - 1, min(size, SAMPLE), device=x.device).round().long()
        settings, apart = torch.tensor(self.settings, device=x.device), []
        for first in range(0, len(x), TOGETHER):
            rows = slice(first, first + TOGETHER)
            shares = settings * self.eps.expand(len(x))[rows, None, None]
            made = self._changed(origin[rows], shares, pixels)
            apart.append((made - x[rows].flatten(2)[:, None, :, pixels]).abs().flatten(2).amax(2))
        return torch.cat(apart)


@dataclass(frozen=True)
class Handling(Listed):
    """The picture put in askew, by up to 30 degrees, and lighter or darker by up to 0.2 of a pixel's range."""

    norm = "handling"
    settings = HANDLED

    def _changed(self, origin: Images, shares: Tensor, pixels: Tensor) -> Tensor:
        return handled(origin, shares[..., 0], shares[..., 1], pixels)


@dataclass(frozen=True)
class Spatial(Listed):
    """The picture turned by up to 30 degrees and moved by up to 3/28 of its sides (Engstrom et al., ICML 2019)."""

    norm = "spatial"
    settings = MOVED

    def _changed(self, origin: Images, shares: Tensor, pixels: Tensor) -> Tensor:
        return moved(origin, shares[..., 0], shares[..., 1], shares[..., 2], pixels)


@dataclass(frozen=True)
class Colour(Listed):
    """The picture's hues turned by up to half of the circle and its saturation changed by up to 1 (Hosseini & Poovendran, 2018)."""

    norm = "colour"
    settings = TINTED

    def _changed(self, origin: Images, shares: Tensor, pixels: Tensor) -> Tensor:
        if origin.shape[1] != 3:
            raise UsageError(f"images of {origin.shape[1]} channels have no colours that could be changed: choose another attack")
        return tinted(origin, shares[..., 0], shares[..., 1], pixels)


def all_settings(threat: Listed, origin: Images, t: Tensor, at_once: int) -> Images:
    """(B, at_once, C, H, W) the images under the settings that come next after t (B,) steps; the last of the list again at its end."""
    numbers = 1 + at_once * t[:, None] + torch.arange(at_once, device=t.device)
    return threat.made(origin, numbers.clamp(max=len(threat.settings) - 1))


def steps_through(settings: tuple[Setting, ...], at_once: int) -> int:
    """How many steps it takes to try all of them but the picture as it is."""
    return -(-(len(settings) - 1) // at_once)
