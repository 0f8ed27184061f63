"""`make bench`: speed and memory, as ratios against a bare PyTorch loop and against other libraries, into docs/benchmarks.md.

Variants of one comparison run in turn, round after round, and the medians are compared: what else the machine does then meets all
of them. Processor time decides, not wall time, because the machine may be shared.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

WORKER = Path(__file__).with_name("worker.py")
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Reading:
    cpu: list[float]
    wall: list[float]
    peak: float


def raw(task: str, variants: Sequence[str], rounds: int, *, steps: int = 1, threads: int = 1) -> dict[str, list[dict[str, float]]]:
    """What the workers said of every variant, `rounds` times, in turn."""
    found: dict[str, list[dict[str, float]]] = {v: [] for v in variants}
    workers = {}
    for variant in variants:
        command = [sys.executable, str(WORKER), task, variant, str(steps), str(threads)]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert worker.stdout is not None
        if worker.stdout.readline() != "ready\n":
            raise RuntimeError(f"the worker for {variant} on {task} did not start: run `{' '.join(command)}` to see why")
        workers[variant] = worker
    for _ in range(rounds):
        for variant, worker in workers.items():
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
            found[variant].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    return found


def readings(task: str, variants: Sequence[str], *, steps: int, rounds: int, threads: int = 1) -> dict[str, Reading]:
    """Every variant `rounds` times, in turn."""
    found = raw(task, variants, rounds, steps=steps, threads=threads)
    return {v: Reading([r["cpu"] for r in rs], [r["wall"] for r in rs], max(r["peak"] for r in rs)) for v, rs in found.items()}


def per_step(task: str, variants: Sequence[str], steps: tuple[int, int], rounds: int) -> list[str]:
    """Processor time of one more step, over the bare loop's: what a run pays once cancels out."""
    few, many = (readings(task, variants, steps=n, rounds=rounds) for n in steps)
    cost = {v: (statistics.median(many[v].cpu) - statistics.median(few[v].cpu)) / (steps[1] - steps[0]) for v in variants}
    return [f"| {task} | {v} | {cost[v] / cost['bare']:.2f} | {rounds} x ({steps[1]} - {steps[0]}) steps |" for v in variants]


def whole_run(task: str, variants: Sequence[str], steps: int, rounds: int) -> list[str]:
    """Processor time of a whole run, over ours."""
    found = readings(task, variants, steps=steps, rounds=rounds)
    ours = statistics.median(found["evaluated"].cpu)
    lines = []
    for v in variants:
        ratios = [statistics.median(values) / ours for values in ([t] for t in found[v].cpu)]
        lines.append(
            f"| {task} | {v} | {statistics.median(found[v].cpu) / ours:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {rounds} rounds |"
        )
    return lines


def cascade(task: str, rounds: int) -> list[str]:
    """AutoAttack standard, ours over the official implementation's."""
    found = raw(task, ("autoattack", "pyautoattack"), rounds)
    middle = {v: {key: statistics.median(r[key] for r in rs) for key in rs[0]} for v, rs in found.items()}
    ours, peer = middle["autoattack"], middle["pyautoattack"]
    shares = " | ".join(f"{ours[key] / peer[key]:.2f}" for key in ("passes", "cpu", "wall"))
    return [f"| {task} | {ours['robust']:.0f} / {peer['robust']:.0f} | {shares} | {rounds} rounds |"]


def overhead(task: str, rounds: int) -> list[str]:
    """What the evaluation takes beside the model's own passes, as a share of those."""
    shares = [r["cpu"] / r["inside"] - 1 for r in raw(task, ("shortened",), rounds)["shortened"]]
    return [f"| {task} | {100 * statistics.median(shares):.0f} % | {rounds} rounds |"]


def peak_memory(task: str, variants: Sequence[str], steps: int) -> list[str]:
    found = {v: readings(task, [v], steps=steps, rounds=1)[v].peak for v in variants}
    return [f"| {task} | {v} | {found[v]:.0f} MiB | {found[v] / found['bare']:.2f} |" for v in variants]


def start_up(rounds: int = 5) -> list[str]:
    """Wall time of commands that a person waits for."""
    program = Path(sys.executable).with_name("robust-eval")
    lines = []
    for arguments in (["--help"], ["list", "attacks"], []):
        taken = []
        for _ in range(rounds):
            started = time.perf_counter()
            subprocess.run([program, *arguments], check=True, stdout=subprocess.DEVNULL)
            taken.append(time.perf_counter() - started)
        lines.append(f"| robust-eval {' '.join(arguments)} | {statistics.median(taken):.2f} s | {min(taken):.2f} to {max(taken):.2f} s |")
    return lines


def rows_of(script: str, what: str) -> list[str]:
    """What a script beside this one prints: in a process of its own, with as many threads as it says."""
    command = [sys.executable, "-W", "ignore", str(WORKER.with_name(script)), what]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


PEERS = ("foolbox", "torchattacks", "adv_lib")


