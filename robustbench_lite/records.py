"""A run's database, read back into a result."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from sys import intern
from typing import Any

from . import witnesses
from .matrix import TransferVerdict
from .proofs import PROOF_FIELDS, ProofVerdict
from .quarantine import in_words, quarantine
from .results import VERDICT_FIELDS, Condition, Result, Verdict, Witness
from .sequences import SequenceVerdict
from .stored import check_columns, check_row, damaged, from_json, rows_of
from .unconfirmed import remarks
from .worst import worst_case

JSON_FIELDS = {"label", "clean_prediction", "prediction", "stages", "outputs", "approach"}  # a class or one 0/1 per finding; a mapping
TRANSFER_FIELDS = tuple(f.name for f in fields(TransferVerdict))
SEQUENCE_FIELDS = tuple(f.name for f in fields(SequenceVerdict))


@dataclass(frozen=True)
class Verdicts:
    """What a database says of the images, `by_condition` and in the data set's order, and what follows of the worst case."""

    by_condition: Mapping[str, Sequence[Verdict]]
    worst_conditions: Sequence[Condition]
    worst: Sequence[Verdict]


def read_verdicts(database: sqlite3.Connection, config: Mapping[str, Any]) -> Verdicts:
    """Of the conditions of `run.json`."""
    columns = ", ".join(f'v."{name}"' for name in VERDICT_FIELDS)
    sql = f"SELECT {columns} FROM verdicts v LEFT JOIN samples s USING (sample_id) ORDER BY s.position"
    by_condition: dict[str, list[Verdict]] = {}
    for verdict in _verdicts(database.execute(sql)):
        by_condition.setdefault(verdict.condition, []).append(verdict)
    planned = [Condition(**c) for c in config["conditions"]]
    return Verdicts(by_condition, *worst_case(planned, [v for c in planned for v in by_condition.get(c.name, ())]))


def read_result(
    database: sqlite3.Connection,
    config: Mapping[str, Any],
    folder: Path | None,
    kept: Mapping[tuple[str, str], Witness],
    known: Verdicts,
) -> Result:
    """What a run's database holds so far, with the worst case per norm and eps.

    Args:
        config: what `run.json` holds.
        folder: of the run, where its witnesses are; None where `kept` has them.
        known: its verdicts, of the conditions that are in `config`.
    """
    by_condition, worst_conditions = known.by_condition, known.worst_conditions
    planned = [Condition(**c) for c in config["conditions"]]
    conditions = [c for c in planned if c.name in by_condition]
    verdicts = [v for c in conditions for v in by_condition[c.name]]
    if not any(session.get("complete") for session in config["sessions"]):
        frames = dict(database.execute("SELECT condition, count(*) FROM sequenced GROUP BY condition"))
        counts = ", ".join(f"{c.name} {len(by_condition.get(c.name, ())) or frames.get(c.name, 0)}" for c in planned)
        config = {**config, "notes": [*config["notes"], f"UNFINISHED: verdicts so far for {counts}"]}
    hashes = {(v.condition, v.sample_id): v.witness for v in verdicts if v.witness}

    def witness(condition: str, sample_id: str) -> Witness | None:
        expected = hashes.get((condition, sample_id))
        if folder is None or expected is None:
            return kept.get((condition, sample_id))
        return witnesses.read(folder / "witnesses" / witnesses.file_name(condition, sample_id), expected)

    seconds = dict(rows_of(database, "seconds", condition=str, spent=float))
    for c in worst_conditions:
        seconds[c.name] = sum(
            seconds.get(o.name, 0.0) for o in conditions if o.kind in ("attack", "doubt") and (o.norm, o.eps) == (c.norm, c.eps)
        )
    left_out: dict[str, dict[str, str]] = {}
    for condition, sample_id, reason in rows_of(database, "left_out", condition=str, sample_id=str, reason=str):
        left_out.setdefault(condition, {})[sample_id] = reason
    for c in worst_conditions:
        each = [left_out.get(o.name, {}) for o in conditions if o.kind == "attack" and (o.norm, o.eps) == (c.norm, c.eps)]
        if any(each):
            left_out[c.name] = {key: reason for found in each for key, reason in found.items()}
    transferred = [_transferred(row) for row in database.execute(f"SELECT {', '.join(TRANSFER_FIELDS)} FROM transferred")]
    order = _places(c.name for c in planned), _places([config["model"]["name"], *config.get("surrogates", [])])
    transferred.sort(key=lambda v: (order[0](v.condition), order[1](v.target)))
    sequenced = [_sequenced(row) for row in database.execute(f"SELECT {', '.join(SEQUENCE_FIELDS)} FROM sequenced")]
    sequenced.sort(key=lambda v: order[0](v.condition))
    asked = ", ".join(f"p.{name}" for name in PROOF_FIELDS)
    proved = database.execute(f"SELECT {asked} FROM proofs p LEFT JOIN samples s USING (sample_id) ORDER BY s.position")
    proofs = sorted(map(proof_verdict, proved), key=lambda v: order[0](v.condition))
    result = Result(
        config,
        [*conditions, *worst_conditions],
        [*verdicts, *known.worst],
        seconds,
        witness,
        folder,
        transferred,
        sequenced,
        dict(rows_of(database, "shown", condition=str, picture=bytes)),
        left_out,
        proofs,
        [c for c in planned if c.kind == "certified"],
    )
    found = quarantine(result)
    # said of what is stored, and so no longer once images were mended
    notes = [*remarks(result), *([in_words(found, config["data"]["n"])] if found else [])]
    return replace(result, config={**config, "notes": [*config["notes"], *notes]})


