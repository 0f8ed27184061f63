"""Verdicts from a worker to the driver: a store in memory whose rows are sent on, and the driver's, which takes them in.

Rows are keyed by condition and image: what is sent twice, by a worker that was slow and by the one that took its place, is there once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from . import witnesses
from .quarantine import UNREADABLE
from .results import VERDICT_FIELDS, Witness
from .store import BROKEN, CONDITION, SAMPLE, Store

REASON = VERDICT_FIELDS.index("reason")

Rows = list[tuple[str, list[tuple[Any, ...]]]]
"""Tables and rows of them, in the order in which they were written."""

KEYED = ("samples", "verdicts", "survivors", "transferred", "sequenced", "proofs", "left_out")
"""Tables that have an image in every row."""


@dataclass(frozen=True)
class Parcel:
    """What a worker sends: rows, the witnesses that they name (condition, sample id, packed), notes, the images that it could not read with
    their files' sizes, and what it is doing."""

    doing: str = ""
    rows: Rows = field(default_factory=list)
    witnesses: list[tuple[str, str, bytes]] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    unreadable: Mapping[str, int] = field(default_factory=dict)

    @property
    def moved(self) -> bool:
        """Whether an image has come to its end; of one in quarantine every attempt says so anew."""
        decided = [row for table, rows in self.rows if table == "verdicts" for row in rows]
        return any(table in ("sequenced", "proofs") and rows for table, rows in self.rows) or not all(map(_unreadable, decided))


class Relay(Store):
    """A worker's store: in memory, with what the driver knows of its images, and sending on what is new at most once a second.

    Args:
        config: of the run.
        known: rows of the driver's store.
        send: to the driver.
    """

    def __init__(self, config: dict[str, Any], known: Rows, send: Callable[[Parcel], None]) -> None:
        super().__init__(None, config)
        self.rows: Rows = []
        self.kept: list[tuple[str, str, bytes]] = []
        self._send, self._doing = send, ""
        for table, rows in known:
            super().put(table, rows)

    def put(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        new: list[tuple[Any, ...]] = [tuple(row) for row in rows]
        super().put(table, new)
        if self.rows and self.rows[-1][0] == table:  # the driver takes in many rows at a time much faster than one by one
            self.rows[-1][1].extend(new)
        else:
            self.rows.append((table, new))

    def keep(self, condition: str, sample_id: str, witness: Witness) -> str:
        content = witnesses.packed(witness, {"condition": condition, "sample_id": sample_id})
        self.kept.append((condition, sample_id, content))
        self._kept[condition, sample_id] = witness
        return sha256(content).hexdigest()

    def spend(self, condition: str, seconds: float) -> None:
        super().spend(condition, seconds)
        self.rows.append(("seconds", [(condition, seconds)]))

    def tick(self, doing: str, *_: int) -> None:
        """As a progress: say what is being done with the next parcel."""
        self._doing = doing

    def commit(self, *, now: bool = False) -> None:
        due = now or time.monotonic() - self._committed >= 1
        super().commit(now=now)
        if due:
            self.post()

    def post(self, notes: Iterable[str] = (), unreadable: Mapping[str, int] | None = None) -> None:
        rows, kept, self.rows, self.kept = self.rows, self.kept, [], []
        self._send(Parcel(self._doing, rows, kept, tuple(notes), unreadable or {}))


def _unreadable(row: Sequence[Any]) -> bool:
    """Whether a verdict is of an image in quarantine."""
    return str(row[REASON] or "").startswith(UNREADABLE)


def receive(store: Store, parcel: Parcel) -> list[tuple[str, Any]]:
    """Take in what a worker sent; a verdict that is there already stays as it is.

    Returns:
        Condition and `broken` of every verdict that is new.
    """
    new = []
    known = store.decided_of([condition for condition, _, _ in parcel.witnesses], [sample_id for _, sample_id, _ in parcel.witnesses])
    for condition, sample_id, content in parcel.witnesses:
        if (condition, sample_id) not in known:  # else the verdict names the witness that came with it
            store.keep_packed(condition, sample_id, content)
    for table, rows in parcel.rows:
        if table == "seconds":
            for condition, seconds in rows:
                store.spend(condition, seconds)
        elif table in ("verdicts", "survivors"):
            condition_at, sample_at = (CONDITION, SAMPLE) if table == "verdicts" else (0, 1)
            keys = [(row[condition_at], row[sample_at]) for row in rows]
            done = store.decided_of(sorted({condition for condition, _ in keys}), [sample_id for _, sample_id in keys])
            left = [row for row, key in zip(rows, keys, strict=True) if key not in done]
            if table == "verdicts":
                there = {
                    (row[CONDITION], row[SAMPLE])
                    for row in left
                    if _unreadable(row) and store.count(row[CONDITION], "sample_id = ?", row[SAMPLE])
                }
                new += [(row[CONDITION], row[BROKEN]) for row in left if (row[CONDITION], row[SAMPLE]) not in there]
            store.put(table, left)
        else:
            store.put(table, rows)
    store.commit()
    return new


def known(store: Store, ids: Sequence[str]) -> Rows:
    """What a store holds of these images, and what attacks have learnt."""
    found: Rows = [(table, store.of(table, ids)) for table in KEYED]
    return [*found, ("learnt", store.of("learnt"))]
