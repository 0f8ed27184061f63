"""A run's folder: what is written comes back, what is not ours is refused, and what was committed survives."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustbench_lite.errors import InvalidEvaluation, RunMismatch, UsageError
from robustbench_lite.results import VERDICT_FIELDS, Condition, Verdict, Witness
from robustbench_lite.store import Store, explained, read_image_digests, read_run, write_text
from robustbench_lite.stored import read_config
from robustbench_lite.witnesses import file_name, image_digest, packed, read, write

PGD = Condition("pgd[linf,4/255]", "attack", "pgd", "linf", 4 / 255)


def config(**identity: Any) -> dict[str, Any]:
    return {
        "identity": {"model": "m", "seed": 0, **identity},
        "conditions": [asdict(Condition("clean", "clean")), asdict(PGD)],
        "created": "now",
        "sessions": [{"started": "now"}],
        "notes": [],
        "model": {"name": "m", "digest": "0", "recipe": None},
        "data": {"name": "d", "digest": "0", "n": 3},
        "seed": 0,
    }


def verdict(sample: str = "a", condition: str = PGD.name, **more: Any) -> Verdict:
    blank: dict[str, Any] = dict.fromkeys(VERDICT_FIELDS)
    known = {"label": 1, "restart": 0, "distance": 0.1, "confidence": 0.5, "steps": 3, "forwards": 4, "backwards": 3, "precision": "fp32"}
    return Verdict(
        **blank | known | {"sample_id": sample, "condition": condition, "seed": 0, "broken": False, "stages": {}, "approach": []} | more
    )


# --- round trips -----------------------------------------------------------------------------------------------------------

CLASSES = st.none() | st.integers(0, 999) | st.lists(st.integers(0, 1), max_size=4)
TEXT = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
COUNT = st.integers(0, 2**40)
VERDICTS = st.builds(
    Verdict,
    sample_id=st.sampled_from(("a", "b/ü.png", "c 'd\"")),
    group=TEXT,
    condition=st.just(PGD.name),
    label=CLASSES.filter(lambda classes: classes is not None),
    clean_prediction=CLASSES,
    prediction=CLASSES,
    target=st.none() | st.integers(0, 9),
    broken=st.sampled_from((None, True, False)),
    broken_by=TEXT,
    restart=COUNT,
    reason=TEXT,
    distance=st.floats(0, allow_nan=False) | st.just(math.inf),
    confidence=st.floats(0, 1),
    steps=COUNT,
    forwards=COUNT,
    backwards=COUNT,
    precision=st.sampled_from(("fp32", "bf16")),
    seed=COUNT,
    witness=st.none(),
)


@given(VERDICTS)
def test_every_field_of_a_verdict_comes_back(given_verdict: Verdict) -> None:
    with Store(None, config()) as store:
        store.add(given_verdict)
        (got,) = store.result().of(PGD.name)
    assert got == given_verdict
    assert [type(v) for v in astuple(got)] == [type(v) for v in astuple(given_verdict)]


def test_a_finished_run_is_read_from_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run #1?100%"
    with Store(folder, config()) as store:
        for position, sample in ((1, "b"), (0, "a")):
            store.add_sample(position, sample, f"digest of {sample}")
            store.add(verdict(sample, "clean"))
            store.add(verdict(sample, broken=sample == "a"))
        store.spend(PGD.name, 1.5)
        store.spend(PGD.name, 2.0)
        store.record_session({"ended": "later", "complete": True}, ["a note", "a note"])
    result = read_run(folder)
    assert [v.sample_id for v in result.of("clean")] == ["a", "b"]
    assert [v.broken for v in result.of(PGD.name)] == [True, False]
    assert [v.broken for v in result.of("worst[linf,4/255]")] == [True, False]
    assert result.seconds == {PGD.name: 3.5, "worst[linf,4/255]": 3.5}
    assert result.config["notes"] == ["a note"]
    assert result.config["sessions"] == [{"started": "now", "ended": "later", "complete": True}]
    assert read_image_digests(folder) == {"a": "digest of a", "b": "digest of b"}


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with Store(tmp_path, config()) as store:
        store.add(verdict("a"))
        store.add(verdict("b", broken=None))
        store.add(verdict("c", broken=True))
    again = {**config(), "created": "later"}
    with Store(tmp_path, again) as store:
        assert store.decided(PGD.name) == {"a", "b", "c"}
        assert store.decided("clean") == set()
        assert store.not_correct(PGD.name) == 2
        store.add(verdict("b", broken=True))
    assert {v.sample_id: v.broken for v in read_run(tmp_path).of(PGD.name)} == {"a": False, "b": True, "c": True}
    assert read_config(tmp_path)["created"] == "now"
    assert len(read_config(tmp_path)["sessions"]) == 2


def test_fresh_removes_what_a_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    with Store(tmp_path, config()) as store:
        store.add(verdict("a"))
        store.keep(PGD.name, "a", Witness(torch.zeros(3, 2, 2), torch.ones(3, 2, 2)))
    (tmp_path / "my notes.txt").write_text("mine")
    with Store(tmp_path, config(seed=1), fresh=True) as store:
        assert store.decided(PGD.name) == set()
    assert not (tmp_path / "witnesses").exists()
    assert (tmp_path / "my notes.txt").read_text() == "mine"


# --- refusals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "named"), [({"seed": 1}, "seed"), ({"model": "other"}, "model"), ({"goal": "full"}, "goal")])
def test_another_configuration_is_refused_by_the_key_that_differs(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with Store(tmp_path, config()):
        pass
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(RunMismatch, match=f"is a run with another {named} .*--out, or --fresh") as caught:
        Store(tmp_path, config(**change))
    assert (tmp_path / "run.json").read_bytes() == before
    with Store(tmp_path, config()):  # although the error above is still held, as a notebook does
        assert caught.value is not None


def test_a_folder_of_something_else_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(RunMismatch, match=r"holds other files \(thesis.tex\).*--out"):
            Store(tmp_path, config(), fresh=fresh)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.tex"]


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path: Path) -> None:
    with Store(tmp_path, config()) as store:
        store.add(verdict("a"))
        store.commit(now=True)
        with pytest.raises(UsageError, match="another process is writing to"):
            Store(tmp_path, config())
        assert len(read_run(tmp_path).verdicts) == 2
    with Store(tmp_path, config()) as store:
        assert store.decided(PGD.name) == {"a"}


@pytest.mark.parametrize("damage", [lambda content: b"nonsense" * 200, lambda content: content[:100] + b"\0" * (len(content) - 100)])
def test_a_damaged_database_is_named_and_fresh_starts_over(tmp_path: Path, damage: Any) -> None:
    with Store(tmp_path, config()) as store:
        store.add(verdict("a"))
    path = tmp_path / "results.sqlite"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunMismatch, match=r"results\.sqlite is damaged .*--fresh"):
        Store(tmp_path, config())
    with pytest.raises(RunMismatch, match="is damaged"):
        read_run(tmp_path)
    with Store(tmp_path, config(), fresh=True) as store:
        assert store.decided(PGD.name) == set()


@pytest.mark.parametrize(("content", "message"), [(None, "no run.json"), ("{", "cannot be read"), ("[1]", "written by something else")])
def test_what_is_no_run_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        read_run(tmp_path)


def test_a_run_without_its_database_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(config()))
    with pytest.raises(UsageError, match=r"results.sqlite"):
        read_run(tmp_path)


def test_a_full_disk_ends_in_a_line_that_says_how_to_go_on(tmp_path: Path) -> None:
    for error in (OSError(28, "No space left on device"), sqlite3.OperationalError("database or disk is full")):
        with (
            pytest.raises(InvalidEvaluation, match="make room or choose another --out; the same command then goes on"),
            explained(tmp_path),
        ):
            raise error
    with pytest.raises(sqlite3.OperationalError, match="syntax"), explained(tmp_path):
        raise sqlite3.OperationalError("syntax error")


# --- survival --------------------------------------------------------------------------------------------------------------

WRITER = """
import json, sys, time
from pathlib import Path
from robustbench_lite.results import Verdict
from robustbench_lite.store import Store

