"""Fuzzing the folder of a run: its record, its database as bytes and as cells, its witnesses. What can be read is shown and verified."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from damage import BYTE_EDITS, TEXT_EDITS, TREE_EDITS, fuzz, needs_limits, replaced, spoilt
from hypothesis import strategies as st

import robustbench_lite as rb
from robustbench_lite.gate import baseline
from robustbench_lite.registry import REPORTS
from robustbench_lite.store import Store, read_run
from robustbench_lite.stored import read_config

pytestmark = needs_limits
FORMATS = ("csv", "json", "markdown", "junit", "html")
TABLES = ("verdicts", "samples", "left_out", "proofs", "transferred", "sequenced", "shown", "seconds", "learnt", "survivors")
CELLS = (None, 0, -1, 1, 7, 2**62, 0.5, -1.5, 1e308, float("inf"), "", "x", "clean", "[", "[]", "{}", "[1,2]", '{"a": "b"}', '[["x", 1]]',
         "NaN", "1e999", "null", "[" * 5000, "9" * 5000, "é\u2028\0", b"", b"\xff\xfe", b"x" * 3000)  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with attacks, one of them for the nearest, a corruption, and proofs."""
    folder = tmp_path_factory.mktemp("run") / "run"
    rb.evaluate(
        "digits_cnn",
        ["fgsm", "deepfool"],
        "digits",
        limit=6,
        eps=0.02,
        corruptions="fog:severity=1",
        certify="ibp",
        out=folder,
        witnesses=4,
    )
    return folder


@pytest.fixture
def spoil(good: Path, tmp_path: Path) -> Callable[[], Path]:
    def fresh() -> Path:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return Path(shutil.copytree(good, tmp_path / "run"))

    return fresh


def used(folder: Path) -> None:
    """All that is done with a run that is there."""
    result = read_run(folder)
    REPORTS.get("terminal")(result)
    result.write(FORMATS)
    rb.verify(folder)
    baseline.of(result, str(folder))


def opened(folder: Path) -> None:
    """As a session opens it that goes on."""
    with Store(folder, read_config(folder)) as store:
        store.result()


def both(folder: Path) -> None:
    used(folder)
    opened(folder)


def test_the_run_itself_is_good(spoil: Callable[[], Path]) -> None:
    both(spoil())


def test_records(spoil: Callable[[], Path]) -> None:
    def check(case: tuple[Any, Any]) -> None:
        folder = spoil()
        record = folder / "run.json"
        record.write_text(spoilt(json.dumps(replaced(json.loads(record.read_text()), case[0])), case[1]))
        both(folder)

    fuzz(st.tuples(TREE_EDITS, TEXT_EDITS | st.just([])), check, 20)


def test_cells(spoil: Callable[[], Path]) -> None:
    def check(cells: list[tuple[str, int, int, Any]]) -> None:
        folder = spoil()
        database = sqlite3.connect(folder / "results.sqlite")
        for table, column, row, value in cells:
            columns = [name for _, name, *_ in database.execute(f"PRAGMA table_info({table})")]
            rows = list(database.execute(f"SELECT * FROM {table}"))
            if rows:
                values = list(rows[row % len(rows)])
                values[column % len(columns)] = value
                with suppress(sqlite3.IntegrityError):  # a key that is no value
                    database.execute(f"INSERT OR REPLACE INTO {table} VALUES ({','.join('?' * len(values))})", values)
        database.commit()
        database.close()
        both(folder)

    cell = st.tuples(st.sampled_from(TABLES[:4] * 2 + TABLES), st.integers(0, 30), st.integers(0, 99), st.sampled_from(CELLS))
    fuzz(st.lists(cell, max_size=3), check, 20)


def test_bytes(spoil: Callable[[], Path]) -> None:
    def check(case: tuple[str, Any]) -> None:
        folder = spoil()
        if case[0] == "witnesses":
            for file in (folder / "witnesses").iterdir():
                file.write_bytes(spoilt(file.read_bytes(), case[1]))
        else:
            (folder / case[0]).write_bytes(spoilt((folder / case[0]).read_bytes(), case[1]))
        both(folder)

    fuzz(st.tuples(st.sampled_from(["results.sqlite", "results.sqlite", "witnesses", "lock.sqlite"]), BYTE_EDITS), check, 20)


@pytest.mark.parametrize("name", ["run.json", "results.sqlite", "witnesses", "lock.sqlite"])
@pytest.mark.parametrize("instead", ["nothing", "folder", "empty"])
def test_missing(spoil: Callable[[], Path], name: str, instead: str) -> None:
    def check(_: None) -> None:
        folder = spoil()
        place = folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        if instead == "folder":
            place.mkdir()
        elif instead == "empty":
            place.touch()
        both(folder)

    fuzz(st.none(), check, 1)
