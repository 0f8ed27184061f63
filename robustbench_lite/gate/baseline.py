"""What a candidate is compared with: which images a model got right, image by image, in a small file that can be committed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

from ..errors import RunMismatch, UsageError
from ..results import Condition, Result

FORMAT = 1
TERMS = ("seed", "goal", "query_budget", "eot", "votes", "storage_jpeg", "surrogates", "precision", "no_stand_ins")
"""What of a run's identity must be equal, besides the data and the condition, for verdicts to be comparable."""


@dataclass(frozen=True)
class Baseline:
    """Verdicts of an earlier run.

    Args:
        model, data: name and digest of each.
        terms: of TERMS, what the run had.
        labels: by sample id, in the data set's order.
        rows: by condition, by sample id, whether the image was right.
        attacks: by worst-case condition, the attacks whose worst it is.
        source: file or folder it was read from, for messages.
    """

    model: Mapping[str, str]
    data: Mapping[str, str]
    terms: Mapping[str, Any]
    labels: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, bool]]
    attacks: Mapping[str, Sequence[str]]
    source: str = "the baseline"

    def row(self, condition: Condition, result: Result) -> Mapping[str, bool]:
        """Which images were right, to be paired by id with those of a condition of `result`.

        Raises:
            RunMismatch: other data, another seed or other parameters, so that the two cannot be compared.
        """
        self._same_data(result)
        theirs, ours = self.terms, _terms(result)
        for term in TERMS:
            if theirs.get(term) != ours[term]:
                raise RunMismatch(
                    f"{self.source} was made with {term} {theirs.get(term)} and this run with {ours[term]}: "
                    "evaluate with the same, or write it anew"
                )
        if condition.name not in self.rows:
            known = ", ".join(self.rows)
            raise RunMismatch(f"{self.source} has no {condition.name}, it has {known}: evaluate the same conditions, or write it anew")
        before, now = list(self.attacks.get(condition.name, ())), _attacks(condition, result)
        if before != now:
            raise RunMismatch(
                f"{condition.name} of {self.source} is the worst of {', '.join(before)}, and here of {', '.join(now)}: these do not compare"
            )
        return self.rows[condition.name]

    def _same_data(self, result: Result) -> None:
        """The same digest, or fewer of the same images with the same labels."""
        data = result.config["data"]
        if data["digest"] == self.data["digest"]:
            return
        ours = labels_of(result)
        shared = [key for key in ours if key in self.labels and self.labels[key] == ours[key]]
        if data["name"] != self.data["name"] or len(shared) < len(ours):
            raise RunMismatch(
                f"{self.source} is of other data ({self.data['name']}, {len(self.labels)} images; of {data['name']}, the data here, it has "
                f"{len(shared)} of {len(ours)}): evaluate on the same images, or write it anew"
            )
        if len(ours) == len(self.labels):  # files are known by their paths, and only the digest knows more of what is in them
            raise RunMismatch(
                f"{self.source} is of other data: the images of {data['name']} have the same names here and differ in content or order: "
                "evaluate on the same images, or write it anew"
            )


def of(result: Result, source: str = "the baseline") -> Baseline:
    """The baseline that a run is.

    Raises:
        UsageError: the run is not finished, so that its rows hold the images that happened to be decided first.
    """
    sessions = result.config["sessions"]
    if not any(session.get("complete") for session in sessions):
        raise UsageError(f"{source} is a run that was not finished: go on with it before it is used as a baseline")
    labels, rows = labels_of(result), {}
    if undecided := sum(v.broken is None for v in result.verdicts):
        raise UsageError(f"{source} has {undecided} verdicts that are undecided, and a baseline must say of every image what it was")
    for c in (c for c in result.conditions if c.kind not in ("doubt", "sequence")):
        rows[c.name] = {v.sample_id: v.broken is False for v in result.of(c.name)}
        if len(rows[c.name]) + len(result.left_out.get(c.name, ())) < len(labels):
            counts = f"{len(rows[c.name])} of {len(labels)} images"
            raise UsageError(f"{source} has verdicts on {counts} under {c.name}, which were ended early: evaluate all to have a baseline")
    model, data = ({key: str(result.config[what][key]) for key in ("name", "digest")} for what in ("model", "data"))
    attacks = {c.name: _attacks(c, result) for c in result.conditions if c.kind == "worst"}
    return Baseline(model, data, _terms(result), labels, rows, attacks, source)


