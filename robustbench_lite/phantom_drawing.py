"""Pictures that are like a chest radiograph, a retina or a mole as far as a test needs it, drawn from formulas and keyed random numbers.

Nothing in them was taken from a patient. Coordinates run from -1 to 1, x to the right and y down, and lengths are in these units, so that
a phantom has the same anatomy at every size. A value of one image is a (B, 1, 1) tensor, a plane of pixels (B, S, S).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .streams import Streams

NOISE = 0.01
"""Standard deviation of the noise of a pixel, two and a half grey levels."""

DOTS = (0, 4, 10, 20, 36)
"""Lesions of a retina, by its grade."""


def chest(person: Streams, view: Streams, findings: Tensor, lesion: float, size: int) -> Tensor:
    """Frontal chest radiographs.

    Args:
        person, view: draws of the anatomy, and of one image of it.
        findings: (B, 4) 0/1, for nodule, opacity, effusion and pneumothorax.
        lesion: how visible they are; 0 makes them vanish.

    Returns:
        (B, 1, S, S) in [0, 1].
    """
    x, y = _grid(view, size)
    apart, wide, high, tall, low, arch = _spread(person, "lungs", 6)
    lungs = []
    for side in (-1, 1):
        middle = side * (0.42 + 0.03 * apart)
        field = _ellipse(x - middle, y - 0.02 - 0.03 * high, 0.31 + 0.02 * wide, 0.74 + 0.04 * tall, 0.06)
        diaphragm = 0.5 + 0.05 * low + 0.04 * side + 0.3 * (1 + 0.3 * arch) * (x - middle) ** 2 / 0.1
        lungs.append(field * torch.sigmoid((diaphragm - y) / 0.03))
    broad, long = _spread(person, "heart", 2)
    heart = _ellipse(x - 0.13, y - 0.34, 0.30 + 0.03 * broad, 0.33 + 0.03 * long, 0.1)
    air = (lungs[0] + lungs[1]) * (1 - 0.85 * heart)
    shift, spacing, tilt = _spread(person, "bones", 3)
    ribs = torch.cos((y + 0.45 * x.abs() ** 1.6 + 0.05 * shift) * (21 + 1.5 * spacing)).clamp(min=0) ** 3
    ribs = ribs * torch.sigmoid((0.85 - x.abs()) / 0.03) * torch.sigmoid((0.75 - y) / 0.1)
    clavicles = _line(y + 0.7 - (0.25 + 0.05 * tilt) * (x.abs() - 0.4), 0.04) * torch.sigmoid((x.abs() - 0.1) / 0.05)
    spine = _line(x, 0.09) * (1 + 0.25 * torch.cos(24 * y))
    tissue = 0.62 - 0.42 * air + 0.08 * heart + 0.1 * spine + 0.07 * ribs + 0.07 * clavicles
    tissue = tissue + 0.03 * (0.3 + air) * _clouds(person, "parenchyma", size, 1.2)
    tissue = tissue + lesion * _findings(person, view, findings, lungs, x, y)
    body = _ellipse(x, y - 0.3, 0.99, 1.4, 0.03)
    (exposure,) = _spread(view, "exposure", 1)
    picture = 0.03 + body * (1 + 0.05 * exposure) * tissue + NOISE * view.normal("quanta", size, size)
    return picture[:, None].clamp(0, 1)


def _findings(person: Streams, view: Streams, findings: Tensor, lungs: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """What they add to the picture."""
    total = torch.zeros_like(lungs[0])
    right_moved, down_moved = _spread(view, "place", 2)
    for number, name in enumerate(("nodule", "opacity", "effusion", "pneumothorax")):
        which, across, down, large = _spread(person, name, 4)
        side = 2 * (which > 0) - 1
        lung = torch.where(which > 0, lungs[1], lungs[0])
        dx, dy = x - side * (0.46 + 0.12 * across) - 0.02 * right_moved, y + 0.1 - 0.35 * down - 0.02 * down_moved
        distance = torch.hypot(dx, dy)
        if name == "nodule":
            added = 0.09 * torch.sigmoid((0.09 + 0.015 * large - distance) / 0.02)
        elif name == "opacity":
            patchy = 1 + 0.4 * _clouds(person, "patches", len(y[0]), 1)
            added = 0.06 * torch.exp(-((distance / (0.25 + 0.04 * large)) ** 2)) * patchy
        elif name == "effusion":
            added = 0.2 * torch.sigmoid((y - 0.3 - 0.06 * down - 0.2 * dx.abs()) / 0.05)
        else:
            added = -0.08 * torch.sigmoid((-0.33 + 0.06 * down - y + 0.3 * side * dx) / 0.03)
        total = total + findings[:, number, None, None] * lung * added
    return total


def fundus(person: Streams, view: Streams, grade: Tensor, lesion: float, size: int) -> Tensor:
    """Retinas with dark red and yellow dots, more of them and larger the higher the grade.

    Args:
        grade: (B,) 0..4. The others: as of `chest`.

    Returns:
        (B, 3, S, S) in [0, 1].
    """
    x, y = _grid(view, size)
    eye, high, glow, pigment, cup = _spread(person, "eye", 5)
    side = torch.where(eye > 0, 1.0, -1.0)
    x = x * side
    radius = torch.hypot(x, y)
    dx, dy = x - 0.5, y - 0.06 * high
    away, angle = torch.hypot(dx, dy), torch.atan2(dy, -dx)
    vessels = torch.zeros_like(away)
    for number in range(10):
        turn, bend, wave, thin = _spread(person, f"vessel {number}", 4)
        start = (number // 2 - 2) * 0.28 + (math.pi / 2 if number % 2 else -math.pi / 2) + 0.12 * turn
        course = start - torch.sin(start) * torch.cos(start) * 0.2 + (0.25 * bend - 0.35 * torch.sin(2 * start)) * away
        course = course + 0.08 * torch.sin(9 * away + 3 * wave)
        across = torch.remainder(angle - course + math.pi, 2 * math.pi) - math.pi
        width = (0.028 + 0.008 * thin) * torch.exp(-0.5 * away) + 0.006
        vessels = vessels + torch.exp(-((away * torch.sin(across) / width) ** 2)) * (across.abs() < math.pi / 2)
    vessels = vessels.clamp(max=1)
    disc, bright = _ellipse(dx, dy, 0.15, 0.17, 0.1), _ellipse(dx, dy, 0.07 + 0.015 * cup, 0.08 + 0.015 * cup, 0.15)
    macula = torch.exp(-(((x + 0.12) ** 2 + y**2) / 0.03))
    texture = _clouds(person, "choroid", size, 1.2)
    shade = 1 - 0.3 * radius**2 + 0.08 * glow - 0.2 * macula + 0.05 * texture
    red = shade * (0.76 + 0.05 * pigment) + 0.16 * disc - 0.16 * vessels
    green = shade * (0.36 + 0.03 * pigment) + 0.36 * disc + 0.1 * bright - 0.17 * vessels
    blue = shade * (0.16 + 0.02 * pigment) + 0.22 * disc + 0.14 * bright - 0.07 * vessels
    dark, yellow = _dots(person, grade, x, y)
    red, green, blue = (
        red - lesion * (0.10 * dark - 0.08 * yellow),
        green - lesion * (0.11 * dark - 0.16 * yellow),
        blue - lesion * 0.03 * dark,
    )
    planes = torch.stack([red, green, blue], 1) * torch.sigmoid((0.95 - radius) / 0.012)[:, None]
    (exposure,) = _spread(view, "exposure", 1)
    return ((1 + 0.05 * exposure[:, None]) * planes + 0.01 + NOISE * view.normal("sensor", 3, size, size)).clamp(0, 1)


def _dots(person: Streams, grade: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Dark spots, and yellow ones from grade 2 on."""
    out, turn, large = person.uniform("dots", 3, DOTS[-1]).unbind(1)  # (B, dots)
    across, down = 0.85 * out.sqrt() * torch.cos(2 * math.pi * turn), 0.85 * out.sqrt() * torch.sin(2 * math.pi * turn)
    there, width = torch.arange(DOTS[-1]) < torch.tensor(DOTS)[grade, None], (0.04 + 0.02 * large)[..., None]
    columns, rows = _line(x - across[..., None], width), _line(y[..., 0][:, None] - down[..., None], width)  # (B, dots, S) each
    bright = torch.arange(DOTS[-1]) % 3 == 2
    dark, yellow = (
        torch.einsum("bks,bkt,bk->bst", rows, columns, shown.to(x.dtype)).clamp(max=1)
        for shown in (there & ~bright, there & bright & (grade[:, None] >= 2))
    )
    return dark, yellow


