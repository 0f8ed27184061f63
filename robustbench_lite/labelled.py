"""Images with their labels: the one form in which data reaches an evaluation, whether it lies in memory or in files."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from .errors import DataError, UsageError
from .pictures import Chosen, Pictures
from .readout import Readout

if TYPE_CHECKING:
    import numpy as np

Task = Literal["binary", "multi-class", "ordinal", "multi-label"]
Label = int | tuple[float, ...] | frozenset[int]
"""A class index, one 0/1 float a class for multi-label data, or the classes any of which is a right answer."""


@dataclass(frozen=True, eq=False)
class LabelledImages(Sequence[tuple[Tensor, Label]]):
    """A sequence of `(image, label)`: images (C, H, W) float32 in [0, 1], labels class indices, tuples of 0/1 floats or sets of classes.

    Args:
        pictures: where the images are read from.
        labels: one per image.
        ids: stable and unique, so that verdicts can be compared across runs: a content hash, or a path relative to the data's root.
        name: what tables call it.
        groups: one per image (a patient, a site); None where there are none.
        classes: number of classes; None where unknown.
        default_eps: the radius an attack uses when none is given, per norm, in [0, 1] pixel units; empty where nobody can know it.
        source: what a person must know about where it came from.
        sizes: bytes of each file, for `digest`; empty for images in memory, whose ids hold their content.
        class_names: one per class; None where they have none.
        readout: how the outputs of a model for ImageNet's 1000 classes become the classes of these data; None where they are the same.
        variants: the same images, in the same order, as they were published under named conditions such as `fog[3]`.
        has_clean: False where only variants were published; `pictures` are then the first of them.
        benchmark: whose files the variants are, where figures of its own are known: `imagenet-c`, `cifar-c` or `medmnist-c`.
        task: what the labels mean, where the data say so.
        synthetic: the images are of nothing real, as every report must say.
        disease: classes that mean disease, where the data say so; what a goal such as `missed-disease` means unless it says otherwise.
        persons: one per image, where `groups` are mere numbers: who it is, in a form that holds in this process only. Never shown
            and never stored.

    Raises:
        DataError: labels, ids, groups, variants and images that do not fit each other or the class count.
    """

    pictures: Pictures
    labels: Sequence[Label]
    ids: Sequence[str]
    name: str = "data"
    groups: Sequence[str] | None = None
    classes: int | None = None
    default_eps: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    sizes: Sequence[int] = ()
    class_names: Sequence[str] | None = None
    readout: Readout | None = None
    variants: Mapping[str, Pictures] = field(default_factory=dict)
    has_clean: bool = True
    benchmark: str | None = None
    task: Task | None = None
    synthetic: bool = False
    disease: tuple[int, ...] | None = None
    persons: Sequence[str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not len(self.pictures):
            raise DataError(f"{self.name} holds no images")
        parts = {"labels": self.labels, "ids": self.ids, "groups": self.groups, "sizes": self.sizes or None}
        for what, values in (parts | {f"images in {name}": variant for name, variant in self.variants.items()}).items():
            if values is not None and len(values) != len(self.pictures):
                raise DataError(f"{self.name} has {len(self.pictures)} images and {len(values)} {what}: there must be one each")
        repeated = [key for key, count in Counter(self.ids).items() if count > 1]
        if repeated:
            raise DataError(f"{self.name} has {len(repeated)} ids that occur twice, the first is {repeated[0]!r}: ids must be unique")
        for index, label in enumerate(self.labels):
            self._check(label, index)

    def _check(self, label: Label, index: int) -> None:
        if isinstance(label, tuple):
            if self.classes is not None and len(label) != self.classes:
                raise DataError(f"label {index} of {self.name} has {len(label)} entries, but there are {self.classes} classes")
            if any(value not in (0.0, 1.0) for value in label):
                raise DataError(f"label {index} of {self.name} is {label}: the entries of a multi-label label are 0 or 1")
        elif isinstance(label, frozenset):
            if not label:
                raise DataError(f"label {index} of {self.name} names no class: leave such images out")
            self._check(min(label), index)
            self._check(max(label), index)
        elif label < 0 or (self.classes is not None and label >= self.classes):
            allowed = "0 or more" if self.classes is None else f"0..{self.classes - 1}"
            raise DataError(f"label {index} of {self.name} is {label}: class indices are {allowed}")

    def __len__(self) -> int:
        return len(self.pictures)

    @overload
    def __getitem__(self, index: int) -> tuple[Tensor, Label]: ...
    @overload
    def __getitem__(self, index: slice) -> LabelledImages: ...
    def __getitem__(self, index: int | slice) -> tuple[Tensor, Label] | LabelledImages:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        position = range(len(self))[index]  # an index beyond the end is an IndexError here, so that iteration stops
        return self.pictures[position], self.labels[position]

    def take(self, indices: Sequence[int]) -> LabelledImages:
        """The images at these positions, in this order, without copying them."""
        return replace(
            self,
            pictures=Chosen(self.pictures, indices),
            labels=[self.labels[i] for i in indices],
            ids=[self.ids[i] for i in indices],
            groups=None if self.groups is None else [self.groups[i] for i in indices],
            persons=None if self.persons is None else [self.persons[i] for i in indices],
            sizes=[self.sizes[i] for i in indices] if self.sizes else (),
            variants={name: Chosen(variant, indices) for name, variant in self.variants.items()},
        )

    def subset(self, limit: int, seed: int) -> LabelledImages:
        """`limit` images, every class in proportion, in the data set's own order; all of them when there are no more.

        A smaller subset with the same seed is contained in a larger one.

        Raises:
            UsageError: the limit is below 1.
        """
        if limit < 1:
            raise UsageError(f"the limit must be 1 or more, got {limit}")
        if limit >= len(self):
            return self
        drawn = {i: hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=16).digest() for i, key in enumerate(self.ids)}
        by_class: dict[Label, list[int]] = {}
        for index in sorted(drawn, key=drawn.__getitem__):
            by_class.setdefault(self.labels[index], []).append(index)
        # spread each class evenly over [0, 1]: any beginning of that line has every class in proportion
        position = {index: (rank + 0.5) / len(members) for members in by_class.values() for rank, index in enumerate(members)}
        return self.take(sorted(sorted(position, key=lambda index: (position[index], drawn[index]))[:limit]))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over ids, labels, file sizes and the names of the variants: equal digests are the same data."""
        return self.digest_with({})

    def digest_with(self, sizes: Mapping[str, int]) -> str:
        """The digest, where files with these ids had these sizes."""
        total = hashlib.sha256()
        for index, (key, label) in enumerate(zip(self.ids, self.labels, strict=True)):
            written = sorted(label) if isinstance(label, frozenset) else label
            size = sizes.get(key, self.sizes[index]) if self.sizes else ""
            total.update(f"{key}\t{written}\t{size}\n".encode())
        for name in self.variants:
            total.update(f"{name}\n".encode())
        return total.hexdigest()


