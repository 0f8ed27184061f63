"""Noise of ImageNet-C-bar and CIFAR-10-C-bar: blue, brownish, Perlin (Mintun et al., NeurIPS 2021, https://arxiv.org/abs/2102.11273)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams

LATTICE = 256
"""Points a side after which Perlin noise repeats."""

OCTAVES = (1, 2, 4, 8, 16)


@corruption("blue_noise_sample")
@dataclass(frozen=True)
class BlueNoiseSample:
    """Black pixels where blue noise (amplitude grows with the frequency) is low.

    Parameter: 10 / 3 of the threshold above -2.5 standard deviations.
    """

    settings = {224: (0.8, 1.6, 2.4, 4.0, 5.6), 32: (0.7, 1.4, 2.1, 3.5, 4.2)}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        noise = _spectral(lambda frequency: frequency, x[:, :1], draw)
        return x * (noise > 0.3 * setting - 2.5)


@corruption("brownish_noise")
@dataclass(frozen=True)
class BrownishNoise:
    """Adds noise whose amplitude falls with the square of the frequency, each channel its own.

    Parameter: standard deviation in 6.4 grey levels.
    """

    settings = {224: (1.0, 2.0, 3.0, 4.0, 5.0), 32: (2.5, 4.0, 5.5, 6.5, 7.0)}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        return x + 6.4 / 255 * setting * _spectral(lambda frequency: 1 / (frequency**2 + 1), x, draw)


def _spectral(amplitude: Callable[[Tensor], Tensor], like: Images, draw: Streams) -> Tensor:
    """Noise of standard deviation 1 with given amplitudes and random phases, of the shape of `like`.

    Args:
        amplitude: of frequencies in waves per shorter side.
    """
    _, channels, height, width = like.shape
    rows, columns = (torch.fft.fftfreq(size).to(like) * min(height, width) for size in (height, width))
    phases = draw.uniform("phases", channels, height, (width + 1) // 2, high=2 * math.pi).to(like)
    # Half of the phases are the others, turned about the middle: not the symmetry of a real field, so the real part is taken.
    phases = torch.cat([phases, phases[..., : width // 2].flip(-2, -1)], -1).roll((height // 2, width // 2), (-2, -1))
    amplitudes = amplitude(torch.hypot(rows[:, None], columns))
    noise: Tensor = torch.fft.ifft2(torch.complex(amplitudes * phases.cos(), amplitudes * phases.sin())).real
    # Divided by the deviation from its mean, and keeps its mean: that of brownish noise is large. (std() is many times slower.)
    return noise / (noise - noise.mean((-2, -1), keepdim=True)).square().mean((-2, -1), keepdim=True).sqrt()


@corruption("perlin_noise")
@dataclass(frozen=True)
class PerlinNoise:
    """Blends in clouds: five octaves of gradient noise (Perlin, SIGGRAPH 1985, https://doi.org/10.1145/325165.325247), without signs.

    Parameter: share of the clouds, in twentieths.
    """

    settings = {224: (4.6, 5.2, 5.8, 7.6, 8.8)}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        height, width = x.shape[2:]
        spacing = min(height, width) / 7  # pixels between the lattice's points in the first octave
        gradients = _lattice(math.ceil(16 * height / spacing) + 1, math.ceil(16 * width / spacing) + 1, x, draw)
        clouds = x.new_zeros(len(x), height, width)
        for octave in OCTAVES:
            (row_weights, row_slopes), (column_weights, column_slopes) = (
                _interpolation(size, octave / spacing, x) for size in (height, width)
            )
            vertical, horizontal = gradients[:, :, : row_weights.shape[1], : column_weights.shape[1]].unbind(1)
            noise = row_slopes @ vertical @ column_weights.T + row_weights @ horizontal @ column_slopes.T
            clouds += 1.5 * noise.abs() / octave
        share = 0.05 * setting
        return (1 - share) * x + share * (0.5 * clouds + 0.5).clamp(max=1)[:, None]


def _lattice(rows: int, columns: int, like: Images, draw: Streams) -> Tensor:
    """(B, 2, rows, columns) gradients of length 1, from a table of 256 in a shuffled order."""
    table = draw.integers("gradients", -LATTICE, LATTICE, LATTICE, 2).to(like)
    table = table / table.square().sum(2, keepdim=True).sqrt().clamp(min=1)  # a gradient of 0 stays 0; the published code divides by it
    order = draw.uniform("order", LATTICE).argsort(stable=True, dim=1)
    down, right = torch.arange(rows, device=like.device), torch.arange(columns, device=like.device)
    at = order.gather(1, ((order[:, down % LATTICE, None] + right) % LATTICE).flatten(1))
    return table.transpose(1, 2).gather(2, at[:, None].expand(-1, 2, -1)).view(-1, 2, rows, columns)


def _interpolation(size: int, frequency: float, like: Images) -> tuple[Tensor, Tensor]:
    """What the lattice's points weigh in each of `size` pixels, and that times how far the pixel is behind; (size, points) each."""
    position = torch.arange(size).to(like) * frequency
    behind = position[:, None] - torch.arange(int(position[-1]) + 2).to(like)
    distance = behind.abs().clamp(max=1)
    weights = 1 - distance**2 * (3 - 2 * distance)
    return weights, weights * behind
