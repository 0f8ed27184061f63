"""What timm bundles about ImageNet's classes: the 1000 synsets in order, their names, those of ImageNet-A and -R, and the ReaL labels."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from .errors import DataError


def bundled(name: str) -> Path:
    """A file of timm's.

    Raises:
        DataError: timm is not installed, or has no such file.
    """
    package = find_spec("timm")  # found, not imported: timm takes seconds and one file of it is needed
    if package is None or package.origin is None:
        raise DataError(f"{name} is part of timm, which is not installed: run `pip install timm`")
    file = Path(package.origin).parent / "data" / "_info" / name
    if not file.is_file():
        raise DataError(f"the installed timm has no {name}: run `pip install --upgrade timm`")
    return file


@cache
def imagenet_synsets() -> tuple[str, ...]:
    """The 1000 synsets, `n01440764` first, in the order of the usual class indices."""
    return tuple(bundled("imagenet_synsets.txt").read_text(encoding="utf-8").split())


def usual_index() -> dict[str, int]:
    """The class index of each of the 1000 synsets."""
    return {synset: number for number, synset in enumerate(imagenet_synsets())}


@cache
def class_names() -> tuple[str, ...]:
    """The first word for each of the 1000 classes, such as `tench`."""
    lines = bundled("imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    words = dict(line.split("\t", 1) for line in lines)
    return tuple(words[synset].split(",")[0] for synset in imagenet_synsets())


@cache
def subset_indices(name: str) -> tuple[int, ...]:
    """The class indices of the 200 classes of ImageNet-A (`a`) or ImageNet-R (`r`), in the order of their synsets."""
    return tuple(map(int, bundled(f"imagenet_{name}_indices.txt").read_text(encoding="utf-8").split()))
