"""The commands of `robust-eval` beside the evaluation itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console

from . import compare_commands, scenario_commands
from .console import AllowCode, bars, complain, finish, formats_of, show
from .errors import WitnessRefuted
from .gate import commands as gating
from .plain_text import say
from .worker_options import USUAL, WorkerOptions

Kind = Literal[
    "attacks",
    "certificates",
    "goals",
    "corruptions",
    "perturbations",
    "suites",
    "defenses",
    "architectures",
    "models",
    "data",
    "reports",
    "formats",
    "diagnostics",
]
Debug = Annotated[bool, Parameter(show=False, negative="")]


def opt(text: str, *names: str, **more: Any) -> Parameter:
    return Parameter(name=names or None, help=text, negative="", **more)


def add_to(app: App) -> None:
    """Give the app these commands."""
    app.command(list_names, name="list")
    for command in (describe, corrupt, leaderboard, report, verify):
        app.command(command)
    compare_commands.add_to(app)
    scenario_commands.add_to(app)
    gating.add_to(app)


def list_names(kind: Kind = "attacks", /, *, debug: Debug = False) -> int:
    """List what can be named: attacks, corruptions, suites, perturbations, defenses, architectures, models, data, formats, ..."""
    from .catalogue import listing

    Console(soft_wrap=True).print(listing(kind), markup=False, highlight=False)
    return 0


def describe(spec: str, /, *, debug: Debug = False) -> int:
    """Say everything about one attack, model, data set, ... by its name."""
    from .catalogue import description

    Console(soft_wrap=True).print(description(spec), markup=False, highlight=False)
    return 0


def corrupt(
    source: Path,
    target: Path,
    /,
    *,
    corruption: Annotated[list[str], opt("fog, imagenet-c, all, ... Repeat for more.", "--corruption", "-c")],
    severity: Annotated[str | None, opt("1 to 5, or two with a dash. Default: all five.")] = None,
    size: Annotated[int | None, opt("Height and width after the centre crop; the published sets have 224.")] = None,
    resize: Annotated[int | None, opt("Shorter side before the centre crop; the published sets have 256.")] = None,
    storage_jpeg: Annotated[int | None, opt("Write JPEG files of this quality (the published ones have 85) instead of PNG.")] = None,
    frost_dir: Annotated[Path | None, opt("Folder of ImageNet-C's frost pictures. Default: procedural frost.")] = None,
    seed: Annotated[int, opt("Of every random draw.")] = 0,
    where: WorkerOptions = USUAL,
    fresh: Annotated[bool, opt("Write everything again.")] = False,
    debug: Debug = False,
) -> int:
    """Write corrupted copies of a folder of pictures: `TARGET/<corruption>/<severity>/<path in SOURCE>`. An interrupted job goes on."""
    from .folders import corrupt_folder

    specs = [f"{spec}{',' if ':' in spec else ':'}severity={severity}" if severity else spec for spec in corruption]
    with bars() as progress:
        written, known = corrupt_folder(
            source,
            target,
            specs,
            size=size,
            resize=resize,
            storage_jpeg=storage_jpeg,
            frost_dir=frost_dir,
            seed=seed,
            workers=where.asked(alone=os.cpu_count()),
            fresh=fresh,
            progress=lambda done, total: progress("pictures", done, total, 0),
        )
    say(f"{written} pictures written to {target}" + (f", {known} were there already" if known else ""))
    return 0


def leaderboard(
    *,
    data: Annotated[str, opt("What the models are tested on; the bundled models of this data take part.")] = "digits",
    model: Annotated[list[str] | None, opt("A model of your own that takes part, such as my.safetensors. Repeat for more.")] = None,
    eps: Annotated[list[str] | None, opt("Radius in linf. Repeat; the first decides the order. Default: those of the model cards.")] = None,
    limit: Annotated[int | None, opt("A seeded, stratified subset of this many images. Default: 100.")] = None,
    full: Annotated[bool, opt("All images.")] = False,
    where: WorkerOptions = USUAL,
    out: Annotated[Path | None, opt("Folder of the runs and the page. Default: one under robust-eval-runs.")] = None,
    fresh: Annotated[bool, opt("Start over instead of going on where an earlier run stopped.")] = False,
    allow_code: AllowCode = False,
    debug: Debug = False,
) -> int:
    """Say what each defense is worth: the bundled models side by side, clean, attacked and corrupted. An interrupted one goes on."""
    from .engines.local import tune_process
    from .leaderboard import compare
    from .registry import REPORTS

    tune_process()
    with bars() as progress:
        board = compare(data, model or (), eps=eps, limit=limit, full=full, workers=where.asked(), out=out, fresh=fresh, progress=progress)
    table, page = REPORTS.get("leaderboard")(board)
    show(table)
    say(f"page: {page}")
    undecided = [f"{line.undecided} of {line.name}" for line in board.lines if line.undecided]
    if undecided:
        complain(
            "robust-eval", f"images are undecided ({', '.join(undecided)}); they count as not right, `robust-eval report RUN` names them"
        )
        return 4
    return 0


def report(
    run: Path,
    /,
    *,
    format: Annotated[str, opt("html, csv, json, md, junit, parquet; several with commas.")] = "html,csv",
    debug: Debug = False,
) -> int:
    """Write a run's table, samples and report again, from its verdicts."""
    from .store import read_run

    formats = formats_of(format)
    return finish(read_run(run), None, formats)


def verify(
    run: Path,
    /,
    *,
    allow_pickle: Annotated[bool, opt("Read weights that can run code.")] = False,
    allow_code: Annotated[bool, opt("Run the Python code that the run names as its model.")] = False,
    debug: Debug = False,
) -> int:
    """Check every witness of a run against the model; exit 1 if one does not hold."""
    from .verification import verify as check

    with bars() as progress:
        checked = check(
            run, allow_pickle=allow_pickle, allow_code=allow_code, progress=lambda done, total: progress("witnesses", done, total, 0)
        )
    for failure in checked.failures[:20]:
        say(f"does not hold: {failure}")
    unkept = f"; of {checked.not_kept} more broken images no witness was kept" if checked.not_kept else ""
    if checked.failures:
        raise WitnessRefuted(f"{len(checked.failures)} of {checked.holding + len(checked.failures)} witnesses do not hold{unkept}")
    if not checked.holding:
        print("no image was broken by an attack, so that there is no witness to check")
        return 0
    say(f"all {checked.holding} witnesses hold{unkept}")
    return 0
