"""Frosted glass of ImageNet-C (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.corrupting import levels
from robustbench_lite.filters import NUDGE, gaussian
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams


@corruption("glass_blur")
@dataclass(frozen=True)
class GlassBlur:
    """Blur, shuffle pixels locally, blur again; the parameters are sigma and the reach of the shuffle, in pixels, and how often it is done.

    The reference means to swap two pixels and copies one of them over the other, since its rows are views: the copy is kept. It goes from the
    last pixel to the first and so may read what it has just written; the chains of copies are resolved here for all pixels at once.
    """

    settings = {
        224: ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        32: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        64: ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        299: ((0.8, 1, 3), (1, 3, 1), (1.1, 2, 4), (1.2, 4, 2), (1.6, 5, 2)),
    }

    def scaled(self, setting: tuple[float, int, int], factor: float) -> tuple[float, int, int]:
        sigma, reach, times = setting
        return sigma * factor, max(1, round(reach * factor)), times

    def __call__(self, x: Images, setting: tuple[float, int, int], draw: Streams) -> Tensor:
        sigma, reach, times = setting
        height, width = x.shape[2:]
        moves = draw.integers("moves", -reach, reach, times, height - 2 * reach, width - 2 * reach, 2)
        shuffled = levels(gaussian(x, sigma) + NUDGE).flatten(2).flip(2)
        for right, down in (round_.unbind(-1) for round_ in moves.unbind(1)):
            source = _sources(right, down, reach, height, width)
            shuffled = shuffled.gather(2, source[:, None].expand(-1, x.shape[1], -1))
        return gaussian(shuffled.flip(2).view_as(x).to(x.dtype) / 255, sigma) + NUDGE


def _sources(right: Tensor, down: Tensor, reach: int, height: int, width: int) -> Tensor:
    """(B, H * W): from which pixel each takes its value, both counted from the last pixel back, which is the order in which they are written.

    A pixel that takes from one which was written before it takes what that one took; otherwise it takes what was there. The first is a pointer into
    the left half of a table, to be followed on, the second into the right half, where pointers end. Following all of them twice as far each time
    needs as many rounds as the logarithm of the longest chain.
    """
    size = height * width
    own = torch.arange(size, device=right.device)
    taken = own.expand(len(right), -1).clone().view(-1, height, width)
    inside = (slice(None), slice(reach - 1, height - reach - 1), slice(reach - 1, width - reach - 1))
    taken[inside] -= down * width + right
    taken = taken.flatten(1)
    written = torch.zeros(height, width, dtype=torch.bool, device=right.device)
    written[inside[1:]] = True
    follow = (taken < own) & written.flatten()[taken]
    pointer = taken + size * ~follow
    ends = own.expand_as(pointer) + size
    while (pointer < size).any():
        pointer = torch.cat([pointer, ends], 1).gather(1, pointer)
    return pointer - size
