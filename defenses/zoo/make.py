"""`make zoo`: train the models of the zoo again, measure them, and compare with their cards; --update replaces the cards.

On the same machine with the same versions a model comes out with the same weights, and so with the same figures; only its file may
list what it says about itself in another order. Elsewhere sums are rounded otherwise, and training goes its own way from there. A card's
interval says how far other images would move a figure, not how far another training would: docs/leaderboard.md says what to make of it.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from robustbench_lite.cards import SEED, Card, Figure
from robustbench_lite.console import application, exit_code
from robustbench_lite.data import load_data
from robustbench_lite.errors import UnknownName, UsageError

from . import FOLDER, stored
from .entries import ENTRIES, UNDEFENDED

BUILD = Path("build/zoo")
WORKERS = 2
"""Models that are made side by side, with one thread each, so that the same sums are made on every machine of one kind."""

app = application("make zoo", default_parameter=Parameter(negative=()), version_flags=())


@app.default
def make_zoo(
    names: Annotated[Sequence[str], Parameter(negative=())] = (), /, *, images: int = 100, full: bool = False, update: bool = False
) -> int:
    """Train and measure the models of the zoo, two at a time, and compare what was found with their cards.

    Returns 1 where a figure lies outside its card's interval, or a model has no card yet.

    Args:
        names: which models; all unless some are named.
        images: how many of the test images autoattack has; the rest is measured on three times as many. A card over more of them is
            compared on the same ones.
        full: measure all test images, which takes hours.
        update: put the checkpoints and cards made here in the place of those that are shipped, instead of comparing.
    """
    for name in names:
        if name not in ENTRIES:
            raise UnknownName("model of the zoo", name, ENTRIES)
    if images < 1:
        raise UsageError(f"--images must be 1 or more, got {images}")
    BUILD.mkdir(parents=True, exist_ok=True)
    began, failures = time.monotonic(), 0
    asked = list(names or ENTRIES)[::-1]
    trained = [name for name in asked if ENTRIES[name].around is None]
    with ProcessPoolExecutor(WORKERS, get_context("spawn"), _one_thread) as workers:
        try:
            for together in (trained, [name for name in asked if name not in trained]):  # what is put around a model waits for it
                jobs = {workers.submit(made, name, None if full else images, trained): name for name in together}
                for job in as_completed(jobs):
                    name, card = jobs[job], job.result()
                    if update:
                        _ship(card)
                    differing = unlike(card, _shipped(name))
                    failures += len(differing)
                    told = [f"{name}, after {time.monotonic() - began:.0f} s:", *(differing or ["as its card says"])]
                    print("\n  ".join(told), flush=True)
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)  # or an interrupted make would begin with the models that wait
            raise
    return int(failures > 0)


def made(name: str, images: int | None, trained: Sequence[str] = ()) -> Card:
    """Train and measure one model; what was interrupted goes on.

    Args:
        images: how many, as `make_zoo` takes them; None is all.
        trained: the models that this `make` has trained. A defense around another one is put around that which is shipped.
    """
    import torch

    from ..job import run_job
    from ..world import World
    from .measuring import figures, measure

    entry = ENTRIES[name]
    folder = FOLDER if entry.around is not None and entry.around not in trained else BUILD
    request = ENTRIES[entry.around or name].request(BUILD / f"{entry.around or name}.safetensors")
    if entry.around is None:
        run_job(request, World(0, 1, torch.device("cpu")), lambda *_: None)
    classifier = stored(folder, name, entry.defense, entry.around)
    results = measure(classifier, request.data, entry.adaptive, images, BUILD, entry.certificates)
    for result in results:
        assert result.folder is not None
        shutil.rmtree(result.folder)  # only an interrupted run is worth keeping: the next `make zoo` is to measure, not to remember
    return Card(
        name=name,
        description=entry.description,
        good_for=entry.good_for,
        not_for=entry.not_for,
        data=request.data,
        architecture=request.model,
        defense=entry.defense,
        command=request.command if entry.around is None else f"robust-eval --model {entry.around} --defense {entry.defense}",
        seed=request.seed,
        chosen=entry.chosen,
        trained_on=classifier.trained_on,
        digest=sha256((folder / request.out.name).read_bytes()).hexdigest(),
        versions=results[0].config["versions"],
        figures=figures(results, entry.adaptive),
        baseline=None if name == UNDEFENDED else UNDEFENDED,
        around=entry.around,
    )


def unlike(card: Card, shipped: Card | None) -> list[str]:
    """What a model that was made again does otherwise than its card says, one line a figure; over the images that both know."""
    if shipped is None:
        return ["there is no card yet: add --update"]
    return [line for figure in shipped.figures if (line := _unlike(figure, card.figure(figure.condition), card.data))]


def _unlike(told: Figure, found: Figure | None, data: str) -> str | None:
    if found is None or (found.asked, found.answers) != (told.asked, told.answers):
        return f"{told.condition}: it was measured otherwise, by {', '.join(told.asked)}: add --update"
    n = min(told.n, found.n)
    told, found = _over(told, n, data), _over(found, n, data)
    low, high = told.interval
    if low <= found.accuracy <= high:
        return None
    return f"{told.condition}: {found.accuracy:.2%} of {n} images, its card says {told.accuracy:.2%} [{low:.2%}, {high:.2%}] of the same"


def _over(figure: Figure, n: int, data: str) -> Figure:
    """The figure over the n images that a smaller measurement would take."""
    taken = set(load_data(data, limit=n, seed=SEED).ids)
    return figure.at([at for at, key in enumerate(load_data(data, limit=figure.n, seed=SEED).ids) if key in taken])


def _shipped(name: str) -> Card | None:
    file = FOLDER / f"{name}.json"
    return Card.read(file) if file.is_file() else None


def _ship(card: Card) -> None:
    if card.around is None:
        shutil.copyfile(BUILD / f"{card.name}.safetensors", FOLDER / f"{card.name}.safetensors")
    (FOLDER / f"{card.name}.json").write_text(card.written(), "utf-8")


def _one_thread() -> None:
    """Before a worker's first job."""
    import torch

    from robustbench_lite.engines.local import tune_process
    from robustbench_lite.engines.processes import end_with_parent

    torch.set_num_threads(1)
    tune_process()
    threading.Thread(target=end_with_parent, daemon=True).start()  # or it would go on for an hour where make was killed


def _run(words: Sequence[str]) -> int:
    code: int = app(words)
    return code


if __name__ == "__main__":
    sys.exit(exit_code("make zoo", _run, sys.argv[1:]))
