"""Published sets of corrupted images in arrays: CIFAR-10-C and CIFAR-100-C (.npy), MedMNIST-C (.npz).

Every file holds one corruption: the test images five times, at severities 1 to 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile, is_zipfile

import numpy as np
from PIL import Image
from torch import Tensor

from .classifier import Preprocess
from .corrupted_sets import SEVERITIES, ordered
from .data import CIFAR_EPS
from .errors import DataError
from .labelled import Label, LabelledImages, content_ids, labels_of
from .packed import DAMAGED, Bytes, read_cifar, read_npz
from .pictures import Packed, Pictures, prepared
from .published import found
from .registry import data
from .unpacking import check_npz, quiet_headers

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _once(labels: Sequence[Label], file: Path) -> list[Label]:
    """The labels of the test images, of those of five severities.

    Raises:
        DataError: they are not five times the same.
    """
    count = len(labels) // len(SEVERITIES)
    if not count or list(labels) != list(labels[:count]) * len(SEVERITIES):
        raise DataError(f"{file} holds {len(labels)} labels, which are not those of the test images five times, once for each severity")
    return list(labels[:count])


@data("cifar10-c")
def cifar10_c(path: str, clean: str | None = None) -> CifarC:
    """CIFAR-10-C, one .npy file a corruption: `cifar10-c:/path,clean=/folder/of/the/binary/version`."""
    return CifarC(path, clean, 10, "https://zenodo.org/records/2535967")


@data("cifar100-c")
def cifar100_c(path: str, clean: str | None = None) -> CifarC:
    """CIFAR-100-C, one .npy file a corruption: `cifar100-c:/path,clean=/folder/of/the/binary/version`."""
    return CifarC(path, clean, 100, "https://zenodo.org/records/3555552")


@dataclass(frozen=True)
class CifarC:
    """CIFAR-10-C or CIFAR-100-C: in each file the test images five times, at severities 1 to 5; read from the disk image by image."""

    path: str
    clean: str | None
    classes: Literal[10, 100]
    origin: str

    def read(self, preprocess: Preprocess | None) -> LabelledImages:
        title = f"CIFAR-{self.classes}-C"
        folder = found(self.path, title, self.origin, title)
        if not (folder / "labels.npy").is_file():
            raise DataError(f"{folder} has no labels.npy: get {title} from {self.origin}")
        labels = _once(labels_of(np.array(self._array(folder / "labels.npy")), "labels.npy"), folder / "labels.npy")
        shape = (len(SEVERITIES) * len(labels), 32, 32, 3)
        variants: dict[str, Pictures] = {}
        for name in ordered({file.stem for file in folder.glob("*.npy")} - {"labels"}):
            pixels = self._array(folder / f"{name}.npy")
            if pixels.dtype != np.uint8 or pixels.shape != shape:
                raise DataError(
                    f"{folder / name}.npy holds {pixels.dtype} {pixels.shape}, but {title} has uint8 {shape}: get it from {self.origin}"
                )
            for severity, part in zip(SEVERITIES, np.split(pixels, len(SEVERITIES)), strict=True):
                variants[f"{name}[{severity}]"] = Packed(part, preprocess)
        if not variants:
            raise DataError(f"{folder} has no corruptions beside labels.npy: get {title} from {self.origin}")
        clean, ids = self._clean(labels, preprocess, variants)
        return LabelledImages(
            clean,
            labels,
            ids,
            name=title.lower(),
            classes=self.classes,
            default_eps=CIFAR_EPS,
            source=f"{title}, {len(labels)} images under {len(variants) // len(SEVERITIES)} corruptions in {folder}"
            + (f", clean ones in {self.clean}" if self.clean else ", no clean ones"),
            variants=variants,
            has_clean=self.clean is not None,
            benchmark="cifar-c",
        )

    def _clean(self, labels: Sequence[Any], preprocess: Preprocess | None, variants: Mapping[str, Any]) -> tuple[Packed, list[str]]:
        if self.clean is None:
            first: Packed = next(iter(variants.values()))
            return first, content_ids(first.pixels)
        pixels, theirs = read_cifar(self.clean, self.classes, "test")
        if theirs != labels:
            raise DataError(f"the test labels in {self.clean} are not those of {self.path}: is it CIFAR-{self.classes}, and whole?")
        return Packed(pixels, preprocess), content_ids(pixels)

    def _array(self, file: Path) -> np.ndarray[Any, Any]:
        try:
            with quiet_headers(), np.errstate(over="raise"):  # of sizes that no file has
                array: np.ndarray[Any, Any] = np.lib.format.open_memmap(file, mode="r")  # `np.load` leaves a damaged archive open
            return array
        except DAMAGED as error:
            raise DataError(f"{file} is cut off or no array ({error}): get it again from {self.origin}") from error


@data("medmnist-c")
@dataclass(frozen=True)
class MedMnistC:
    """One data set of MedMNIST-C, a folder with one .npz file a corruption: `medmnist-c:/path/to/pneumoniamnist,clean=/path/to/its.npz`."""

    path: str
    clean: str | None = None

    def read(self, preprocess: Preprocess | None) -> LabelledImages:
        origin = "https://zenodo.org/records/11471504"
        folder = found(self.path, "MedMNIST-C", origin)
        files = {name: folder / f"{name}.npz" for name in ordered(file.stem for file in folder.glob("*.npz"))}
        if not files:
            raise DataError(f"{folder} has no .npz files, one a corruption: MedMNIST-C is to be had from {origin}")
        for file in filter(is_zipfile, files.values()):
            check_npz(file, DataError)
        every = {name: Archive(file, origin) for name, file in files.items()}
        first = next(iter(every.values()))
        labels = _once(labels_of(first.labels, first.file.name), first.file)
        for archive in every.values():
            if archive.shape != (len(SEVERITIES) * len(labels), *first.shape[1:]):
                raise DataError(
                    f"{archive.file} holds images {archive.shape} for {len(labels)} labels and five severities: get it from {origin}"
                )
            if labels_of(archive.labels, archive.file.name) != labels * len(SEVERITIES):
                raise DataError(f"{archive.file} has other labels than {first.file.name}: get both from {origin}")
        variants: dict[str, Pictures] = {
            f"{name}[{severity}]": OfArchive(archive, (severity - 1) * len(labels), len(labels), preprocess)
            for name, archive in every.items()
            for severity in SEVERITIES
        }
        known: dict[str, Any] = {
            "name": f"{folder.resolve().name}-c",
            "source": f"MedMNIST-C, {len(labels)} images under {len(files)} corruptions in {folder}"
            + (f", clean ones in {self.clean}" if self.clean else ", no clean ones"),
            "variants": variants,
            "benchmark": "medmnist-c",
        }
        if self.clean is None:
            ids = content_ids(first.pixels[: len(labels)])
            return LabelledImages(next(iter(variants.values())), labels, ids, has_clean=False, **known)
        clean = read_npz(self.clean, preprocess)
        if list(clean.labels) != labels:
            raise DataError(f"the test labels in {self.clean} are not those of {folder}: is it the same data set?")
        return LabelledImages(clean.pictures, labels, clean.ids, **known)


@dataclass(frozen=True)
class Archive:
    """One corruption of MedMNIST-C: test_images (5N, H, W) or (5N, H, W, C) and test_labels (5N, L), severities one after the other."""

    file: Path
    origin: str

    @property
    def labels(self) -> np.ndarray[Any, Any]:
        return self._array("test_labels")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the images, which are not read for it.

        Raises:
            DataError: the archive is damaged, or its images are no uint8 pictures.
        """
        try:
            with quiet_headers(), ZipFile(self.file) as archive, archive.open("test_images.npy") as stream:
                shape, _, kind = HEADERS[np.lib.format.read_magic(stream)](stream)
        except DAMAGED as error:
            raise self._damaged(error) from error
        if kind != np.uint8 or len(shape) not in (3, 4) or shape[3:] not in ((), (1,), (3,)):
            raise DataError(f"{self.file}: test_images must be uint8 (N, H, W) or (N, H, W, C) with 1 or 3 channels, got {kind} {shape}")
        return tuple(shape)

    @property
    def pixels(self) -> Bytes:
        """(5N, H, W) or (5N, H, W, 3), kept until another archive is read."""
        return _pixels(self)

    def _array(self, name: str) -> np.ndarray[Any, Any]:
        try:
            with quiet_headers(), self.file.open("rb") as stream:  # NumPy leaves a damaged archive open when it opens the file itself
                found_there: np.ndarray[Any, Any] = np.load(stream, allow_pickle=False)[name]
                return found_there
        except DAMAGED as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"{self.file} is cut off or lacks test_images and test_labels ({error}): get it again from {self.origin}")


@lru_cache(maxsize=1)  # conditions are evaluated one after the other, and one archive may take gigabytes
def _pixels(archive: Archive) -> Bytes:
    images = archive._array("test_images")
    return images[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else images


@dataclass(frozen=True)
class OfArchive:
    """The images of one severity: `count` of them from `first` on."""

    archive: Archive
    first: int
    count: int
    preprocess: Preprocess | None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Tensor:
        return prepared(Image.fromarray(self.archive.pixels[self.first + range(self.count)[index]]), self.preprocess)
