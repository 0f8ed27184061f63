"""Data sets by name: the samples that other packages bundle, folders of pictures, CIFAR's binaries, .npz files.

What is registered here is a source: it knows where the images are, and `read(preprocess)` makes labelled images of them, because
how a picture is resized and cropped is the model's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

from .classifier import Classifier, Preprocess
from .errors import DataError, UsageError
from .imagefolder import read_folder
from .labelled import Label, LabelledImages, content_ids, from_arrays, from_loader
from .packed import read_cifar, read_npz
from .patients import patients_in
from .pictures import Files, Packed, Pictures
from .registry import DATA, Spec, data

__all__ = ["Label", "LabelledImages", "Pictures", "Source", "default_for", "from_arrays", "from_loader", "load_data"]

IMAGENET_EPS = {"linf": 4 / 255, "l2": 3.0, "l1": 60.0}
CIFAR_EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
MNIST_EPS = {"linf": 0.3, "l2": 2.0, "l1": 10.0}
DIGITS_EPS = {"linf": 0.15, "l2": 1.5, "l1": 10.0}
"""In l1 as MNIST, whose radii in l1 and CIFAR's are those of Maini et al. (ICML 2020, https://arxiv.org/abs/1909.04068)."""

DIGITS_TRAIN = 897  # of 1,797


class Source(Protocol):
    """What a registered data set builds."""

    def read(self, preprocess: Preprocess | None) -> LabelledImages:
        """The images, prepared for a model where they are pictures.

        Raises:
            DataError: they cannot be read.
        """
        ...


def load_data(spec: str, *, limit: int | None = None, seed: int = 0, preprocess: Preprocess | None = None) -> LabelledImages:
    """The data set that `spec` names: `imagenet`, `digits:train`, `imagefolder:/path,mapping=FILE`, `npz:/path`.

    Args:
        limit: keep this many images, every class in proportion; None keeps all.
        seed: which ones.
        preprocess: how pictures become the model's input; None takes them as they are.

    Raises:
        UnknownName, BadSpec: no such data set or option.
        UsageError: the limit is below 1.
        DataError: the images cannot be read.
    """
    if Spec.parse(spec).name not in DATA.names() and Path(spec).exists():
        raise DataError(f"{spec} is a path: write {'imagefolder' if Path(spec).is_dir() else 'npz'}:{spec}")
    source: Source = DATA.build(spec)
    images = source.read(preprocess)
    return images if limit is None else images.subset(limit, seed)


def default_for(classifier: Classifier) -> str:
    """The data set a classifier is evaluated on when none is asked for.

    Raises:
        UsageError: its class count does not tell.
    """
    if classifier.data is not None:
        return classifier.data
    small = "mnist" if classifier.preprocess.channels == 1 else "cifar10"
    by_classes = {1000: "imagenet", 100: "cifar100", 10: small}
    if classifier.classes not in by_classes:
        count = "an unknown number of" if classifier.classes is None else f"{classifier.classes}"
        raise UsageError(
            f"{classifier.name} has {count} classes, for which there is no default data set: pass --data imagefolder:PATH or npz:FILE"
        )
    return by_classes[classifier.classes]


@dataclass(frozen=True)
class Bundled:
    """The 20 images of a data set that foolbox ships; index and label are in the file names."""

    name: str
    prefix: str
    classes: int
    default_eps: Mapping[str, float]

    def read(self, preprocess: Preprocess | None) -> LabelledImages:
        package = find_spec("foolbox")  # found, not imported: foolbox takes more than a second and is not needed to read pictures
        if package is None or package.origin is None:
            raise DataError(f"the bundled {self.name} samples are part of foolbox, which is not installed: run `pip install foolbox`")
        paths = sorted((Path(package.origin).parent / "data").glob(f"{self.prefix}_*_*.*"))
        if not paths:
            raise DataError(f"the installed foolbox has no {self.name} samples: run `pip install --force-reinstall foolbox`")
        return LabelledImages(
            Files(paths, preprocess),
            labels=[int(path.stem.split("_")[2]) for path in paths],
            ids=[path.name for path in paths],
            name=self.name,
            classes=self.classes,
            default_eps=self.default_eps,
            source=f"{len(paths)} {self.name} images bundled with foolbox {version('foolbox')}",
            sizes=[path.stat().st_size for path in paths],
        )


@data("imagenet")
def imagenet() -> Bundled:
    """20 ImageNet validation pictures that foolbox bundles; 1000 classes."""
    return Bundled("imagenet", "imagenet", 1000, IMAGENET_EPS)