def _places(names: Iterable[str]) -> Callable[[str], int]:
    """Where each of these names stands; of another, what is wrong."""
    places = {name: place for place, name in enumerate(names)}

    def place(name: str) -> int:
        if name not in places:
            raise damaged("results.sqlite", f"it has rows of {name[:40]!r}, which run.json does not know")
        return places[name]

    return place


def proof_verdict(row: Sequence[Any]) -> ProofVerdict:
    check_row(ProofVerdict, row)
    values = dict(zip(PROOF_FIELDS, row, strict=True))
    return ProofVerdict(**values | {"proven": bool(values["proven"])})


def _sequenced(row: Sequence[Any]) -> SequenceVerdict:
    check_row(SequenceVerdict, row)
    values = dict(zip(SEQUENCE_FIELDS, row, strict=True))
    return SequenceVerdict(**values | {"predictions": from_json("predictions", values["predictions"])})


def _transferred(row: Sequence[Any]) -> TransferVerdict:
    check_row(TransferVerdict, row)
    values = dict(zip(TRANSFER_FIELDS, row, strict=True))
    return TransferVerdict(**values | {name: bool(values[name]) for name in ("white_box", "wrong", "broken", "broken_8bit")})


def _read(name: str, text: str) -> Any:
    """A value of its own, or of the many that are a number or nothing, the same for all."""
    return from_json(name, text) if len(text) > 2 and text[0] in "[{" else _shared(name, text)


@lru_cache(maxsize=2**16)
def _shared(name: str, text: str) -> Any:
    return from_json(name, text)


def _verdicts(rows: sqlite3.Cursor) -> Iterator[Verdict]:
    """Column by column, which takes a third of the time of row by row."""
    while some := rows.fetchmany(4096):
        columns = list(zip(*some, strict=True))
        check_columns(Verdict, columns)
        yield from map(Verdict, *map(_column, VERDICT_FIELDS, columns))


def _column(name: str, values: Sequence[Any]) -> Sequence[Any]:
    if name in JSON_FIELDS:
        return [_read(name, value) for value in values]
    if name == "broken":
        return [None if value is None else bool(value) for value in values]
    # the same few names and ids come with every row, and are to be in memory once
    return [intern(value) if isinstance(value, str) else value for value in values] if str in set(map(type, values)) else values
