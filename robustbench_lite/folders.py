"""A folder of pictures, corrupted into another folder: resumable, by several processes, the same files however often it was stopped."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from . import private
from .classifier import Preprocess
from .corrupting import Member, draws, members
from .engines.engine import Job, Send
from .engines.opening import Workers
from .errors import DataError, InvalidEvaluation, RunMismatch, UsageError
from .imagefolder import SUFFIXES
from .pictures import Files
from .spreading import Spread, halves
from .store import write_text

RECORD = "corrupt.json"
OF_ALL = frozenset({"version", "preprocess", "storage_jpeg", "seed"})
"""What a record says of all files; its other entries are corruptions."""

PARTIAL = ".partial"


@dataclass(frozen=True)
class Work:
    """What a process needs to know: everything but the picture."""

    source: Path
    target: Path
    specs: tuple[str, ...]
    preprocess: Preprocess | None
    storage_jpeg: int | None
    frost: str | None
    seed: int
    fresh: bool

    @property
    def asked(self) -> list[tuple[Member, int]]:
        """The corruptions, each at a severity."""
        return [each for spec in self.specs for each in members(spec, self.frost)]

    def place(self, member: str, severity: int, picture: str) -> Path:
        """Where a corrupted copy goes, as in the published sets."""
        suffix = ".png" if self.storage_jpeg is None else ".JPEG"
        return self.target / member / str(severity) / Path(picture).with_suffix(suffix)


def corrupt_folder(
    source: str | Path,
    target: str | Path,
    corruptions: Sequence[str],
    *,
    size: int | None = None,
    resize: int | None = None,
    storage_jpeg: int | None = None,
    frost_dir: str | Path | None = None,
    seed: int = 0,
    workers: Workers | int | None = None,
    fresh: bool = False,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[int, int]:
    """Write `target/<corruption>/<severity>/<path in source>` for every picture at any depth of `source`.

    Draws are keyed by the path in `source`: the same files come out in whatever order, by however many processes. What is there already,
    of an earlier run with the same settings, is kept.

    Args:
        corruptions: spec strings, such as `fog:severity=3` or `imagenet-c`.
        size, resize: centre crop, and the shorter side before it, in colour as the published ones; None leaves pictures as they are.
        storage_jpeg: write JPEG files of this quality (`optimize`, 4:2:0, as the published ones); None writes PNG.
        frost_dir: the benchmark's frost pictures.
        workers: processes, or `Workers`; those of other machines need both folders under the same paths. None: one per core.
        fresh: remove what earlier runs wrote of the same corruptions, and whatever they wrote with other settings, and write again.
        progress: called with pictures done and pictures in all.

    Returns:
        How many files were written, and how many were there.

    Raises:
        UsageError: folders, settings or specs that cannot be used; RunMismatch: the target was made with other settings.
        InvalidEvaluation: pictures that cannot be read or written; the others are done.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if storage_jpeg is not None and not 1 <= storage_jpeg <= 100:
        raise UsageError(f"the quality of a JPEG file is 1..100, got {storage_jpeg}")
    workers = workers if isinstance(workers, Workers) else Workers(count=os.cpu_count() or 1 if workers is None else workers)
    for name, value in (("size", size), ("resize", resize)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be 1 or more, got {value}")
    if size is not None and resize is not None and resize < size:
        raise UsageError(f"resize {resize} leaves less than the crop of {size}: give a larger --resize")
    pictures = _pictures(source, target)
    preprocess = None if size is None and resize is None else Preprocess(size=(size, size) if size else None, resize=resize)
    frost = None if frost_dir is None else str(frost_dir)
    work = Work(source, target, tuple(corruptions), preprocess, storage_jpeg, frost, seed, fresh)
    asked = len(work.asked) * len(pictures)
    _record(work)
    done: dict[str, Outcome] = {}

    def heard(_: Lot, outcome: Outcome) -> None:
        if outcome.picture not in done or done[outcome.picture].failure:  # after a worker's death another one looks at the same pictures
            done[outcome.picture] = outcome
        progress(len(done), len(pictures))

    here = replace(work, source=source.absolute(), target=target.absolute())  # a worker may begin in another folder
    lots = [Lot(here, pictures[start : start + LOT]) for start in range(0, len(pictures), LOT)]
    if workers.engine == "local" and workers.count == 1:
        for lot in lots:
            lot.corrupt(partial(heard, lot))
    else:
        with closing(workers.open()) as engine:
            Spread(engine, heard, workers.hang_after, slow=math.inf).run(lots)  # a picture is not to be written twice at once
    written, known = sum(each.written for each in done.values()), sum(each.found for each in done.values())
    if bad := [f"{each.picture}: {each.failure}" for each in done.values() if each.failure]:
        raise InvalidEvaluation(
            f"{len(bad)} of {len(pictures)} pictures could not be corrupted: {'; '.join(bad[:3])}{'; ...' if len(bad) > 3 else ''}; "
            f"the other {written + known} of {asked} files are in {target}"
        )
    return written, known


def _pictures(source: Path, target: Path) -> list[str]:
    """Paths below `source`, sorted; names that begin with a dot are left out."""
    if not source.is_dir():
        raise DataError(f"there is no folder {source}")
    if target.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{target} lies in {source}, whose pictures are to be corrupted: name a folder beside it")
    found = sorted(path.relative_to(source) for path in source.rglob("[!.]*") if path.is_file() and path.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"{source} has no pictures (looked for {' '.join(sorted(SUFFIXES))})")
    same = [stem for stem, count in Counter(path.with_suffix("") for path in found).items() if count > 1]
    if same:
        raise DataError(f"{source} has several pictures that differ in their ending only, the first are {same[0]}.*: rename them")
    return [path.as_posix() for path in found]


def _record(work: Work) -> None:
    """Say in the target how it is made, or refuse one that was made otherwise."""
    file = work.target / RECORD
    settings: dict[str, Any] = {
        "version": version("robustbench-lite"),  # another may draw otherwise
        "preprocess": repr(work.preprocess),
        "storage_jpeg": work.storage_jpeg,
        "seed": work.seed,
    } | {member.name: repr(member.corruption) for member, _ in work.asked}
    try:
        private.folder(work.target)
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if work.fresh:
            before = _without_old_files(work, before, settings)
        for key in before.keys() & settings.keys():
            if before[key] != settings[key]:
                raise RunMismatch(
                    f"{work.target} was made with another {key} ({before[key]} there, {settings[key]} here): "
                    "choose another folder, or --fresh to write everything again"
                )
        write_text(file, json.dumps(before | settings, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"{work.target} cannot be written to ({error.strerror}): choose another folder") from error
    except (ValueError, RecursionError) as error:
        raise RunMismatch(f"{file} is damaged: choose another folder, or remove it and use --fresh") from error


def _without_old_files(work: Work, before: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What stays of a record after the files are gone that are to be written again, or that were made with other settings.

    They go before the new settings are recorded: a job that is killed afterwards goes on without taking them for its own.
    """
    other = any(before[key] != settings[key] for key in OF_ALL & before.keys())
    asked = {member.name for member, _ in work.asked}
    gone = (before.keys() - OF_ALL) if other else {name for name in asked & before.keys() if before[name] != settings[name]}
    folders = {work.target / name / str(severity) for name in gone for severity in range(1, 6)}
    folders |= {work.target / member.name / str(severity) for member, severity in work.asked if member.name in before}
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
    return {key: value for key, value in before.items() if key not in (gone | OF_ALL if other else gone)}


@dataclass(frozen=True)
class Outcome:
    """Of a picture: files written, files found, and why it could not be corrupted."""

    picture: str
    written: int
    found: int
    failure: str | None = None


LOT = 16
"""Pictures that a worker is given at a time."""


@dataclass(frozen=True)
class Lot:
    """Some pictures for one worker."""

    work: Work
    pictures: Sequence[str]

    @property
    def name(self) -> str:
        return f"pictures {self.pictures[0]} to {self.pictures[-1]}" if len(self.pictures) > 1 else f"the picture {self.pictures[0]}"

    @property
    def size(self) -> int:
        return len(self.pictures)

    def job(self, deaths: int) -> Job:
        return self.corrupt

    def parts(self) -> Sequence[Lot]:
        return [replace(self, pictures=half) for half in halves(self.pictures)]

    def corrupt(self, send: Send) -> None:
        for picture in self.pictures:
            send(corrupt_one(self.work, picture))


def corrupt_one(work: Work, picture: str) -> Outcome:
    """Write the corrupted copies of one picture that are not there yet, each whole or not at all."""
    from PIL import Image

    asked = work.asked
    places = {(member.name, severity): work.place(member.name, severity, picture) for member, severity in asked}
    todo = [(member, severity) for member, severity in asked if work.fresh or not places[member.name, severity].exists()]
    if not todo:
        return Outcome(picture, 0, len(asked))
    try:
        image = Files([work.source / picture], work.preprocess)[0][None]
        for member, severity in todo:
            pixels = member(image, severity, draws(work.seed, member.name, severity, [picture], torch.device("cpu")))[0]
            array = pixels.permute(1, 2, 0).numpy() if len(pixels) == 3 else pixels[0].numpy()
            place = places[member.name, severity]
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = place.with_name(f".{place.name}{PARTIAL}")
            if work.storage_jpeg is None:
                Image.fromarray(array).save(partial, "PNG")
            else:
                Image.fromarray(array).save(partial, "JPEG", quality=work.storage_jpeg, optimize=True)
            os.replace(partial, place)
    except DataError as error:
        return Outcome(picture, 0, 0, str(error))
    except OSError as error:
        return Outcome(picture, 0, 0, error.strerror or str(error))
    return Outcome(picture, len(todo), len(asked) - len(todo))
