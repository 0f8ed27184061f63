"""The real command line for tests: in a process of its own, or (for bad input, where only messages count) inside this one."""

from __future__ import annotations

import csv
import os
import re
import sqlite3
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(sysconfig.get_path("scripts")) / "robust-eval"


def words(*args: object) -> list[str]:
    """What is typed. Where a test names a factory of its own, or a run of one, it says that it means to: nobody watches a test."""
    said = [str(each) for each in args]
    own = said[:1] == ["verify"] or any(re.search(r"\.py:\w+$", each) for each in said)
    return [*said, "--allow-code"] if own else said


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """What it complained of, once it is sure that this is one line and no traceback; a slow machine hears of progress before."""
        said = re.sub(r"^.+: \d+ of \d+, \d+ broken\n", "", self.err, flags=re.MULTILINE)
        assert said.count("\n") == 1, self.err
        assert said.startswith("robust-eval: "), self.err
        return said.removeprefix("robust-eval: ").rstrip()


class CommandLine:
    """`robust_eval("--model", ...)` runs the command in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, *args: object, env: Mapping[str, str] | None = None, **more: Any) -> subprocess.Popen[str]:
        """The command as a running process."""
        return subprocess.Popen(
            [str(PROGRAM), *words(*args)],
            cwd=more.pop("cwd", self.folder),
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    def __call__(self, *args: object, **more: Any) -> Ran:
        process = self.start(*args, **more)
        out, err = process.communicate(timeout=240)
        return Ran(process.returncode, out, err)

    def table(self, run: str | Path) -> list[dict[str, str]]:
        with (self.folder / run / "table.csv").open(newline="") as stream:
            return list(csv.DictReader(stream))

    def samples(self, run: str | Path, condition: str | None = None) -> list[dict[str, str]]:
        with (self.folder / run / "samples.csv").open(newline="") as stream:
            return [row for row in csv.DictReader(stream) if condition in (None, row["condition"])]

    def broken(self, run: str | Path) -> dict[tuple[str, str], int | None]:
        """The verdicts on disk, (condition, sample) -> broken; none before there is a database."""
        file = self.folder / run / "results.sqlite"
        if not file.exists():
            return {}
        database = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        try:
            return {(c, s): b for c, s, b in database.execute("SELECT condition, sample_id, broken FROM verdicts")}
        except sqlite3.OperationalError:  # its tables are being made
            return {}
        finally:
            database.close()


@pytest.fixture
def robust_eval(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """The same in this process, where torch is loaded already; in `tmp_path`."""
    import robustbench_lite.engines.local
    from robustbench_lite.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(robustbench_lite.engines.local, "tune_process", lambda: None)  # it is for a whole process

    def run(*args: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["robust-eval", *words(*args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Ran(int(ended.value.code or 0), said.out, said.err)

    return run


FACTORIES = '''
import os, time
import torch
from torch import nn
from robustbench_lite.models import load_model

class Linear(nn.Module):
    def __init__(self, classes=10, change=lambda x, y: y):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.layer = nn.Linear(3 * 32 * 32, classes)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(classes, 3 * 32 * 32, generator=draw) * 0.05)
            self.layer.bias.zero_()
        self.change, self.calls = change, 0

    def forward(self, x):
        self.calls += 1
        return self.change(x, self.layer(x.flatten(1)))

class OneWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

class Sleepy(nn.Module):
    """digits_cnn, which NAP makes slow."""
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.training = False

    def forward(self, x):
        time.sleep(float(os.environ.get("NAP", 0)))
        return self.model(x)

def plain(): return Linear().eval()
def training(): return Linear()
def partly():
    model = Linear().eval()
    model.layer.train()
    return model
def five(): return Linear(5).eval()
def detached(): return Linear(change=lambda x, y: y.detach()).eval()
def oneway(): return Linear(change=lambda x, y: OneWay.apply(y)).eval()
def all_nan(): return Linear(change=lambda x, y: y * float("nan")).eval()
def some_nan(): return Linear(change=lambda x, y: torch.where((x.mean((1, 2, 3)) > 0.32)[:, None], torch.nan, y)).eval()
def nan_off_grid():
    # finite on the clean digits, whose values are multiples of 1/1024, and NaN a little beside them
    grid = lambda x: ((x * 1024).round() == x * 1024).flatten(1).all(1)
    return Linear(change=lambda x, y: torch.where(grid(x)[:, None], y, torch.nan)).eval()
def pair(): return Linear(change=lambda x, y: (y, y)).eval()
def crash():
    def boom(x, y): raise RuntimeError("boom\\nsecond line")
    return Linear(change=boom).eval()
def raising(): raise KeyError("hm")
def junk(): return 3
def sleepy():
    classifier = load_model("digits_cnn")
    classifier.model = Sleepy(classifier.model)
    return classifier
'''


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    """A file of model factories, good and bad ones, in `tmp_path`."""
    file = tmp_path / "factory.py"
    file.write_text(FACTORIES)
    return file
