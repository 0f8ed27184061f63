"""What is usually done to training images before any defense: moved a little, and mirrored where the data allow it.

Every function takes images (B, C, H, W) and keyed draws and returns images of the size that the network takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from robustbench_lite.classifier import Images
from robustbench_lite.streams import Streams

from .recipe import Augment

Frame = Callable[[Images, Streams], Images]

PAD = 4
"""Pixels around a 32-pixel image, from which as large an image is cut again (He et al., CVPR 2016, section 4.2); larger in proportion."""

TURN, SHIFT = 10.0, 0.08
"""Largest rotation in degrees, and shift as a share of the side, for digits, whose mirror images are no digits."""


USUAL: dict[str, Augment] = {
    "digits": "turn-shift",
    "cifar10": "crop-flip",
    "cifar100": "crop-flip",
    "imagefolder": "resized-crop-flip",
}
"""What `auto` is for a kind of data; nothing for data of which nobody knows what keeps the class."""


def framing(name: Augment) -> Frame:
    """The function of this name."""
    functions: dict[Augment, Frame] = {
        "auto": lambda images, draw: images,
        "none": lambda images, draw: images,
        "flip": flipped,
        "crop-flip": crop_flip,
        "turn-shift": turn_shift,
        "resized-crop-flip": resized_crop_flip,
    }
    return functions[name]


def flipped(images: Images, draw: Streams) -> Images:
    """Every other image mirrored, left to right."""
    mirror = draw.uniform("flip", 1).view(-1, 1, 1, 1) < 0.5
    return torch.where(mirror, images.flip(3), images)


def crop_flip(images: Images, draw: Streams) -> Images:
    """Moved by up to PAD pixels of 32 along each axis, black where nothing was, and mirrored or not."""
    height, width = images.shape[2:]
    reach = max(1, round(PAD * height / 32))
    corner = draw.integers("crop", 0, 2 * reach + 1, 2)
    rows = corner[:, :1] + torch.arange(height, device=images.device)
    columns = corner[:, 1:] + torch.arange(width, device=images.device)
    padded = pad(images, (reach,) * 4)
    each = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    cut = padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return flipped(cut.contiguous(), draw)


def turn_shift(images: Images, draw: Streams) -> Images:
    """Turned by up to TURN degrees and shifted by up to SHIFT of the side, black where nothing was."""
    draws = draw.uniform("turn and shift", 3, low=-1.0, high=1.0)
    angle, shift = draws[:, 0] * math.radians(TURN), draws[:, 1:] * 2 * SHIFT  # the grid's coordinates span 2
    return _sampled(images, angle.cos(), -angle.sin(), angle.sin(), angle.cos(), shift)


def resized_crop_flip(images: Images, draw: Streams) -> Images:
    """A part of 8 to 100 % of the area, 3/4 to 4/3 as wide as high, enlarged to the whole, and mirrored or not (Szegedy et al., CVPR 2015,
    https://arxiv.org/abs/1409.4842). An image of 32 pixels or fewer keeps a quarter of its area at least."""
    draws = draw.uniform("resized crop", 4)
    least = 0.25 if images.shape[2] <= 32 else 0.08
    area = least + (1 - least) * draws[:, 0]
    ratio = torch.exp((2 * draws[:, 1] - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    shift = (2 * draws[:, 2:] - 1) * torch.stack([1 - width, 1 - height], 1)
    zero = torch.zeros_like(width)
    return flipped(_sampled(images, width, zero, zero, height, shift, beyond="border"), draw)


def _sampled(images: Images, xx: Tensor, xy: Tensor, yx: Tensor, yy: Tensor, shift: Tensor, beyond: str = "zeros") -> Images:
    """Images looked up under one affine map each: (B,) its entries, (B, 2) its shift."""
    rows = [torch.stack([xx, xy, shift[:, 0]], 1), torch.stack([yx, yy, shift[:, 1]], 1)]
    grid = affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return grid_sample(images, grid.to(images), padding_mode=beyond, align_corners=False).clamp(0, 1)
