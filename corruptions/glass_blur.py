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

    The reference means to swap two pixels and copies one over the other, since its rows are views: the copy is kept. It goes from the last
    pixel to the first and so may read what it has just written; the chains of copies are resolved here for all pixels at once.
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
        # One number for both offsets, right and down, each in -reach..reach - 1: half as many draws.
        moves = draw.integers("moves", 0, (2 * reach) ** 2, times, height - 2 * reach, width - 2 * reach)
        shuffled = levels(gaussian(x, sigma) + NUDGE).flatten(2).flip(2)
        for move in moves.unbind(1):
            source = _sources(move, reach, height, width)
            shuffled = shuffled.gather(2, source[:, None].expand(-1, x.shape[1], -1))
        return gaussian(shuffled.flip(2).view_as(x).to(x.dtype) / 255, sigma) + NUDGE


def _sources(move: Tensor, reach: int, height: int, width: int) -> Tensor:
    """(B, H * W): from which pixel each takes its value, both counted from the last pixel back, as they are written.

    A pixel that reads one which was written before takes what that one took; otherwise it takes what was there. All of these chains are
    followed twice as far each round, so that the rounds are the logarithm of the longest.
    """
    offsets = torch.arange(-reach, reach, device=move.device)
    back = (offsets[:, None] + offsets * width).flatten()  # by the number of a move, right and then down
    own = torch.arange(height * width, device=move.device)
    read = own.repeat(len(move), 1)
    read.view(-1, height, width)[:, reach - 1 : height - reach - 1, reach - 1 : width - reach - 1] -= back[move]
    first = torch.minimum(read, own)  # a pixel at the border, which is not written, reads itself
    while not torch.equal(further := first.gather(1, first), first):
        first = further
    return read.gather(1, first)
