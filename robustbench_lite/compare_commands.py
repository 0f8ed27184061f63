"""`robust-eval compare` and `robust-eval history`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from cyclopts import App, Parameter

from .console import default_folder, show
from .errors import UsageError
from .plain_text import say

Format = Literal["html", "csv", "json"]
Metric = Literal["accuracy", "success_correct", "median_distance", "mean_forwards", "mean_backwards", "seconds"]
Debug = Annotated[bool, Parameter(show=False, negative="")]


def _option(text: str, *names: str) -> Parameter:
    return Parameter(name=names or None, help=text, negative="")


def add_to(app: App) -> None:
    """Give the app these commands."""
    app.command(compare)
    app.command(history)


def compare(
    *runs: Annotated[Path, _option("Folders of runs; the first is what the others are held against.")],
    out: Annotated[Path | None, _option("Folder for the files. Default: one under robust-eval-runs.")] = None,
    formats: Annotated[str, _option("html, csv, json, or several with commas between them.", "--format")] = "html,csv,json",
    fail_on_difference: Annotated[bool, _option("End with 1 where a difference is more than the luck of the images.")] = False,
    debug: Debug = False,
) -> int:
    """Say what differs between runs, on the same images: by how much, how surely, and which images flipped."""
    from .comparison import compare as compared
    from .registry import REPORTS

    wanted = _formats(formats)
    comparison = compared(runs)
    folder = _folder(out, [*runs], "compare-" + "-".join(dict.fromkeys(run.resolve().name for run in runs)))
    table, files = REPORTS.get("comparison")(comparison, folder, wanted)
    show(table)
    say(f"written: {', '.join(map(str, files))}")
    found = any(row.sure for beside in comparison.others for row in beside.rows)
    return 1 if fail_on_difference and found else 0


def history(
    folder: Annotated[Path, _option("Every run in it and below it takes part.")],
    /,
    *,
    metric: Annotated[Metric, _option("A column of the runs' tables.")] = "accuracy",
    condition: Annotated[str | None, _option("pgd, worst, clean, pgd[linf,0.1], ... Default: all.")] = None,
    out: Annotated[Path | None, _option("Folder for the files. Default: the folder of the runs.")] = None,
    formats: Annotated[str, _option("html, csv, or both with a comma between them.", "--format")] = "html,csv",
    debug: Debug = False,
) -> int:
    """Draw a figure over many runs, each beside the one before it."""
    from .history import read_history
    from .registry import REPORTS

    wanted = _formats(formats, ("html", "csv"))
    found = read_history(folder, metric=metric, condition=condition)
    table, files = REPORTS.get("history")(found, _folder(out, [folder], "history") if out else folder, wanted)
    show(table)
    say(f"written: {', '.join(map(str, files))}")
    return 0


def _formats(text: str, known: tuple[str, ...] = get_args(Format)) -> list[str]:
    """The formats that were asked for, each once.

    Raises:
        UsageError: there is no such format.
    """
    asked = list(dict.fromkeys(word.strip() for word in text.split(",")))
    unknown = next((word for word in asked if word not in known), None)
    if unknown is not None:
        raise UsageError(f"--format takes {', '.join(known)}, got {unknown!r}")
    return asked


def _folder(out: Path | None, asked: list[Path], label: str) -> Path:
    """Where the files go.

    Raises:
        UsageError: it is a file.
    """
    folder = default_folder(asked, label) if out is None else out
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out is a folder, and {folder} is a file: choose another")
    return folder
