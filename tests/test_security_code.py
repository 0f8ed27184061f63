"""No code runs that nobody asked for: not of a factory that a file names, not of a pickle, wherever it lies."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_fixture import Ran
from safetensors.torch import save_file
from torch import nn

from robustbench_lite import allowing, evaluate, load_data, load_model, verify
from robustbench_lite.cli import main
from robustbench_lite.console import exit_code
from robustbench_lite.errors import ModelError, UsageError
from robustbench_lite.trained import Made

ROOT = Path(__file__).parents[1]
FOLDERS = ("robustbench_lite", "attacks", "corruptions", "defenses", "reports")
CODE = """
from pathlib import Path
import torch
from torch import nn
Path(__file__).with_name("ran").touch()
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).eval()
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A factory that leaves the file `ran` beside it."""
    (tmp_path / "net.py").write_text(CODE)
    return tmp_path / "net.py"


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """What was typed and nothing more; `tty=True`: on a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("robustbench_lite.engines.local.tune_process", lambda: None)

    def run(*words: object, tty: bool = False) -> Ran:
        monkeypatch.setattr(sys, "argv", ["robust-eval", *map(str, words)])
        capsys.readouterr()
        monkeypatch.setattr(sys.stderr, "isatty", lambda: tty)
        monkeypatch.setattr("robustbench_lite.console.Console.is_terminal", False)
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Ran(int(ended.value.code or 0), said.out, said.err)

    return run


ATTACK = ("--data", "digits", "--limit", "6", "--attack", "fgsm", "--eps", "0.1", "--out", "run")
GATE = '[gate]\nmodel = "net.py:build"\ndata = "digits"\nlimit = 6\nattacks = ["fgsm"]\neps = 0.1\nrules = ["fgsm.accuracy >= 0.0"]\n'


@pytest.mark.parametrize(
    "words",
    [
        ("--model", "net.py:build", *ATTACK),
        ("--model", "digits_cnn", "--surrogate", "net.py:build", *ATTACK),
        ("--model", "digits_cnn", "--defense", "ensemble:models=(net.py:build)", *ATTACK),
        ("--model", "net:build", *ATTACK),
        ("gate", "--model", "net.py:build", "--data", "digits", "--attack", "fgsm", "--eps", "0.1", "--rule", "fgsm.accuracy >= 0.1"),
        ("leaderboard", "--model", "net.py:build", "--limit", "4"),
        ("scenario", "run", "finlayson-cxr", "--model", "net.py:build", "--data", "phantom:chest"),
    ],
    ids=["model", "surrogate", "defense", "module", "gate", "leaderboard", "scenario"],
)
def test_where_nobody_watches_code_needs_the_flag(typed: Callable[..., Ran], code: Path, words: tuple[str, ...]) -> None:
    ran = typed(*words)
    assert ran.code == 2
    assert "is Python code, which can do anything: add --allow-code" in ran.complaint
    assert not code.with_name("ran").exists()


def test_with_the_flag_it_runs_without_a_word(typed: Callable[..., Ran], code: Path) -> None:
    ran = typed("--model", "net.py:build", *ATTACK, "--allow-code")
    assert ran.code == 0
    assert "running" not in ran.err
    assert code.with_name("ran").exists()


def test_on_a_terminal_it_is_said_once(typed: Callable[..., Ran], code: Path) -> None:
    ran = typed("--model", "net.py:build", *ATTACK, tty=True)
    assert ran.code == 0
    assert ran.err.count("running the Python code of net.py:build") == 1
    assert code.with_name("ran").exists()