def from_arrays(
    images: Any,
    labels: Any,
    name: str = "data",
    *,
    ids: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    classes: int | None = None,
    default_eps: Mapping[str, float] | None = None,
    source: str = "arrays passed in",
) -> LabelledImages:
    """Images in memory with their labels.

    Args:
        images: tensor or array (N, C, H, W), floats in [0, 1], or uint8, which is divided by 255.
        labels: (N,) or (N, 1) class indices, or (N, K) 0/1 for multi-label data.

    Raises:
        DataError: wrong shapes, values outside [0, 1] or not finite, labels that are no class indices.
    """
    pixels = torch.as_tensor(images).detach().cpu()
    if pixels.ndim != 4:
        raise DataError(f"{name}: images must have the shape (N, channels, height, width), got {tuple(pixels.shape)}")
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        raise DataError(f"{name}: images must be floats in [0, 1] or uint8, got {str(pixels.dtype).removeprefix('torch.')}")
    pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
    _check_range(pixels, name)
    listed = list(ids) if ids is not None else content_ids(pixels.numpy())
    kept = {} if default_eps is None else default_eps
    return LabelledImages(pixels, labels_of(labels, name), listed, name, groups, classes, kept, source)


def _check_range(pixels: Tensor, name: str) -> None:
    bad = (~torch.isfinite(pixels)).flatten(1).any(1)
    if bad.any():
        raise DataError(
            f"{name}: {int(bad.sum())} of {len(pixels)} images hold NaN or infinity, the first is number {int(bad.nonzero()[0])}"
        )
    if pixels.numel() and (pixels.min() < 0 or pixels.max() > 1):
        raise DataError(
            f"{name}: pixels must lie in [0, 1] but span [{pixels.min():.4g}, {pixels.max():.4g}]: divide by 255, "
            "or leave normalisation out of the data and give it to the model (mean, std)"
        )


def from_loader(loader: Iterable[Any], name: str = "data", *, classes: int | None = None) -> LabelledImages:
    """Everything that a DataLoader, or any iterable of `(images, labels)` batches, yields; held in memory.

    Raises:
        DataError: a batch of another form, no batch at all, or what `from_arrays` refuses.
    """
    images, labels = [], []
    for batch in loader:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise DataError(f"{name}: the loader must yield (images, labels) batches, got {type(batch).__name__}")
        images.append(torch.as_tensor(batch[0]))
        labels.append(torch.as_tensor(batch[1]))
    if not images:
        raise DataError(f"{name}: the loader yields no batches")
    shapes = {tuple(part.shape[1:]) for part in images}
    if len(shapes) > 1:
        raise DataError(f"{name}: the loader's images differ in shape: {' and '.join(map(str, sorted(shapes)[:2]))}")
    return from_arrays(torch.cat(images), torch.cat(labels), name, classes=classes, source=f"a {type(loader).__name__} passed in")


def labels_of(labels: Any, name: str) -> list[Label]:
    """(N,) or (N, 1) whole numbers as class indices, (N, K) as one tuple of floats an image.

    Raises:
        DataError: they are neither.
    """
    values = torch.as_tensor(labels).detach().cpu()
    if values.ndim == 2 and values.shape[1] > 1:
        return [tuple(row) for row in values.double().tolist()]
    if values.shape[1:] == (1,):
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(f"{name}: labels must have the shape (N,) or (N, K), got {tuple(values.shape)}")
    for value in values.tolist():
        if not math.isfinite(value) or value != int(value):
            raise DataError(f"{name}: labels must be whole numbers, got {value}")
    return [int(value) for value in values.tolist()]


def label_tensor(labels: Iterable[Label]) -> Tensor:
    """What criteria take: (B,) int64 of class indices, (B, K) float of multi-label tuples, (B, M) int64 of sets, filled up with -1."""
    listed = list(labels)
    if any(isinstance(label, frozenset) for label in listed):
        rows = [sorted(label) for label in listed if isinstance(label, frozenset)]
        longest = max(map(len, rows))
        return torch.tensor([row + [-1] * (longest - len(row)) for row in rows])
    return torch.tensor(listed)


def content_ids(pixels: np.ndarray[Any, Any]) -> list[str]:
    """16 hex digits of SHA-256 of shape and pixels of each image; the second of two equal images ends in `-2`."""
    seen: Counter[str] = Counter()
    ids = []
    for image in pixels:
        key = hashlib.sha256(f"{image.shape}{image.dtype}".encode() + image.tobytes()).hexdigest()[:16]
        seen[key] += 1
        ids.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return ids
