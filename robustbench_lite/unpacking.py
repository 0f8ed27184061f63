"""What zip files of others may unpack to: a few bytes can hold gigabytes of zeros, and a header can promise more than there is."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo
from zlib import error as ZlibError

from .errors import UsageError

LARGEST_GIB = 32
"""Of one part of an archive; the largest array of MedMNIST has 13."""
VARIABLE = "ROBUST_EVAL_MAX_UNPACKED_GIB"
MOST_TIMES, FREE = 200, 2**28
"""Pictures shrink to a third, masks to a fiftieth; a part that grows more than 200 times is refused once it is larger than 256 MiB."""


@contextmanager
def quiet_headers() -> Iterator[None]:
    """Without NumPy's warning of arrays that Python 2 wrote, which it takes damaged headers for: what they say is checked."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Reading `\.npy` or `\.npz` file required additional header parsing")
        yield


def check_zip(file: Path, error: type[UsageError]) -> None:
    """Refuse a zip file that would fill the memory, before anything of it is unpacked.

    Raises:
        UsageError: (or the kind that is given) a part that grows beyond reason, or is packed in a way that NumPy and torch never use.
        BadZipFile, OSError: it cannot be read.
    """
    with ZipFile(file) as archive:
        for part in archive.infolist():
            _check(file, part, error)


def check_npz(file: Path, error: type[UsageError]) -> None:
    """The same of an .npz file, and that no array's header promises more than is there, since NumPy makes room for what it promises.

    Raises:
        UsageError: as `check_zip`, and arrays that are damaged.
    """
    import numpy as np

    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        check_zip(file, error)
        with quiet_headers(), ZipFile(file) as archive:
            for part in (part for part in archive.infolist() if part.filename.endswith(".npy")):
                with archive.open(part) as stream:
                    shape, _, kind = headers[np.lib.format.read_magic(stream)](stream)
                promised = 0 if kind.hasobject else math.prod(shape) * kind.itemsize  # objects are refused where they are read
                if promised > part.file_size:
                    raise error(f"{file} is damaged: the array {part.filename} says that it has {promised} bytes, and has {part.file_size}")
    except (BadZipFile, ZlibError, EOFError, KeyError, ValueError, RuntimeError, OSError) as reason:  # OSError: a part that begins nowhere
        raise error(f"{file} is damaged or no .npz file: {reason}") from reason


def _check(file: Path, part: ZipInfo, error: type[UsageError]) -> None:
    if part.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise error(f"{file}: {part.filename!r} is compressed in a way that is not read here: pack it anew, with deflate or not at all")
    if part.file_size > FREE and part.file_size > MOST_TIMES * part.compress_size:
        raise error(
            f"{file}: {part.filename!r} would grow from {part.compress_size:,} to {part.file_size:,} bytes, as a decompression bomb does: "
            "if it is yours, store it uncompressed"
        )
    if part.file_size > largest():
        raise error(
            f"{file}: {part.filename!r} unpacks to {part.file_size / 2**30:.0f} GiB, more than {largest() / 2**30:g}: "
            f"set {VARIABLE} to a larger number if the memory is there"
        )


def largest() -> float:
    """Bytes that one part may have.

    Raises:
        UsageError: the environment has something else than a number.
    """
    text = os.environ.get(VARIABLE, str(LARGEST_GIB))
    try:
        return float(text) * 2**30
    except ValueError:
        raise UsageError(f"{VARIABLE} takes a number of GiB, got {text!r}") from None
