"""Frost, of ImageNet-C (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from dataclasses import dataclass

from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.ice import computed, photographed, photographs
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams

Frosting = tuple[float, float, float]
"""The image's weight, the ice's weight, and how many times the pictures of ice are resized before a piece is cut out of them."""


@corruption("frost")
@dataclass(frozen=True)
class Frost:
    """Add a piece of a picture of ice on glass to the image.

    The benchmark's five photographs come from unknown places and are not in this package. Without them pictures are computed that have
    their colours, percentiles and spectra: not the benchmark, and therefore named `frost(procedural)`. As published, the sixth photograph
    is never used, the second and the third are the same, and small pictures are cut from photographs that were made small without
    smoothing.

    A setting is a `Frosting`.

    Args:
        folder: of frost1.png, frost2.png, frost3.png, frost4.jpg and frost5.jpg.
    """

    settings = {
        224: ((1.0, 0.4, 1.0), (0.8, 0.6, 1.0), (0.7, 0.7, 1.0), (0.65, 0.7, 1.0), (0.6, 0.75, 1.0)),
        32: ((1.0, 0.2, 0.2), (1.0, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
        64: ((1.0, 0.3, 0.3), (0.9, 0.4, 0.3), (0.8, 0.45, 0.3), (0.75, 0.5, 0.3), (0.7, 0.55, 0.3)),
        299: ((1.0, 0.4, 1.0), (0.8, 0.6, 1.0), (0.7, 0.7, 1.0), (0.65, 0.7, 1.0), (0.6, 0.75, 1.0)),
    }
    colour = True

    folder: str | None = None

    def __post_init__(self) -> None:
        if self.folder is not None:
            photographs(self.folder)  # what cannot be read is refused now

    @property
    def label(self) -> str:
        return "frost(procedural)" if self.folder is None else "frost"

    def scaled(self, setting: Frosting, factor: float) -> Frosting:
        image, ice, size = setting
        return image, ice, size * factor

    def __call__(self, x: Images, setting: Frosting, draw: Streams) -> Tensor:
        image_weight, ice_weight, scale = setting
        height, width = x.shape[2:]
        ice = computed(scale, height, width, draw) if self.folder is None else photographed(self.folder, scale, height, width, draw)
        blend = (x * 255).round_().mul_(image_weight).add_(ice.to(x.dtype).mul_(ice_weight))
        return blend.clamp_(0, 255).byte()
