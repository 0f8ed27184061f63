"""A run's folder: what was asked (`run.json`), every verdict (`results.sqlite`), and the witnesses.

Verdicts are committed at most once a second, so that kill -9 loses the last second's; one process writes, any may read.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import torch

from . import private, witnesses
from .cascade import Course
from .errors import InvalidEvaluation, RunMismatch, UsageError
from .holding import clear, has_verdicts, locked, refuse_foreign
from .matrix import TransferVerdict
from .plan import Finding
from .proofs import PROOF_FIELDS, ProofVerdict
from .quarantine import ASKED
from .records import JSON_FIELDS, SEQUENCE_FIELDS, TRANSFER_FIELDS, Verdicts, proof_verdict, read_result, read_verdicts
from .results import VERDICT_FIELDS, Condition, Result, Verdict, Witness
from .sequences import SequenceVerdict
from .stored import damaged, read_config, rows_of

DAMAGE = ("malformed", "not a database", "no such table", "could not decode", "UTF-8", "file is encrypted", "unsupported file format")
CONDITION, SAMPLE, BROKEN = (VERDICT_FIELDS.index(name) for name in ("condition", "sample_id", "broken"))
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS verdicts ({", ".join(f'"{name}"' for name in VERDICT_FIELDS)}, PRIMARY KEY (condition, sample_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS samples (position INTEGER, sample_id PRIMARY KEY, image) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS survivors (condition, sample_id, course, logits, PRIMARY KEY (condition, sample_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS transferred ({", ".join(f'"{name}"' for name in TRANSFER_FIELDS)},
    PRIMARY KEY (condition, sample_id, target)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sequenced ({", ".join(f'"{name}"' for name in SEQUENCE_FIELDS)},
    PRIMARY KEY (condition, sample_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS proofs ({", ".join(f'"{name}"' for name in PROOF_FIELDS)}, PRIMARY KEY (condition, sample_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS left_out (condition, sample_id, reason, PRIMARY KEY (condition, sample_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS learnt (key PRIMARY KEY, tensors) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shown (condition PRIMARY KEY, picture) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seconds (condition PRIMARY KEY, spent) WITHOUT ROWID;
"""


