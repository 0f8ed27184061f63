"""Whose a run's folder is: the lock of the process that writes, what is foreign in it, what may be cleared."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

from . import private
from .errors import RunMismatch, UsageError

OURS = ("run.json", "results.sqlite", "results.sqlite-wal", "results.sqlite-shm", "lock.sqlite", "lock.sqlite-journal", "table.csv",
        "samples.csv", "cascade.csv", "transfer.csv", "corruptions.csv", "calibration.csv", "sequences.csv", "shape_bias.csv",
        "report.html", "witnesses", "run.json.partial", "gate.json", "gate-junit.xml", "gate.sarif", "gate.md", "badge.json",
        "badge.svg", "proofs.csv", "certificates.csv", "quarantine.csv", "scenario.html", "clinical.csv", "clinical.json")  # fmt: skip


def refuse_foreign(folder: Path) -> None:
    """Raise RunMismatch where a folder that is no run holds something."""
    foreign = sorted(p.name for p in folder.iterdir() if p.name not in OURS)
    if foreign and not (folder / "run.json").exists():
        raise RunMismatch(f"{folder} holds other files ({', '.join(foreign[:3])}): name an empty or new folder with --out")


def locked(folder: Path) -> sqlite3.Connection:
    """A lock that dies with its process, on every system that SQLite knows."""
    lock = sqlite3.connect(private.file(folder / "lock.sqlite"), timeout=0.1, isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        lock.close()
        if "locked" not in str(error):
            raise
        raise UsageError(f"another process is writing to {folder}: wait for it, or choose another --out") from error
    return lock


def clear(folder: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    if (folder / "results.sqlite").exists():
        shutil.rmtree(folder / "witnesses", ignore_errors=True)
        for name in OURS:
            if name not in ("witnesses", "lock.sqlite", "lock.sqlite-journal", "run.json"):
                (folder / name).unlink(missing_ok=True)
        (folder / "run.json").unlink(missing_ok=True)  # last: results without it would belong to nobody


def has_verdicts(folder: Path) -> bool:
    if not (folder / "results.sqlite").exists():
        return False
    database = sqlite3.connect(folder / "results.sqlite")
    try:
        return database.execute("SELECT 1 FROM verdicts LIMIT 1").fetchone() is not None
    except sqlite3.OperationalError:  # the table was not even made
        return False
    finally:
        database.close()
