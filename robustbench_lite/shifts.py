"""Conditions without an attacker: corruptions made here, corrupted images read from a published set, sequences of perturbed frames."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .ahead import stacked
from .baselines import read_baseline
from .checks import checked
from .classifier import Images, one_a_class
from .corrupting import Member, draws, exact, members
from .errors import DataError, UsageError
from .judge import Judge
from .labelled import LabelledImages
from .quarantine import UNREADABLE
from .registry import Spec
from .results import Condition
from .samples import Answer, Samples
from .sequences import SUITES, Perturbation, SequenceVerdict, facts, frames, named
from .store import Store
from .streams import Streams

SHOWN = 96  # pixels on the longer side of the images that a report shows


@dataclass(frozen=True)
class Made:
    """A corruption at a severity, applied to the images of the run."""

    condition: Condition
    member: Member
    severity: int

    def picture(self, samples: Samples, sample_id: str) -> Tensor:
        """(C, H, W), what the image is made from."""
        return samples.load(sample_id)

    def images(self, samples: Samples, ids: Sequence[str], pictures: Images) -> Images:
        """The pictures under this condition."""
        options = samples.options
        draw = draws(options.seed, self.member.name, self.severity, ids, options.device)
        return self.member(pictures, self.severity, draw, storage_jpeg=options.storage_jpeg).float() / 255


@dataclass(frozen=True)
class Read:
    """The images of a published set under one of its conditions."""

    condition: Condition

    def picture(self, samples: Samples, sample_id: str) -> Tensor:
        """(C, H, W), the image as it was published."""
        return samples.load(sample_id, self.condition.name)

    def images(self, samples: Samples, ids: Sequence[str], pictures: Images) -> Images:
        """They are what they are."""
        return pictures


@dataclass(frozen=True)
class Perturbed:
    """Frames of a perturbation that grows, or is drawn again, from one to the next."""

    condition: Condition
    perturbation: Perturbation
    difficulty: int

    @property
    def kind(self) -> str:
        """Without the difficulty: `translate`."""
        return self.condition.name.removeprefix("p:").partition("@")[0]


Shift = Made | Read


def shifts(specs: Sequence[str], images: LabelledImages, frost: str | None) -> list[Shift]:
    """The corruptions that the specs ask for; of a published set everything that it holds, unless they choose.

    Args:
        frost: folder of the benchmark's frost pictures.

    Raises:
        UsageError: a corruption twice, or one that the published set does not hold.
        UnknownName, BadSpec: what cannot be read.
    """
    asked = [(member, severity) for spec in specs if not _is_sequence(spec) for member, severity in members(spec, frost)]
    chosen: list[Shift]
    if images.variants:
        # a published set has the benchmark's own frost
        wanted = [f"{member.name.removesuffix('(procedural)')}[{severity}]" for member, severity in asked] or list(images.variants)
        missing = [name for name in wanted if name not in images.variants]
        if missing:
            raise UsageError(f"{images.name} does not hold {missing[0]}: it holds {', '.join(list(images.variants)[:6])}, ...")
        chosen = [Read(_condition(name)) for name in wanted]
    else:
        chosen = [Made(_condition(f"{member.name}[{severity}]"), member, severity) for member, severity in asked]
    _refuse_twice([shift.condition for shift in chosen])
    return chosen


def sequences(specs: Sequence[str]) -> list[Perturbed]:
    """The perturbation sequences that the specs ask for.

    Raises:
        UsageError: one twice.
        UnknownName, BadSpec: what cannot be read.
    """
    found = [each for spec in specs if _is_sequence(spec) for each in named(spec)]
    asked = [Perturbed(Condition(name, "sequence"), perturbation, difficulty) for name, difficulty, perturbation in found]
    _refuse_twice([each.condition for each in asked])
    return asked


def in_turn(chosen: Sequence[Shift]) -> Iterator[tuple[str, Sequence[Shift]]]:
    """Shifts to be asked about together, under a title for progress: those made from one image, so that it is read once; of a published
    set one after the other, since each has files of its own.
    """
    made = [shift for shift in chosen if isinstance(shift, Made)]
    if made:
        yield (f"{len(made)} corruptions" if len(made) > 1 else made[0].condition.name), made
    for shift in chosen:
        if isinstance(shift, Read):
            yield shift.condition.name, [shift]


def described(chosen: Sequence[Shift], images: LabelledImages, storage_jpeg: int | None, baseline: str | None) -> dict[str, Any] | None:
    """What `run.json` says of the corruptions.

    Args:
        baseline: file of the errors that a model's are to be divided by.
    """
    if not chosen:
        return None
    height, width = _size(images)
    made = [shift.member for shift in chosen if isinstance(shift, Made)]
    return {
        "published": None if made else images.benchmark,
        "storage_jpeg": storage_jpeg if made else None,
        "frost": next((member.frost for member in made if member.frost), None),
        "scaled_from": next((size for member in made if (size := member.scaled_from(height, width))), None),
        "size": [height, width],
        "baseline": None if baseline is None else asdict(read_baseline(baseline)),
    }


def _size(images: LabelledImages) -> tuple[int, int]:
    """Height and width of the first image that can be read.

    Raises:
        DataError: none can.
    """
    for position in range(len(images) - 1):
        with suppress(DataError):  # which is dealt with where the image is asked about
            height, width = images[position][0].shape[1:]
            return height, width
    height, width = images[len(images) - 1][0].shape[1:]
    return height, width


def remarks(about: Mapping[str, Any] | None) -> list[str]:
    """What a reader of a run with corruptions, as `described`, must know of them."""
    if about is None or about["scaled_from"] is None:
        return []
    size = "x".join(map(str, about["size"]))
    return [f"corruptions have no published parameters for images of {size}: those for {about['scaled_from']} pixels were scaled"]


def _is_sequence(spec: str) -> bool:
    return Spec.parse(spec).name in (*SUITES, "p")


def _condition(name: str) -> Condition:
    corruption, _, severity = name.removesuffix("]").rpartition("[")
    return Condition(name, "corruption", corruption=corruption, severity=int(severity))


def _refuse_twice(conditions: Sequence[Condition]) -> None:
    for name, times in Counter(condition.name for condition in conditions).items():
        if times > 1:
            raise UsageError(f"{name} is asked for twice")


@dataclass
class Shifted:
    """Asks a model about the images of a run under every shift, batch by batch.

    `wrong` counts verdicts that are not correct, `bad` says, by id, why images cannot be read.
    """

    shifts: Sequence[Shift]
    samples: Samples
    store: Store
    judge: Judge
    wrong: int = 0
    bad: dict[str, str] = field(default_factory=dict)

    def ask(self, waiting: Sequence[Answer], batch_size: int) -> Iterator[list[Answer]]:
        """Bring the verdicts that these images lack."""
        names = [shift.condition.name for shift in self.shifts]
        done = set.intersection(*(self.store.decided(name) for name in names))
        variant = names[0] if isinstance(self.shifts[0], Read) else None
        self.samples.expect((answer.id for answer in waiting if answer.id not in done), batch_size, variant)
        for start in range(0, len(waiting), batch_size):
            batch = list(waiting[start : start + batch_size])
            decided = self.store.decided_of(names, [answer.id for answer in batch])
            if not self.samples.images.has_clean:
                self._known(batch)
            read: dict[str, Tensor] = {}
            for shift in self.shifts:
                name, started = shift.condition.name, time.monotonic()
                if todo := [answer for answer in batch if (name, answer.id) not in decided]:
                    self._one(shift, todo, read)
                    self.store.spend(name, time.monotonic() - started)
            self.store.commit()
            yield batch

    def _known(self, batch: Sequence[Answer]) -> None:
        """Record which images these are, as the clean pass does where there is one."""
        for answer in batch:
            if answer.id in self.samples.known:
                continue  # once a session: conditions come one after the other, and each would read the first one's files again
            self.samples.known.add(answer.id)
            with suppress(DataError):  # which is dealt with where the image is asked about
                self.samples.same_image(answer.id, self.samples.load(answer.id))

    def _one(self, shift: Shift, batch: Sequence[Answer], read: dict[str, Tensor]) -> None:
        """read: the pictures of this batch that another shift was made from."""
        name, samples, loaded = shift.condition.name, self.samples, {}
        for answer in batch:
            try:
                if answer.id not in read:
                    read[answer.id] = shift.picture(samples, answer.id)
                loaded[answer.id] = (answer, read[answer.id])
            except DataError as error:
                if samples.options.on_bad_image == "quarantine":
                    self.store.add(samples.undecided(name, replace(answer, trouble=UNREADABLE + str(error))))
                    self.wrong += 1
                self.bad.setdefault(answer.id, str(error))
        if not loaded:
            return
        answers = [answer for answer, _ in loaded.values()]
        pictures = stacked([picture for _, picture in loaded.values()], samples.options.device)
        x = shift.images(samples, list(loaded), pictures)
        for answer, image, verdict in zip(answers, x, samples.plain_verdicts(name, self.judge, answers, x), strict=True):
            self.store.add(verdict)
            self.wrong += verdict.broken is not False
            if answer.id == samples.probed[0]:
                self.store.show(name, thumbnail(image))


@dataclass(frozen=True)
class Sequenced:
    """Asks a model about the frames of every perturbation, image by image.

    `wide` are the images before they were cropped, so that what moves into the picture is real; the run's own where there is no more.
    `bad` names images that cannot be read.
    """

    wide: LabelledImages
    samples: Samples
    judge: Judge
    bad: dict[str, str] = field(default_factory=dict)

    def ask(self, ids: Sequence[str], each: Perturbed) -> Iterator[SequenceVerdict]:
        """What the model says of the frames that a perturbation makes of these images."""
        samples, name = self.samples, each.condition.name
        assert samples.shape is not None
        size = (samples.shape[1], samples.shape[2])
        for key in ids:
            try:
                picture = exact(checked(self.wide[samples.position[key]][0], key))
            except DataError as error:
                self.bad[key] = str(error)
                continue
            draw = Streams(samples.options.seed, name, [(key, 0)], None, picture.device)
            x = frames(each.perturbation, picture, size, draw, each.difficulty).to(samples.options.device)
            logits = samples.answers(self.judge, [key] * len(x), x)
            flips, pairs, t5d, predictions = facts(one_a_class(logits), each.perturbation.against_first, each.difficulty)
            yield SequenceVerdict(name, key, flips, pairs, t5d, predictions)


def thumbnail(image: Tensor) -> bytes:
    """A small JPEG of a (C, H, W) image in [0, 1], for a report to show."""
    from PIL import Image

    pixels = image[: 3 if len(image) >= 3 else 1].mul(255).round().to(torch.uint8).cpu().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    factor = min(1.0, SHOWN / max(picture.size))
    picture = picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))), Image.Resampling.BOX)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90, subsampling=0)
    return stream.getvalue()
