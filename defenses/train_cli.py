"""`robust-train`: train a classifier and write a checkpoint that `robust-eval` loads."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from robustbench_lite.console import AllowCode, application, exit_code
from robustbench_lite.errors import UsageError
from robustbench_lite.plain_text import say

from .request import Request

if TYPE_CHECKING:
    from .training import Epoch

LATER = 5.0
"""Seconds in which torchrun has ended all processes once one has ended with an error."""

Device = Literal["auto", "cpu", "cuda", "mps"]

app = application("robust-train", default_parameter=Parameter(negative=()), version_flags=())


@app.default
def robust_train(
    *,
    request: Annotated[Request, Parameter(name="*")],
    device: Device = "auto",
    force: bool = False,
    fresh: bool = False,
    allow_code: AllowCode = False,
    debug: bool = False,
) -> None:
    """Train a classifier on the training split of a data set, test it on the test split, and write a checkpoint for robust-eval.

    Example: robust-train --data digits --defense pgd-at --out digits.safetensors

    A training that was interrupted goes on when the same command is given again.

    Args:
        device: auto takes cuda, then mps, then cpu.
        force: overwrite --out.
        fresh: start over instead of going on with an interrupted training.
        allow_code: run the Python code of a teacher such as my_model.py:build where no terminal shows that it runs.
        debug: show the traceback of an error.
    """
    _check(request.out, force)

    from robustbench_lite.engines.local import pick_device, tune_process

    from .job import run_job
    from .world import joined

    tune_process()
    with joined(pick_device(device)) as world, _progress(world.first) as report:
        said = run_job(request, world, report, fresh=fresh)
    if said:
        say(said)


def _check(out: Path, force: bool) -> None:
    """Everything about `out` that can be wrong is said before training, not after."""
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out} must end in .safetensors")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}, create it first")
    if not os.access(out.parent, os.W_OK):
        raise UsageError(f"--out {out}: the folder {out.parent} cannot be written to")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder")
    if out.exists() and not force:
        raise UsageError(f"--out {out} exists already: choose another name, or add --force to overwrite it")


@contextmanager
def _progress(first: bool) -> Iterator[Callable[[Sequence[Epoch], int], None]]:
    """A bar on a terminal, else some twenty lines; on stderr, and of one process only."""
    from rich.progress import Progress, TimeElapsedColumn

    console = Console(stderr=True, quiet=not first)
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not (first and console.is_terminal)) as bar:
        task = bar.add_task("training", total=None)

        def report(epochs: Sequence[Epoch], of: int) -> None:
            last = epochs[-1]
            held_out = "" if last.clean is None else f", held out {last.clean:.1%} clean, {last.attacked:.1%} attacked"
            bar.update(task, completed=last.number, total=of, description=f"training, loss {last.loss:.3f}{held_out}")
            if not console.is_terminal and (last.number % max(1, of // 20) == 0 or last.number in (1, of)):
                console.print(f"epoch {last.number} of {of}, loss {last.loss:.4f}{held_out}", highlight=False)

        yield report


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 2 (the command or its input is wrong), 4 (failed while training) or 130 (interrupted)."""
    return exit_code("robust-train", _run, sys.argv[1:] if words is None else words)


def _run(words: Sequence[str]) -> None:
    """Of several processes that fail alike the first says why, and torchrun ends the others; one that fails alone says it later."""
    try:
        app(words)
    except Exception:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(LATER)
        raise


if __name__ == "__main__":
    sys.exit(main())
