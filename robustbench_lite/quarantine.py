"""Images in quarantine: they could not be read, so that no model was asked about them. They are in n, and correct nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .errors import DataError, InvalidEvaluation

if TYPE_CHECKING:
    from torch import Tensor

    from .labelled import LabelledImages
    from .pictures import Pictures
    from .results import Result, Verdict
    from .samples import Answer, Samples

UNREADABLE = "unreadable: "
"""How the reason of a verdict about such an image begins."""

ASKED = f"coalesce(reason, '') NOT LIKE '{UNREADABLE}%'"
"""What SQL says of the verdicts on all others. Whoever goes on with a run reads images in quarantine again, for they may be mended."""

NAMED = 3


@dataclass(frozen=True)
class Quarantined:
    """An image: under how many conditions it could not be read, and why."""

    sample_id: str
    conditions: int
    reason: str


def unreadable(verdict: Verdict) -> bool:
    return verdict.broken is None and (verdict.reason or "").startswith(UNREADABLE)


def quarantine(result: Result) -> list[Quarantined]:
    """The images of a run that could not be read."""
    found: dict[str, list[str]] = {}
    evaluated = {c.name for c in result.conditions if c.kind != "worst"}  # which only repeats the others
    for v in result.verdicts:
        if v.condition in evaluated and unreadable(v):
            found.setdefault(v.sample_id, []).append(str(v.reason).removeprefix(UNREADABLE))
    return [Quarantined(key, len(reasons), reasons[0]) for key, reasons in found.items()]


@dataclass
class Unread:
    """Images that a session could not read: `ids` are those that the model was to be asked about, `about` is the session's record."""

    samples: Samples
    about: dict[str, Any]
    ids: set[str] = field(default_factory=set)

    def among(self, answers: Iterable[Answer]) -> None:
        """Go on without those of these images that could not be asked about, if that is wanted.

        Raises:
            InvalidEvaluation: the run is to have all images.
        """
        bad = {answer.id: answer.unusable for answer in answers if answer.unusable}
        self.ids |= bad.keys()
        self.refuse(bad)

    def refuse(self, bad: Mapping[str, str]) -> None:
        """
        Args:
            bad: why images could not be had, in some form, by their ids.

        Raises:
            InvalidEvaluation: the run is to have all images.
        """
        samples = self.samples
        if samples.images.sizes:
            self.record({key: samples.images.sizes[samples.position[key]] for key in bad})
        if bad and samples.options.on_bad_image == "fail":
            first = [f"{key} ({reason})" for key, reason in bad.items()][:NAMED]
            raise InvalidEvaluation(
                f"{len(bad)} of {len(samples.order)} images cannot be used: {', '.join(first)}{', ...' if len(bad) > NAMED else ''}; "
                "mend or remove them, or count them as not correct with --on-bad-image quarantine"
            )

    def record(self, sizes: Mapping[str, int]) -> None:
        """Write down which files these were, at once: whoever goes on, perhaps with a run that was killed, may have mended them."""
        if sizes:
            self.about["unreadable"] = self.about.get("unreadable", {}) | sizes
            self.samples.store.record_session(self.about, [])


@dataclass(frozen=True)
class Withheld:
    """Pictures of which some cannot be had any more; `reasons` by position."""

    pictures: Pictures
    reasons: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int, /) -> Tensor:
        if index in self.reasons:
            raise DataError(self.reasons[index])
        return self.pictures[index]


def without(images: LabelledImages, reasons: Mapping[int, str]) -> LabelledImages:
    """The same images, of which some cannot be read any more in any form."""
    variants = {name: Withheld(pictures, reasons) for name, pictures in images.variants.items()}
    return replace(images, pictures=Withheld(images.pictures, reasons), variants=variants)


def in_words(found: Sequence[Quarantined], n: int) -> str:
    """`2 of 50 images could not be read and count as not correct: a.png (why); b.png (why)`."""
    first = "; ".join(f"{each.sample_id} ({each.reason})" for each in found[:NAMED])
    return f"{len(found):,} of {n:,} images could not be read and count as not correct: {first}{', ...' if len(found) > NAMED else ''}"
