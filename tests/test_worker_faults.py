"""Workers and drivers that are killed, interrupted, starved or made to wait: nothing is lost, nothing is left running."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli_fixture import CommandLine, Ran

import robustbench_lite as rb
from robustbench_lite.models import load_model

CONDITION = "pgd:steps=20[linf,0.05]"
SLOW = {"NAP": "0.05"}
FAULTY = '''
import multiprocessing, os, resource, signal, time
import numpy as np
import torch
from torch import nn
from robustbench_lite.models import load_model

IN_WORKER = multiprocessing.parent_process() is not None

class Faulty(nn.Module):
    """digits_cnn, with something before it that only workers meet unless EVERYWHERE is set."""
    def __init__(self, model, before):
        super().__init__()
        self.model, self.before, self.training = model, before, False

    def forward(self, x):
        if IN_WORKER or os.environ.get("EVERYWHERE"):
            self.before(x)
        return self.model(x)

def made(before):
    classifier = load_model("digits_cnn")
    classifier.model = Faulty(classifier.model, before)
    return classifier

def sleepy(): return made(lambda x: time.sleep(float(os.environ.get("NAP", 0))))
def deadly():
    def die(x):
        if "DIE_AT" in os.environ and ((x.flatten(1).double().mean(1) - float(os.environ["DIE_AT"])).abs() < 1e-9).any():
            os.kill(os.getpid(), signal.SIGKILL)
    return made(die)
def greedy():
    # real allocations under a real limit: of torch's allocator, or of numpy's, which raise different errors
    if IN_WORKER and "GREEDY" in os.environ:
        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30,) * 2)
    take = {"torch": lambda n: torch.empty(n, dtype=torch.uint8), "numpy": lambda n: np.empty(n, np.uint8), "": len}
    def eat(x):
        kind = os.environ.get("GREEDY")
        if kind in ("torch", "numpy"):
            take[kind](len(x) * 150 * 2**20)
        if kind == "device" and len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
    return made(eat)
def hanging():
    calls = []
    def hang(x):
        calls.append(1)
        if "HANG" in os.environ and len(calls) > 12:
            time.sleep(600)
    return made(hang)
def drawn():
    torch.manual_seed(os.getpid())
    classifier = load_model("digits_cnn")
    classifier.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval()
    return classifier
'''


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    file = tmp_path / "faulty.py"
    file.write_text(FAULTY)
    return file


def command(faulty: Path, model: str, out: str, *more: object) -> list[str]:
    return ["--model", f"{faulty}:{model}", "--data", "digits", "--limit", "120", "--attack", "pgd:steps=20", "--eps", "0.05",
            "--batch-size", "16", "--out", out, *map(str, more)]  # fmt: skip


TWO = ("--workers", 2, "--shard-size", 24)


def attacked(robust_eval: CommandLine, run: str) -> dict[tuple[str, str], int | None]:
    return {key: broken for key, broken in robust_eval.broken(run).items() if key[0] == CONDITION}


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | None = None, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "it ended before it could be disturbed"
        assert time.monotonic() < until
        time.sleep(0.02)


def ended(process: subprocess.Popen[str]) -> Ran:
    out, err = process.communicate(timeout=90)
    return quiet(Ran(process.returncode, out, err))


PROGRESS = re.compile(r"^.*: \d+ of \d+, \d+ broken\n", re.MULTILINE)
"""What is said of a run that takes long, where nobody looks on."""


def quiet(ran: Ran) -> Ran:
    """Without its progress, of which there is more or less on a machine that is slower or faster."""
    return replace(ran, err=PROGRESS.sub("", ran.err))


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Worker processes of a driver that run Python code already or are about to."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [int(child) for child in children if "spawn_main" in said_by(int(child))]


def said_by(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def all_gone(pids: list[int]) -> Callable[[], bool]:
    return lambda: not any("spawn_main" in said_by(pid) for pid in pids)


@pytest.fixture
def whole(inside: Callable[..., Ran], robust_eval: CommandLine, faulty: Path) -> dict[tuple[str, str], int | None]:
    """The verdicts of an undisturbed run in one process."""
    assert inside(*command(faulty, "sleepy", "whole")).code == 0
    verdicts = robust_eval.broken("whole")
    assert 12 < sum(broken == 0 for key, broken in verdicts.items() if key[0] == CONDITION) < 108
    return verdicts


@pytest.mark.slow
def test_a_killed_worker_is_replaced(robust_eval: CommandLine, inside: Callable[..., Ran], faulty: Path, whole: object) -> None:
    process = robust_eval.start(*command(faulty, "sleepy", "run", *TWO), env=SLOW)
    wait_for(lambda: len(attacked(robust_eval, "run")) >= 10, process)
    workers = workers_of(process)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert ended(process).code == 0
    assert robust_eval.broken("run") == whole
    notes = json.loads((robust_eval.folder / "run" / "run.json").read_text())["notes"]
    assert sum("a worker died at shard" in note and "killed by SIGKILL" in note for note in notes) == 1
    assert inside("verify", "run").code == 0
    assert len(robust_eval.samples("run", CONDITION)) == len({row["sample_id"] for row in robust_eval.samples("run", CONDITION)}) == 120
    assert all_gone(workers)()


@pytest.mark.slow
def test_an_image_that_kills_every_worker_is_named_and_counted(
    robust_eval: CommandLine, inside: Callable[..., Ran], faulty: Path, whole: dict[tuple[str, str], int | None]
) -> None:
    classifier, seen, images = load_model("digits_cnn"), [], rb.load_data("digits", limit=120)
    classifier.model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # as it comes to the network
    classifier(images[119][0][None])
    env, key = {"DIE_AT": repr(float(seen[0].double().mean()))}, images.ids[119]
    asked = command(faulty, "deadly", "run", "--workers", 2, "--shard-size", 6)
    ran = quiet(robust_eval(*asked, env=env))
    assert (ran.code, ran.out) == (4, "")
    said = rf"shard \d+ \(image {key}\) kills its worker: killed by SIGKILL, .* or count it as not correct with --on-bad-image quarantine"
    assert re.match(said, ran.complaint)
    assert len(attacked(robust_eval, "run")) > 110, "what is not suspicious is done before"
    ran = quiet(robust_eval(*asked, "--on-bad-image", "quarantine", env=env))
    assert ran.code == 4
    assert f"1 of 120 images could not be read and count as not correct: {key} (kills its worker" in " ".join(ran.out.split())
    assert robust_eval.broken("run") == whole | {each: None for each in whole if each[1] == key}
    assert inside(*asked).code == 0
    assert robust_eval.broken("run") == whole


@pytest.mark.slow
@pytest.mark.parametrize("then", [(), TWO])
def test_a_killed_driver_leaves_nobody_behind(
    robust_eval: CommandLine, inside: Callable[..., Ran], faulty: Path, whole: object, then: tuple[object, ...]
) -> None:
    process = robust_eval.start(*command(faulty, "sleepy", "run", *TWO), env=SLOW)
    wait_for(lambda: len(attacked(robust_eval, "run")) >= 10, process)
    second = inside(*command(faulty, "sleepy", "run"))
    assert second.code == 2
    assert second.complaint.startswith("another process is writing to run")
    workers = workers_of(process)
    assert len(workers) == 2
    process.kill()
    assert ended(process).code == -signal.SIGKILL
    wait_for(all_gone(workers), seconds=20)
    before = attacked(robust_eval, "run")
    assert 10 <= len(before) < 120
    database = sqlite3.connect(robust_eval.folder / "run" / "results.sqlite")
    with database:
        database.execute("UPDATE verdicts SET reason = 'before the kill'")
    database.close()
    assert inside(*command(faulty, "sleepy", "run", *then)).code == 0  # the lock died with its process
    assert robust_eval.broken("run") == whole
    untouched = {row["sample_id"] for row in robust_eval.samples("run", CONDITION) if row["reason"] == "before the kill"}
    assert untouched == {sample for _, sample in before}  # none was decided again
    assert inside("verify", "run").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("early", [True, False], ids=["as they start", "as they work"])
def test_ctrl_c_ends_workers_quietly(
    robust_eval: CommandLine, inside: Callable[..., Ran], faulty: Path, whole: object, early: bool
) -> None:
    process = robust_eval.start(*command(faulty, "sleepy", "run", *TWO), env=SLOW, start_new_session=True)
    wait_for((lambda: len(workers_of(process)) == 2) if early else lambda: len(attacked(robust_eval, "run")) >= 10, process)
    workers, before = workers_of(process), attacked(robust_eval, "run")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the driver and its workers
    ran = ended(process)
    assert ran.code == 130
    assert ran.complaint == "interrupted; the same command goes on where it stopped"
    assert all_gone(workers)()
    assert before.items() <= attacked(robust_eval, "run").items()
    assert inside(*command(faulty, "sleepy", "run")).code == 0
    assert robust_eval.broken("run") == whole


@pytest.mark.slow
def test_a_full_disk_while_workers_send(robust_eval: CommandLine, inside: Callable[..., Ran], faulty: Path, whole: object) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    full = quiet(robust_eval(*command(faulty, "sleepy", "run", *TWO), preexec_fn=limited))
    assert (full.code, full.out) == (4, "")
    assert "make room or choose another --out; the same command then goes on where it stopped" in full.complaint
    assert inside(*command(faulty, "sleepy", "run", *TWO)).code == 0
    assert robust_eval.broken("run") == whole
    assert inside("verify", "run").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "numpy", "device"])
def test_memory_that_runs_out_in_a_worker_halves_its_batch(
    robust_eval: CommandLine, inside: Callable[..., Ran], faulty: Path, whole: object, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREEDY", kind)
    ran = inside(*command(faulty, "greedy", "run", *TWO))
    assert ran.code == 0, ran.err
    assert robust_eval.broken("run") == whole
    notes = json.loads((robust_eval.folder / "run" / "run.json").read_text())["notes"]
    assert any("memory" in note for note in notes), notes


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), TWO], ids=["in process", "workers"])
def test_a_model_that_hangs_is_named(
    robust_eval: CommandLine, inside: Callable[..., Ran], faulty: Path, whole: object, workers: tuple[object, ...]
) -> None:
    env = {"HANG": "1"} | ({} if workers else {"EVERYWHERE": "1"})
    hung = quiet(robust_eval(*command(faulty, "hanging", "run", "--hang-after", 6, *workers), env=env))
    assert (hung.code, hung.out) == (4, "")
    assert "has not moved for" in hung.complaint
    assert re.match("shard [0-9]+ .images|pgd|clean", hung.complaint)
    assert inside(*command(faulty, "hanging", "run", "--hang-after", 60, *workers)).code == 0
    assert robust_eval.broken("run") == whole


@pytest.mark.slow
@pytest.mark.parametrize("model", ["all_nan", "some_nan", "nan_off_grid"])
def test_numbers_that_are_none_come_out_alike(robust_eval: CommandLine, inside: Callable[..., Ran], factories: Path, model: str) -> None:
    asked = ["--model", f"{factories}:{model}", "--data", "digits", "--limit", 40, "--attack", "pgd:steps=3", "--eps", 0.05]
    alone, spread = quiet(inside(*asked, "--out", "alone")), quiet(inside(*asked, "--out", "spread", "--workers", 2))
    assert alone.code == spread.code != 0
    assert alone.err.replace("alone", "spread") == spread.err
    assert robust_eval.broken("alone") == robust_eval.broken("spread")


@pytest.mark.slow
def test_a_worker_with_another_model_is_refused(robust_eval: CommandLine, faulty: Path) -> None:
    ran = quiet(robust_eval(*command(faulty, "drawn", "run", *TWO)))
    assert ran.code == 2
    assert "has another model than the driver: give every machine the same packages, weights and images" in ran.complaint


@pytest.mark.slow
def test_a_corrupt_image_in_the_middle(inside: Callable[..., Ran], robust_eval: CommandLine) -> None:
    from torchvision.utils import save_image

    for number, (image, label) in enumerate(rb.load_data("digits", limit=30)):
        folder = robust_eval.folder / "pictures" / f"{label}"
        folder.mkdir(parents=True, exist_ok=True)
        save_image(image, folder / f"{number:02}.png")
    bad = sorted((robust_eval.folder / "pictures").rglob("*.png"))[14]
    bad.write_bytes(bad.read_bytes()[:60])
    asked = ["--model", "digits_cnn", "--data", "imagefolder:pictures", "--attack", "pgd:steps=3", "--eps", 0.05, "--size", 32]
    for workers in ((), ("--workers", 2, "--shard-size", 12)):
        failed = quiet(inside(*asked, "--out", f"failed{len(workers)}", *workers))
        assert failed.code == 4
        assert f"1 of {12 if workers else 30} images cannot be used: {bad.parent.name}/{bad.name} (cannot read" in failed.complaint
        assert re.match(r"shard [123] \(images \S+ to \S+\): 1 of" if workers else "1 of", failed.complaint)
        assert "count them as not correct with --on-bad-image quarantine" in failed.complaint
        counted = inside(*asked, "--out", f"counted{len(workers)}", "--on-bad-image", "quarantine", *workers)
        assert counted.code == 4
        assert "undecided" in counted.err
    assert robust_eval.broken("counted0") == robust_eval.broken("counted4")


# ------------------------------------------------------------------ without workers


def test_a_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"attacks": ["pgd:steps=3"], "data": "digits", "limit": 24, "eps": 0.05}
    straight = rb.evaluate("digits_cnn", **asked)
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: (-1) ** next(jumps) * 1e9)
    jumped = rb.evaluate("digits_cnn", **asked)
    assert jumped.verdicts == straight.verdicts
    assert all(0 <= spent < 60 for spent in jumped.seconds.values())


def test_nothing_of_ours_asks_the_wall_clock_for_a_duration() -> None:
    package = Path(rb.__file__).parents[1]
    sources = [file for folder in ("robustbench_lite", "attacks", "reports") for file in (package / folder).rglob("*.py")]
    assert len(sources) > 100
    assert [str(file) for file in sources if "time.time()" in file.read_text()] == []


@pytest.mark.parametrize("how", ["version", "columns"])
def test_a_run_of_a_newer_version_is_left_alone(robust_eval: CommandLine, inside: Callable[..., Ran], how: str) -> None:
    asked = ["--model", "digits_cnn", "--limit", 8, "--attack", "fgsm", "--out", "run"]
    assert inside(*asked).code == 0
    folder = robust_eval.folder / "run"
    if how == "version":
        config = json.loads((folder / "run.json").read_text())
        config["identity"]["version"] = "99.10.0"
        config["conditions"][0]["of a later time"] = 1
        (folder / "run.json").write_text(json.dumps(config))
    else:
        database = sqlite3.connect(folder / "results.sqlite")
        database.execute("ALTER TABLE verdicts ADD COLUMN mood")
        database.close()
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and "lock" not in file.name}
    for words in (asked, ["report", "run"], ["verify", "run"]):
        ran = inside(*words)
        assert ran.code == 2, words
        assert "99.10.0, and this is" in ran.complaint or "newer robustbench-lite (its verdicts have mood)" in ran.complaint
    if how == "version":
        assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and "lock" not in file.name} == before
    assert inside(*asked, "--fresh").code == 0
