"""Killed, interrupted, out of disk: nothing that was decided is lost, and the verdicts are those of an undisturbed run."""

from __future__ import annotations

import json
import resource
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fixture import CommandLine, Ran

CONDITION = "pgd:steps=20[linf,0.05]"
SLOW = {"NAP": "0.05"}


def command(factories: Path, out: str) -> list[str]:
    return ["--model", f"{factories}:sleepy", "--data", "digits", "--limit", "120", "--attack", "pgd:steps=20", "--eps", "0.05",
            "--batch-size", "16", "--out", out]  # fmt: skip


def attacked(robust_eval: CommandLine, run: str) -> dict[tuple[str, str], int | None]:
    return {key: broken for key, broken in robust_eval.broken(run).items() if key[0] == CONDITION}


def wait_for(robust_eval: CommandLine, process: subprocess.Popen[str], run: str, count: int) -> None:
    """Until so many images have a verdict under attack on disk."""
    until = time.monotonic() + 60
    while len(attacked(robust_eval, run)) < count:
        assert process.poll() is None, "it ended before it could be disturbed"
        assert time.monotonic() < until
        time.sleep(0.02)


def ended(process: subprocess.Popen[str]) -> Ran:
    out, err = process.communicate(timeout=60)
    return Ran(process.returncode, out, err)


def test_killed_and_interrupted_runs_go_on(robust_eval: CommandLine, inside: Callable[..., Ran], factories: Path) -> None:
    assert inside(*command(factories, "whole")).code == 0
    whole = robust_eval.broken("whole")
    assert 12 < sum(broken == 0 for broken in attacked(robust_eval, "whole").values()) < 108

    process = robust_eval.start(*command(factories, "killed"), env=SLOW)
    wait_for(robust_eval, process, "killed", 30)
    process.kill()
    assert ended(process).code == -signal.SIGKILL
    before = attacked(robust_eval, "killed")
    assert 30 <= len(before) < 120
    database = sqlite3.connect(robust_eval.folder / "killed" / "results.sqlite")
    with database:
        database.execute("UPDATE verdicts SET reason = 'before the kill'")
    database.close()
    assert inside("report", "killed").code == 0  # what there is can be looked at
    assert inside(*command(factories, "killed")).code == 0
    assert robust_eval.broken("killed") == whole
    untouched = {s["sample_id"] for s in robust_eval.samples("killed", CONDITION) if s["reason"] == "before the kill"}
    assert untouched == {sample for _, sample in before}  # none was decided again
    assert inside("verify", "killed").code == 0
    assert len(json.loads((robust_eval.folder / "killed" / "run.json").read_text())["sessions"]) == 2

    process = robust_eval.start(*command(factories, "stopped"), env=SLOW)
    wait_for(robust_eval, process, "stopped", 1)
    second = inside(*command(factories, "stopped"))
    assert second.code == 2
    assert second.complaint.startswith("another process is writing to stopped")
    process.send_signal(signal.SIGINT)
    stopped = ended(process)
    assert stopped.code == 130
    assert stopped.complaint == "interrupted; the same command goes on where it stopped"
    assert 0 < len(attacked(robust_eval, "stopped")) < 120
    assert inside(*command(factories, "stopped")).code == 0
    assert robust_eval.broken("stopped") == whole


@pytest.mark.parametrize("room", [20_000, 60_000])
def test_a_full_disk_loses_nothing(robust_eval: CommandLine, inside: Callable[..., Ran], factories: Path, room: int) -> None:
    """No file may grow beyond `room`: the database cannot be made, or its log is full in the middle."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    full = robust_eval(*command(factories, "full"), preexec_fn=limited)
    assert (full.code, full.out) == (4, "")
    assert "make room or choose another --out; the same command then goes on where it stopped" in full.complaint
    assert inside(*command(factories, "full")).code == 0
    assert inside(*command(factories, "whole")).code == 0
    assert robust_eval.broken("full") == robust_eval.broken("whole")
    assert inside("verify", "full").code == 0
