"""Random resizing and padding (Xie, Wang, Zhang, Ren, Yuille, ICLR 2018, https://arxiv.org/abs/1711.01991)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from robustbench_lite.checks import taken
from robustbench_lite.classifier import Classifier, Images
from robustbench_lite.defending import Kind
from robustbench_lite.errors import ModelError
from robustbench_lite.registry import defense

from .around import in_place_of


class Resizing(nn.Module):
    """Each image of a batch resized to a size of its own, and put at a place of its own on a black canvas. Differentiable.

    Sizes and places come from torch's random state, as what dropout draws does, since a model has no other; an evaluation sets it. They
    are drawn on the CPU, so that they are equal on all devices.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what comes out."""
        return round(height * self.high), round(width * self.high)

    def forward(self, x: Images) -> Images:
        height, width = x.shape[2:]
        tall, wide = self.canvas(height, width)
        least = min(max(1, round(height * self.low)), tall)
        new = torch.randint(least, max(tall, least + 1), (len(x),))  # the paper's 299..330 of 331
        across = (new * width / height).round().long().clamp(1, wide)
        top, left = ((torch.rand(len(x)) * (room - size + 1)).long() for room, size in ((tall, new), (wide, across)))
        down, inside_down = _positions(tall, top, new, x)
        along, inside_along = _positions(wide, left, across, x)
        grid = torch.stack([along[:, None].expand(-1, tall, -1), down[:, :, None].expand(-1, -1, wide)], -1)
        resized = grid_sample(x, grid, padding_mode="border", align_corners=False)
        return resized * (inside_down[:, None, :, None] & inside_along[:, None, None, :])

    def extra_repr(self) -> str:
        return f"low={self.low:g}, high={self.high:g}"


def _positions(room: int, start: Tensor, size: Tensor, like: Images) -> tuple[Tensor, Tensor]:
    """(B, room): where each row or column of the canvas lies in the image, whose edges are -1 and 1, and whether it does."""
    place = torch.arange(room) - start[:, None]
    inside = (place >= 0) & (place < size[:, None])
    return ((2 * place + 1) / size[:, None] - 1).to(like), inside.to(like.device)


@defense("resizing")
@dataclass(frozen=True)
class RandomResizing:
    """Resize every image to a random size and put it at a random place on a black canvas before the model sees it.

    Costs little. Its randomness is averaged out by attacks that take the mean of many gradients (EOT), as all here do with randomised
    models (`--eot`, 20 by default), so that it is not to be relied on (Athalye et al., ICML 2018).

    By default images shrink and the canvas is of their own size, so that every network takes it. The paper enlarges instead, which
    needs a network that takes images of another size: `resizing:low=1,high=331/299`. Its code takes the nearest pixel; this interpolates.

    Args:
        low: smallest size, as a share of the image's own.
        high: size of the canvas, as a share of the image's own; images are smaller by at least a pixel, unless low equals high.
    """

    kind: ClassVar[Kind] = "input"

    low: Annotated[float, Field(gt=0, le=4)] = 0.9
    high: Annotated[float, Field(gt=0, le=4)] = 1.0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"images are resized from low={self.low:g} to high={self.high:g} of their size: high must not be below low")

    def wrap(self, classifier: Classifier) -> Classifier:
        """Resizes images in [0, 1]; the classifier inside normalises.

        Raises:
            ModelError: the network does not take images of the canvas's size.
        """
        layer, size = Resizing(self.low, self.high), classifier.preprocess.size
        if size is not None and layer.canvas(*size) != size:
            try:
                taken(classifier, torch.zeros(1, classifier.preprocess.channels, *layer.canvas(*size), device=classifier.device))
            except ModelError as error:
                raise ModelError(f"resizing enlarges images: {error}; write resizing:low=0.9,high=1, which leaves their size") from error
        return in_place_of(classifier, resizing=layer, classifier=classifier)