def write(result: Result, path: str | Path) -> Path:
    """Write the baseline that a run is as JSON; its path.

    Raises:
        UsageError: the run is not finished, or the file cannot be written.
    """
    made = of(result, str(result.folder or "this run"))
    ids = list(made.labels)
    content = {
        "format": FORMAT,
        "model": made.model,
        "data": made.data,
        "terms": made.terms,
        "samples": ids,
        "labels": list(made.labels.values()),
        "conditions": {
            name: {
                **({"worst_of": made.attacks[name]} if name in made.attacks else {}),
                **({} if len(row) == len(ids) else {"evaluated": _packed([key in row for key in ids])}),
                "right": _packed([row.get(key, False) for key in ids]),
            }
            for name, row in made.rows.items()
        },
    }
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    return path


def read(path: str | Path) -> Baseline:
    """The baseline in a file that `write` wrote, or in a run's folder.

    Raises:
        UsageError: there is nothing, or something else.
    """
    path = Path(path)
    if path.is_dir():
        from ..store import read_run

        return of(read_run(path), str(path))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise UsageError(f"{path} has the format {content['format']} and this version reads {FORMAT}: write it anew")
        ids = content["samples"]
        rows = {name: _row(ids, row) for name, row in content["conditions"].items()}
        attacks = {name: row["worst_of"] for name, row in content["conditions"].items() if "worst_of" in row}
        labels = dict(zip(ids, content["labels"], strict=True))
        return Baseline(content["model"], content["data"], content["terms"], labels, rows, attacks, str(path))
    except OSError as error:
        reason = f"there is no baseline at {path}" if isinstance(error, FileNotFoundError) else f"{path} cannot be read ({error.strerror})"
        raise UsageError(f"{reason}: write one with `robust-eval baseline write`") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} is no baseline ({error!r}): write one with `robust-eval baseline write`") from None


def _row(ids: Sequence[str], row: Mapping[str, Any]) -> dict[str, bool]:
    right = dict(zip(ids, _unpacked(row["right"], len(ids)), strict=True))
    if "evaluated" not in row:
        return right
    return {key: right[key] for key in compress(ids, _unpacked(row["evaluated"], len(ids)))}


def _packed(bits: Sequence[bool]) -> str:
    """A hexadecimal digit for every four, the first bit in front."""
    whole = [*bits, *[False] * (-len(bits) % 4)]
    return "".join(f"{int(''.join('01'[bit] for bit in whole[at : at + 4]), 2):x}" for at in range(0, len(whole), 4))


def _unpacked(text: str, count: int) -> list[bool]:
    bits = [bit == "1" for digit in text for bit in f"{int(digit, 16):04b}"]
    if len(text) != (count + 3) // 4 or any(bits[count:]):
        raise ValueError(f"{len(text)} digits for {count} images")
    return bits[:count]


def labels_of(result: Result) -> dict[str, Any]:
    """Every image that the run knows, with its label, in the data set's order; published sets come without clean images."""
    known = result.of("clean") or [v for c in result.conditions if c.kind in ("corruption", "shift") for v in result.of(c.name)]
    return {v.sample_id: v.label for v in known}


def _terms(result: Result) -> dict[str, Any]:
    identity = result.config["identity"]
    return {term: identity.get(term) for term in TERMS}


def _attacks(condition: Condition, result: Result) -> list[str]:
    """Whose worst case a condition is, which is everything in that norm up to that size; nothing for other conditions."""
    if condition.kind != "worst":
        return []
    within = (c for c in result.conditions if c.kind in ("attack", "doubt") and c.norm == condition.norm)
    return sorted(c.name for c in within if (c.eps or 0) <= (condition.eps or 0))
