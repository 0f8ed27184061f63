"""What a run costs beside its passes, and what preparing a model is worth: `python tests/benchmarks/runs.py equal|resume|store`.

Processor time of one thread, medians over rounds in which the variants take turns.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from worker import TASKS, Task, resnet50

import robustbench_lite as rb
from robustbench_lite.engines.local import tune_process
from robustbench_lite.labelled import from_arrays
from robustbench_lite.records import Verdict
from robustbench_lite.store import Store

ROUNDS = 3


def processor(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    found = run()
    return time.process_time() - started, found


def equal() -> Iterator[str]:
    """PGD on the model as given and on the one that is folded and has channels last: the time, and the verdicts."""
    tasks: Mapping[str, tuple[Task, float]] = {
        "efficientnet_lite0, 18 photographs": (TASKS["efficientnet_lite0, all broken"](10), 0.1 / 255),
        "resnet50, 16 images": (replace(resnet50(16, 5), eps=1e-6), 1e-6),
        "resnet18, 64 images": (TASKS["resnet18, 64 images, all survive"](5), 1e-6),
        "digits_cnn, most survive": (TASKS["digits_cnn, most survive"](20), 0.02),
    }
    for name, (task, eps) in tasks.items():
        pgd = partial(rb.evaluate, task.model, f"pgd:steps={task.steps}", from_arrays(task.x, task.y), eps=eps, witnesses="none")
        taken: dict[bool, list[float]] = {False: [], True: []}
        said: dict[bool, dict[str, bool | None]] = {}
        for _ in range(ROUNDS):
            for prepare in taken:
                seconds, result = processor(partial(pgd, prepare=prepare))
                taken[prepare].append(seconds)
                said[prepare] = {v.sample_id: v.broken for v in result.verdicts if v.condition.startswith("pgd")}
        middle = {prepare: statistics.median(seconds) for prepare, seconds in taken.items()}
        agree = sum(said[True][key] == fate for key, fate in said[False].items())
        broken = sum(fate is True for fate in said[False].values())
        yield f"| {name} | {middle[True] / middle[False]:.2f} | {agree} of {len(task.x)} | {broken} | {ROUNDS} rounds |"


class Halfway(Exception):
    """The run is to be broken off here."""


def resume() -> Iterator[str]:
    """A run that is broken off in the middle and goes on, over one that is not; and the same command once more when all is done."""
    for name in ("digits_cnn, most survive", "resnet18, 64 images, all survive"):
        task = TASKS[name](10)
        data, pgd = from_arrays(task.x, task.y), f"pgd:steps={task.steps}"

        def evaluate(out: Path | None, stop: int | None, task: Task = task, data: Any = data, pgd: str = pgd) -> None:
            def told(condition: str, done: int, *_: int) -> None:
                if stop is not None and condition != "clean" and done >= stop:
                    raise Halfway

            rb.evaluate(task.model, pgd, data, eps=task.eps, out=out, progress=told, batch_size=16)

        def broken_off(out: Path, evaluate: Callable[..., None] = evaluate, half: int = len(data) // 2) -> None:
            try:
                evaluate(out, half)
            except Halfway:
                evaluate(out, None)
                return
            raise AssertionError("the run was not broken off")

        evaluate(None, None)  # the first run of a process pays for imports
        whole, resumed, again = [], [], []
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as folder:
                whole.append(processor(lambda: evaluate(Path(folder, "whole"), None))[0])
                resumed.append(processor(lambda: broken_off(Path(folder, "broken off")))[0])
                again.append(processor(lambda: evaluate(Path(folder, "whole"), None))[0])
        middle = statistics.median(whole)
        extra = statistics.median(resumed) - middle
        yield f"| {name} ({len(data)} images) | {middle:.1f} s | {extra:+.2f} s | {statistics.median(again):.2f} s | {ROUNDS} rounds |"


def store() -> Iterator[str]:
    """Verdicts a second into a run's folder, as the evaluation writes them: one by one, committed once a second."""
    task = TASKS["digits_cnn, most survive"](1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        result = rb.evaluate(task.model, "fgsm", from_arrays(task.x, task.y), eps=task.eps, out=out, witnesses="none")
        one: Verdict = result.verdicts[-1]
        rates, count = [], 20_000
        for number in range(ROUNDS):
            with Store(Path(folder, f"other{number}"), dict(result.config)) as kept:
                started = time.perf_counter()
                for row in range(count):
                    kept.add(replace(one, sample_id=str(row)))
                    kept.commit()
                kept.commit(now=True)
                rates.append(count / (time.perf_counter() - started))
    yield f"| verdicts, one by one | {statistics.median(rates):,.0f} a second | {min(rates):,.0f} to {max(rates):,.0f} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    tune_process()
    for line in {"equal": equal, "resume": resume, "store": store}[sys.argv[1]]():
        print(line, flush=True)
