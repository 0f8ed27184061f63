"""Lenses out of focus, and Gaussian blur, of ImageNet-C (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from robustbench_lite.classifier import Images
from robustbench_lite.filters import NUDGE, gaussian
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams


@corruption("gaussian_blur")
@dataclass(frozen=True)
class GaussianBlur:
    """Blur by a Gaussian; the parameter is sigma, in pixels."""

    settings = {
        224: (1, 2, 3, 4, 6),
        32: (0.4, 0.6, 0.7, 0.8, 1),
        64: (0.5, 0.75, 1, 1.25, 1.5),
        299: (1.5, 2.5, 3.5, 4.5, 6.5),
    }

    def scaled(self, setting: float, factor: float) -> float:
        # Below half a pixel hardly any of a Gaussian falls on the next pixels: then what these weigh is kept in proportion.
        return setting * factor if setting * factor >= 0.5 else _edge(factor**2 * _variance(setting))

    def __call__(self, x: Images, setting: float, draw: Streams) -> Tensor:
        return gaussian(x, setting) + NUDGE


@corruption("defocus_blur")
@dataclass(frozen=True)
class DefocusBlur:
    """Blur by a disk with soft edges; the parameters are its radius and the sigma of its edge, in pixels.

    As in the reference, the edge is smoothed with 3 taps (5 where the radius is above 8) whatever its sigma, and the disk is rounded to
    float32, which decides about sums that would be a whole level.
    """

    settings = {
        224: ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        32: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        64: ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        299: ((4, 0.1), (5, 0.5), (7, 0.5), (10, 0.5), (12, 0.5)),
    }

    def scaled(self, setting: tuple[float, float], factor: float) -> tuple[float, float]:
        radius, edge = setting
        if radius * factor >= 1:
            return radius * factor, edge * factor
        # A disk of less than one pixel would be that pixel, and blur nothing: the edge is to blur as much as both in proportion.
        disk = radius**2 / 4 if radius >= 1 else 0.0
        return radius * factor, _edge(factor**2 * (disk + _variance(edge)))

    def __call__(self, x: Images, setting: tuple[float, float], draw: Streams) -> Tensor:
        kernel = _disk(*setting).to(x.device, x.dtype)
        reach = len(kernel) // 2
        around = pad(x, (reach, reach, reach, reach), "reflect")
        size = around.shape[2:]
        # A correlation is a product of spectra. What wraps around the border falls outside of the part that is kept.
        spectrum = torch.fft.rfft2(around) * torch.fft.rfft2(kernel, s=size).conj()
        blurred: Tensor = torch.fft.irfft2(spectrum, s=size)
        return blurred[:, :, : x.shape[2], : x.shape[3]] + NUDGE


def _variance(sigma: float) -> float:
    """Of three taps of a Gaussian, in square pixels."""
    beside = math.exp(-1 / (2 * sigma**2))
    return 2 * beside / (1 + 2 * beside)


def _edge(variance: float) -> float:
    """The sigma at which three taps have this variance, of 2/3 at most; their weights are whole 4096ths, so that white stays white."""
    beside = max(1, round(min(variance, 0.6) / 2 * 4096)) / 4096
    return math.sqrt(-1 / (2 * math.log(beside / (1 - 2 * beside))))


def _disk(radius: float, edge: float) -> Tensor:
    """(2k + 1, 2k + 1) float32 with the sum 1, k = 8 or, for larger disks, their radius."""
    reach, taps = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    along = torch.arange(-reach, reach + 1)
    disk = (along[:, None] ** 2 + along**2 <= radius**2).float()
    weights = torch.exp(torch.arange(-taps, taps + 1).double() ** 2 / (-2 * edge**2))
    weights = (weights / weights.sum()).float()
    rows = pad(disk[None, None] / disk.sum(), (taps, taps, taps, taps), "reflect").unfold(3, 2 * taps + 1, 1) @ weights
    return (rows.unfold(2, 2 * taps + 1, 1) @ weights)[0, 0]
