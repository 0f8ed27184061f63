"""Sequences of views: moved, turned, tilted, scaled, sheared, zoomed into (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261).

All but the tilt are torchvision's affine maps of a Pillow picture, on the CPU, as the published ones were. What no picture covers is black.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, hypot, radians, sin

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from robustbench_lite.filters import NUDGE
from robustbench_lite.registry import perturbation
from robustbench_lite.sequences import Picture, is_large
from robustbench_lite.streams import Streams


@dataclass(frozen=True)
class View:
    """What is done to a picture about its centre: turned clockwise and sheared (degrees), moved (pixels), enlarged."""

    angle: float = 0.0
    right: int = 0
    scale: float = 1.0
    shear: float = 0.0

    def __call__(self, channel: Image.Image) -> Image.Image:
        turned: Image.Image = affine(channel, self.angle, [self.right, 0], self.scale, [self.shear, 0.0], InterpolationMode.BILINEAR)
        return turned


@perturbation("translate")
@dataclass(frozen=True)
class Translate:
    """Move the picture right by a pixel a frame: from -20 to 20 pixels (224), from -7 to 8 (32)."""

    against_first = False
    whole = True

    def __call__(self, picture: Picture, draw: Streams, difficulty: int) -> Tensor:
        return _views(picture, [View(right=right) for right in (range(-20, 21) if is_large(picture) else range(-7, 9))])


@perturbation("rotate")
@dataclass(frozen=True)
class Rotate:
    """Turn the picture clockwise by a degree a frame, from -15 to 15 degrees."""

    against_first = False
    whole = True

    def __call__(self, picture: Picture, draw: Streams, difficulty: int) -> Tensor:
        return _views(picture, [View(angle=degrees) for degrees in range(-15, 16)])


@perturbation("scale")
@dataclass(frozen=True)
class Scale:
    """Enlarge the picture, from 40 % to 115 % of its size (224), from 70 % to 130 % (32), in 31 frames."""

    against_first = False
    whole = True

    def __call__(self, picture: Picture, draw: Streams, difficulty: int) -> Tensor:
        first, step = (40, 2.5) if is_large(picture) else (70, 2)
        return _views(picture, [View(scale=(first + step * i) / 100) for i in range(31)])


@perturbation("shear")
@dataclass(frozen=True)
class Shear:
    """Shear the picture sideways by a degree a frame, from -15 to 15 degrees.

    The torchvision of 2018 made it lower as well, by the cosine of the angle; today's does not.
    """

    against_first = False
    whole = True

    def __call__(self, picture: Picture, draw: Streams, difficulty: int) -> Tensor:
        return _views(picture, [View(shear=degrees) for degrees in range(-15, 16)])


@perturbation("zoom_blur")
@dataclass(frozen=True)
class ZoomBlur:
    """The mean of all enlargements so far; the last of 31 frames enlarges by 12 %."""

    against_first = False
    whole = True

    def __call__(self, picture: Picture, draw: Streams, difficulty: int) -> Tensor:
        zoomed = _views(picture, [View(scale=1 + 0.004 * i) for i in range(31)])
        total = torch.zeros_like(zoomed[0], dtype=torch.float32)
        means: list[Tensor] = []
        # float32, one after the other, as the reference adds: where the mean is a whole number, its rounding errors decide the pixel
        for frame in zoomed.float() / 255:
            total = total + frame
            means.append(total / torch.full_like(total, len(means) + 1))
        return torch.stack(means)


@perturbation("tilt")
@dataclass(frozen=True)
class Tilt:
    """Tilt the picture about both axes, seen from its diagonal away, by a degree a frame from -15 to 15 (224), by 3/4 of one (32).

    The picture lies one pixel behind the plane that it turns about, as in the reference, so that the middle frame is a little
    smaller than the picture: by 1 / (diagonal + 1).
    """

    against_first = False
    whole = True

    def __call__(self, picture: Picture, draw: Streams, difficulty: int) -> Tensor:
        height, width = picture.shape[1:]
        step = 1.0 if is_large(picture) else 0.75
        return _warped(picture, [_tilted(radians(step * degrees), height, width) for degrees in range(-15, 16)])


def _views(picture: Picture, views: list[View]) -> Tensor:
    """(T, C, H, W) uint8."""
    channels = [Image.fromarray(channel) for channel in (picture * 255).round().byte().cpu().numpy()]
    return torch.from_numpy(np.array([[view(channel) for channel in channels] for view in views])).to(picture.device)


def _tilted(angle: float, height: int, width: int) -> np.ndarray:
    """(3, 3), from pixels of the picture to the frame's: centred, one pixel back, turned about both axes, seen from the diagonal away."""
    diagonal, c, s = hypot(width, height), cos(angle), sin(angle)
    centred = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    about_y = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    away = np.array([[0, 0, 0], [0, 0, 0], [0, 0, diagonal]])  # added to the depth of a point (x, y, 1)
    projected = np.array([[diagonal, 0, width / 2], [0, diagonal, height / 2], [0, 0, 1]])
    tilted: np.ndarray = projected @ (about_x @ about_y @ centred + away)
    return tilted


def _warped(picture: Picture, matrices: list[np.ndarray]) -> Tensor:
    """(T, C, H, W) uint8 as OpenCV 4 warps: linear, from coordinates in 1/32 pixels, black around the picture, rounded."""
    height, width = picture.shape[1:]
    backwards = torch.from_numpy(np.linalg.inv(np.array(matrices))).to(picture)
    rows, columns = torch.meshgrid(*(torch.arange(size).to(picture) for size in (height, width)), indexing="ij")
    places = torch.stack([columns, rows, torch.ones_like(rows)]).flatten(1)  # (3, H W)
    x, y, depth = (backwards @ places).unbind(1)
    source = torch.stack([(at / depth * 32).round() / 32 for at in (x, y)], -1).view(-1, height, width, 2)
    grid = source * 2 / torch.tensor([width - 1, height - 1]).to(picture) - 1
    warped = grid_sample(picture.expand(len(grid), -1, -1, -1), grid, padding_mode="zeros", align_corners=True)
    return (warped * 255 + 0.5 + NUDGE).to(torch.uint8)
