"""DICOM files: the picture that a viewer shows, with all of its bits, and nothing else of what the file says.

A DICOM header names a patient. Nothing of it may reach a message, a log or a file: reasons are given in words of our own, and pydicom's
errors and warnings, which quote the values that they stumble over, end in this module.
"""

from __future__ import annotations

import logging
import secrets
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError

if TYPE_CHECKING:
    from .classifier import Levels

OF_THIS_PROCESS = secrets.token_bytes(32)

SUFFIXES = (".dcm", ".dicom")
MAGIC, MAGIC_AT = b"DICM", 128
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
"""Photometric interpretations that pydicom gives as RGB."""

GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
"""Where "enhanced" files say what others say at the top."""

DEFLATED = "1.2.840.10008.1.2.1.99"
PREAMBLE = 144  # bytes before what the length of the file's meta information counts
MOST_INFLATED = 2**28
MOST_PIXELS = 2**27
"""Of a picture; mammograms have a quarter of it."""

HEADER = ("PatientID", "PhotometricInterpretation", "WindowCenter", "VOILUTSequence", *GROUPS)

Values = np.ndarray[Any, np.dtype[np.float64]]


class Unreadable(ValueError):
    """A DICOM file that no picture can be had of; the message has nothing of its header."""


def is_dicom(file: Path) -> bool:
    """Whether a file is DICOM by its suffix, or has none (the numbers of a UID are none) and begins as DICOM files do."""
    suffix = file.suffix.lower()
    if suffix in SUFFIXES:
        return True
    if file.name == "DICOMDIR" or (suffix and not suffix[1:].isdecimal()):
        return False
    try:
        with file.open("rb") as stream:
            return stream.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC
    except OSError:
        return False


def read(file: Path) -> Levels:
    """(H, W) grey or (H, W, 3) RGB, float32 in [0, 1].

    Grey values pass the modality's rescaling or table, then the first window or table that the file asks to be shown with. Without one,
    all values that the stored bits can hold span [0, 1]: the image's own extremes would change its contrast. MONOCHROME1 is inverted.

    Raises:
        Unreadable: no pixels, several frames, no decoder, damaged.
        OSError: the file cannot be opened.
        DataError: pydicom is not installed.
    """
    pydicom = _pydicom()
    with file.open("rb") as stream, _unquoted():
        _refuse_bomb(file)
        levels = _levels(pydicom.dcmread(stream))
        if not (levels.min() >= 0 and levels.max() <= 1):  # NaN comes through neither
            raise Unreadable("its pixel values do not fit its header")
        return levels.astype(np.float32)


@dataclass(frozen=True)
class Survey:
    """What the headers of some files say of them all.

    Args:
        groups: whose image each is, `patient-1` being the first that is met, and an image that no patient is named for being its own, under
            its id; None where no patient is named at all.
        persons: the same, by a keyed hash that tells patients of several folders apart and means nothing once this process has ended.
        notes: for the data's source.
    """

    groups: list[str] | None
    persons: list[str] | None
    notes: list[str]


def survey(files: Sequence[Path], ids: Sequence[str]) -> Survey:
    """Read the headers of the DICOM files among `files`, without their pixels.

    Raises:
        DataError: there are DICOM files and pydicom is not installed.
    """
    numbers: dict[str, str] = {}
    groups, persons, found, unwindowed = list(ids), list(ids), 0, 0
    for index, file in enumerate(files):
        if not is_dicom(file):
            continue
        found += 1
        patient, windowed = _header(file)
        unwindowed += not windowed
        if patient:
            groups[index] = numbers.setdefault(patient, f"patient-{len(numbers) + 1}")
            persons[index] = blake2b(patient.encode(), key=OF_THIS_PROCESS, digest_size=16).hexdigest()
    notes = []
    if unwindowed:
        notes.append(f"{unwindowed} of {found} DICOM files have no window, so that all values their bits can hold span black to white")
    if numbers:
        alone = sum(group == key for group, key in zip(groups, ids, strict=True))
        notes.append(f"DICOM headers tell {len(numbers)} patients apart" + (f", and name none for {alone} images" if alone else ""))
    return Survey(groups, persons, notes) if numbers else Survey(None, None, notes)


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise DataError("DICOM files need pydicom, which is not installed: run `pip install 'robustbench-lite[medical]'`") from error
    return pydicom


@contextmanager
def _unquoted() -> Iterator[None]:
    """pydicom without its voice: what it warns of, logs and raises may quote the header."""
    log = logging.getLogger("pydicom")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Unreadable:
        raise
    except Exception:  # a damaged file can make pydicom raise anything
        raise Unreadable("it is damaged or no DICOM file") from None
    finally:
        log.setLevel(level)


def _header(file: Path) -> tuple[str, bool]:
    """The patient's id, "" where none is named, and whether the picture comes with a window or needs none.

    Of a file that cannot be read nothing is known; why, it says when its image is asked for.
    """
    pydicom = _pydicom()
    try:
        with file.open("rb") as stream, _unquoted():
            _refuse_bomb(file)
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(HEADER))
            grey = str(dataset.get("PhotometricInterpretation")).startswith("MONOCHROME")
            windowed = bool(dataset.get("VOILUTSequence")) or _saying(dataset, "WindowCenter", "FrameVOILUTSequence") is not None
            return str(dataset.get("PatientID") or "").strip(), windowed or not grey
    except (Unreadable, OSError):
        return "", True


