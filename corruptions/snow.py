"""Snow, of ImageNet-C (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.filters import NUDGE, clipped_zoom, motion_blur
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams


class Snowfall(NamedTuple):
    """How it snows.

    Args:
        mean: of the noise that flakes come from.
        deviation: its standard deviation.
        zoom: how many times the flakes are enlarged.
        threshold: the noise below which there is no flake.
        radius: of the flakes' motion, in pixels.
        sigma: standard deviation of that motion, in pixels.
        kept: the share of the image that is not whitened.
    """

    mean: float
    deviation: float
    zoom: float
    threshold: float
    radius: float
    sigma: float
    kept: float


@corruption("snow")
@dataclass(frozen=True)
class Snow:
    """Let noise above a threshold fall as flakes over an image that is whitened where it is dark: once as they are and once
    turned by 180 degrees.

    A setting is a `Snowfall`.
    """

    settings = {
        224: (
            Snowfall(0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            Snowfall(0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            Snowfall(0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            Snowfall(0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            Snowfall(0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        32: (
            Snowfall(0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            Snowfall(0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            Snowfall(0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            Snowfall(0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            Snowfall(0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        64: (
            Snowfall(0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            Snowfall(0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            Snowfall(0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            Snowfall(0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            Snowfall(0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
    }
    settings[299] = settings[224]
    colour = True

    def scaled(self, setting: Snowfall, factor: float) -> Snowfall:
        return setting._replace(radius=setting.radius * factor, sigma=setting.sigma * factor)

    def __call__(self, x: Images, setting: Snowfall, draw: Streams) -> Tensor:
        height, width = x.shape[2:]
        noise = draw.normal("flakes", height, width)[:, None].to(x.dtype) * setting.deviation + setting.mean
        flakes = clipped_zoom(noise, setting.zoom)
        flakes = (flakes.where(flakes >= setting.threshold, 0).clamp(0, 1) * 255).floor() / 255
        angle = draw.uniform("angle", low=-135, high=-45)
        flakes = motion_blur(flakes, setting.radius, setting.sigma, angle).to(x.dtype) / 255
        red, green, blue = x.unbind(1)
        grey = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
        whitened = x.maximum(grey * 1.5 + 0.5).mul_(1 - setting.kept).add_(x, alpha=setting.kept)
        return whitened.add_(flakes + flakes.flip(2, 3) + NUDGE)
