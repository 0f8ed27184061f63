"""The images of a run: loaded and checked, asked about as they are, and written down in verdicts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Literal

import torch
from torch import Tensor

from .ahead import BYTES, Ahead, stacked
from .calibration import brier, negative_log_likelihood
from .checks import checked, size_text
from .classifier import Logits, one_a_class
from .conditions import clean_criterion
from .errors import DataError, RunMismatch
from .judge import Judge
from .labelled import LabelledImages, label_tensor
from .oracle import BAD_LOGITS, TROUBLE
from .pictures import Pictures, beside, quietly
from .quarantine import UNREADABLE
from .results import Reduced, Verdict
from .store import Store
from .witnesses import image_digest

BatchSize = int | Literal["auto", "tune"]


@dataclass(frozen=True)
class Options:
    """How a run is made; see `evaluate` for what they mean."""

    seed: int
    shuffle_seed: int
    device: torch.device
    batch_size: BatchSize
    first_pass: Reduced | None
    prepare: bool
    query_budget: int | None
    witnesses: int
    on_bad_image: Literal["fail", "quarantine"]
    eot: int | None
    votes: int
    storage_jpeg: int | None = None
    outputs: bool = False
    patience: int | None = None
    radii: Mapping[str, float] | None = None
    compile: bool = False
    halved: int = 0  # how often memory ran out before, in a worker that died


Said = tuple[Any, float]
"""A prediction, which is a class or a list of 0/1, and the model's confidence in it."""


@dataclass(frozen=True)
class Answer:
    """The clean answer to one image: logits (1, K), and what they say.

    `unusable` says why the image could not be asked about, `trouble` why nothing can be said of it. `scores` has `nll` and `brier`, where a
    label is one class.
    """

    id: str
    logits: Logits | None = None
    unusable: str | None = None
    trouble: str | None = None
    said: Said = (None, 0.0)
    wrong: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)


def drawn(seed: int, what: str, sample_id: str) -> bytes:
    """A key to order images by, the same in every run."""
    return blake2b(f"{seed}/{what}/{sample_id}".encode(), digest_size=16).digest()