@dataclass(frozen=True)
class Section:
    title: str
    head: str
    rows: Callable[[], list[str]]

    def text(self) -> str:
        columns = self.head.count("|") - 1
        return "\n".join([f"## {self.title}", "", self.head, "|---" * columns + "|", *self.rows(), ""])


SECTIONS = {
    "prepared": Section(
        "One gradient step with the defaults for frozen models, over the bare loop",
        "| task | variant | ratio | from |",
        lambda: (
            per_step("resnet18, 128 images", ("bare", "prepared", "prepared_bf16"), (1, 4), 3)
            + per_step("resnet18, 64 images", ("bare", "prepared", "prepared_bf16"), (1, 5), 3)
            + per_step("resnet50, 32 images", ("bare", "prepared", "prepared_bf16"), (1, 3), 3)
        ),
    ),
    "verdicts": Section(
        "A whole PGD-20 run to the same verdicts, over ours (above 1: slower than ours)",
        "| task | variant | ratio | from |",
        lambda: (
            whole_run("digits_cnn, most survive", ("evaluated", "bare", *PEERS), 20, 5)
            + whole_run("resnet18, 64 images, all survive", ("evaluated", "foolbox", "torchattacks"), 10, 3)
            + whole_run("efficientnet_lite0, all broken", ("evaluated", *PEERS), 20, 3)
        ),
    ),
    "autoattack": Section(
        "AutoAttack standard, ours over pyautoattack (below 1: less than it)",
        "| task | robust, ours / peer | passes | processor time | wall time | from |",
        lambda: cascade("efficientnet_lite0, all broken", 1) + cascade("digits_cnn, about half survive", 1),
    ),
    "equal": Section(
        "A whole PGD run on the model prepared (folded, channels last), over the same on the model as given",
        "| task | processor time | equal verdicts | broken | from |",
        lambda: rows_of("runs.py", "equal"),
    ),
    "resume": Section(
        "A run that is broken off in the middle and goes on, and one that is done and is asked for again",
        "| task | unbroken | broken off: more by | asked for again | from |",
        lambda: rows_of("runs.py", "resume"),
    ),
    "store": Section("Writing a run's folder", "| what | median | range |", lambda: rows_of("runs.py", "store")),
    "overhead": Section(
        "AutoAttack's attacks, time beside the model's own passes",
        "| task | over the passes | from |",
        lambda: overhead("resnet18, 10 images, all survive", 3),
    ),
    "step": Section(
        "One gradient step, early leaving off, the model as given, over the bare loop (1.00 = free)",
        "| task | variant | ratio | from |",
        lambda: (
            per_step("resnet18, 64 images", ("bare", "as_given", *PEERS), (1, 4), 3)
            + per_step("resnet50, 8 images", ("bare", "as_given", *PEERS), (1, 4), 3)
        ),
    ),
    "memory": Section(
        "Peak memory of two steps",
        "| task | variant | peak | over the bare loop |",
        lambda: peak_memory("resnet50, 64 images", ("bare", "prepared", "foolbox", "torchattacks"), 2),
    ),
    "corruptions": Section(
        "Corruptions, 224 pixels, batches of 32, two threads, random draws included; wall time, mean over the severities",
        "| corruption | ours, ms an image | imagecorruptions, ms | ratio | slowest severity of ours, ms |",
        lambda: rows_of("corruptions.py", "speed"),
    ),
    "corruption-memory": Section(
        "Peak memory of an evaluation under two corruptions, 224 pixels, batches of 32",
        "| images | peak memory, MB |",
        lambda: rows_of("corruptions.py", "memory"),
    ),
    "adversarial": Section(
        "A step of adversarial training, over a bare loop with the same passes (1.00 = free)",
        "| task | bare loop | ours | ratio | from |",
        lambda: rows_of("training.py", "adversarial"),
    ),
    "kwta": Section(
        "A training step with k-WTA, over one with ReLU",
        "| task | ReLU | k-WTA | ratio | from |",
        lambda: rows_of("training.py", "kwta"),
    ),
    "augmix": Section(
        "AugMix's two views of an image, PIL pipelines over ours (above 1: slower than ours)",
        "| over | ours, an image | PIL, an image | ratio | from |",
        lambda: rows_of("training.py", "augmix"),
    ),
    "start": Section("Starting", "| command | median | range |", start_up),
}


def main(names: Sequence[str]) -> None:
    """Measure these sections, or all, and put them in the place of the page's own."""
    unknown = set(names) - set(SECTIONS)
    if unknown:
        sys.exit(f"no such section: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    about = f"{platform.machine()}, one thread, torch {torch.__version__}, Python {platform.python_version()}"
    intro = f"# Speed and memory\n\nMade by `make bench` ({about}).\n\n{(__doc__ or '').partition(chr(10) * 2)[2].strip()}\n"
    before = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    blocks = {block.partition("\n")[0]: f"## {block.strip()}\n" for block in before.split("\n## ")[1:]}
    for name in names or SECTIONS:
        section = SECTIONS[name]
        print(f"measuring {name} ...", flush=True)
        blocks[section.title] = section.text()
        print(blocks[section.title], flush=True)
        PAGE.write_text("\n".join([intro, *blocks.values()]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
