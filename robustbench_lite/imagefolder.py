"""A folder of pictures with one sub-folder a class, or with a table of labels, and how a class's name becomes its index."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from . import dicom
from .classifier import Preprocess
from .errors import DataError
from .labelled import LabelledImages
from .patients import patients_in
from .pictures import Files
from .synsets import usual_index

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
SPLITS = {"train", "training", "val", "valid", "validation", "test"}
SYNSET = re.compile(r"n\d{8}")


def read_folder(
    root: str | Path, mapping: str | Mapping[str, int] | None, preprocess: Preprocess | None, labels: str | None = None
) -> LabelledImages:
    """The pictures and DICOM files under `root`, sorted by path; in groups by patient where DICOM headers name any.

    Args:
        root: holds one sub-folder a class, with pictures at any depth; names that begin with a dot are left out.
        mapping: class indices by sub-folder, or a JSON file, `{"n01440764": 0}` or `{"0": ["n01440764", "tench"]}`. Without one, whole
            numbers are class indices themselves, synsets of ImageNet have their usual ones, and other names are numbered in sorted order.
        preprocess: applied to each picture.
        labels: a CSV file with the columns `file` (a path below `root`) and `label` (a class index or a name), instead of sub-folders; what
            it does not list is left out. A column `patient` takes the place of what DICOM headers say.

    Raises:
        DataError: no such folder, no pictures, files that are no pictures, or sub-folders whose class index is not known.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    if labels is not None and mapping is not None:
        raise DataError("mapping is for sub-folders: write the class indices into the file of labels")
    found = _in_sub_folders(folder) if labels is None else _listed(folder, Path(labels).expanduser())
    index = class_indices(found.names, mapping, folder)
    ids = sorted(found.classes, key=lambda key: Path(key).parts)
    paths = [folder / key for key in ids]
    told = dicom.survey(paths, ids)
    if labels is not None and found.has_patients:
        told = replace(told, groups=patients_in(labels, "file", ids), persons=None)
    return LabelledImages(
        Files(paths, preprocess),
        labels=[index[found.classes[key]] for key in ids],
        ids=ids,
        name=folder.resolve().name,
        groups=told.groups,
        persons=told.persons,
        classes=_count(index.values()),
        source="; ".join([f"{len(paths)} pictures in {folder}{found.note}", *told.notes]),
        sizes=[path.stat().st_size for path in paths],
    )


@dataclass(frozen=True)
class Named:
    """The name of the class of each picture, by its path below the folder; all `names`; whether the same table names patients."""

    classes: Mapping[str, str]
    names: list[str]
    note: str = ""
    has_patients: bool = False


def _in_sub_folders(folder: Path) -> Named:
    names = class_folders(folder)
    if not names:
        raise DataError(f"{folder} has no sub-folders: put the pictures of each class into a folder of its own, or add labels=FILE.csv")
    if set(names) <= SPLITS:
        raise DataError(f"{folder} holds {' and '.join(names)}, which are splits and not classes: write imagefolder:{folder / names[0]}")
    named, left_out = {}, 0
    for name in names:
        for path in (entry for entry in (folder / name).rglob("[!.]*") if entry.is_file()):
            if path.suffix.lower() in SUFFIXES or dicom.is_dicom(path):
                named[path.relative_to(folder).as_posix()] = name
            else:
                left_out += 1
    if not named:
        looked_for = " ".join(sorted(SUFFIXES.union(dicom.SUFFIXES)))
        raise DataError(f"{folder} has no pictures in its {len(names)} sub-folders (looked for {looked_for})")
    return Named(named, names, f"; {left_out} files of other kinds left out" if left_out else "")


def _listed(folder: Path, table: Path) -> Named:
    named: dict[str, str] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            columns = rows.fieldnames or ()
            if not {"file", "label"} <= set(columns):
                raise DataError(f"{table} needs the columns file and label, and has {', '.join(columns) or 'none'}")
            for row in rows:
                label, key = (row["label"] or "").strip(), Path((row["file"] or "").strip().replace("\\", "/")).as_posix()
                if not label or key == "." or key.startswith("/") or ".." in key.split("/"):
                    raise DataError(f"{table}, line {rows.line_num}, needs a path below {folder} and a label")
                if key in named:
                    raise DataError(f"{table}, line {rows.line_num}, names {key} a second time: keep one")
                if not (folder / key).is_file():
                    raise DataError(f"{table}, line {rows.line_num}, names {key}, which is not in {folder}")
                named[key] = label
    except OSError as error:
        raise DataError(f"cannot read the labels {table}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is no CSV file in UTF-8: {error}") from error
    if not named:
        raise DataError(f"{table} lists no files")
    return Named(named, sorted(set(named.values())), f", labels of {table}", "patient" in columns)


def class_folders(folder: Path) -> list[str]:
    """The names of the sub-folders, sorted; those that begin with a dot are left out."""
    with os.scandir(folder) as entries:  # which knows without asking again: there may be 75,000 of them
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def class_indices(names: list[str], mapping: str | Mapping[str, int] | None, folder: Path) -> Mapping[str, int]:
    """Class indices of these sub-folders of `folder`, and of others where they are known; see `read_folder`.

    Raises:
        DataError: some are not known.
    """
    if mapping is not None:
        known = _read_mapping(Path(mapping).expanduser()) if isinstance(mapping, str) else mapping
        unknown = [name for name in names if name not in known]
        if unknown:
            where = mapping if isinstance(mapping, str) else "the set"
            raise DataError(f"{where} has no class index for {len(unknown)} of the folders in {folder}, the first is {unknown[0]!r}")
        return known  # whole, because the class count is the mapping's and not that of the folders present
    if all(name.isdecimal() for name in names):
        return {name: int(name) for name in names}
    if all(SYNSET.fullmatch(name) for name in names):
        usual = usual_index()
        unknown = [name for name in names if name not in usual]
        if not unknown:
            return usual  # whole, as above
        if len(names) != len(usual):
            raise DataError(
                f"{folder} holds {len(names)} synsets, of which {len(unknown)} are not among ImageNet's 1000, the first is {unknown[0]}: "
                "add mapping=FILE, a JSON file with the class index of each"
            )
    return {name: number for number, name in enumerate(names)}


def _read_mapping(file: Path) -> dict[str, int]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, Mapping):
            raise ValueError(f"it holds a {type(content).__name__}")
        return dict(_entry(key, value) for key, value in content.items())
    except OSError as error:
        raise DataError(f"cannot read the mapping {file}: {error.strerror}") from error
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DataError(f'the mapping {file} must be JSON, {{"n01440764": 0}} or {{"0": ["n01440764", "tench"]}}: {error}') from error


def _entry(key: str, value: object) -> tuple[str, int]:
    if isinstance(value, list):
        return str(value[0]), int(key)
    if isinstance(value, str) and not value.isdecimal():
        return value, int(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{key!r} has {value!r}, which is no class index")
    return key, int(value)


def _count(indices: Iterable[int]) -> int | None:
    """The number of classes where the indices are 0, 1, 2, ... without a gap; None where they are some of more."""
    present = set(indices)
    return len(present) if present == set(range(len(present))) else None
