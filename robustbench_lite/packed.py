"""Data sets packed in few files: .npz archives and the binary version of CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal
from zipfile import BadZipFile, is_zipfile
from zlib import error as ZlibError

import numpy as np

from .classifier import Preprocess
from .errors import DataError
from .labelled import LabelledImages, content_ids, from_arrays, labels_of
from .patients import SPLITS, apart, patients_in, patients_of
from .pictures import Packed
from .unpacking import check_npz, quiet_headers

KEYS = (
    ("images", "labels", "patients"),
    ("x", "y", "patients"),
    ("test_images", "test_labels", "test_patients"),  # MedMNIST's
)

DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    BadZipFile,
    ZlibError,
    NotImplementedError,
    SyntaxError,
    TokenError,
    MemoryError,
    ArithmeticError,
)
"""What NumPy and zipfile raise for a file that is cut off, no array, or one of impossible size; array headers are read as Python is."""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def read_npz(path: str, preprocess: Preprocess | None, patients: str | None = None) -> LabelledImages:
    """The images and labels of an .npz file.

    Args:
        path: holds `images` and `labels`, `x` and `y`, or `test_images` and `test_labels`. Images are uint8 (N, H, W),
            (N, H, W, C) or (N, C, H, W) with C = 1 or 3, or floats in [0, 1] of these shapes. `patients` (`test_patients`) may say whose,
            and `synthetic` what images of nothing real are called.
        preprocess: applied to uint8 pictures; floats are taken as they are.
        patients: a CSV file that says whose images they are, by `index`.

    Raises:
        DataError: no such file, no such arrays, damaged, or arrays that are no images; patients as in `patients`.
    """
    file = Path(path).expanduser()
    with opened(file) as archive:
        keys = next((keys for keys in KEYS if set(keys[:2]) <= set(archive.files)), None)
        if keys is None:
            wanted = ", or ".join(f"{images} and {labels}" for images, labels, _ in KEYS)
            raise DataError(f"{file} holds {', '.join(archive.files) or 'nothing'}: it needs the arrays {wanted}")
        images, labels = archive[keys[0]], archive[keys[1]]
        if keys is KEYS[-1]:
            groups = split_patients(archive, "test", file)
        else:
            groups = patients_of(archive["patients"], "patients") if "patients" in archive.files else None
        synthetic = synthetic_name(archive)
    if patients is not None:
        groups = patients_in(patients, "index", [str(index) for index in range(len(images))])
    read = _labelled(_channels_last(images, file), labels, file, preprocess)
    return replace(read, groups=groups, name=synthetic or read.name, synthetic=synthetic is not None)


def _labelled(images: Any, labels: Any, file: Path, preprocess: Preprocess | None) -> LabelledImages:
    if images.dtype != np.uint8:
        planes = images[..., None] if images.ndim == 3 else images
        return from_arrays(planes.transpose(0, 3, 1, 2), labels, file.stem, source=f"{file}, floats taken as they are")
    grey = without_grey_axis(images)
    return LabelledImages(Packed(grey, preprocess), labels_of(labels, file.stem), content_ids(grey), file.stem, source=f"{file}")


def without_grey_axis(images: Bytes) -> Bytes:
    """(N, H, W, 1) as (N, H, W); colour as it is."""
    return images[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else images


def split_patients(archive: Any, split: str, file: Path) -> list[str] | None:
    """The patients of a split, where the archive has an array such as `test_patients`.

    Raises:
        DataError: not one patient an image, or some are in a split that comes earlier.
    """
    keys = {each: next((key for key in (f"{each}_patients", f"{each}_patient") if key in archive.files), None) for each in SPLITS}
    known = {each: patients_of(archive[key], f"{key} in {file}") for each, key in keys.items() if key is not None}
    apart(known, split, str(file))
    return known.get(split)


def synthetic_name(archive: Any) -> str | None:
    """What images that are of nothing real are called, where the archive says so in the array `synthetic`: `phantom:chest`."""
    return str(archive["synthetic"]) if "synthetic" in archive.files else None


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """An .npz archive, whose arrays are read when they are asked for.

    Raises:
        DataError: no such file, damaged, pickled objects, one array alone, or arrays that would fill the memory.
    """
    if not file.is_file():
        raise DataError(f"there is no file {file}")
    try:
        if is_zipfile(file):
            check_npz(file, DataError)
        with quiet_headers(), file.open("rb") as stream:  # NumPy leaves a damaged archive open when it opens the file itself
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{file} holds one array: save images and labels with numpy.savez(FILE, images=..., labels=...)")
            yield archive
    except DAMAGED as error:
        if "allow_pickle" in str(error):
            raise DataError(f"{file} holds pickled objects, which could run code: save plain arrays of numbers instead") from error
        raise DataError(f"{file} is damaged or no .npz file: {error}") from error


def _channels_last(images: Any, file: Path) -> Any:
    if images.ndim == 3:
        return images
    if images.ndim == 4 and images.shape[-1] in (1, 3):
        return images
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    raise DataError(f"{file}: images must be (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, got {images.shape}")


def read_cifar(path: str, classes: Literal[10, 100], split: Literal["test", "train"]) -> tuple[Bytes, list[int]]:
    """Pixels (N, 32, 32, 3) and labels of the official binary version; CIFAR-100's fine labels.

    Args:
        path: the folder of the .bin files, or the folder that it lies in.

    Raises:
        DataError: no such folder or files, the Python version (pickles), or a file that is cut off.
    """
    folder = Path(path).expanduser()
    inner = folder / ("cifar-10-batches-bin" if classes == 10 else "cifar-100-binary")
    folder = inner if inner.is_dir() else folder
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    batches = [f"data_batch_{number}.bin" for number in range(1, 6)]
    names = {10: {"test": ["test_batch.bin"], "train": batches}, 100: {"test": ["test.bin"], "train": ["train.bin"]}}[classes][split]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(_no_binaries(folder, classes, missing[0]))
    label_bytes = 1 if classes == 10 else 2  # CIFAR-100 has the coarse label first, then the fine one
    records = np.concatenate([_records(folder / name, label_bytes + 3072) for name in names])
    pixels = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), [int(label) for label in records[:, label_bytes - 1]]


def _records(file: Path, length: int) -> Bytes:
    content = np.fromfile(file, dtype=np.uint8)
    if not len(content) or len(content) % length:
        raise DataError(f"{file} is cut off or no CIFAR file: it has {len(content)} bytes, which is no multiple of {length}")
    return content.reshape(-1, length)


def _no_binaries(folder: Path, classes: int, missing: str) -> str:
    version = f"the binary version, cifar-{classes}-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html"
    pickles = [place for place in (folder, folder / f"cifar-{classes}-batches-py", folder / "cifar-100-python") if _has_pickles(place)]
    if pickles:
        return f"{pickles[0]} is the Python version of CIFAR-{classes}, whose pickles could run code when read: get {version}"
    return f"{folder} has no {missing}: get {version}"


def _has_pickles(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("data_batch_1", "test_batch", "train", "test"))
