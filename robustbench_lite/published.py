"""Published test sets that lie in one folder: ImageNet-A, -R, -Sketch and -V2, the validation set with ReaL labels, cue conflicts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from .classifier import Preprocess
from .data import IMAGENET_EPS
from .errors import DataError
from .imagefolder import class_folders, read_folder
from .labelled import LabelledImages
from .pictures import Files
from .readout import Groups, Readout, Subset
from .registry import data
from .shape_bias import CATEGORIES, TEXTURE_VS_SHAPE, cues
from .synsets import bundled, class_names, imagenet_synsets, subset_indices, usual_index

VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)
VALIDATION_SIZE = 50_000
REASSESSED = "https://github.com/google-research/reassessed-imagenet"


def found(path: str, title: str, origin: str, inner: str = "") -> Path:
    """The folder of a set, or the folder `inner` in it as its archive makes it.

    Raises:
        DataError: there is none; it says where the set is to be had.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: {title} is to be had from {origin}")
    return folder / inner if inner and (folder / inner).is_dir() else folder


def as_published(preprocess: Preprocess | None) -> Preprocess | None:
    """For pictures that were cropped before they were published: as they are, or brought straight to the model's size, but not cropped."""
    return None if preprocess is None else replace(preprocess, resize=None)


@dataclass(frozen=True)
class Folder:
    """A published set with one sub-folder a class.

    Args:
        path: where it lies, or the folder that its archive was unpacked in.
        title: what tables call it.
        origin: where it is to be had.
        index: the class of each sub-folder that there may be.
        inner: the folder that its archive makes.
        cropped: whether the pictures have been cropped to a model's input already.
    """

    path: str
    title: str
    origin: str
    index: Mapping[str, int]
    inner: str = ""
    cropped: bool = False
    class_names: Sequence[str] | None = None
    readout: Readout | None = None

    def read(self, preprocess: Preprocess | None) -> LabelledImages:
        folder = found(self.path, self.title, self.origin, self.inner)
        images = read_folder(folder, self.index, as_published(preprocess) if self.cropped else preprocess)
        return replace(
            images,
            name=self.title.lower(),
            default_eps=IMAGENET_EPS,
            source=f"{self.title}, {images.source}",
            class_names=self.class_names,
            readout=self.readout,
        )


def _of_200(path: str, letter: str, origin: str) -> Folder:
    indices = subset_indices(letter)
    return Folder(
        path,
        f"ImageNet-{letter.upper()}",
        origin,
        {imagenet_synsets()[index]: number for number, index in enumerate(indices)},
        inner=f"imagenet-{letter}",
        class_names=[class_names()[index] for index in indices],
        readout=Subset(indices),
    )


@data("imagenet-a")
def imagenet_a(path: str) -> Folder:
    """ImageNet-A, natural pictures that a ResNet-50 got wrong; 200 classes, to which the logits are cut down. `imagenet-a:/path`"""
    return _of_200(path, "a", "https://github.com/hendrycks/natural-adv-examples")


@data("imagenet-r")
def imagenet_r(path: str) -> Folder:
    """ImageNet-R, renditions such as paintings and toys; 200 classes, to which the logits are cut down. `imagenet-r:/path`"""
    return _of_200(path, "r", "https://github.com/hendrycks/imagenet-r")


@data("imagenet-sketch")
def imagenet_sketch(path: str) -> Folder:
    """ImageNet-Sketch, 50,889 black-and-white sketches of the 1000 classes. `imagenet-sketch:/path`"""
    origin = "https://github.com/HaohanWang/ImageNet-Sketch"
    return Folder(path, "ImageNet-Sketch", origin, usual_index(), inner="sketch", class_names=class_names())


@data("imagenet-v2")
def imagenet_v2(path: str) -> Folder:
    """ImageNet-V2, a second validation set of 10,000 pictures in folders named 0 to 999. `imagenet-v2:/path`"""
    index = {str(number): number for number in range(1000)}
    inner = "imagenetv2-matched-frequency-format-val"
    return Folder(path, "ImageNet-V2", "https://github.com/modestyachts/ImageNetV2", index, inner, class_names=class_names())


def _stimuli(path: str, title: str) -> Folder:
    index = {name: number for number, name in enumerate(CATEGORIES)}
    readout = Groups(tuple(CATEGORIES.values()))
    return Folder(path, title, TEXTURE_VS_SHAPE, index, cropped=True, class_names=list(CATEGORIES), readout=readout)


