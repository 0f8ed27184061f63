"""A picture's values between its pixels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from .classifier import Images


def bilinear(x: Images, down: Tensor, right: Tensor) -> Tensor:
    """The pictures at these places, black outside of them, with gradients to the places. At whole ones, exactly the pixels.

    `grid_sample` measures places in shares of the picture, and so misses even whole pixels by a rounding.

    Args:
        x: (B, C, H, W).
        down, right: (B, ...) in pixels from the middle of the first one.

    Returns:
        (B, C, ...).
    """
    (channels, height, width), shape = x.shape[1:], down.shape[1:]
    padded = functional.pad(x, (1, 1, 1, 1)).flatten(2)
    down, right = down.clamp(-1, height) + 1, right.clamp(-1, width) + 1
    top, left = down.detach().floor().clamp(max=height), right.detach().floor().clamp(max=width)
    corner = (top.long() * (width + 2) + left.long()).flatten(1)[:, None].expand(-1, channels, -1)

    def at(offset: int) -> Tensor:
        return padded.gather(2, corner + offset).view(-1, channels, *shape)

    down, right = (down - top)[:, None], (right - left)[:, None]
    near, far = at(0).lerp(at(width + 2), down), at(1).lerp(at(width + 3), down)
    return near.lerp(far, right)