def test_in_training_too(code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from robustbench_lite.defenses.train_cli import _run

    words = ["--data", "digits", "--defense", f"distill:teacher=({code}:build)", "--epochs", "1", "--out", str(tmp_path / "a.safetensors")]
    assert exit_code("robust-train", _run, words) == 2
    assert "add --allow-code" in capsys.readouterr().err
    assert not code.with_name("ran").exists()


def test_python_callers_run_their_own_code(code: Path) -> None:
    load_model(f"{code}:build")
    assert code.with_name("ran").exists()


@pytest.mark.parametrize("tty", [False, True])
def test_settings_do_not_run_code_by_themselves(typed: Callable[..., Ran], code: Path, tty: bool) -> None:
    """They come with a repository, perhaps of somebody else, and so may not even on a terminal."""
    Path("robust-eval.toml").write_text(GATE)
    ran = typed("gate", tty=tty)
    assert ran.code == 2
    assert ran.complaint.startswith("robust-eval.toml names the Python code net.py:build")
    for setting in ("allow_code", "allow_pickle"):
        Path("robust-eval.toml").write_text(f"{GATE}{setting} = true\n")
        assert f"line 8: a file cannot allow itself to run code: give --{setting.replace('_', '-')}" in typed("gate", tty=tty).complaint
    assert not code.with_name("ran").exists()
    Path("robust-eval.toml").write_text(GATE)
    assert typed("gate", "--allow-code", tty=tty).code == 0


@pytest.mark.parametrize("tty", [False, True])
def test_a_run_does_not_run_the_code_that_it_names(typed: Callable[..., Ran], code: Path, tty: bool) -> None:
    assert typed("--model", "net.py:build", *ATTACK, "--allow-code").code == 0
    code.with_name("ran").unlink()
    ran = typed("verify", "run", tty=tty)
    assert ran.code == 2
    assert f"run.json names the Python code {code}:build" in ran.complaint
    with pytest.raises(UsageError, match="--allow-code"):
        verify("run")
    for harmless in (("report", "run"), ("history", "."), ("compare", "run", "run")):
        typed(*harmless)
    assert not code.with_name("ran").exists()
    assert typed("verify", "run", "--allow-code").code == 0
    assert verify("run", allow_code=True).holding
    assert code.with_name("ran").exists()


def test_a_run_that_was_tampered_with_runs_no_module(typed: Callable[..., Ran], tmp_path: Path, code: Path) -> None:
    evaluate("digits_cnn", "fgsm", "digits", eps=0.1, limit=4, out="run")
    for named in ({"spec": f"{code}:build"}, {"spec": "net:build"}, {"defense": f"ensemble:models=({code}:build)"}):
        config = json.loads(Path("run/run.json").read_text())
        config["model"]["recipe"] |= named
        Path("run/run.json").write_text(json.dumps(config))
        assert "--allow-code" in typed("verify", "run").complaint
    assert not code.with_name("ran").exists()


def test_a_checkpoint_does_not_run_the_code_that_it_names(tmp_path: Path, code: Path) -> None:
    """Its description may name any defense, and a defense may name models."""
    for defense in (f"ensemble:models=({code}:build)", f"distill:teacher=({code}:build)"):
        made = Made("digits_cnn", defense, "none", 10, 1, 8, None, "bilinear", (0.5,), (0.5,), "digits")
        save_file({"weight": torch.zeros(1)}, tmp_path / "net.safetensors", made.written())
        with pytest.raises(UsageError):
            load_model(str(tmp_path / "net.safetensors"))
    with allowing.named_in("net.safetensors"), pytest.raises(UsageError, match=r"net\.safetensors names the Python code"):
        load_model("digits_cnn", defense=f"ensemble:models=({code}:build)")
    assert not code.with_name("ran").exists()


# ------------------------------------------------------------------ pickles


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@cache
def called() -> list[tuple[Path, str, dict[str | None, str]]]:
    """Every call in the package: the file, the function as it is written there, and its keywords."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(path, ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}) for path, node in nodes]


def test_nothing_is_called_that_reads_code() -> None:
    readers = {"eval", "exec", "compile", "__import__", "os.system", "shelve.open", "yaml.load", "yaml.unsafe_load", "joblib.load"}
    readers |= {f"{module}.{name}" for module in ("pickle", "marshal", "dill", "cloudpickle") for name in ("load", "loads", "Unpickler")}
    wrong = [
        (path.name, name) for path, name, _ in called() if name in readers or name.endswith(("read_pickle", ".extractall", ".extract"))
    ]
    # what a driver sends to the workers that it has started
    assert set(wrong) == {("processes.py", "pickle.loads"), ("shards.py", "pickle.loads")}


def test_arrays_and_weights_are_read_without_pickles() -> None:
    arrays = [(path.name, given.get("allow_pickle")) for path, name, given in called() if name == "np.load"]
    weights = [(path.name, given.get("weights_only")) for path, name, given in called() if name == "torch.load"]
    assert len(arrays) >= 2
    assert {only for _, only in arrays} == {"False"}
    assert len(weights) >= 3
    assert {each for each in weights if each[1] != "True"} == {("checkpoints.py", "not allow_pickle")}, "only what a user allows"


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_is_refused_wherever_it_lies(tmp_path: Path, typed: Callable[..., Ran], protocol: int) -> None:
    marker = tmp_path / "ran"
    bare, saved = pickle.dumps(Evil(marker), protocol), io.BytesIO()
    torch.save({"fc.weight": Evil(marker)}, saved, pickle_protocol=protocol)
    for content in (bare, saved.getvalue()):
        for name in ("evil.pt", "evil.pth", "evil.pt2", "evil.safetensors"):
            Path(name).write_bytes(content)
            assert "\n" not in typed("--model", name, *ATTACK).complaint
            assert typed("--model", "digits_cnn", "--weights", name, *ATTACK).complaint
        Path("evil.npz").write_bytes(content)
        assert typed("--model", "digits_cnn", "--data", "npz:evil.npz", "--attack", "fgsm", "--eps", "0.1").complaint
    np.savez("objects.npz", images=np.array([Evil(marker)], dtype=object), labels=np.array([1]))
    with pytest.raises(UsageError, match="holds pickled objects, which could run code"):
        load_data("npz:objects.npz")
    assert not marker.exists()
    pickle.loads(bare)
    assert marker.exists(), "it runs where it is read, so that the refusals above were needed"


def test_a_pickle_in_a_run_is_refused(tmp_path: Path, typed: Callable[..., Ran]) -> None:
    evaluate("digits_cnn", "fgsm", "digits", eps=0.3, limit=6, out="run")
    marker = tmp_path / "ran"
    for content in (pickle.dumps(Evil(marker)),):
        witness = next(Path("run/witnesses").iterdir())
        kept = witness.read_bytes()
        witness.write_bytes(content)
        assert typed("verify", "run").code == 1
        witness.write_bytes(kept)
        for name in ("run.json", "results.sqlite"):
            kept = Path("run", name).read_bytes()
            Path("run", name).write_bytes(content)
            for words in (("verify", "run"), ("report", "run")):
                assert typed(*words).complaint
            Path("run", name).write_bytes(kept)
    assert typed("verify", "run").code == 0
    assert not marker.exists()


def test_a_pickle_as_the_state_of_a_training_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from robustbench_lite.defenses.train_cli import _run

    marker, saved = tmp_path / "ran", io.BytesIO()
    torch.save({"identity": {}, "state": Evil(marker)}, saved)
    (tmp_path / "a.training.state").write_bytes(saved.getvalue())
    assert exit_code("robust-train", _run, ["--data", "digits", "--epochs", "1", "--out", str(tmp_path / "a.safetensors")]) == 2
    assert "is damaged or no state of a training" in capsys.readouterr().err
    assert not marker.exists()


def test_code_in_an_exported_model_is_refused(tmp_path: Path) -> None:
    """torch unpickles opaque constants whatever they say of themselves, and loads the machine code in an archive."""
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(net, (torch.rand(2, 3, 8, 8),), dynamic_shapes=batch), tmp_path / "good.pt2")
    load_model(str(tmp_path / "good.pt2"))
    with zipfile.ZipFile(tmp_path / "good.pt2") as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    config = next(name for name in parts if name.endswith("_constants_config.json"))
    root, marker = config.partition("/")[0], tmp_path / "ran"
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}
    described = {config: json.dumps({"config": {"c": entry}}).encode()}
    for name, more in {
        "data/constants/opaque_obj_0": described,
        "data/constants/OPAQUE_OBJ_0": described,
        "data/constants/custom_obj_0": {},
        "data/aotinductor/model/model.so": {},
        "data/weights/own.bin": {},
        "serialized_state_dict.json": {},
    }.items():
        with zipfile.ZipFile(tmp_path / "evil.pt2", "w") as archive:
            for each, content in {**parts, **more, f"{root}/{name}": pickle.dumps(Evil(marker))}.items():
                archive.writestr(each, content)
        with pytest.raises(ModelError, match="holds pickled objects or machine code"):
            load_model(str(tmp_path / "evil.pt2"))
    assert not marker.exists()
