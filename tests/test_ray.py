"""The engine of many machines: a cluster of two nodes of this one, of which one is killed; what Ray opens and says; what is refused."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cli_fixture import CommandLine, Ran
from same_run import same

from robustbench_lite.engines.ray import Ray
from robustbench_lite.errors import UsageError
from robustbench_lite.samples import drawn
from robustbench_lite.store import read_run

HERE = Path(__file__).parent
DIGITS = ["--model", "digits_pgd_at", "--data", "digits", "--limit", 120, "--attack", "pgd", "--attack", "square:queries=1000"]
IMAGENET = ["--model", "efficientnet_lite0", "--data", "imagenet", "--attack", "pgd:steps=2", "--eps", "0.5/255"]


class TwoNodes:
    """A cluster in a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "ray_cluster.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._said()

    def _said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill_a_node(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("now\n")
        self.process.stdin.flush()
        assert self._said() == "killed"

    def close(self) -> None:
        self.process.communicate(timeout=60)  # closes what it reads from, upon which it ends


@pytest.fixture
def cluster() -> Iterator[TwoNodes]:
    nodes = TwoNodes()
    yield nodes
    nodes.close()


def equal(folder: Path, one: str, other: str) -> None:
    alone, spread = read_run(folder / one), read_run(folder / other)
    assert len(spread.verdicts) == len({(v.condition, v.sample_id) for v in spread.verdicts})
    same(alone, spread, lost=True)


def begun(robust_eval: CommandLine, images: list[str]) -> bool:
    return any(sample in images and condition != "clean" for condition, sample in robust_eval.broken("ray"))


@pytest.mark.slow
def test_two_nodes_of_which_one_is_killed(cluster: TwoNodes, robust_eval: CommandLine, inside: Callable[..., Ran]) -> None:
    """Digits on two nodes until one is killed -9, then ImageNet's samples on the one that is left: all as in one process."""
    assert inside(*DIGITS, "--out", "alone").code == 0
    process = robust_eval.start(*DIGITS, "--out", "ray", "--engine", "ray", "--ray-address", cluster.address, "--shard-size", 16)
    images = {v.sample_id for v in read_run(robust_eval.folder / "alone").verdicts}
    order = sorted(images, key=lambda key: drawn(0, "order", key))
    until = time.monotonic() + 240
    # both have begun: what has not begun on the machine that is killed, Ray begins elsewhere, without a word
    while not all(begun(robust_eval, part) for part in (order[:16], order[16:32])):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    cluster.kill_a_node()
    assert sum(key[0].startswith("square") for key in robust_eval.broken("ray")) < 120
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    equal(robust_eval.folder, "alone", "ray")
    notes = json.loads((robust_eval.folder / "ray" / "run.json").read_text())["notes"]
    assert any("a worker died at shard" in note for note in notes)
    assert inside("verify", "ray").code == 0

    assert inside(*IMAGENET, "--out", "imagenet").code == 0
    ran = robust_eval(*IMAGENET, "--out", "imagenet-ray", "--engine", "ray", "--ray-address", cluster.address)
    assert ran.code == 0, ran.err
    equal(robust_eval.folder, "imagenet", "imagenet-ray")


# ------------------------------------------------------------------ a Ray of our own


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        left += children.get(found[-1], [])
    return found


def inodes(pid: int) -> set[str]:
    try:
        return {os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()}
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return set()


def listening(pids: list[int]) -> dict[str, int]:
    """Address:port in hexadecimal of every socket on which one of these processes waits for connections, and the process."""
    found = {}
    owners = {link: pid for pid in pids for link in inodes(pid)}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in owners:
                found[words[1]] = owners[f"socket:[{words[9]}]"]
    return found


LOOPBACK = ("0100007F:", "00000000000000000000000001000000:", "0000000000000000FFFF00000100007F:")


@pytest.mark.slow
def test_a_ray_of_our_own_is_for_this_machine_alone(robust_eval: CommandLine, factories: Path) -> None:
    asked = ["--model", f"{factories}:sleepy", "--limit", 60, "--attack", "pgd:steps=20", "--out", "run", "--engine", "ray", "--workers", 1]
    process = robust_eval.start(*asked, env={"NAP": "0.05"})
    until = time.monotonic() + 240
    while len(robust_eval.broken("run")) < 10:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    pids = descendants(process.pid)
    sockets = listening(pids)
    said = {pid: Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in pids}
    environment = [Path(f"/proc/{pid}/environ").read_text() for pid in pids if "raylet" in said[pid] or "gcs_server" in said[pid]]
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert sockets
    assert {address: said[pid][:80] for address, pid in sockets.items() if not address.startswith(LOOPBACK)} == {}
    assert not [port for port in sockets if port.endswith(f":{8265:04X}")]
    assert all("--disable-frontend" in words and "--minimal" in words for words in said.values() if "dashboard.py" in words)
    assert environment
    assert all("RAY_USAGE_STATS_ENABLED=0" in each for each in environment)
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids if pid != process.pid):
        assert time.monotonic() < until, "Ray outlives the run"
        time.sleep(0.1)


