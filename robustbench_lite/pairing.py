"""Which images and which conditions two runs have in common, and what a reader of their difference must know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import UsageError
from .results import Condition, Result
from .store import explained, read_image_digests, read_run

SEARCHED = ("attack", "worst")
SAID = {
    "goal": "goal",
    "seed": "seed",
    "precision": "precision",
    "query_budget": "query budget",
    "eot": "answers that an attack on a random model averages",
    "votes": "votes on a random model",
    "storage_jpeg": "quality of JPEG files",
    "surrogates": "surrogates",
    "no_stand_ins": "list of layers kept without their stand-ins",
    "version": "version of robustbench-lite",
}
"""What `identity` holds besides the model, the data and the conditions, in words."""


@dataclass(frozen=True)
class Run:
    """A run that takes part in a comparison.

    Args:
        letter: what tables call it.
        result: what it found.
        pictures: SHA-256 of every clean image that it saw, by id; empty for a run that was kept in memory.
    """

    letter: str
    result: Result
    pictures: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, letter: str, folder: Path) -> Run:
        """The run in a folder, finished or not.

        Raises:
            UsageError: the folder is not a run, or cannot be read.
        """
        result = read_run(folder)
        with explained(folder):
            return cls(letter, result, read_image_digests(folder))

    @property
    def model(self) -> str:
        return str(self.result.config["model"]["name"])

    @property
    def finished(self) -> bool:
        return any(session.get("complete") for session in self.result.config["sessions"])

    @cached_property
    def labels(self) -> Mapping[str, Any]:
        """The label of every image that has a verdict, by id."""
        return {v.sample_id: v.label for v in self.result.verdicts}

    @cached_property
    def conditions(self) -> Mapping[tuple[object, ...], Condition]:
        """Its conditions by what was done to the images, whatever that was called. Doubts are none: they met some images only."""
        return {self._done(c): c for c in self.result.conditions if c.kind != "doubt"}

    def searches(self, worst: Condition) -> set[str]:
        """Names of all attacks that a worst case counts, those of smaller balls and those in doubt among them."""
        planned = (Condition(**c) for c in self.result.config["conditions"])
        kinds = ("attack", "doubt")
        return {c.name for c in planned if c.kind in kinds and c.norm == worst.norm and (c.eps or 0) <= (worst.eps or 0)}

    def _done(self, c: Condition) -> tuple[object, ...]:
        settings: tuple[object, ...] = ()
        identity = self.result.config["identity"]
        if c.kind == "corruption":
            about = self.result.config.get("corruptions") or {}
            settings = tuple(about.get(name) for name in ("published", "storage_jpeg", "frost", "scaled_from"))
        if c.kind in SEARCHED:
            settings = (identity.get("query_budget"), self.result.config.get("target"))
        if c.kind == "worst":
            asked = [o for o in self.result.conditions if (o.kind, o.norm, o.eps) == ("attack", c.norm, c.eps)]
            settings = (*settings, frozenset((o.attack, o.source) for o in asked))
        if c.source is not None:
            settings = (*settings, *identity.get("surrogates", ()))
        return (c.kind, c.attack, c.norm, c.eps, c.severity, c.target, c.source, c.corruption, *settings)


@dataclass(frozen=True)
class Pairing:
    """What two runs have in common.

    Args:
        ids: of the images that both know, in the reference's order.
        conditions: the reference's and the other's, of which the same was done to the images.
        only_reference, only_other: names of conditions that the one run has alone.
        unlike: names that both have, of conditions that were not the same.
        remarks: what else a reader must know, one sentence each.
    """

    ids: Sequence[str]
    conditions: Sequence[tuple[Condition, Condition]]
    only_reference: Sequence[str]
    only_other: Sequence[str]
    unlike: Sequence[str]
    remarks: Sequence[str]


def pair(reference: Run, other: Run) -> Pairing:
    """What can be compared of two runs.

    Raises:
        UsageError: they share no image or no condition, or the same id is another image or has another label.
    """
    ids = _shared_images(reference, other)
    one, two = reference.conditions, other.conditions
    conditions = [(c, two[done]) for done, c in one.items() if done in two]
    names = [{c.name for done, c in own.items() if done not in its} for own, its in ((one, two), (two, one))]
    unlike = [c.name for c in one.values() if c.name in names[0] & names[1]]
    if not conditions:
        theirs = [f"{', '.join(c.name for c in run.conditions.values()) or 'nothing'} in {run.letter}" for run in (reference, other)]
        raise UsageError(f"the runs share no condition ({'; '.join(theirs)}): run both with the same attacks, eps and settings")
    return Pairing(
        ids,
        conditions,
        [c.name for c in one.values() if c.name in names[0] - names[1]],
        [c.name for c in two.values() if c.name in names[1] - names[0]],
        unlike,
        list(_remarks(reference, other, ids)),
    )


def _shared_images(reference: Run, other: Run) -> list[str]:
    """Ids that both have, once it is sure that they are the same images.

    Raises:
        UsageError: there are none, or the same id stands for different things.
    """
    ids = [key for key in reference.labels if key in other.labels]
    a, b = reference.letter, other.letter
    if not ids:
        about = [(run, run.result.config["data"]) for run in (reference, other)]
        data = [f"{len(run.labels)} of {known.get('spec') or known['name']} in {run.letter}" for run, known in about]
        raise UsageError(f"{a} and {b} share no image ({', '.join(data)}): only runs on the same --data can be compared")
    unlike = next((key for key in ids if reference.labels[key] != other.labels[key]), None)
    if unlike is not None:
        was, now = reference.labels[unlike], other.labels[unlike]
        raise UsageError(f"image {unlike} has the label {was} in {a} and {now} in {b}: only runs on the same --data can be compared")
    redrawn = _redrawn(reference, other, ids)
    if redrawn and reference.result.config["data"]["digest"] != other.result.config["data"]["digest"]:
        raise UsageError(
            f"image {redrawn[0]} is another picture in {a} than in {b}: only runs on the same --data and --limit can be compared"
        )
    return ids


def _redrawn(reference: Run, other: Run, ids: Sequence[str]) -> list[str]:
    """Ids of images that reached the two models with different pixels."""
    both = reference.pictures.keys() & other.pictures.keys()
    return [key for key in ids if key in both and reference.pictures[key] != other.pictures[key]]


def _remarks(reference: Run, other: Run, ids: Sequence[str]) -> Iterator[str]:
    a, b = reference.letter, other.letter
    configs = reference.result.config, other.result.config
    if configs[0]["model"]["digest"] == configs[1]["model"]["digest"]:
        same = reference.result.folder is not None and _place(reference) == _place(other)
        yield f"{a} and {b} are the same {'run' if same else 'model'}."
    totals = len(reference.labels), len(other.labels)
    if totals != (len(ids), len(ids)):
        yield f"{len(ids):,} images are in both runs, of {totals[0]:,} in {a} and {totals[1]:,} in {b}: figures here are over those alone."
    if redrawn := _redrawn(reference, other, ids):
        yield f"{len(redrawn):,} images came to the two models with other pixels, as where one takes them in another size."
    for run in (reference, other):
        if not run.finished:
            yield (
                f"{run.letter} is unfinished: images that break soon are decided first, so that its figures are too low for now. "
                "The command that began it goes on with it."
            )
    for key, words in SAID.items():
        was, now = (config["identity"].get(key) for config in configs)
        if was != now:
            yield f"Another {words}: {_value(was)} in {a}, {_value(now)} in {b}."
    if any(v.group is not None for v in reference.result.verdicts):
        yield "Images come in groups, and intervals and p take every image for itself: they are surer than they should be."
    if any(run.result.sequenced for run in (reference, other)):
        yield "Sequences of perturbed images are not compared."


def _place(run: Run) -> Path | None:
    return None if run.result.folder is None else run.result.folder.resolve()


def _value(value: object) -> str:
    """A setting as a reader knows it; a digest by its beginning."""
    if isinstance(value, list):
        return " ".join(str(each)[:8] for each in value) or "none"
    return "none" if value is None else str(value)