@data("mnist")
def mnist() -> Bundled:
    """20 MNIST test pictures that foolbox bundles; 28 x 28, grey, 10 classes."""
    return Bundled("mnist", "mnist", 10, MNIST_EPS)


@data("fashion-mnist")
def fashion_mnist() -> Bundled:
    """20 Fashion-MNIST test pictures that foolbox bundles; 28 x 28, grey, 10 classes."""
    return Bundled("fashion-mnist", "fashionMNIST", 10, MNIST_EPS)


@data("cifar10")
def cifar10(path: str | None = None, split: Literal["test", "train"] = "test") -> Source:
    """CIFAR-10: `cifar10:/folder/of/the/binary/version`, or without a path the 20 test pictures that foolbox bundles."""
    return Bundled("cifar10", "cifar10", 10, CIFAR_EPS) if path is None else Cifar(path, 10, split)


@data("cifar100")
def cifar100(path: str | None = None, split: Literal["test", "train"] = "test") -> Source:
    """CIFAR-100, fine labels: `cifar100:/folder/of/the/binary/version`, or without a path the 20 that foolbox bundles."""
    return Bundled("cifar100", "cifar100", 100, CIFAR_EPS) if path is None else Cifar(path, 100, split)


@dataclass(frozen=True)
class Cifar:
    """CIFAR-10 or CIFAR-100 in the official binary version."""

    path: str
    classes: Literal[10, 100]
    split: Literal["test", "train"]

    def read(self, preprocess: Preprocess | None) -> LabelledImages:
        pixels, labels = read_cifar(self.path, self.classes, self.split)
        return LabelledImages(
            Packed(pixels, preprocess),
            labels,
            content_ids(pixels),
            name=f"cifar{self.classes}",
            classes=self.classes,
            default_eps=CIFAR_EPS,
            source=f"CIFAR-{self.classes} {self.split}, binary version in {self.path}",
        )


@data("digits")
@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 handwritten digits, enlarged from 8 x 8 to 32 x 32 in three channels; 900 test, 897 train."""

    split: Literal["test", "train"] = "test"

    def read(self, preprocess: Preprocess | None) -> LabelledImages:
        import numpy as np
        import torch
        from torch.nn.functional import interpolate

        package = find_spec("sklearn")  # found, not imported: scikit-learn takes three seconds to import and one file of it is needed
        if package is None or package.origin is None:
            raise DataError("the digits are part of scikit-learn, which is not installed: run `pip install 'robustbench-lite[demo]'`")
        table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
        order = np.random.RandomState(0).permutation(len(table))  # NumPy froze this generator's draws, and so the split
        rows = table[order[:DIGITS_TRAIN] if self.split == "train" else order[DIGITS_TRAIN:]]
        small = torch.from_numpy(rows[:, :-1] / 16).float().view(-1, 1, 8, 8)
        images = interpolate(small, size=(32, 32), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
        source = f"the handwritten digits of scikit-learn {version('scikit-learn')}, {self.split} split"
        return from_arrays(images.contiguous(), rows[:, -1], "digits", classes=10, default_eps=DIGITS_EPS, source=source)


@data("npz")
@dataclass(frozen=True)
class Npz:
    """`npz:/path`: the arrays images and labels (or x and y, or MedMNIST's test_images and test_labels) of a NumPy archive;
    `patients=FILE.csv` says whose images they are (columns index and patient)."""

    path: str
    patients: str | None = None

    def read(self, preprocess: Preprocess | None) -> LabelledImages:
        return read_npz(self.path, preprocess, self.patients)


@data("imagefolder")
@dataclass(frozen=True)
class ImageFolder:
    """`imagefolder:/path,mapping=FILE`: pictures (8 bits, or grey of 16) and DICOM files, one sub-folder a class; a JSON file may map
    sub-folders to class indices, or `labels=FILE.csv` say the classes (columns file and label); `patients=FILE.csv` says whose images they
    are (columns file and patient)."""

    path: str
    mapping: str | None = None
    patients: str | None = None
    labels: str | None = None

    def read(self, preprocess: Preprocess | None) -> LabelledImages:
        images = read_folder(self.path, self.mapping, preprocess, self.labels)
        if self.patients is not None:
            images = replace(images, groups=patients_in(self.patients, "file", images.ids), persons=None)
        return replace(images, default_eps=IMAGENET_EPS) if images.classes == 1000 else images
