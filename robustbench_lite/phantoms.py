"""`phantom:chest`, `phantom:fundus`, `phantom:derm`: SYNTHETIC images in the form of medical ones, with a lesion of known visibility.

They show that a scenario runs and what its figures mean; they say nothing about patients, and no figure over them may stand for a clinical
one. Every image is drawn under a key of its own (kind, seed, split, patient, view): image i is the same however many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from .classifier import Preprocess
from .errors import UsageError
from .labelled import LabelledImages, Task, content_ids, labels_of
from .phantom_drawing import chest, fundus, skin
from .pictures import Packed
from .registry import data
from .streams import Streams

Split = Literal["test", "val", "train"]
Kind = Literal["chest", "chest-findings", "fundus", "derm"]

USUAL = {"train": 4000, "val": 500, "test": 1000}
"""Images of a split unless told otherwise."""

EPS = {"linf": 0.01, "l2": 0.5}
"""That of Finlayson et al. (Science 2019), 2.55 grey levels; and what is about as much in l2 at 64 x 64."""

AT_A_TIME = 256


@dataclass(frozen=True)
class Domain:
    """A kind of images: what their labels mean, and how a batch is drawn from draws of patients, of views, labels, lesion and size."""

    task: Task
    class_names: tuple[str, ...]
    draw: Callable[[Streams, Streams, Tensor, float, int], Tensor]


def _pneumothorax(person: Streams, view: Streams, label: Tensor, lesion: float, size: int) -> Tensor:
    return chest(person, view, torch.stack([*[torch.zeros_like(label)] * 3, label], 1), lesion, size)


DOMAINS: dict[Kind, Domain] = {
    "chest": Domain("binary", ("no finding", "pneumothorax"), _pneumothorax),
    "chest-findings": Domain("multi-label", ("nodule", "opacity", "effusion", "pneumothorax"), chest),
    "fundus": Domain("ordinal", ("grade 0", "grade 1", "grade 2", "grade 3", "grade 4"), fundus),
    "derm": Domain("binary", ("benign", "malignant"), skin),
}


@data("phantom")
@dataclass(frozen=True)
class Phantom:
    """SYNTHETIC images that look medical: `phantom:chest`, `phantom:chest-findings`, `phantom:fundus` (grades 0 to 4), `phantom:derm`.

    Args:
        kind: what they are like.
        split: each has patients of its own.
        n: how many images; None: 1000 of test, 500 of val, 4000 of train.
        size: height and width in pixels.
        lesion: how visible disease is; 1 is as the bundled models were trained, 0 makes the sick and the healthy equal.
        seed: another one is another set of patients.
    """

    kind: Kind
    split: Split = "test"
    n: int | None = None
    size: int = 64
    lesion: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 1:
            raise ValueError(f"n must be 1 or more, got {self.n}")
        if self.size < 16:
            raise ValueError(f"size must be 16 or more, for there is no anatomy in fewer pixels; got {self.size}")
        if self.lesion < 0:
            raise ValueError(f"lesion must be 0 or more, got {self.lesion:g}")

    def read(self, preprocess: Preprocess | None) -> LabelledImages:
        domain = DOMAINS[self.kind]
        pixels, labels, patients = self.arrays()
        return LabelledImages(
            Packed(pixels, preprocess),
            labels_of(labels, f"phantom:{self.kind}"),
            content_ids(pixels),
            f"phantom:{self.kind}",
            patients,
            len(domain.class_names),
            EPS,
            f"SYNTHETIC phantoms, not patients' images: {self.kind}, {self.split} split, lesions of visibility {self.lesion:g}",
            class_names=domain.class_names,
            task=domain.task,
            synthetic=True,
        )

    def arrays(self) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], np.ndarray[Any, np.dtype[np.uint8]], list[str]]:
        """Pixels (N, S, S) or (N, S, S, 3), labels (N, 1) or (N, findings), and the patient of each image."""
        domain, n = DOMAINS[self.kind], self.n or USUAL[self.split]
        known = [_patient(index) for index in range(n)]
        people = [f"phantom-patient-{self.split}-{number:04d}" for number, _ in known]
        pixels, labels = [], []
        for start in range(0, n, AT_A_TIME):
            rows = range(start, min(start + AT_A_TIME, n))
            person = self._draws([(people[i], 0) for i in rows])
            view = self._draws([(people[i], known[i][1]) for i in rows])
            label = self._labels(domain, person)
            drawn = domain.draw(person, view, label, self.lesion, self.size)
            pixels.append((drawn * 255).round().to(torch.uint8).permute(0, 2, 3, 1).squeeze(-1).numpy())
            labels.append(label.view(len(label), -1).to(torch.uint8).numpy())
        patients = [person.replace("patient", f"patient-{self.seed}", 1) for person in people]  # another seed is other patients
        return np.concatenate(pixels), np.concatenate(labels), patients

    def _labels(self, domain: Domain, person: Streams) -> Tensor:
        """All images of a patient have the same; each finding or class is as frequent as the others."""
        if domain.task == "multi-label":
            return (person.uniform("label", len(domain.class_names)) < 0.35).long()
        return person.integers("label", 0, len(domain.class_names))

    def _draws(self, rows: list[tuple[str, int]]) -> Streams:
        return Streams(self.seed, f"phantom:{self.kind}", rows, None, torch.device("cpu"))


def _patient(index: int) -> tuple[int, int]:
    """The number of the patient whose image this is, and that of the view: two views of one and three of the next, in turn, from 1."""
    pair, place = divmod(index, 5)
    return (2 * pair + 1, place + 1) if place < 2 else (2 * pair + 2, place - 1)


def write_npz(
    path: str | Path, kind: Kind, *, size: int = 28, train: int = 300, val: int = 50, test: int = 100, seed: int = 0, lesion: float = 1.0
) -> Path:
    """Phantoms as an archive of the exact form of MedMNIST's, with the patients beside (`train_patients`, ...).

    Args:
        kind: as of `Phantom`, as are size, seed and lesion. train, val, test: how many images.

    Raises:
        UsageError: no such kind.
    """
    if kind not in get_args(Kind):
        raise UsageError(f"there are phantoms of {', '.join(get_args(Kind))}, not of {kind!r}")
    arrays: dict[str, Any] = {}
    for split, n in (("train", train), ("val", val), ("test", test)):
        pixels, labels, patients = Phantom(kind, split, n, size, lesion, seed).arrays()  # type: ignore[arg-type]  # a split, as a text
        arrays |= {f"{split}_images": pixels, f"{split}_labels": labels, f"{split}_patients": np.array(patients)}
    np.savez_compressed(path, **arrays, synthetic=np.array(f"phantom:{kind}"))  # whoever reads it has to know
    return Path(path)
