"""Style as statistics of pixels: the moments of MixStyle (Zhou et al., ICLR 2021, https://arxiv.org/abs/2104.02008).

Or the amplitudes of amplitude-phase recombination (Chen et al., ICCV 2021, https://arxiv.org/abs/2108.08487).
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.defending import Batch, Kind
from robustbench_lite.registry import defense
from robustbench_lite.rows import per_sample, pick
from robustbench_lite.streams import Streams
from robustbench_lite.style import adain, moments

from .mixing import partnered


@defense("style-statistics")
@dataclass(frozen=True)
class StyleStatistics:
    """Give images the statistics of another image of the batch: brightness, contrast and colour, or the amplitude of every frequency.

    Costs nothing and needs neither weights nor paintings. It is a stand-in for `stylised` and none of its figures are the paper's: moments
    leave every texture in place, and amplitudes take only what of a texture is periodic. Both do what the corruptions brightness, contrast,
    fog and saturate do; evaluating a model there says so. Not for data whose classes hang on colour or texture.

    Args:
        how: `moments` of every channel, `fourier` amplitudes (which hold the moments too), or `both`, one or the other by chance.
        share: of the images that is changed.
        alpha: of the Beta distribution of what an image keeps of its own statistics (MixStyle: 0.1); by default it keeps nothing.
    """

    kind: ClassVar[Kind] = "mixing"
    trained_on: ClassVar[tuple[str, ...]] = ("stylise", "brightness", "contrast", "color")

    how: Literal["moments", "fourier", "both"] = "both"
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    alpha: Annotated[float, Field(ge=0.05)] | None = None

    def augment(self, batch: Batch, draw: Streams) -> Batch:
        images, chances = batch.images, draw.uniform("style statistics", 2)
        partner, kept = partnered(draw, self.alpha or 1.0, "style")
        kept = per_sample(kept if self.alpha else torch.zeros_like(kept), images)
        by_amplitude = {"moments": chances[:, 1] < 0, "fourier": chances[:, 1] >= 0, "both": chances[:, 1] < 0.5}[self.how]
        made = pick(by_amplitude, with_amplitude(images, images[partner], kept), with_moments(images, images[partner], kept))
        return replace(batch, images=pick(chances[:, 0] < self.share, made.clamp(0, 1), images))


def with_moments(images: Images, styles: Images, kept: Tensor) -> Tensor:
    """(B, C, H, W) images whose channels have mean and standard deviation between their own, of which they keep a share, and the styles'.

    Args:
        kept: (B, 1, 1, 1) in [0, 1].
    """
    (own_mean, own_std), (mean, std) = moments(images), moments(styles)
    return adain(images, torch.lerp(mean, own_mean, kept), torch.lerp(std, own_std, kept))


def with_amplitude(images: Images, styles: Images, kept: Tensor) -> Tensor:
    """The same of the amplitude of every frequency of every channel; the phases are the images' own."""
    own = torch.fft.rfft2(images)
    amplitude = torch.lerp(torch.fft.rfft2(styles).abs(), own.abs(), kept)
    made: Images = torch.fft.irfft2(torch.polar(amplitude, own.angle()), s=images.shape[2:])
    return made