@pytest.mark.slow
def test_folders_and_leaderboards_on_ray(robust_eval: CommandLine, inside: Callable[..., Ran]) -> None:
    from torchvision.utils import save_image

    import robustbench_lite as rb

    (robust_eval.folder / "in").mkdir()
    for number, (image, _) in enumerate(rb.load_data("digits", limit=4)):
        save_image(image, robust_eval.folder / "in" / f"{number}.png")
    asked = ["corrupt", "in", "-c", "fog:severity=1", "-c", "shot_noise:severity=2"]
    assert inside(*asked[:2], "one", *asked[2:], "--workers", 1).code == 0
    ran = robust_eval(*asked[:2], "two", *asked[2:], "--engine", "ray", "--workers", 1)
    assert ran.code == 0, ran.err
    files = {str(file.relative_to(robust_eval.folder / "one")): file.read_bytes() for file in (robust_eval.folder / "one").rglob("*.png")}
    assert len(files) == 8
    assert files == {name: (robust_eval.folder / "two" / name).read_bytes() for name in files}


@pytest.mark.slow
def test_a_leaderboard_on_ray(robust_eval: CommandLine, inside: Callable[..., Ran]) -> None:
    import robustbench_lite as rb

    digits = rb.load_data("digits", limit=4)
    np.savez(robust_eval.folder / "digits.npz", images=np.stack([image.numpy() for image, _ in digits]), labels=np.asarray(digits.labels))
    asked = ["leaderboard", "--data", "npz:digits.npz", "--model", "digits_cnn", "--model", "digits_pgd_at", "--eps", 0.2]
    assert inside(*asked, "--out", "one", "--workers", 1).code == 0
    ran = robust_eval(*asked, "--out", "two", "--engine", "ray", "--workers", 1)
    assert ran.code == 0, ran.err
    runs = sorted(path.name for path in (robust_eval.folder / "one").iterdir() if path.is_dir())
    assert len(runs) == 2
    for run in runs:
        equal(robust_eval.folder, f"one/{run}", f"two/{run}")


# ------------------------------------------------------------------ what is refused


SHORT = ["--model", "digits_cnn", "--limit", 8, "--attack", "fgsm", "--out", "run", "--engine", "ray"]


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port at which somebody takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["closed", "deaf", "auto", "nonsense", "no.such.host:6379"])
def test_no_cluster_there(robust_eval: CommandLine, deaf: int, where: str) -> None:
    address = {"closed": "127.0.0.1:1", "deaf": f"127.0.0.1:{deaf}"}.get(where, where)
    started = time.monotonic()
    ran = robust_eval(*SHORT, "--ray-address", address)
    assert ran.code == 2
    assert ran.complaint.startswith(f"no Ray cluster at {address} (")
    assert time.monotonic() - started < 40  # of which most is torch and Ray being imported on a busy machine
    assert not (robust_eval.folder / "run" / "run.json").exists()


@pytest.mark.slow
def test_more_accelerators_than_there_are(robust_eval: CommandLine) -> None:
    ran = robust_eval(*SHORT, "--workers", 1, "--gpus-per-worker", 64)
    assert ran.code == 2
    assert ran.complaint == (
        "no machine of the Ray cluster has the 1 CPU and 64 GPUs of a worker (there are: 1 CPU and 0 GPUs): ask for less, or add machines"
    )


def test_room_is_counted_machine_by_machine_and_what_is_free_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines with an accelerator each have no room for a worker that needs two."""
    machines = [
        {"Alive": alive, "Resources": {"CPU": 8.0, "GPU": gpus}} for alive, gpus in ((True, 1.0), (True, 1.0), (True, 3.0), (False, 9.0))
    ]
    ray = SimpleNamespace(
        is_initialized=lambda: True,
        remote=lambda **_: lambda function: function,
        nodes=lambda: machines,
        cluster_resources=lambda: {"CPU": 24.0, "GPU": 5.0},
        available_resources=lambda: {"CPU": 1.0},
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert [Ray(gpus=gpus).size for gpus in (0, 0.5, 1, 2)] == [24, 10, 5, 1]
    assert Ray(workers=3).size == 3
    with pytest.raises(
        UsageError, match=r"has the 1 CPU and 4 GPUs of a worker \(there are: 8 CPUs and 1 GPU; 8 CPUs and 3 GPUs\): ask for less"
    ):
        Ray(gpus=4)
    said = "each needs 1 CPU and 2 GPUs, and of the Ray cluster's 24 CPUs and 5 GPUs 1 CPU and 0 GPUs are free; "
    assert Ray(gpus=2).lack().startswith(said)


@pytest.mark.slow
def test_what_a_worker_refuses_is_said_in_one_line(robust_eval: CommandLine, factories: Path) -> None:
    asked = ["--model", f"{factories}:all_nan", "--limit", 8, "--attack", "fgsm"]
    alone = robust_eval(*asked, "--out", "alone")
    spread = robust_eval(*asked, "--out", "spread", "--engine", "ray", "--workers", 1)
    assert spread.code == alone.code != 0
    assert spread.err == alone.err


def test_a_ray_that_was_imported_before_does_not_listen_to_the_world(inside: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)
    ran = inside(*SHORT)
    assert ran.code == 2
    assert ran.complaint.startswith("Ray was imported before, and would not keep to the loopback: set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0")


MAIN = """
import torch
import robustbench_lite as rb
from robustbench_lite.engines.opening import Workers
from robustbench_lite.errors import UsageError
from robustbench_lite.samples import drawn

class Model(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :4]

data = torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
try:
    rb.evaluate(Model().eval(), data=data, eps=0.1, workers=Workers("ray", 1))
except UsageError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_class_of_the_drivers_own_script(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(MAIN)
    ran = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=240)
    assert re.fullmatch(
        r"a worker on \S+ does not know a class of the model or the data \(.*'Model'.*\): put it into a module .*\n", ran.stdout
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_without_ray(inside: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ran = inside(*SHORT)
    assert ran.code == 2
    assert ran.complaint == "--engine ray needs Ray: pip install 'robustbench-lite[ray]', or --engine local"
