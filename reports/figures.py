"""The charts of the HTML report, as inline SVG: the same run draws the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustbench_lite.results import Result, Verdict, eps_text

from .table import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"  # replaced by currentColor, so that the page's dark mode reaches the charts
COLOURS = ("#2f7fc1", "#d9622b", "#1f9d78", "#b0609f", "#c8930a", "#7a6fd0")
MARKERS = ("o", "s", "^", "D", "v")
WIDTH = 5.6  # inches; 403 points, so that letters stay legible on a telephone
MANY_PASSES = 200  # above, a linear axis would squash the cheap attacks


@dataclass(frozen=True)
class Chart:
    """`svg` is an `<svg>` element; `title` and `note` go around it."""

    title: str
    note: str
    svg: str


def accuracy_curves(rows: Sequence[Row]) -> list[Chart]:
    """Accuracy against eps, one chart per norm, one curve per attack, starting from the clean accuracy at eps 0."""
    clean = [row for row in rows if row.kind == "clean"]
    norms = dict.fromkeys(row.norm for row in rows if row.kind == "attack" and row.eps)
    return [_accuracy_curve(str(norm), _series(rows, norm), clean, f"curve{number}") for number, norm in enumerate(norms)]


def queries(result: Result) -> Chart | None:
    """Passes that each attack spent: the spread over the images that it broke, the mean over the survivors; None without any."""
    from matplotlib.ticker import MaxNLocator

    spent: dict[str, list[Verdict]] = {c.name: [] for c in result.conditions if c.kind == "attack"}
    for v in result.verdicts:
        if v.condition in spent and v.broken_by != "clean" and v.forwards > 0:
            spent[v.condition].append(v)
    spent = {name: verdicts for name, verdicts in spent.items() if verdicts}
    if not spent:
        return None
    with _drawing(WIDTH, 1.0 + 0.62 * len(spent)) as (figure, axes):
        for place, (name, verdicts) in enumerate(spent.items()):
            axes.text(0, place - 0.28, name, fontsize=9, transform=axes.get_yaxis_transform())
            _spread(axes, [(v, v.forwards) for v in verdicts], place, COLOURS[0], "forward passes")
            if any(v.backwards for v in verdicts):
                _spread(axes, [(v, v.backwards) for v in verdicts], place + 0.25, COLOURS[1], "backward passes")
        axes.set_ylim(len(spent) - 0.4, -0.65)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("passes per image")
        most = max(max(v.forwards, v.backwards) for verdicts in spent.values() for v in verdicts)
        if most > MANY_PASSES:
            axes.set_xscale("symlog", linthresh=1)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0, most * (1.6 if most > MANY_PASSES else 1.06))
        _legend(figure, axes)
        svg = _svg(figure, "queries")
    note = "Broken images: line from least to most, bar over the middle half, tick at the median. Survivors: hollow diamond at the mean."
    return Chart("Passes per attacked image", note, svg)


def _accuracy_curve(norm: str, series: dict[str, list[Row]], clean: list[Row], ids: str) -> Chart:
    sizes = sorted({row.eps for points in series.values() for row in points if row.eps is not None})
    with _drawing(WIDTH, 3.2 + 0.2 * len(series)) as (figure, axes):
        for number, (name, points) in enumerate(series.items()):
            # at a single eps the points of all attacks would lie on each other; they stand side by side there
            aside = 0.035 * sizes[0] * (number - (len(series) - 1) / 2) if len(sizes) == 1 else 0.0
            xs = [*(0.0 for _ in clean), *((row.eps or 0.0) + aside for row in points)]
            style = _style(number, points)
            axes.plot(xs, [100 * row.accuracy for row in (*clean, *points)], label=name, **style)
            if len(sizes) == 1:
                _whiskers(axes, xs[len(clean) :], points, style["color"])
            else:
                lows, highs = ([100 * getattr(row, bound) for row in (*clean, *points)] for bound in ("ci_low", "ci_high"))
                axes.fill_between(xs, lows, highs, color=style["color"], alpha=0.15, linewidth=0)
        _whiskers(axes, [0.0] * len(clean), clean, INK)
        axes.plot([0.0] * len(clean), [100 * row.accuracy for row in clean], color=INK, marker="o", linestyle="", markersize=5, zorder=4)
        axes.set(ylim=(-4, 104), ylabel="accuracy, %", xlim=(-0.05 * sizes[-1], 1.12 * sizes[-1]), xlabel=f"eps ({norm})")
        axes.set_xticks(_ticks(sizes), ["0", *(eps_text(size) for size in _ticks(sizes)[1:])])
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        _legend(figure, axes)
        svg = _svg(figure, ids)
    drawn = "Error bars" if len(sizes) == 1 else "Bands"
    return Chart(f"Accuracy against eps, {norm}", f"{drawn}: 95 % intervals. At eps 0: the clean images.", svg)


def _series(rows: Sequence[Row], norm: str | None) -> dict[str, list[Row]]:
    """The rows of each attack in the order of their eps, then those of the worst case where there are several attacks to choose from."""
    series: dict[str, list[Row]] = {}
    for row in sorted((r for r in rows if r.norm == norm and r.eps is not None), key=lambda r: (r.kind == "worst", r.eps)):
        if row.kind == "attack":
            series.setdefault(row.attack or row.condition.partition("[")[0], []).append(row)
        elif row.kind == "worst" and len(series) > 1:
            series.setdefault("worst case", []).append(row)
    return series


def _style(number: int, points: Sequence[Row]) -> dict[str, Any]:
    if points[0].kind == "worst":
        return {"color": INK, "linestyle": (0, (4, 3)), "marker": "x", "markersize": 5, "linewidth": 1.2}
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    return {"color": colour, "linestyle": "-", "marker": marker, "markersize": 5, "linewidth": 1.6}


def _whiskers(axes: Axes, xs: Sequence[float], rows: Sequence[Row], colour: str) -> None:
    axes.vlines(xs, [100 * row.ci_low for row in rows], [100 * row.ci_high for row in rows], color=colour, linewidth=1.4)


def _ticks(sizes: Sequence[float]) -> list[float]:
    """0 and the sizes, without those whose label would run into that of a larger one."""
    kept = [sizes[-1]]
    for size in reversed(sizes[:-1]):
        if kept[0] - size > 0.12 * sizes[-1] and size > 0.08 * sizes[-1]:
            kept.insert(0, size)
    return [0.0, *kept]


def _spread(axes: Axes, spent: Sequence[tuple[Verdict, int]], place: float, colour: str, label: str) -> None:
    import numpy as np

    broken = [passes for verdict, passes in spent if verdict.broken]
    survivors = [passes for verdict, passes in spent if verdict.broken is False]
    if broken:
        least, first, middle, third, most = np.quantile(broken, [0, 0.25, 0.5, 0.75, 1])
        axes.hlines(place, least, most, color=colour, linewidth=1.2)
        axes.hlines(place, first, third, color=colour, linewidth=6, alpha=0.55)
        axes.plot([middle], [place], marker="|", markersize=9, markeredgewidth=2, color=colour, linestyle="")
    if survivors:
        axes.plot([np.mean(survivors)], [place], marker="D", markersize=5, markerfacecolor="none", color=colour, linestyle="")
    axes.plot([], [], color=colour, linewidth=4, label=label)  # an entry for the legend


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    columns = 3 if max(map(len, entries)) < 18 else 1
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


@contextmanager
def _drawing(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure under matplotlib's own defaults, whatever the caller's settings, which are back afterwards."""
    from matplotlib import style
    from matplotlib.figure import Figure

    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    settings = {"svg.fonttype": "none", "svg.hashsalt": "robustbench-lite", "text.parse_math": False, "font.size": 10, **ink}
    with style.context(["default", settings | {"axes.spines.top": False, "axes.spines.right": False}]):
        figure = Figure((width, height), layout="constrained")
        yield figure, figure.subplots()


def _svg(figure: Figure, name: str) -> str:
    """The bare element; its ids begin with `name`, since a page may hold several."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
