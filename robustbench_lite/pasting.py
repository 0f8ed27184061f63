"""Where a patch lies in an image, and how it gets there: square windows, discs and squares in them, pictures turned and shrunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

from .classifier import Images
from .rows import Rows
from .streams import Streams

Shape = Literal["disc", "square"]


@dataclass(frozen=True)
class Window(Rows):
    """A square of each image: its first row, its first column and its side, (B,) whole pixels."""

    top: Tensor
    left: Tensor
    side: Tensor

    @classmethod
    def drawn(cls, x: Images, side: Tensor, draw: Streams, stream: str) -> Self:
        """Windows of these sides (B,), anywhere in the images."""
        share = draw.uniform(stream, 2).to(x.device)
        room = torch.tensor(x.shape[-2:], device=x.device) - side[:, None] + 1
        top, left = (share * room).long().minimum(room - 1).unbind(1)
        return cls(top, left, side)

    def square(self, x: Images) -> Tensor:
        """(B, 1, H, W) bool, the window's pixels."""
        down, right = self._from_corner(x)
        inside = (down >= 0) & (down < self.side[:, None, None]), (right >= 0) & (right < self.side[:, None, None])
        return (inside[0] & inside[1])[:, None]

    def disc(self, x: Images) -> Tensor:
        """(B, 1, H, W) bool, pixels whose centres lie in the disc that fills the window."""
        down, right = self.from_centre(x)
        return (down**2 + right**2 <= 1)[:, None]

    def from_centre(self, x: Images) -> tuple[Tensor, Tensor]:
        """How far every pixel's centre lies below (B, H, 1) and to the right (B, 1, W) of the window's, in half sides."""
        down, right = self._from_corner(x)
        side = self.side[:, None, None]
        return (2 * down + 1 - side) / side, (2 * right + 1 - side) / side

    def _from_corner(self, x: Images) -> tuple[Tensor, Tensor]:
        rows, columns = (torch.arange(size, device=x.device) for size in x.shape[-2:])
        return (rows - self.top[:, None])[:, :, None], (columns - self.left[:, None])[:, None, :]


def pasted(x: Images, patches: Images, window: Window, angle: Tensor, shape: Shape = "disc") -> Images:
    """The images with discs or squares of other pictures in them; outside of these they are what they were, bit by bit.

    Args:
        patches: (B, C, S, S), shrunk or enlarged (bilinear) to the window. The result is differentiable in them.
        angle: (B,) radians, by which they are turned.
        shape: a square that is turned is as large as fits the window, so that nothing of it is cut off.
    """
    down, right = window.from_centre(x)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    grid = torch.stack([cos * right - sin * down, sin * right + cos * down], -1)
    if shape == "square":
        grid = grid * (cos.abs() + sin.abs())[..., None]
    inside = window.disc(x) if shape == "disc" else (grid.abs().amax(-1) <= 1)[:, None]
    picture = functional.grid_sample(patches, grid.to(patches.dtype), mode="bilinear", padding_mode="border", align_corners=False)
    return torch.where(inside, picture, x)


def centre_square(x: Images) -> Images:
    """(B, C, S, S) the largest square in the middle of the images."""
    height, width = x.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return x[..., top : top + side, left : left + side]


def holding_most(weight: Tensor, side: Tensor) -> Window:
    """The window of each row that holds most weight, the first of equals.

    Args:
        weight: (B, H, W), not negative.
        side: (B,) whole pixels, at most H and W.
    """
    height, width = weight.shape[1:]
    sums = functional.pad(weight.double(), (1, 0, 1, 0)).cumsum(1).cumsum(2)
    ends = [(torch.arange(size, device=weight.device) + side[:, None]).clamp(max=size) for size in (height, width)]
    below = sums.gather(1, ends[0][:, :, None].expand(-1, -1, width + 1))
    strips = below - sums[:, :height]
    held = strips.gather(2, ends[1][:, None, :].expand(-1, height, -1)) - strips[:, :, :width]
    best = held.flatten(1).argmax(1)
    # a window that would hang over the edge holds no more than the one that is pushed back inside
    return Window((best // width).minimum(height - side), (best % width).minimum(width - side), side)


def extent(changed: Tensor) -> Tensor:
    """(B,) the longer side, in pixels, of the smallest box around the True values of each row of (B, H, W); 0 where there is none."""
    spans = []
    for line in (changed.any(2), changed.any(1)):
        size, marks = line.shape[1], line.to(torch.uint8)
        spans.append((size - marks.flip(1).argmax(1) - marks.argmax(1)) * line.any(1))
    return torch.maximum(*spans)