class Store:
    """Open a run for writing, in a folder or (folder None) in memory.

    Args:
        folder: made where it is missing.
        config: what `run.json` is to hold; its `identity` says which run this is.
        fresh: throw away what an earlier run left in the folder.

    Raises:
        RunMismatch: the folder belongs to another configuration, or to something else.
        UsageError: another process is writing to it.
    """

    def __init__(self, folder: Path | None, config: dict[str, Any], *, fresh: bool = False) -> None:
        self.folder, self.config = folder, config
        self._kept: dict[tuple[str, str], Witness] = {}
        self._lock: sqlite3.Connection | None = None
        self._committed = time.monotonic()
        self._read: tuple[tuple[int, int], Verdicts] | None = None  # after so many changes and with so many conditions
        self.ticked: Callable[[], object] = lambda: None  # told of every commit that was asked for
        if folder is None:
            self._database = sqlite3.connect(":memory:")
            self._database.executescript(SCHEMA)
            return
        with explained(folder):
            private.folder(folder)
            refuse_foreign(folder)  # before anything is written to it or cleared
            self._lock = locked(folder)
            try:
                self._open(folder, fresh)
            except BaseException:
                self._lock.close()  # whoever catches the error may keep it, and this object with it
                raise

    def _open(self, folder: Path, fresh: bool) -> None:
        if fresh:
            clear(folder)
        self._check_identity(folder)
        self.write_config()  # before there is a database, which would belong to nobody without it
        self._database = sqlite3.connect(private.file(folder / "results.sqlite"))
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.executescript(SCHEMA)
        _check_columns(self._database, folder)

    def _check_identity(self, folder: Path) -> None:
        if not (folder / "run.json").exists():
            if has_verdicts(folder):
                raise RunMismatch(
                    f"{folder} holds verdicts but no run.json that says of what: choose another --out, or --fresh to start over"
                )
            (folder / "results.sqlite").unlink(missing_ok=True)
            return
        before = read_config(folder)
        mine, theirs = self.config["identity"], before["identity"]
        for key in mine | theirs:
            if mine.get(key) != theirs.get(key):
                was, now = (json.dumps(identity.get(key))[:80] for identity in (theirs, mine))
                differ = f"{folder} is a run with another {key} ({was} there, {now} here)"
                raise RunMismatch(f"{differ}: choose another --out, or --fresh to start over")
        kept = {"created": before["created"], "sessions": before["sessions"] + self.config["sessions"], "observed": before.get("observed")}
        known = {c["name"] for c in self.config["conditions"]}
        self.config["conditions"] += [c for c in before["conditions"] if c["name"] not in known]  # what findings had planned
        self.config = {**self.config, **kept, "notes": list(dict.fromkeys([*before["notes"], *self.config["notes"]]))}

    def write_config(self) -> None:
        if self.folder is not None:
            write_text(self.folder / "run.json", json.dumps(self.config, indent=2) + "\n")

    def record_session(self, about: Mapping[str, Any], notes: Iterable[str]) -> None:
        """Record how the session that this store was opened for goes, or went."""
        self.config["sessions"][-1] |= about
        self.config["notes"] = list(dict.fromkeys([*self.config["notes"], *notes]))
        self.write_config()

    def observe(self, seen: Mapping[str, Any]) -> None:
        """Keep what the diagnostics saw."""
        self.config["observed"] = dict(seen)
        self.write_config()

    def plan(self, conditions: Iterable[Condition]) -> None:
        """Have further conditions in the run."""
        known = {c["name"] for c in self.config["conditions"]}
        self.config["conditions"] += [asdict(c) for c in conditions if c.name not in known]
        self.write_config()

    def fates(self, condition: str) -> Iterator[tuple[str, bool | None]]:
        """Sample id and whether it is broken, of every verdict under a condition."""
        for key, broken in self._database.execute("SELECT sample_id, broken FROM verdicts WHERE condition = ?", (condition,)):
            yield key, None if broken is None else bool(broken)

    def decided(self, condition: str) -> set[str]:
        """Sample ids that have a verdict under a condition, without those in quarantine."""
        return {row[0] for row in self._database.execute(f"SELECT sample_id FROM verdicts WHERE condition = ? AND {ASKED}", (condition,))}

    def left_out(self, condition: str, reason: str | None = None) -> set[str]:
        """Sample ids that a condition is not for; of all reasons, or of one."""
        sql = "SELECT sample_id FROM left_out WHERE condition = ?1 AND (?2 IS NULL OR reason = ?2)"
        return {row[0] for row in self._database.execute(sql, (condition, reason))}

    @property
    def empty(self) -> bool:
        """Whether there is no result yet."""
        sql = "SELECT 1 FROM verdicts UNION ALL SELECT 1 FROM sequenced UNION ALL SELECT 1 FROM proofs LIMIT 1"
        return self._database.execute(sql).fetchone() is None

    def decided_of(self, conditions: Sequence[str], ids: Sequence[str]) -> set[tuple[str, str]]:
        """Of these conditions and samples, the pairs that have a verdict and are not in quarantine."""
        among = "IN (SELECT value FROM json_each(?))"  # SQLite takes 32,766 values at most
        sql = f"SELECT condition, sample_id FROM verdicts WHERE condition {among} AND sample_id {among} AND {ASKED}"
        return set(self._database.execute(sql, (json.dumps(conditions), json.dumps(ids))))

    def not_correct(self, condition: str) -> int:
        """How many images are broken or undecided under a condition so far, without those in quarantine."""
        return self.count(condition, f"broken IS NOT 0 AND {ASKED}")

    def count(self, condition: str, where: str, *values: object) -> int:
        """Verdicts of a condition that an SQL expression holds for."""
        sql = f"SELECT count(*) FROM verdicts WHERE condition = ? AND {where}"
        return int(self._database.execute(sql, (condition, *values)).fetchone()[0])

    def tally(self) -> tuple[dict[str, int], dict[str, int]]:
        """Per condition, how many verdicts there are, and how many say broken or undecided."""
        counted = self._database.execute("SELECT condition, count(*), sum(broken IS NOT 0) FROM verdicts GROUP BY condition").fetchall()
        return {name: every for name, every, _ in counted}, {name: broken for name, _, broken in counted}

    def put(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        """Have these rows in a table, in the place of those of the same key; an image with a verdict is on its way no more."""
        rows = list(rows)
        if rows:
            self._database.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({','.join('?' * len(rows[0]))})", rows)
        if table == "verdicts":
            keys = [(row[CONDITION], row[SAMPLE]) for row in rows]
            self._database.executemany("DELETE FROM survivors WHERE condition = ? AND sample_id = ?", keys)

    def of(self, table: str, ids: Sequence[str] | None = None) -> list[tuple[Any, ...]]:
        """The rows of a table, or of these images in it."""
        if ids is None:
            return self._database.execute(f"SELECT * FROM {table}").fetchall()
        # by the primary key, which begins with the condition: else every shard would read the whole table
        planned = "" if table == "samples" else "condition IN (SELECT value FROM json_each(:planned)) AND"
        sql = f"SELECT * FROM {table} WHERE {planned} sample_id IN (SELECT value FROM json_each(:ids))"
        names = [condition["name"] for condition in self.config["conditions"]]
        return self._database.execute(sql, {"ids": json.dumps(ids), "planned": json.dumps(names)}).fetchall()

    def add_sample(self, position: int, sample_id: str, image_digest: str) -> None:
        self.put("samples", [(position, sample_id, image_digest)])

    def sample(self, sample_id: str) -> str | None:
        """SHA-256 of a clean image as this run first saw it."""
        row = self._database.execute("SELECT image FROM samples WHERE sample_id = ?", (sample_id,)).fetchone()
        return None if row is None else str(row[0])

    def said(self, condition: str, sample_id: str) -> tuple[Any, float] | None:
        """The prediction under a condition and its confidence, None where they are not known."""
        sql = "SELECT prediction, confidence FROM verdicts WHERE condition = ? AND sample_id = ? AND broken IS NOT NULL"
        row = self._database.execute(sql, (condition, sample_id)).fetchone()
        return None if row is None else (json.loads(row[0]), float(row[1]))

    def add(self, verdict: Verdict) -> None:
        known = [(name, getattr(verdict, name)) for name in VERDICT_FIELDS]  # several right classes are a set, kept as a sorted list
        values = [json.dumps(value, default=sorted) if name in JSON_FIELDS else value for name, value in known]
        self.put("verdicts", [values])

    def add_transferred(self, verdicts: Iterable[TransferVerdict]) -> None:
        self.put("transferred", (tuple(vars(verdict).values()) for verdict in verdicts))

    def add_sequence(self, verdict: SequenceVerdict) -> None:
        values = {**vars(verdict), "predictions": json.dumps(verdict.predictions)}
        self.put("sequenced", [tuple(values.values())])

    def sequenced(self, condition: str) -> set[str]:
        """Sample ids whose frames under a perturbation were asked about."""
        return {row[0] for row in self._database.execute("SELECT sample_id FROM sequenced WHERE condition = ?", (condition,))}

    def add_proof(self, verdict: ProofVerdict) -> None:
        self.put("proofs", [astuple(verdict)])

    def proofs(self, condition: str) -> dict[str, ProofVerdict]:
        """What a certificate proved so far, by sample id."""
        sql = f"SELECT {', '.join(PROOF_FIELDS)} FROM proofs WHERE condition = ?"
        return {found.sample_id: found for found in map(proof_verdict, self._database.execute(sql, (condition,)))}

    def show(self, condition: str, picture: bytes) -> None:
        """Keep what a report shows of a condition."""
        self.put("shown", [(condition, picture)])

    def leave_out(self, condition: str, ids: Iterable[str], reason: str) -> None:
        """Record that a condition is not for these images."""
        self.put("left_out", ((condition, key, reason) for key in ids))

    def learn(self, key: str, tensors: Mapping[str, Any]) -> None:
        """Keep what an attack has learnt, before it is used."""
        packed = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        self.put("learnt", [(key, packed)])
        self.commit(now=True)

    def learnt(self, key: str) -> dict[str, Any] | None:
        """What an attack has learnt, None where it has not."""
        row = self._database.execute("SELECT tensors FROM learnt WHERE key = ?", (key,)).fetchone()
        try:
            return None if row is None else safetensors.torch.load(row[0])
        except (safetensors.SafetensorError, ValueError, TypeError, KeyError):
            raise damaged("results.sqlite", f"what {key[:40]!r} has learnt") from None

    def survived(self, condition: str, course: Course) -> None:
        """Keep how an image stands between two attacks of a cascade, without its image: only a witness's is ever needed."""
        finding = {name: value for name, value in vars(course.finding).items() if name not in ("image", "logits")}
        text = json.dumps({"finding": finding, "costs": course.costs, "broke": course.broke, "done": course.done})
        logits = course.finding.logits.cpu().float().numpy().tobytes()
        self.put("survivors", [(condition, course.finding.id, text, logits)])

    def survivors(self, condition: str) -> dict[str, Course]:
        """How images stood when an earlier session ended, by sample id."""
        found = {}
        for sample_id, text, logits in self._database.execute(
            "SELECT sample_id, course, logits FROM survivors WHERE condition = ?", (condition,)
        ):
            try:
                course = json.loads(text)
                answer = torch.frombuffer(bytearray(logits), dtype=torch.float32)
                found[sample_id] = Course(**course | {"finding": Finding(**course["finding"], image=torch.empty(0), logits=answer)})
            except (ValueError, TypeError, KeyError, RecursionError):
                raise damaged("results.sqlite", f"how {str(sample_id)[:40]!r} stood under {condition}") from None
        return found

    def keep(self, condition: str, sample_id: str, witness: Witness) -> str:
        """Store a witness, before the verdict that names it; the SHA-256 that the verdict is to name."""
        if self.folder is None:
            self._kept[condition, sample_id] = witness
            return witnesses.image_digest(witness.adversarial)
        return self.keep_packed(condition, sample_id, witnesses.packed(witness, {"condition": condition, "sample_id": sample_id}))

    def keep_packed(self, condition: str, sample_id: str, content: bytes) -> str:
        """Store a witness that a worker has packed."""
        name = witnesses.file_name(condition, sample_id)
        if self.folder is not None:
            return witnesses.write(self.folder / "witnesses" / name, content)
        return self.keep(condition, sample_id, witnesses.unpacked(content, name))

    def spend(self, condition: str, seconds: float) -> None:
        """Add to the time that a condition has taken over all sessions."""
        sql = "INSERT INTO seconds VALUES (?, ?) ON CONFLICT (condition) DO UPDATE SET spent = spent + excluded.spent"
        self._database.execute(sql, (condition, seconds))

    def commit(self, *, now: bool = False) -> None:
        """Make what was added last; at most once a second unless `now`."""
        self.ticked()
        if now or time.monotonic() - self._committed >= 1:
            self._database.commit()
            self._committed = time.monotonic()

    def result(self) -> Result:
        """What is known so far, with the worst case per norm and eps."""
        state = self._database.total_changes, len(self.config["conditions"])
        if self._read is None or self._read[0] != state:
            self._read = None  # before the new ones are there: memory is to hold one of the two
            self._read = state, read_verdicts(self._database, self.config)
        return read_result(self._database, self.config, self.folder, self._kept, self._read[1])

    def close(self) -> None:
        self._database.commit()
        self._database.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def explained(folder: Path | None) -> Iterator[None]:
    """Turn what a full or broken disk raises into one line that says how to go on."""
    try:
        yield
    except sqlite3.Error as error:
        if any(sign in str(error) for sign in DAMAGE):
            raise RunMismatch(f"{folder}/results.sqlite is damaged ({error}): start over with --fresh") from error
        if "no such column" in str(error) or "has no column" in str(error) or "columns but" in str(error):
            raise RunMismatch(f"{folder} was written by another version of robustbench-lite: start over with --fresh") from error
        if "unable to open" in str(error):
            raise UsageError(f"{folder}/results.sqlite cannot be opened: see that the folder can be read and written") from error
        if "disk" in str(error) or "readonly" in str(error):
            raise InvalidEvaluation(_full(folder, str(error))) from error
        raise
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise InvalidEvaluation(_full(folder, error.strerror or str(error))) from error
        raise


def _full(folder: Path | None, reason: str) -> str:
    return f"could not write to {folder} ({reason}): make room or choose another --out; the same command then goes on where it stopped"


def write_text(path: Path, text: str) -> None:
    """Write a file in one go: a reader sees the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    private.write(partial, text.encode())
    os.replace(partial, path)


def read_run(folder: str | Path) -> Result:
    """The result in a run's folder, finished or not."""
    folder = Path(folder)
    config = read_config(folder)
    with explained(folder):
        database = _read_only(folder)
        try:
            _check_columns(database, folder)
            return read_result(database, config, folder, {}, read_verdicts(database, config))
        finally:
            database.close()


def read_image_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every clean image, as the run saw it."""
    database = _read_only(folder)
    try:
        return dict(rows_of(database, "samples", sample_id=str, image=str))
    finally:
        database.close()


def _check_columns(database: sqlite3.Connection, folder: Path) -> None:
    """Refuse verdicts that say more than is known here: what they mean by it cannot be left out of a report."""
    unknown = {row[1] for row in database.execute("PRAGMA table_info(verdicts)")} - set(VERDICT_FIELDS)
    if unknown:
        names = ", ".join(sorted(unknown))
        raise RunMismatch(
            f"{folder} was written by a newer robustbench-lite (its verdicts have {names}): update this one, or choose another --out"
        )


def _read_only(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{(folder / 'results.sqlite').resolve().as_uri()}?mode=ro", uri=True)