with Store(Path(sys.argv[1]), json.loads(sys.argv[2])) as store:
    for number in range(50):
        store.add(Verdict(**json.loads(sys.argv[3]) | {"sample_id": str(number)}))
    store.commit(now=True)
    store.add(Verdict(**json.loads(sys.argv[3]) | {"sample_id": "not committed"}))
    print("ready", flush=True)
    time.sleep(60)
"""


def test_kill_9_keeps_what_was_committed_and_frees_the_folder(tmp_path: Path) -> None:
    arguments = [str(tmp_path), json.dumps(config()), json.dumps(asdict(verdict()))]
    with subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        with pytest.raises(UsageError, match="another process"):
            Store(tmp_path, config())
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait(10)
    with Store(tmp_path, config()) as store:
        assert store.decided(PGD.name) == {str(number) for number in range(50)}


def test_commits_come_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def seen() -> int:
        return len(read_run(tmp_path).of(PGD.name))

    with Store(tmp_path, config()) as store:
        store.add(verdict("a"))
        store.commit()
        assert seen() == 0
        clock[0] += 1.01
        store.commit()
        assert seen() == 1
        store.add(verdict("b"))
        store.commit()
        assert seen() == 1
        store.commit(now=True)
        assert seen() == 2


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.csv"
    write_text(path, "old")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(OSError, match="No space"):
            write_text(path, "new, and longer")
    assert path.read_text() == "old"
    write_text(path, "new")
    assert [p.name for p in tmp_path.iterdir() if p.name == "table.csv"] == ["table.csv"]
    assert path.read_text() == "new"


# --- witnesses -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
def test_a_witness_comes_back_exactly(tmp_path: Path, whole: bool) -> None:
    clean = torch.arange(256).float().view(1, 16, 16) / 255 if whole else torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
    witness = Witness(clean, (clean + 0.01).clamp(0, 1))
    with Store(tmp_path, config()) as store:
        store.add(verdict("a", broken=True, witness=store.keep(PGD.name, "a", witness)))
        store.add(verdict("b", broken=True))
    got = read_run(tmp_path).witness(PGD.name, "a")
    assert got is not None
    assert torch.equal(got.clean, clean)
    assert torch.equal(got.adversarial, witness.adversarial)
    assert image_digest(got.clean) == image_digest(clean)
    assert read_run(tmp_path).witness(PGD.name, "b") is None
    size = (tmp_path / "witnesses" / file_name(PGD.name, "a")).stat().st_size
    assert (size < 256 * 5 + 400) == whole


def test_a_witness_in_memory_is_kept_too() -> None:
    witness = Witness(torch.zeros(1, 2, 2), torch.ones(1, 2, 2))
    with Store(None, config()) as store:
        store.add(verdict("a", broken=True, witness=store.keep(PGD.name, "a", witness)))
        assert store.result().witness(PGD.name, "a") is witness
        assert store.result().witness(PGD.name, "b") is None


def test_one_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "witnesses" / "w.safetensors"
    expected = write(path, packed(Witness(torch.zeros(1, 4, 4), torch.ones(1, 4, 4)), {"sample_id": "a"}))
    content = path.read_bytes()
    for place in (0, 20, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match="was changed after it was written"):
            read(path, expected)
    path.write_bytes(content[:-7])
    with pytest.raises(ValueError, match="is not a witness file"):
        read(path)
    path.unlink()
    with pytest.raises(ValueError, match="No such file"):
        read(path, expected)


def test_file_names_are_safe_and_differ() -> None:
    names = [file_name(c, s) for c in (PGD.name, "pgd:steps=5[linf,4/255]") for s in ("a", "../../etc/passwd", "A", "a ")]
    assert len({name.lower() for name in names}) == len(names)
    assert all("/" not in name and name.endswith(".safetensors") for name in names)


def test_an_image_digest_sees_shape_and_values() -> None:
    image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    others = [image.view(3, 2, 8), image + 1e-7, image.flip(2)]
    assert len({image_digest(x) for x in [image, *others]}) == 4
    assert image_digest(image.double()) == image_digest(image) == image_digest(image.flip(2).flip(2))
    assert replace(verdict(), witness="x").witness == "x"