def _refuse_bomb(file: Path) -> None:
    """pydicom inflates a whole file of the deflated syntax at once: what comes out of it is counted first."""
    from pydicom.filereader import read_file_meta_info

    header = read_file_meta_info(file)
    if header.get("TransferSyntaxUID") == DEFLATED:
        packed = file.read_bytes()[PREAMBLE + header.FileMetaInformationGroupLength :]
        if len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, MOST_INFLATED)) == MOST_INFLATED:
            raise Unreadable(f"it inflates to {MOST_INFLATED:,} bytes or more, as decompression bombs do: convert it")


def _levels(dataset: Any) -> Values:
    """(H, W) or (H, W, 3), in [0, 1] where the header tells the truth."""
    if "PixelData" not in dataset:
        raise Unreadable("it holds no picture, as plans and reports do not: take it out")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise Unreadable(f"it holds {frames} frames: write each into a file of its own")
    sides = (int(dataset.Rows), int(dataset.Columns))
    if sides[0] * sides[1] > MOST_PIXELS:
        raise Unreadable(f"it says that it has {sides[1]} x {sides[0]} pixels, more than {MOST_PIXELS:,}: scale it down")
    values, coding = _stored(dataset), str(dataset.PhotometricInterpretation)
    if coding in ("MONOCHROME1", "MONOCHROME2"):
        levels = _shown(values, dataset)
        return 1 - levels if coding == "MONOCHROME1" else levels
    if coding == "PALETTE COLOR":
        return _coloured(values, dataset)
    if coding in COLOURS:
        return values / (2.0 ** int(dataset.BitsStored) - 1)
    raise Unreadable("its colours are coded in a way that is not read here: convert it to RGB")


def _stored(dataset: Any) -> Values:
    from pydicom.pixels.utils import pixel_array

    compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
    try:
        values: Values = pixel_array(dataset).astype(np.float64)
        return values
    except Exception:
        if not compressed:
            raise
        raise Unreadable(
            "its pixels are compressed and cannot be decoded: run `pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg`, "
            "or take it out if it is damaged"
        ) from None


def _shown(values: Values, dataset: Any) -> Values:
    """Stored grey values as they are to be shown; PS3.3 C.11.1 and C.11.2."""
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    rescaled = _saying(dataset, "RescaleIntercept", "PixelValueTransformationSequence") or _saying(
        dataset, "RescaleSlope", "PixelValueTransformationSequence"
    )
    if dataset.get("ModalityLUTSequence"):
        table = dataset.ModalityLUTSequence[0]
        low, high = 0.0, 2.0 ** table.LUTDescriptor[2] - 1
        values = _looked_up(values, table.LUTDescriptor, table.LUTData, dataset) * high
    elif rescaled is not None:
        steep, intercept = rescaled.get("RescaleSlope"), float(rescaled.get("RescaleIntercept") or 0)
        slope = 1.0 if steep is None else float(steep)  # a file may leave out either, which the standard does not allow
        values = values * slope + intercept
        low, high = sorted((low * slope + intercept, high * slope + intercept))
    if dataset.get("VOILUTSequence"):
        table = dataset.VOILUTSequence[0]
        return _looked_up(values, table.LUTDescriptor, table.LUTData, dataset)
    window = _saying(dataset, "WindowCenter", "FrameVOILUTSequence")
    if window is None:
        return (values - low) / (high - low)
    centre, width = (float(np.atleast_1d(value)[0]) for value in (window.WindowCenter, window.WindowWidth))
    return _windowed(values, centre, width, str(window.get("VOILUTFunction") or "LINEAR").upper())


def _windowed(values: Values, centre: float, width: float, function: str) -> Values:
    if function == "LINEAR" and width >= 1:
        # a width of 1 is a threshold
        return ((values - centre + 0.5) / max(width - 1, 1e-9) + 0.5).clip(0, 1)
    if function == "LINEAR_EXACT" and width > 0:
        return ((values - centre) / width + 0.5).clip(0, 1)
    if function == "SIGMOID" and width > 0:
        shown: Values = 1 / (1 + np.exp(-4 * (values - centre) / width))
        return shown
    raise Unreadable("its window has a width or a function that the standard does not know")


def _coloured(values: Values, dataset: Any) -> Values:
    planes = []
    for colour in ("Red", "Green", "Blue"):
        table = f"{colour}PaletteColorLookupTable"
        if f"{table}Data" not in dataset:
            raise Unreadable("its palette is coded in a way that is not read here: convert it to RGB")
        planes.append(_looked_up(values, dataset[f"{table}Descriptor"].value, dataset[f"{table}Data"].value, dataset))
    return np.stack(planes, -1)


def _looked_up(values: Values, descriptor: Sequence[int], data: bytes | Sequence[int], dataset: Any) -> Values:
    """What a table says of each value, in units of the largest that its bits can hold; PS3.3 C.11.1.1.1.

    pydicom's own functions count positions in the type of the entries, and so take the wrong ones in a table of more than 256 bytes.
    """
    entries, first, bits = (int(number) for number in descriptor)
    entries = entries or 2**16  # which is one too many for the field
    if isinstance(data, bytes):
        order = "<" if dataset.original_encoding[1] else ">"
        table = np.frombuffer(data, f"{order}u{len(data) // entries}", entries)
    else:
        table = np.asarray(data)
    looked_up: Values = table[np.clip(np.rint(values) - first, 0, entries - 1).astype(np.int64)] / (2**bits - 1)
    return looked_up


def _saying(dataset: Any, keyword: str, group: str) -> Any:
    """The part of a file that has a value for `keyword`: the file itself, or `group` of its one frame; None where there is none."""
    parts = [dataset, *(part for groups in GROUPS for item in dataset.get(groups) or () for part in item.get(group) or ())]
    return next((part for part in parts if part.get(keyword) is not None), None)
