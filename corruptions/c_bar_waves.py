"""Waves of ImageNet-C-bar: plasma, a sine, rings around a point (Mintun et al., NeurIPS 2021, https://arxiv.org/abs/2102.11273)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams


@corruption("plasma_noise")
@dataclass(frozen=True)
class PlasmaNoise:
    """Blends in coloured plasma: sines of places that were themselves moved by sines four to six times.

    Parameter: strength in 6.4 grey levels.
    """

    settings = {224: (4.75, 7.0, 8.5, 9.25, 10.0)}
    colour = True

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        height, width = x.shape[2:]
        time = draw.uniform("time", 1, 1, high=6 * math.pi).to(x)
        rounds = draw.integers("rounds", 4, 7, 1, 1)
        sharpness = draw.uniform("sharpness", 1, 1, low=0.5, high=1.0).to(x)
        scale = draw.uniform("scale", 1, 1, low=0.075, high=0.2).to(x) * min(height, width)
        down = torch.arange(height).to(x)[:, None] / scale + x.new_zeros(width)
        right = torch.arange(width).to(x) / scale + x.new_zeros(height, 1)
        for number in range(6):
            frequency, slowness, damping = 1.93**number, 1.15**number, (2.25 - sharpness) ** number
            across = torch.cos(down * frequency + time / slowness) / damping
            along = torch.sin(right * frequency + time / slowness) / damping
            moving = number < rounds
            right = torch.where(moving, right + across - 0.3 * along, right)
            down = torch.where(moving, down + along + 0.3 * across, down)
        plasma = torch.stack([torch.sin(right - time), torch.sin((right + down + torch.sin(time)) * 0.5), torch.sin(down + time)], 1)
        strength = 6.4 / 255 * setting
        return (1 - strength) * x + strength * plasma


@corruption("single_frequency_greyscale")
@dataclass(frozen=True)
class SingleFrequencyGreyscale:
    """Adds one grey sine wave of random direction, frequency and phase.

    Parameter: amplitude in 19.6 grey levels.
    """

    settings = {224: (1.0, 1.5, 2.0, 4.5, 5.0)}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        faster = draw.uniform("frequency", 1, 1, low=-math.pi, high=math.pi).to(x)
        slower = faster.abs() * draw.uniform("ratio", 1, 1, low=-1.0, high=1.0).to(x)
        steep = draw.integers("steep", 0, 2, 1, 1) == 1
        phase = draw.uniform("phase", 1, 1, high=2 * math.pi).to(x)
        rows, columns = torch.arange(x.shape[2]).to(x)[:, None], torch.arange(x.shape[3]).to(x)
        angle = columns * torch.where(steep, slower, faster) + rows * torch.where(steep, faster, slower) + phase
        return x + 19.6 / 255 * setting * torch.sin(angle)[:, None]


@corruption("cocentric_sine_waves")
@dataclass(frozen=True)
class CocentricSineWaves:
    """Adds rings around a random point, each a ramp from dark to bright, on a way that waves with the angle.

    Parameter: height of a ramp in 12.8 grey levels.
    """

    settings = {224: (3.0, 5.0, 8.0, 9.0, 10.0)}

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        height, width = x.shape[2:]
        side = min(height, width)
        centre = draw.uniform("centre", 2, 1, 1).to(x)
        waves = draw.uniform("waves", 1, 1, high=10.0).to(x)  # per turn; no whole number, so there is a seam
        amplitude = draw.uniform("amplitude", 1, 1, high=0.1).to(x) * side
        ring = draw.uniform("ring", 1, 1, low=0.1, high=0.0).to(x) * side  # from above, because it is never to be 0
        right = torch.arange(width).to(x) - centre[:, 0] * width
        down = torch.arange(height).to(x)[:, None] - centre[:, 1] * height
        distance = torch.hypot(right, down) + amplitude * torch.sin(torch.atan2(right, down) * waves)
        return x + 12.8 / 255 * setting * (distance.remainder(ring) / ring - 0.5)[:, None]
