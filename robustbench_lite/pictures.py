"""Where the images of a data set are read from, one at a time: chosen from another source, packed in one array, or in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from .classifier import Preprocess
from .errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


class Pictures(Protocol):
    """What images are read from by position; a stacked (N, C, H, W) tensor is one of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor:
        """(C, H, W) float32 in [0, 1]."""
        ...


@dataclass(frozen=True)
class Chosen:
    """Some of the images of another source, in the order of `indices`, without copying them."""

    pictures: Pictures
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Tensor:
        return self.pictures[self.indices[index]]


@dataclass(frozen=True)
class Packed:
    """Pictures in one uint8 array, (N, H, W) grey or (N, H, W, 3), prepared when they are asked for."""

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    preprocess: Preprocess | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int, /) -> Tensor:
        from PIL import Image

        return prepared(Image.fromarray(self.pixels[index]), self.preprocess)


@dataclass(frozen=True)
class Files:
    """Picture files, opened when they are asked for. paths: below `folder`, where they are not whole.

    Raises (on access):
        DataError: a file that is no picture, is cut off, or has more than 8 bits a channel; its path is named.
    """

    paths: Sequence[Path | str]
    preprocess: Preprocess | None = None
    folder: Path = Path()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Tensor:
        from PIL import Image

        file = self.folder / self.paths[index]
        try:
            with Image.open(file) as picture:
                return prepared(picture, self.preprocess)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises for a damaged file
            raise DataError(f"cannot read the image {file}: {error}") from error


def prepared(picture: Image, preprocess: Preprocess | None) -> Tensor:
    """(C, H, W) float32 in [0, 1]; without a preprocess the picture keeps its size, and its one channel where it is grey."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        # Pillow would clip such values at 255 without a word, which turns a 16-bit X-ray white
        raise ValueError(f"it has more than 8 bits a channel (mode {picture.mode}): convert it, or pass float images in [0, 1] as npz:FILE")
    if preprocess is None:
        preprocess = Preprocess(size=None, resize=None, channels=1 if picture.mode in ("L", "1") else 3)
    return preprocess(picture)
