"""What a training leaves to read: a line of CSV an epoch, and a picture of how it went."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from .states import write_whole

if TYPE_CHECKING:
    from .training import Epoch


def write_csv(file: Path, epochs: Sequence[Epoch]) -> None:
    """All epochs so far: number, loss, lr, seconds, clean, attacked; an empty field is what was not measured.

    Raises:
        InvalidEvaluation: the file cannot be written.
    """

    def write(part: Path) -> None:
        with part.open("w", newline="") as opened:
            table = csv.DictWriter(opened, [field.name for field in fields(epochs[0])])
            table.writeheader()
            table.writerows(asdict(epoch) for epoch in epochs)

    write_whole(file, write)


def draw_plot(file: Path, epochs: Sequence[Epoch], title: str, chosen: int | None) -> None:
    """A PNG of the loss and, where images were held out, of the accuracies; `chosen` is the epoch whose weights were kept.

    Raises:
        InvalidEvaluation: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    numbers = [epoch.number for epoch in epochs]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.add_subplot()
    left.plot(numbers, [epoch.loss for epoch in epochs], color="black", label="training loss")
    left.set(xlabel="epoch", ylabel="training loss", title=title)
    scores = [(epoch.clean, epoch.attacked) for epoch in epochs if epoch.clean is not None and epoch.attacked is not None]
    if scores:
        right = left.twinx()
        right.plot(numbers, [clean for clean, _ in scores], color="tab:blue", label="held out, clean")
        right.plot(numbers, [attacked for _, attacked in scores], color="tab:red", label="held out, attacked")
        right.set(ylabel="accuracy", ylim=(0, 1))
        if chosen is not None:
            right.axvline(chosen, color="grey", linestyle=":", label=f"chosen: epoch {chosen}")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    write_whole(file, lambda part: figure.savefig(part, format="png", dpi=120))