def skin(person: Streams, view: Streams, malignant: Tensor, lesion: float, size: int) -> Tensor:
    """A mole on skin with hairs; a malignant one is less symmetric, more ragged and of several colours.

    Args:
        malignant: (B,) 0/1. lesion: how far it differs from a harmless one; 0 makes them equal. The others: as of `chest`.

    Returns:
        (B, 3, S, S) in [0, 1].
    """
    x, y = _grid(view, size)
    off_x, off_y, large, tone, brown, stretch, lean = _spread(person, "mole", 7)
    atypical, _ = _spread(person, "atypical", 2)
    worse = 0.2 * (1 + atypical) + 0.6 * lesion * malignant.to(x.dtype)[:, None, None]
    dx, dy = x - 0.12 * off_x, y - 0.12 * off_y
    dx, dy = dx + 0.3 * lean * dy, dy * (1 + 0.15 * stretch)
    angle = torch.atan2(dy, dx)
    border = 1 + torch.zeros_like(angle)
    for waves in range(1, 9):
        depth, phase = _spread(person, f"border {waves}", 2)
        border = border + (0.02 + 0.06 * worse) * depth * torch.cos(waves * angle + math.pi * phase)
    mole = torch.sigmoid((border - torch.hypot(dx, dy) / (0.48 + 0.08 * large)) / 0.06)
    patches, veil, grain = (_clouds(person, name, size, slope) for name, slope in (("patches", 1.6), ("veil", 1.6), ("skin", 1.0)))
    hairs = torch.zeros_like(mole)
    for number in range(5):
        turn, offset, bend, there = _spread(person, f"hair {number}", 4)
        along, across = x * torch.cos(3 * turn) + y * torch.sin(3 * turn), y * torch.cos(3 * turn) - x * torch.sin(3 * turn)
        hairs = hairs + _line(across - 0.7 * offset - 0.3 * bend * along**2, 0.018) * (there > 0)
    light = 1 + 0.05 * tone + 0.03 * grain
    depth = 0.36 + 0.06 * brown + (0.02 + 0.06 * worse) * patches
    blue = (0.06 * worse * veil).clamp(min=0)
    planes = torch.stack(
        [
            light * 0.85 - mole * (depth + 1.5 * blue),
            light * 0.66 - mole * 1.05 * depth,
            light * 0.56 - mole * (0.95 * depth - blue),
        ],
        1,
    )
    planes = planes * (1 - 0.6 * hairs.clamp(max=1))[:, None]
    (exposure,) = _spread(view, "exposure", 1)
    return ((1 + 0.05 * exposure[:, None]) * planes + NOISE * view.normal("sensor", 3, size, size)).clamp(0, 1)