@dataclass
class Samples:
    """The images, by id. `probed` are the ids of the first few that could be read, `shape` is that of every image.

    `only` are the ids of the images that are to be brought to their end here, None for all. `known` are the ids of images of which a
    published set's conditions have recorded, in this session, what they were.
    """

    images: LabelledImages
    store: Store
    options: Options
    only: Collection[str] | None = None

    def __post_init__(self) -> None:
        ids, options = self.images.ids, self.options
        self.position = {key: i for i, key in enumerate(ids)}
        self.every = sorted(ids, key=lambda key: drawn(options.shuffle_seed, "order", key))
        self.order = self.every if self.only is None else [key for key in self.every if key in self.only]
        self.shape: torch.Size | None = None
        self.probed: list[str] = []
        self.known: set[str] = set()
        self.outputs = 0  # of the model; known once it was asked
        self.ahead = Ahead(self._beside)
        self.kept = set(sorted(ids, key=lambda key: drawn(options.seed, "witness", key))[: options.witnesses])

    def probe(self) -> Tensor:
        """(B, C, H, W) the first few images that can be read; they must be those that the run began with."""
        found: list[Tensor] = []
        for key in self.every:
            try:
                found.append(self.load(key))
                self.probed.append(key)
            except DataError:
                if key == self.every[-1] and not found:
                    raise
            if len(found) == 4:
                break
        self.shape = found[0].shape
        shapes = sorted({size_text(image) for image in found})
        if len(shapes) > 1:
            raise DataError(f"the images differ in size ({', '.join(shapes)}): bring them to one with --size")
        for key, image in zip(self.probed, found, strict=True):
            self.same_image(key, image)
        return torch.stack(found).to(self.options.device)

    def load(self, sample_id: str, variant: str | None = None) -> Tensor:
        """(C, H, W), the image or, of a published set, the image under one of its conditions."""
        picture = self.ahead.take((sample_id, variant))
        image = checked(self._pictures(variant)[self.position[sample_id]] if picture is None else picture, sample_id)
        if self.shape is not None and image.shape != self.shape:
            raise DataError(f"image {sample_id} is {size_text(image)} and others are not: bring them to one size with --size")
        return image

    def _pictures(self, variant: str | None) -> Pictures:
        return self.images.pictures if variant is None else self.images.variants[variant]

    def _beside(self, key: tuple[str, str | None]) -> Tensor | None:
        """In a thread: what `load` is going to check."""
        read = beside(self._pictures(key[1]))
        return None if read is None else read(self.position[key[0]])

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Have what is expected decoded ahead for as long as this lasts, where any of it is in files."""
        if all(beside(each) is None for each in (self.images.pictures, *self.images.variants.values())):
            yield
            return
        with quietly(), self.ahead:
            yield

    def expect(self, ids: Iterable[str], most: int, variant: str | None = None) -> None:
        """Say what is loaded next, in this order, so that up to `most` pictures are decoded while the model is at work."""
        if self.shape is not None and beside(self._pictures(variant)) is not None:
            self.ahead.expect([(key, variant) for key in ids], min(most, BYTES // (4 * self.shape.numel())))

    def labels(self, ids: Iterable[str]) -> Tensor:
        """(B,), (B, K) or (B, M)."""
        return label_tensor(self.images.labels[self.position[key]] for key in ids).to(self.options.device)

    def same_image(self, key: str, image: Tensor) -> None:
        """Record what the image was, or check that it is still that."""
        before, now = self.store.sample(key), image_digest(image)
        if before is None:
            self.store.add_sample(self.position[key], key, now)
        elif before != now:
            raise RunMismatch(f"image {key} is not the one that this run began with: choose another --out, or --fresh to start over")

    def same_answers(self, name: str, judge: Judge, probe: Tensor) -> None:
        """Refuse to go on with a model that answers otherwise than when the run began: its code may have changed, which no digest sees."""
        asked = "clean" if self.images.has_clean else next(iter(self.images.variants))  # which the probe is of
        ids = self.probed[: len(probe)]
        known = {row: before for row, key in enumerate(ids) if (before := self.store.said(asked, key)) is not None}
        said = self.said(ids, self.answers(judge, ids, probe)) if known else []
        for row, was in known.items():
            if was[0] != said[row][0] or abs(was[1] - said[row][1]) > 1e-3:
                raise RunMismatch(
                    f"{name} says {said[row]} of {ids[row]}, and said {was} when this run began: "
                    "choose another --out, or --fresh to start over"
                )

    def answers(self, judge: Judge, ids: Sequence[str], x: Tensor) -> Logits:
        """(B, K) what the model says of images x, which are made from those with these ids."""
        return judge.logits(x, clean_criterion(self.labels(ids), self.outputs), ids)

    def said(self, ids: Iterable[str], logits: Logits) -> list[Said]:
        """What logits (B, K) say of the images with these ids."""
        rule = clean_criterion(self.labels(ids), logits.shape[1])
        return list(zip(rule.predict(logits).tolist(), rule.confidence(logits).tolist(), strict=True))

    def undecided(self, condition: str, answer: Answer) -> Verdict:
        return self.verdict(condition, answer, (None, 0.0), broken=None, reason=answer.trouble)

    def verdict(self, condition: str, answer: Answer, said: Said, **known: Any) -> Verdict:
        """said: of the image that the verdict is about."""
        i = self.position[answer.id]
        blank = {"target": None, "broken_by": None, "reason": None, "precision": "fp32", "witness": None, "distance": 0.0}
        counts = {"restart": 0, "steps": 0, "forwards": 0, "backwards": 0}
        return Verdict(
            sample_id=answer.id,
            group=None if self.images.groups is None else self.images.groups[i],
            condition=condition,
            label=self.images.labels[i],
            clean_prediction=None if answer.trouble else answer.said[0],
            prediction=said[0],
            confidence=said[1],
            seed=self.options.seed,
            **(blank | counts | known),
        )

    def ask(self, judge: Judge, waiting: Sequence[Answer], batch_size: int) -> Iterator[list[Answer]]:
        """What the model says of the images as they are, batch by batch."""
        self.expect((answer.id for answer in waiting), batch_size)
        for start in range(0, len(waiting), batch_size):
            loaded, answers = {}, []
            for key in (answer.id for answer in waiting[start : start + batch_size]):
                try:
                    loaded[key] = self.load(key)
                except DataError as error:
                    answers.append(Answer(key, unusable=str(error), trouble=UNREADABLE + str(error)))
            if loaded:
                logits = self.answers(judge, list(loaded), stacked(list(loaded.values()), self.options.device))
                for key, image in loaded.items():
                    self.same_image(key, image)
                answers += self._read(list(loaded), logits)
            yield answers

    def _read(self, ids: Sequence[str], logits: Logits) -> list[Answer]:
        """What logits (B, K) mean for the images with these ids."""
        wrong = (clean_criterion(self.labels(ids), logits.shape[1]).margin(logits) > 0).tolist()
        trouble = [None if finite else TROUBLE[BAD_LOGITS] for finite in logits.isfinite().all(1).tolist()]
        each = zip(ids, logits[:, None].unbind(), trouble, self.said(ids, logits), wrong, self._scores(ids, logits), strict=True)
        return [Answer(key, answer, None, reason, said, missed, scores) for key, answer, reason, said, missed, scores in each]

    def clean_verdict(self, answer: Answer) -> Verdict:
        return self._plain("clean", answer, answer)

    def plain_verdicts(self, condition: str, judge: Judge, clean: Sequence[Answer], x: Tensor) -> list[Verdict]:
        """Verdicts on images x that were made, by nobody who knows the model, from those that it gave these answers to."""
        ids = [answer.id for answer in clean]
        answers = self._read(ids, self.answers(judge, ids, x))
        return [self._plain(condition, before, answer) for before, answer in zip(clean, answers, strict=True)]

    def _plain(self, condition: str, clean: Answer, answer: Answer) -> Verdict:
        if answer.trouble:
            return self.undecided(condition, replace(clean, trouble=answer.trouble))
        broken_by = condition if answer.wrong else None
        outputs = answer.logits.flatten().tolist() if self.options.outputs and answer.logits is not None else None
        known = {"outputs": outputs, **answer.scores}
        return self.verdict(condition, clean, answer.said, broken=answer.wrong, broken_by=broken_by, forwards=1, **known)

    def _scores(self, ids: Sequence[str], logits: Logits) -> list[dict[str, float]]:
        """Per image `nll` and `brier`, nothing where a label is not one class."""
        labels = self.labels(ids)
        if labels.dim() > 1:
            return [{} for _ in ids]
        of_classes = one_a_class(logits)
        scores = zip(negative_log_likelihood(of_classes, labels).tolist(), brier(of_classes, labels).tolist(), strict=True)
        return [{"nll": nll, "brier": squares} for nll, squares in scores]
