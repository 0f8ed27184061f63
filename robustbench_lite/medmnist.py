"""MedMNIST's two-dimensional data sets, and files of one's own in their format (Yang et al. 2023, https://doi.org/10.1038/s41597-022-01721-8).

A file `pneumoniamnist_224.npz` holds `{split}_images`, uint8 (N, S, S) or (N, S, S, 3), and `{split}_labels`, (N, 1) or (N, L), for the
splits train, val and test. Nothing is downloaded here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .classifier import Preprocess
from .errors import BadSpec, DataError, UnknownName
from .labelled import LabelledImages, Task, content_ids, labels_of
from .packed import Bytes, opened, split_patients, synthetic_name, without_grey_axis
from .patients import SPLITS, patients_in
from .pictures import Packed
from .registry import data

ORIGIN = "https://zenodo.org/records/10519652"
FOLDER = "~/.medmnist"
"""Where the medmnist package keeps what it downloads."""

FINLAYSON_EPS = {"linf": 0.01}
"""That of Finlayson et al. 2019, 0.02 of images in [-1, 1]: 2.55/255."""

SIZES = (28, 64, 128, 224)


@dataclass(frozen=True)
class Known:
    """What is known of a data set.

    Args:
        title: as its publishers write it.
        class_names: one per class or finding, as published.
        remark: what who evaluates on it must know.
        disease: classes that mean disease, where that is not class 1 of two.
    """

    title: str
    task: Task
    class_names: Sequence[str]
    licence: str = "CC BY 4.0"
    remark: str | None = None
    disease: tuple[int, ...] | None = None


ORGANS = (
    "bladder",
    "left femur",
    "right femur",
    "heart",
    "left kidney",
    "right kidney",
    "liver",
    "left lung",
    "right lung",
    "pancreas",
    "spleen",
)

SETS: Mapping[str, Known] = {
    "pathmnist": Known(
        "PathMNIST",
        "multi-class",
        (
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
    ),
    "chestmnist": Known(
        "ChestMNIST",
        "multi-label",
        (
            "atelectasis",
            "cardiomegaly",
            "effusion",
            "infiltration",
            "mass",
            "nodule",
            "pneumonia",
            "pneumothorax",
            "consolidation",
            "edema",
            "emphysema",
            "fibrosis",
            "pleural",
            "hernia",
        ),
    ),
    "dermamnist": Known(
        "DermaMNIST",
        "multi-class",
        (
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
        licence="CC BY-NC 4.0",
        remark="classes are not in order of severity",
    ),
    "octmnist": Known(
        "OCTMNIST",
        "multi-class",
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        remark="class 3 is healthy, the others are diseases",
        disease=(0, 1, 2),
    ),
    "pneumoniamnist": Known(
        "PneumoniaMNIST",
        "binary",
        ("normal", "pneumonia"),
        remark="published for a ResNet-18: accuracy 0.854 and AUC 0.944 at 28 pixels, 0.864 and 0.956 on these enlarged to 224",
    ),
    "retinamnist": Known("RetinaMNIST", "ordinal", ("grade 0", "grade 1", "grade 2", "grade 3", "grade 4")),
    "breastmnist": Known(
        "BreastMNIST",
        "binary",
        ("malignant", "normal or benign"),
        remark="class 0 is the disease",
        disease=(0,),
    ),
    "bloodmnist": Known(
        "BloodMNIST",
        "multi-class",
        (
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
    ),
    "tissuemnist": Known(
        "TissueMNIST",
        "multi-class",
        (
            "collecting duct, connecting tubule",
            "distal convoluted tubule",
            "glomerular endothelial cells",
            "interstitial endothelial cells",
            "leukocytes",
            "podocytes",
            "proximal tubule segments",
            "thick ascending limb",
        ),
    ),
    "organamnist": Known("OrganAMNIST", "multi-class", ORGANS),
    "organcmnist": Known("OrganCMNIST", "multi-class", ORGANS),
    "organsmnist": Known("OrganSMNIST", "multi-class", ORGANS),
}


@data("medmnist")
@dataclass(frozen=True)
class MedMnist:
    """`medmnist:/path/pneumoniamnist_224.npz`, or `medmnist:pneumoniamnist,size=224,root=/path`; nothing is downloaded.

    Args:
        path: a file in MedMNIST's format, or the name of a set that lies in `root`.
        split: which images.
        size: of the pictures of a set that is named, in pixels: 28, 64, 128 or 224; None: 28.
        root: the folder of the files; None: where the medmnist package keeps them.
        task: of a file of your own; None: what its labels look like.
        patients: a CSV file with the columns index, patient and, where it is about several splits, split. None: what arrays such as
            `test_patients` in the file say.
    """

    path: str
    split: Literal["test", "val", "train"] = "test"
    size: int | None = None
    root: str | None = None
    task: Task | None = None
    patients: str | None = None

    def read(self, preprocess: Preprocess | None) -> LabelledImages:
        file = self._file()
        with opened(file) as archive:
            patients = split_patients(archive, self.split, file)
            labels = _labels(archive, self.split, file)
            pixels = _pixels(archive, self.split, file)
            every = [_labels(archive, split, file) for split in SPLITS if {f"{split}_images", f"{split}_labels"} <= set(archive.files)]
            synthetic = synthetic_name(archive)
        if self.patients is not None:
            patients = patients_in(self.patients, "index", [str(index) for index in range(len(pixels))], self.split)
        flag = re.sub(rf"_({'|'.join(map(str, SIZES))})$", "", file.stem)
        form = SETS.get(flag)
        known = form if synthetic is None else None  # phantoms may have the form of a set, and are not it
        seen, count = _by_labels(every)
        task: Task = form.task if form else self.task or seen
        if self.task not in (None, task):
            raise DataError(f"{flag} is {task}: leave task out, or call a file of your own by another name than {file.name}")
        if (task == "multi-label") != (labels.shape[1] > 1):
            raise DataError(f"{file}: {self.split}_labels has the shape {labels.shape}, which is not {task}: (N, 1) is one class an image")
        return LabelledImages(
            Packed(pixels, preprocess),
            labels_of(labels, flag),
            content_ids(pixels),
            name=synthetic or flag,
            groups=patients,
            classes=len(known.class_names) if known else 2 if task == "binary" else count,
            default_eps=FINLAYSON_EPS,
            source=self._source(known, task, pixels, file, synthetic is not None),
            class_names=known.class_names if known else None,
            task=task,
            disease=known.disease if known else None,
            synthetic=synthetic is not None,
        )

    def _source(self, known: Known | None, task: Task, pixels: Bytes, file: Path, synthetic: bool) -> str:
        title = known.title if known else f"a file in MedMNIST's format, {task}{'' if self.task or synthetic else ' by its labels'}"
        return "; ".join(
            [
                *(["SYNTHETIC, not of patients"] if synthetic else []),
                f"{title}, the {self.split} split of {file}, {pixels.shape[1]} x {pixels.shape[2]} pixels",
                *([known.licence] if known else []),
                *([known.remark] if known and known.remark else []),
            ]
        )

    def _file(self) -> Path:
        if Path(self.path).suffix == ".npz":
            if self.size is not None or self.root is not None:
                raise BadSpec("medmnist: size and root are for a set that is named, and a file was given: leave them out")
            file = Path(self.path).expanduser()
        elif self.path not in SETS:
            raise UnknownName("MedMNIST set", self.path, SETS, "or write the path of an .npz file")
        elif self.size is not None and self.size not in SIZES:
            raise BadSpec(f"medmnist: size must be {', '.join(map(str, SIZES[:-1]))} or {SIZES[-1]}, got {self.size}")
        else:
            file = Path(self.root or FOLDER).expanduser() / f"{self.path}{f'_{self.size}' if self.size not in (None, SIZES[0]) else ''}.npz"
        if not file.is_file():
            tool = f"python -m medmnist download --size={self.size or SIZES[0]} --root={file.parent}"
            or_with = f", or with `pip install medmnist` and `{tool}`" if self.path in SETS else ""
            raise DataError(f"there is no file {file}: download it from {ORIGIN}{or_with}")
        return file


def _by_labels(every: Sequence[np.ndarray[Any, Any]]) -> tuple[Task, int]:
    """The task, and the number of classes or findings, that the labels (N, L) of all splits look like: a class that has no image in one of
    them is one all the same."""
    if every[0].shape[1] > 1:
        return "multi-label", every[0].shape[1]
    classes = max(2, *(int(labels.max(initial=0)) + 1 for labels in every))
    return "binary" if classes == 2 else "multi-class", classes


def _labels(archive: Any, split: str, file: Path) -> np.ndarray[Any, Any]:
    """(N, L) whole numbers."""
    missing = [key for key in (f"{split}_images", f"{split}_labels") if key not in archive.files]
    present = [each for each in SPLITS if f"{each}_images" in archive.files]
    if missing and present and split not in present:
        raise DataError(f"{file} has no {split} split: write split={present[-1]}, it has {' and '.join(present)}")
    if missing:
        raise DataError(
            f"{file} has no array {missing[0]}, it holds {', '.join(archive.files) or 'nothing'}: files in MedMNIST's format have "
            f"{split}_images and {split}_labels, and npz:FILE reads others"
        )
    labels = archive[f"{split}_labels"]
    if labels.ndim != 2 or not labels.shape[1] or labels.dtype.kind not in "iub":
        raise DataError(f"{file}: {split}_labels must be whole numbers (N, 1), or (N, L) for L findings, got {labels.dtype} {labels.shape}")
    numbers: np.ndarray[Any, Any] = labels.astype(np.int64)
    return numbers


def _pixels(archive: Any, split: str, file: Path) -> Bytes:
    """(N, S, S) or (N, S, S, 3)."""
    pixels: Bytes = archive[f"{split}_images"]
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[3:] not in ((), (1,), (3,)) or 0 in pixels.shape[1:]:
        raise DataError(f"{file}: {split}_images must be uint8 (N, S, S) or (N, S, S, 3), got {pixels.dtype} {pixels.shape}")
    if not len(pixels):
        raise DataError(f"{file} has no images in its {split} split")
    return without_grey_axis(pixels)
