"""Where the images of a data set are read from, one at a time: chosen from another source, packed in one array, or in files."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from torch import Tensor

from . import dicom
from .classifier import Preprocess
from .errors import DataError, first_line

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

    from .classifier import Levels

WHITE_IS_ZERO = 262, 0
"""The tag of a TIFF file that says what its values mean, and what it says where they are inverted."""
BITS = 258
"""The tag of a TIFF file that says how many bits a value has."""
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM", "WEBP", "GIF", "JPEG2000")
"""Those that Pillow decodes by itself: it hands EPS to Ghostscript, whatever the file is called."""
LARGE = 4 * 2**20
"""Bytes of a file above which threads decode one at a time: of these pictures a few at once would fill the memory."""
ONE_AT_A_TIME = threading.Lock()


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
    """Picture and DICOM files, opened when they are asked for. paths: below `folder`, where they are not whole.

    Raises (on access):
        DataError: a file that is no picture, is cut off, has several pages or more than 16 bits a channel; its path is named.
    """

    paths: Sequence[Path | str]
    preprocess: Preprocess | None = None
    folder: Path = Path()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Tensor:
        file = self.folder / self.paths[index]
        try:
            if dicom.is_dicom(file):
                return prepared_levels(dicom.read(file), self.preprocess)
            with quietly():
                return self._decoded(file)
        except (DataError, MemoryError):
            raise
        except Exception as error:  # a damaged file makes Pillow fail in any way
            raise DataError(f"cannot read the image {file}: {first_line(error)}") from error

    def beside(self, index: int) -> Tensor | None:
        """The same for a thread beside the one that keeps `quietly`; None for DICOM, whose reader has to be kept quiet in another way."""
        file = self.folder / self.paths[index]
        if dicom.is_dicom(file):
            return None
        if file.stat().st_size <= LARGE:
            return self._decoded(file)
        with ONE_AT_A_TIME:
            return self._decoded(file)

    def _decoded(self, file: Path) -> Tensor:
        with picture_in(file) as picture:
            if picture.format == "TIFF" and (pages := getattr(picture, "n_frames", 1)) > 1:
                raise ValueError(f"it holds {pages} pages: write each into a file of its own")
            return prepared(picture, self.preprocess)


def beside(pictures: Pictures) -> Callable[[int], Tensor | None] | None:
    """How a thread reads these pictures by position; None for those that are not in files, and gain nothing by it."""
    if isinstance(pictures, Files):
        return pictures.beside
    if isinstance(pictures, Chosen) and (read := beside(pictures.pictures)) is not None:
        return lambda index: read(pictures.indices[index])
    return None


def picture_in(file: Path | BinaryIO) -> ImageFile:
    """A picture in a file, opened but not decoded; to be called `quietly`.

    Raises:
        OSError: no picture, or none of `FORMATS`.
        ValueError: more pixels than Pillow's `MAX_IMAGE_PIXELS`, of which Pillow itself would only warn.
    """
    from PIL import Image

    try:
        picture = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{str(error).partition(',')[0]}, as decompression bombs do: scale it down") from None
    pixels, most = picture.width * picture.height, Image.MAX_IMAGE_PIXELS
    if most is not None and pixels > most:
        picture.close()
        raise ValueError(f"Image size ({pixels} pixels) exceeds limit of {most} pixels, as decompression bombs do: scale it down")
    return picture


@contextmanager
def quietly() -> Iterator[None]:
    """Without what Pillow warns of, such as metadata that is cut off: sets of pictures are full of it.

    Filters are the process's: one thread keeps this for all that read, or they would restore each other's.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        yield


def prepared(picture: Image, preprocess: Preprocess | None) -> Tensor:
    """(C, H, W) float32 in [0, 1]; without a preprocess the picture keeps its size, and its one channel where it is grey."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        return prepared_levels(_sixteen_bits(picture), preprocess)
    if preprocess is None:
        preprocess = Preprocess(size=None, resize=None, channels=1 if picture.mode in ("L", "1") else 3)
    return preprocess(picture)


def prepared_levels(levels: Levels, preprocess: Preprocess | None) -> Tensor:
    """The same of a picture of more than 8 bits a channel."""
    return (preprocess or Preprocess(size=None, resize=None, channels=1 if levels.ndim == 2 else 3)).of_levels(levels)


def _sixteen_bits(picture: Image) -> Levels:
    """(H, W), where all that the file's bits can hold is white, whatever the picture holds: one of 12 bits in a file of 16 is as dark as
    any viewer shows it.

    Raises:
        ValueError: it has another range, which Pillow would clip at 255 without a word: a white X-ray.
    """
    import numpy as np

    widened = picture.mode == "I" and picture.format in ("PNG", "PPM")  # what Pillow makes of 16 bits in these files
    if not (widened or picture.mode.startswith("I;16")):
        raise ValueError(
            f"it has signed values or more than 16 bits a channel (mode {picture.mode}): convert it, "
            "or pass float images in [0, 1] as npz:FILE"
        )
    tags = getattr(picture, "tag_v2", {})
    bits = int(tags.get(BITS, (16,))[0])  # TIFF can pack values of 12
    levels = np.asarray(picture, dtype=np.float64) / (2.0**bits - 1)
    tag, inverted = WHITE_IS_ZERO
    if tags.get(tag) == inverted:  # which Pillow heeds for 8 bits only
        levels = 1 - levels
    return levels.astype(np.float32)
