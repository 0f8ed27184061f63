"""Published sets of corrupted pictures in folders: ImageNet-C and others in its layout.

The pictures are one data set, and every corruption at every severity is a variant of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .classifier import Preprocess
from .data import IMAGENET_EPS
from .errors import DataError
from .imagefolder import SUFFIXES, class_folders, class_indices
from .labelled import LabelledImages
from .pictures import Files
from .published import as_published, found
from .registry import data
from .synsets import class_names, usual_index

ORDER = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog",
    "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression", "speckle_noise", "gaussian_blur", "spatter", "saturate",
    "near_focus", "far_focus", "bit_error", "color_quant", "flash", "fog_3d", "h265_abr", "h265_crf", "iso_noise", "low_light",
    "xy_motion_blur", "z_motion_blur",
)  # fmt: skip
"""The corruptions of ImageNet-C and ImageNet-3DCC as their papers list them; others follow in the order of their names."""

SEVERITIES = range(1, 6)


def ordered(names: Iterable[str]) -> list[str]:
    """Corruptions in the usual order."""
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


@dataclass(frozen=True)
class CorruptedFolders:
    """Pictures as CORRUPTION/SEVERITY/CLASS/FILE.

    Args:
        path: the folder of the corruptions, or of the groups of corruptions that the archives make (`noise`, `blur`, ...).
        clean: the clean pictures, by class or flat, under the same file names. Without them there are only variants.
        mapping: a JSON file with the class index of each folder, where the folders are not ImageNet's synsets.
        title: what tables call it.
        origin: where it is to be had.
        classes: how many there are.
        cropped: whether the pictures were cropped to a model's input before they were corrupted.
    """

    path: str
    clean: str | None
    mapping: str | None
    title: str
    origin: str
    classes: Literal[200, 1000] = 1000
    cropped: bool = True

    def read(self, preprocess: Preprocess | None) -> LabelledImages:
        folder = found(self.path, self.title, self.origin)
        places = dict(_places(folder))
        if not places:
            raise DataError(f"{folder} has no folders CORRUPTION/1 to CORRUPTION/5: {self.title} is to be had from {self.origin}")
        first, place = next(iter(places.items()))
        index = self._index(class_folders(place), place)
        ids = _listing(place)
        if not ids:
            raise DataError(f"{place} has no pictures in its {len(index)} folders: get {self.title} from {self.origin}")
        for name, other in places.items():
            self._same(ids, _listing(other), f"{first} and {name} of {folder}")
        as_theirs = as_published(preprocess) if self.cropped else preprocess
        variants = {name: Files(ids, as_theirs, place) for name, place in places.items()}
        files = variants[first] if self.clean is None else Files(self._clean(ids), preprocess)
        corruptions = len({name.partition("[")[0] for name in places})
        return LabelledImages(
            files,
            labels=[index[key.partition("/")[0]] for key in ids],
            ids=ids,
            name=self.title.lower(),
            classes=self.classes,
            default_eps=IMAGENET_EPS if self.classes == 1000 else {},
            source=f"{self.title}, {len(ids)} pictures under {corruptions} corruptions in {folder}"
            + (f", clean ones in {self.clean}" if self.clean else ", no clean ones"),
            sizes=[(files.folder / path).stat().st_size for path in files.paths],
            class_names=class_names() if self.classes == 1000 else None,
            variants=variants,
            has_clean=self.clean is not None,
            benchmark="imagenet-c" if self.title == "ImageNet-C" else None,
        )

    def _index(self, names: list[str], place: Path) -> Mapping[str, int]:
        if self.mapping is not None or self.classes == 1000:
            return class_indices(names, usual_index() if self.mapping is None else self.mapping, place)
        if len(names) != self.classes:
            raise DataError(f"{place} holds {len(names)} of the {self.classes} classes, whose indices are then not known: add mapping=FILE")
        return {name: number for number, name in enumerate(names)}

    def _same(self, ids: Sequence[str], others: Sequence[str], where: str) -> None:
        if ids != others:
            odd = min(set(ids) ^ set(others))
            raise DataError(f"{where} do not hold the same pictures, the first that only one has is {odd}: get them from {self.origin}")

    def _clean(self, ids: Sequence[str]) -> list[Path]:
        folder = found(str(self.clean), "ImageNet's validation set", "https://image-net.org")
        flat = not class_folders(folder)
        there = set(os.listdir(folder) if flat else _listing(folder))
        wanted = [key.rpartition("/")[2] if flat else key for key in ids]
        missing = [name for name in wanted if name not in there]
        if missing:
            raise DataError(f"{folder} lacks {len(missing)} of the {len(ids)} pictures of {self.title}, the first is {missing[0]}")
        return [folder / name for name in wanted]


def _places(folder: Path) -> Iterator[tuple[str, Path]]:
    """`fog[3]` and its folder, for every corruption at every severity."""
    found_there = {entry.name: entry for entry in folder.iterdir() if entry.is_dir()}
    grouped = {inner.name: inner for entry in found_there.values() for inner in entry.iterdir() if inner.is_dir()}
    at = {name: _severities(place) for name, place in (grouped | found_there).items()}
    for name in ordered(at):
        for severity, place in sorted(at[name].items()):
            yield f"{name}[{severity}]", place


def _severities(folder: Path) -> dict[int, Path]:
    """The folders of the severities: 1 to 5, or five named by rising parameters such as 2.35, as ImageNet-C-bar has them."""
    names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    by_parameter = sorted((name for name in names if re.fullmatch(r"\d+\.\d+", name)), key=float)
    if len(by_parameter) == len(SEVERITIES):
        return {severity: folder / name for severity, name in zip(SEVERITIES, by_parameter, strict=True)}
    return {severity: folder / str(severity) for severity in SEVERITIES if str(severity) in names}


def _listing(folder: Path) -> list[str]:
    """CLASS/FILE of every picture, sorted."""
    endings = tuple(SUFFIXES)
    return [
        f"{name}/{file}"
        for name in class_folders(folder)
        for file in sorted(os.listdir(os.path.join(folder, name)))
        if file.lower().endswith(endings) and not file.startswith(".")
    ]


@data("imagenet-c")
def imagenet_c(path: str, clean: str | None = None, mapping: str | None = None) -> CorruptedFolders:
    """ImageNet-C, corruptions in folders: `imagenet-c:/path,clean=/path/to/val`."""
    return CorruptedFolders(path, clean, mapping, "ImageNet-C", "https://zenodo.org/records/2235448")


@data("tiny-imagenet-c")
def tiny_imagenet_c(path: str, clean: str | None = None, mapping: str | None = None) -> CorruptedFolders:
    """Tiny-ImageNet-C, 64 pixels and 200 classes, in folders: `tiny-imagenet-c:/path`."""
    # in the first record the frost pictures are of all 1000 classes
    origin = "https://zenodo.org/records/2536630 (with its frost mended: https://zenodo.org/records/8206060)"
    return CorruptedFolders(path, clean, mapping, "Tiny-ImageNet-C", origin, classes=200, cropped=False)


@data("imagenet-3dcc")
def imagenet_3dcc(path: str, clean: str | None = None, mapping: str | None = None) -> CorruptedFolders:
    """ImageNet-3DCC, corruptions that know the scene's depth, in folders: `imagenet-3dcc:/path`. Not for commercial use (CC BY-NC 4.0)."""
    return CorruptedFolders(path, clean, mapping, "ImageNet-3DCC", "https://github.com/EPFL-VILAB/3DCommonCorruptions")


@data("imagenet-c-bar")
def imagenet_c_bar(path: str, clean: str | None = None, mapping: str | None = None) -> CorruptedFolders:
    """ImageNet-C-bar, ten corruptions unlike those of ImageNet-C, in folders: `imagenet-c-bar:/path`."""
    return CorruptedFolders(path, clean, mapping, "ImageNet-C-bar", "https://github.com/facebookresearch/augmentation-corruption")