@data("cue-conflict")
def cue_conflict(path: str, classes: Literal["imagenet", "own"] = "imagenet") -> Folder | OwnConflicts:
    """1,280 pictures with the shape of one category and the texture of another, labelled by shape; 16 categories. `cue-conflict:/path`

    With `classes=own`, pictures of your own that are named so, whose folders, sorted, are the model's classes.
    """
    return _stimuli(path, "cue-conflict") if classes == "imagenet" else OwnConflicts(path)


@dataclass(frozen=True)
class OwnConflicts:
    """Cue conflicts between other classes than the 16 categories: SHAPE/SHAPE1-TEXTURE2.png, every class with a folder."""

    path: str

    def read(self, preprocess: Preprocess | None) -> LabelledImages:
        folder = found(self.path, "a folder of cue conflicts", "docs/texture_digits.py, as an example")
        images = read_folder(folder, None, as_published(preprocess))
        names = class_folders(folder)
        for key in images.ids:
            cues(key, names)  # now, and not when the report is written
        return replace(images, name="cue-conflict", classes=len(names), class_names=names)


@data("edges")
def edges(path: str) -> Folder:
    """160 line drawings of 16 categories, shape without texture. `edges:/path`"""
    return _stimuli(path, "edges")


@data("silhouettes")
def silhouettes(path: str) -> Folder:
    """160 filled outlines of 16 categories, shape without texture. `silhouettes:/path`"""
    return _stimuli(path, "silhouettes")


@data("imagenet-val")
@dataclass(frozen=True)
class ImageNetVal:
    """ImageNet's validation set in folders named by synset, `imagenet-val:/path`; with ReaL labels (`real=timm`, `real=FILE`) also flat."""

    path: str
    real: str | None = None

    def read(self, preprocess: Preprocess | None) -> LabelledImages:
        title, origin = "ImageNet's validation set", "https://image-net.org"
        folder = found(self.path, title, origin)
        flat = sorted(entry.name for entry in folder.iterdir() if VALIDATION.fullmatch(entry.name))
        if self.real is None:
            if flat:
                raise DataError(
                    f"{folder} has no sub-folders that say what its pictures are: add real=timm, or sort them into one folder a synset"
                )
            return replace(Folder(self.path, title, origin, usual_index(), class_names=class_names()).read(preprocess), name="imagenet-val")
        ids = flat or list(read_folder(folder, usual_index(), None).ids)
        right = _real_labels(self.real)
        answers = {key: right[_number(key) - 1] for key in ids}
        kept = [key for key in ids if answers[key]]
        return LabelledImages(
            Files(kept, preprocess, folder),
            labels=[answers[key] for key in kept],
            ids=kept,
            name="imagenet-real",
            classes=1000,
            default_eps=IMAGENET_EPS,
            source=f"{len(kept)} pictures in {folder} with ReaL labels; {len(ids) - len(kept)} that have none left out",
            sizes=[(folder / key).stat().st_size for key in kept],
            class_names=class_names(),
        )


def _number(key: str) -> int:
    match = VALIDATION.fullmatch(Path(key).name)
    if match is None or not 1 <= int(match[1]) <= VALIDATION_SIZE:
        raise DataError(f"{key} is not named as a picture of ImageNet's validation set, ILSVRC2012_val_00000001.JPEG: it has no ReaL label")
    return int(match[1])


def _real_labels(source: str) -> list[frozenset[int]]:
    """The right classes of each of the 50,000 validation pictures, none for some; Beyer et al., 2020, https://arxiv.org/abs/2006.07159.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    file = bundled("imagenet_real_labels.json") if source == "timm" else Path(source).expanduser()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, list) or len(content) != VALIDATION_SIZE:
            raise ValueError(f"it holds {len(content) if isinstance(content, list) else 'no'} entries")
        if not all(isinstance(entry, list) and all(type(label) is int for label in entry) for entry in content):
            raise ValueError("an entry is no list of class indices")
        return [frozenset(entry) for entry in content]
    except OSError as error:
        raise DataError(f"cannot read the ReaL labels {file} ({error.strerror}): write real=timm, or get them from {REASSESSED}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file} must be a JSON list of {VALIDATION_SIZE} lists of class indices, as real.json of {REASSESSED}: {error}"
        ) from error
