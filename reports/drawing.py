"""What the charts of the HTML report share: colours, a figure, and inline SVG of it; the same run draws the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"  # replaced by currentColor, so that the page's dark mode reaches the charts
COLOURS = ("#2f7fc1", "#d9622b", "#1f9d78", "#b0609f", "#c8930a", "#7a6fd0")
MARKERS = ("o", "s", "^", "D", "v")
WIDTH = 5.6  # inches; 403 points, so that letters stay legible on a telephone
RINGED = "ringed: refuted, at most this"


@dataclass(frozen=True)
class Chart:
    """`svg` is an `<svg>` element; `title` and `note` go around it."""

    title: str
    note: str
    svg: str


def legend(figure: Figure, axes: Axes) -> None:
    """What each line is, below the chart."""
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(sorted(zip(labels, handles, strict=True), key=lambda entry: entry[0] == RINGED))  # the ring last, after every line
    columns = 3 if max(map(len, entries)) < 18 else 1
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure under matplotlib's own defaults, whatever the caller's settings, which are back afterwards."""
    from matplotlib import style
    from matplotlib.figure import Figure

    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    settings = {"svg.fonttype": "none", "svg.hashsalt": "robustbench-lite", "text.parse_math": False, "font.size": 10, **ink}
    with style.context(["default", settings | {"axes.spines.top": False, "axes.spines.right": False}]):
        figure = Figure((width, height), layout="constrained")
        yield figure, figure.subplots()


def svg(figure: Figure, name: str) -> str:
    """The bare element; its ids begin with `name`, since a page may hold several."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