def _grid(view: Streams, size: int) -> tuple[Tensor, Tensor]:
    """(B, 1, S) and (B, S, 1): where the pixels are, for a patient who is never positioned twice in the same way."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    across, down, near = _spread(view, "position", 3)
    return (axis[None, None] - 0.03 * across) * (1 + 0.03 * near), (axis[None, :, None] - 0.03 * down) * (1 + 0.03 * near)


def _spread(draw: Streams, name: str, count: int) -> tuple[Tensor, ...]:
    """So many (B, 1, 1) values between -1 and 1."""
    return draw.uniform(name, count, low=-1)[:, :, None, None].unbind(1)


def _ellipse(dx: Tensor, dy: Tensor, width: Tensor | float, height: Tensor | float, edge: float) -> Tensor:
    """1 inside and 0 outside, with half axes `width` and `height` and a border that is soft over `edge` of them."""
    return torch.sigmoid((1 - torch.hypot(dx / width, dy / height)) / edge)


def _line(distance: Tensor, width: Tensor | float) -> Tensor:
    return torch.exp(-((distance / width) ** 2))


def _clouds(draw: Streams, name: str, size: int, slope: float) -> Tensor:
    """Noise of deviation 1 whose amplitude falls with the frequency to the power of `slope`, as tissue's does."""
    white = torch.fft.rfft2(draw.normal(name, size, size))
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]) * size
    found = torch.fft.irfft2(white * frequency.clamp(min=1) ** -slope * (frequency > 0), s=(size, size))
    scaled: Tensor = found / found.std((1, 2), keepdim=True)
    return scaled
