"""The training and the test images of a data set, as the network to be trained takes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from robustbench_lite.classifier import Preprocess
from robustbench_lite.data import load_data
from robustbench_lite.errors import BadSpec, DataError, UsageError
from robustbench_lite.imagefolder import class_folders
from robustbench_lite.labelled import LabelledImages
from robustbench_lite.registry import Spec

NORMALISATION = {
    "digits": ((0.305,) * 3, (0.323,) * 3),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagefolder": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation per channel, of the training images; those of ImageNet for a folder of pictures."""

TEST_FOLDERS = ("val", "valid", "test")

PICTURE_SIZE = 224


@dataclass(frozen=True)
class Splits:
    """Training and test images of a kind of data (`cifar10`), and how pictures become them."""

    kind: str
    train: LabelledImages
    test: LabelledImages
    preprocess: Preprocess
    mean: tuple[float, ...]
    std: tuple[float, ...]


def splits(spec: str, size: int | None = None) -> Splits:
    """The training and the test images of a data set that has both.

    Args:
        spec: `digits`, `cifar10:FOLDER`, `cifar100:FOLDER`, `medmnist:FILE`, or `imagefolder:FOLDER` with the folders train and val (or
            test) in it.
        size: height and width that pictures are cropped to, from a shorter side 8/7 as long; None: 224 for folders, else as they are.

    Raises:
        UsageError: it has no training split.
        UnknownName, BadSpec, DataError: as `load_data`.
    """
    name, folder = Spec.parse(spec).name, Spec.parse(spec).first
    preprocess = Preprocess(size=None, resize=None) if size is None else Preprocess(size=(size, size), resize=None)
    if name == "imagefolder" and folder is not None:
        side = size or PICTURE_SIZE
        preprocess = Preprocess(size=(side, side), resize=round(side * 8 / 7))
        train, test = _folders(Path(folder).expanduser(), preprocess)
    else:
        channels = load_data(spec, limit=1)[0][0].shape[0]  # grey pictures stay grey
        preprocess = replace(preprocess, channels=channels)
        test = load_data(spec, preprocess=preprocess)
        try:
            train = load_data(f"{spec}{',' if ':' in spec else ':'}split=train", preprocess=preprocess)
        except BadSpec as error:
            raise UsageError(f"{spec} cannot be split into training and test images: {error}") from error
    if train.digest == test.digest:
        raise UsageError(f"{spec} has no training images, only {len(test)} test images: give the folder of the whole data set")
    channels, height, width = train[0][0].shape
    if height != width:
        raise DataError(f"the images of {spec} are {height} x {width}: pass --size to crop them to a square")
    mean, std = NORMALISATION.get(name, ((0.5,) * channels, (0.5,) * channels))
    if preprocess.size is None:
        preprocess = Preprocess(size=(height, width), resize=None, channels=channels)
    return Splits(name, train, test, preprocess, mean, std)


def _folders(folder: Path, preprocess: Preprocess) -> tuple[LabelledImages, LabelledImages]:
    tests = [folder / name for name in TEST_FOLDERS if (folder / name).is_dir()]
    if not (folder / "train").is_dir() or not tests:
        raise UsageError(f"{folder} must hold the folders train and {' or '.join(TEST_FOLDERS)}, each with one folder a class")
    train, test = (load_data(f"imagefolder:{place}", preprocess=preprocess) for place in (folder / "train", tests[0]))
    if class_folders(folder / "train") != class_folders(tests[0]):
        raise DataError(f"{folder / 'train'} and {tests[0]} hold other classes: every class needs a folder in both")
    return train, test
