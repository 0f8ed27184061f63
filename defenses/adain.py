"""Stylised training, images repainted by AdaIN (Geirhos et al., ICLR 2019, https://arxiv.org/abs/1811.12231)."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from itertools import repeat
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Images, Preprocess
from robustbench_lite.defending import About, Batch, Kind
from robustbench_lite.errors import DataError, ModelError, UsageError
from robustbench_lite.imagefolder import SUFFIXES
from robustbench_lite.pictures import Files
from robustbench_lite.registry import defense
from robustbench_lite.streams import Streams
from robustbench_lite.style import SMALLEST, Decoder, Encoder, adain, moments, read_decoder, read_encoder

from .feed import READERS

PIXELS = 2**19
"""Images are repainted in parts of about so many pixels: relu1_1 alone has 64 values a pixel."""

TRIED = 4
"""Paintings on which it is tried whether the decoder undoes the encoder."""

NAMED = 10
"""Paintings that cannot be read, of which a message names so many."""


@defense("stylised")
@dataclass(frozen=True)
class Stylised:
    """Repaint images in the style of paintings, so that texture says nothing of the class and shape does.

    Costs a pass through VGG-19 and its decoder for every repainted image, several times a ResNet-50's step, and memory of 4 kB a painting.
    All paintings are read once before the first step, to name those that cannot be used.
    The weights and the paintings are yours to bring (the paper's: AdaIN's own and Kaggle's Painter by Numbers); without them, see
    `style-statistics`. The paper repaints every image once and keeps it, here each epoch draws a painting anew. Images of 32 pixels have
    only 4 x 4 places to repaint.

    Args:
        encoder: weights of VGG-19, torchvision's or the authors', as .safetensors or of torch.save.
        decoder: weights of the decoder that was trained for this encoder.
        styles: a folder of pictures, at any depth.
        alpha: how far the features go from the image's moments (0) to the painting's (1).
        share: of the images; 1 is SIN, 0.5 SIN+IN.
    """

    kind: ClassVar[Kind] = "augmentation"
    trained_on: ClassVar[tuple[str, ...]] = ("stylise",)

    encoder: str
    decoder: str
    styles: str
    alpha: Annotated[float, Field(ge=0, le=1)] = 1.0
    share: Annotated[float, Field(gt=0, le=1)] = 1.0

    @cached_property
    def studio(self) -> "Studio":
        """Nothing but training asks for it: a checkpoint says its defense where neither weights nor paintings are."""
        return Studio(read_encoder(self.encoder), read_decoder(self.decoder), paintings(self.styles))

    @property
    def taught_by(self) -> str:
        """Digest of the weights, by their values, and of the paintings, by their names and sizes, as data sets have theirs."""
        total = sha256()
        for network in (self.studio.encoder, self.studio.decoder):
            for name, values in network.state_dict().items():
                total.update(f"{name} {tuple(values.shape)}\n".encode() + values.cpu().numpy().tobytes())
        folder = Path(self.styles).expanduser()
        for painting in self.studio.paintings:
            total.update(f"{painting.relative_to(folder)}\t{painting.stat().st_size}\n".encode())
        return total.hexdigest()[:16]

    def informed(self, about: About) -> "Stylised":
        """Itself, its networks loaded and on the device.

        Raises:
            UsageError: images of other than 1 or 3 channels, or too small.
            ModelError, DataError: weights or paintings that cannot be used.
        """
        channels, height, width = about.shape
        if channels not in (1, 3) or min(height, width) < SMALLEST:
            raise UsageError(
                f"stylised: images of {channels} channels and {height} x {width} pixels cannot be repainted: "
                f"it takes 1 or 3 channels and {SMALLEST} pixels a side, see style-statistics"
            )
        self.studio.to(about.device)
        self.studio.check(height, width)
        return self

    def augment(self, batch: Batch, draw: Streams) -> Batch:
        chances = draw.uniform("stylised", 2)
        rows = (chances[:, 0] < self.share).nonzero()[:, 0]
        if not len(rows):
            return batch
        styles = (chances[rows, 1].double() * len(self.studio.paintings)).long()
        images = batch.images.clone()
        images[rows] = self.studio.repainted(batch.images[rows], styles.tolist(), self.alpha)
        return replace(batch, images=images)


@dataclass(eq=False)
class Studio:
    """The networks and the paintings. moments: (2, 512, 1, 1) mean and standard deviation of the paintings looked at so far."""

    encoder: Encoder
    decoder: Decoder
    paintings: Sequence[Path]
    moments: dict[int, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> None:
        self.encoder.to(device)
        self.decoder.to(device)

    def check(self, height: int, width: int) -> None:
        """Read every painting, and try the networks on a few.

        Raises:
            ModelError: what comes back is farther from them than their mean colour, as from a decoder that belongs to another encoder.
            DataError: paintings that cannot be read; met later, one would end a training that could not go on without it.
        """
        count = len(self.paintings)
        with ThreadPoolExecutor(READERS) as readers:
            torn = [said for said in readers.map(self._unreadable, range(count), repeat(height), repeat(width)) if said]
        if torn:
            more = ["..."] * (len(torn) > NAMED)
            raise DataError(f"{len(torn)} of {count} paintings must be taken away: {'; '.join(torn[:NAMED] + more)}")
        tried = torch.stack([self.painting(index, height, width) for index in range(min(TRIED, count))])
        back = self.repainted(tried, range(len(tried)), 0.0)
        lost, flat = (back - tried).square().mean(), (tried.mean((2, 3), keepdim=True) - tried).square().mean()
        if not bool(lost <= flat):
            raise ModelError(
                f"stylised: paintings come back from the decoder with a mean square error of {float(lost):.3f}, and one flat colour "
                f"would have {float(flat):.3f}: name the decoder that was trained for this encoder"
            )

    @torch.no_grad()
    def repainted(self, images: Images, styles: Sequence[int], alpha: float) -> Images:
        """(B, C, H, W) in [0, 1]: the images, each after the painting of its number."""
        height, width = images.shape[2:]
        made = []
        at_once = max(1, PIXELS // (height * width))
        for first in range(0, len(images), at_once):
            features = self.encoder(images[first : first + at_once].expand(-1, 3, -1, -1))
            if alpha:  # else the paintings need not be looked at
                mean, std = torch.stack([self._moments(style, height, width) for style in styles[first : first + at_once]]).unbind(1)
                features = torch.lerp(features, adain(features, mean, std), alpha)
            made.append(self.decoder(features)[:, :, :height, :width].clamp(0, 1))
        painted = torch.cat(made)
        return painted if images.shape[1] == 3 else painted.mean(1, keepdim=True)

    def painting(self, index: int, height: int, width: int) -> Images:
        """(3, H, W): a painting cut to a picture of this size, its shorter side having been 8/7 as long.

        Raises:
            DataError: it cannot be read.
        """
        framed = Preprocess(size=(height, width), resize=round(max(height, width) * 8 / 7))
        return Files(self.paintings, framed)[index].to(self.encoder.colours.weight.device)

    def _unreadable(self, index: int, height: int, width: int) -> str | None:
        try:
            self.painting(index, height, width)
        except DataError as error:
            return str(error)
        return None

    def _moments(self, index: int, height: int, width: int) -> Tensor:
        if index not in self.moments:
            # one by one, so that a painting's moments are the same to the last bit whatever was looked at with it
            features = self.encoder(self.painting(index, height, width)[None])
            self.moments[index] = torch.cat(moments(features))
        return self.moments[index]


def paintings(folder: str | Path) -> list[Path]:
    """The pictures in a folder, at any depth, sorted.

    Raises:
        DataError: no such folder, or no pictures in it.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise DataError(f"there is no folder of paintings {place}")
    found = sorted(path for path in place.rglob("[!.]*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise DataError(f"{place} has no pictures (looked for {' '.join(sorted(SUFFIXES))}): put the paintings there")
    return found
