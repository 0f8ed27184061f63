"""Whose images they are. The images of one patient are not independent, and a patient who was learnt from must not be judged by."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from .errors import DataError
from .labelled import LabelledImages

SPLITS = ("train", "val", "test")
"""In the order in which they are used: what a model is trained on, chosen by and judged by."""

NAMED = 3
"""Patients that a message names at most."""

Column = Literal["file", "index"]


def patients_in(path: str, column: Column, keys: Sequence[str], split: str | None = None) -> list[str]:
    """The patient of each image, from a table of the user's.

    Args:
        path: a CSV file with the columns `patient` and `column`; where it has the column `split` too, the rows of `split` are the images'.
        column: what tells images apart, `file` (a path below the data's root) or `index` (0 for the first image).
        keys: those of the images.
        split: of the images; None where there are no splits.

    Raises:
        DataError: no such file or columns, an image without a row or with two, a row without a patient or for no image, a patient of a
            split that comes earlier.
    """
    patients: dict[str, str] = {}
    by_split: dict[str, set[str]] = {}
    for line, row in _rows(Path(path).expanduser(), column):
        key, patient = _key(row[column], column), row["patient"]
        if not patient:
            raise DataError(f"{path}, line {line}, names no patient: every image needs one, if only one of its own")
        if split is not None:
            of = row.get("split", split)
            by_split.setdefault(of, set()).add(patient)
            if of != split:
                continue
        if key in patients:
            raise DataError(f"{path}, line {line}, is a second row for the {column} {row[column]}: keep one")
        patients[key] = patient
    missing = [key for key in keys if key not in patients]
    if missing:
        raise DataError(f"{path} has no row for {len(missing)} of {len(keys)} images, the first is {column} {missing[0]}: add its patient")
    strange = sorted(patients.keys() - set(keys))
    if strange:
        raise DataError(f"{path} has {len(strange)} rows for images that are not there, the first is {column} {strange[0]}: take them out")
    if split is not None:
        apart(by_split, split, path)
    return [patients[key] for key in keys]


def patients_of(values: Any, name: str) -> list[str]:
    """The patients in an array (N,) or (N, 1) of texts or numbers.

    Args:
        name: of the array, for messages.

    Raises:
        DataError: another shape, or an image without a patient.
    """
    if values.shape[1:] not in ((), (1,)) or not values.ndim:
        raise DataError(f"{name} must hold one patient an image, (N,), got {values.shape}")
    patients = [_text(value) for value in values.reshape(-1).tolist()]
    for index, patient in enumerate(patients):
        if patient in ("", "nan"):
            raise DataError(f"{name} names no patient of image {index}: every image needs one, if only one of its own")
    return patients


def no_patient_in_both(a: LabelledImages, b: LabelledImages) -> None:
    """Refuse two sets of images that share patients, where one is learnt from and the other judged by.

    Raises:
        DataError: they do.
    """
    if (a.persons is None) != (b.persons is None):
        return  # numbers on one side, names on the other: nobody can tell
    named = dict(zip(b.persons or b.groups or (), b.groups or (), strict=True))
    shared = set(a.persons or a.groups or ()) & set(named)
    _disjoint([named[person] for person in shared], named.values(), f"{a.source or a.name} as well as in {b.source or b.name}")


def apart(by_split: Mapping[str, Collection[str]], split: str, source: str) -> None:
    """Refuse a split that has patients of one before it.

    Raises:
        DataError: it has.
    """
    for earlier in SPLITS[: SPLITS.index(split)]:
        _disjoint(by_split.get(earlier, ()), by_split.get(split, ()), f"the {earlier} split as well as in the {split} split of {source}")


def _disjoint(a: Collection[str], b: Collection[str], where: str) -> None:
    shared = sorted(set(a) & set(b))
    if shared:
        named = ", ".join(shared[:NAMED]) + (", ..." if len(shared) > NAMED else "")
        count = "1 patient is" if len(shared) == 1 else f"{len(shared)} patients are"
        raise DataError(f"{count} in {where} ({named}), and the figures would flatter: put all images of a patient on one side")


def _rows(file: Path, column: Column) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows, without blanks around the values."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.reader(stream)
            columns = [name.strip() for name in next(lines, [])]
            if not {column, "patient"} <= set(columns):
                raise DataError(f"{file} needs the columns {column} and patient, and has {', '.join(columns) or 'none'}")
            for values in lines:
                if values and len(values) != len(columns):
                    raise DataError(f"{file}, line {lines.line_num}, has {len(values)} values for {len(columns)} columns")
                if values:
                    yield lines.line_num, dict(zip(columns, map(str.strip, values), strict=True))
    except OSError as error:
        raise DataError(f"cannot read the patients' file {file}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is no CSV file in UTF-8: {error}") from error


def _key(text: str, column: Column) -> str:
    if column == "file":
        return PurePosixPath(text.replace("\\", "/")).as_posix()
    return str(int(text)) if text.isdecimal() and len(text) < 20 else text


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.17g}"
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value)).strip()
