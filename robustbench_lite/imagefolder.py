"""A folder of pictures with one sub-folder a class, and how a sub-folder's name becomes a class index."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from .classifier import Preprocess
from .errors import DataError
from .labelled import LabelledImages
from .pictures import Files
from .synsets import usual_index

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
SPLITS = {"train", "training", "val", "valid", "validation", "test"}
SYNSET = re.compile(r"n\d{8}")


def read_folder(root: str | Path, mapping: str | Mapping[str, int] | None, preprocess: Preprocess | None) -> LabelledImages:
    """The pictures under `root`, sorted by path.

    Args:
        root: holds one sub-folder a class, with pictures at any depth; names that begin with a dot are left out.
        mapping: class indices by sub-folder, or a JSON file, `{"n01440764": 0}` or `{"0": ["n01440764", "tench"]}`. Without one, whole
            numbers are class indices themselves, synsets of ImageNet have their usual ones, and other names are numbered in sorted order.
        preprocess: applied to each picture.

    Raises:
        DataError: no such folder, no pictures, files that are no pictures, or sub-folders whose class index is not known.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    names = class_folders(folder)
    if not names:
        raise DataError(f"{folder} has no sub-folders: put the pictures of each class into a folder of its own")
    if set(names) <= SPLITS:
        raise DataError(f"{folder} holds {' and '.join(names)}, which are splits and not classes: write imagefolder:{folder / names[0]}")
    index = class_indices(names, mapping, folder)
    paths, left_out = [], 0
    for name in names:
        for path in sorted(entry for entry in (folder / name).rglob("[!.]*") if entry.is_file()):
            if path.suffix.lower() in SUFFIXES:
                paths.append(path)
            else:
                left_out += 1
    if not paths:
        raise DataError(f"{folder} has no pictures in its {len(names)} sub-folders (looked for {' '.join(sorted(SUFFIXES))})")
    pictures = Files(paths, preprocess)
    relative = [path.relative_to(folder) for path in paths]
    return LabelledImages(
        pictures,
        labels=[index[path.parts[0]] for path in relative],
        ids=[path.as_posix() for path in relative],
        name=folder.resolve().name,
        classes=_count(index.values()),
        source=f"{len(paths)} pictures in {folder}" + (f"; {left_out} files of other kinds left out" if left_out else ""),
        sizes=[path.stat().st_size for path in paths],
    )


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
    except (ValueError, TypeError, LookupError) as error:
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
