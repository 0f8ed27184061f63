"""The charts of distances: accuracy against eps, and how near a search for the nearest came after how many passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustbench_lite.distances import ALL_TOGETHER, Curve, curves, medians
from robustbench_lite.results import Result, eps_text, size_text
from robustbench_lite.stats import wilson

from .drawing import COLOURS, INK, MARKERS, RINGED, WIDTH, Chart, drawing, legend, svg
from .table import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_STEPS = 400  # of a curve: more would be narrower than the line
SQUASHED = 4
NEARLY_ALL = 0.95
"""The chart goes on to where so many of the images that were found are passed; a few far ones would squash the rest."""


@dataclass
class Line:
    """What one attack, or all of them together, has in one chart: its rows, and the curve where it sought the nearest."""

    name: str
    rows: list[Row]
    curve: Curve | None

    @property
    def label(self) -> str:
        """A curve is what this attack found; that another found more is said here, and the ring stands where that leaves the accuracy."""
        refuted = self.curve is not None and any(row.trust == "refuted" for row in self.rows)
        return f"{self.name}, refuted: at most this" if refuted else self.name


def accuracy_curves(result: Result, rows: Sequence[Row]) -> list[Chart]:
    """Accuracy against eps, one chart per norm, starting from the clean accuracy at eps 0.

    An attack that sought the nearest has a step curve over all eps; others have a point for each eps that was asked for.
    """
    clean = [row for row in rows if row.kind == "clean"]
    scaled = {c.name: c.scaled for c in result.conditions}
    axes = dict.fromkeys((str(row.norm), scaled[row.condition]) for row in rows if row.kind == "attack" and row.eps)
    found = {(curve.norm, curve.scaled, curve.name): curve for curve in curves(result)}
    charts = []
    for number, (norm, own) in enumerate(axes):
        of_norm = [row for row in rows if row.norm == norm and row.eps is not None and scaled[row.condition] == own]
        lines = [Line(name, points, found.get((norm, own, name))) for name, points in _series(of_norm).items()]
        charts.append(_accuracy_curve(norm, own, lines, clean, f"curve{number}"))
    return charts


def median_curves(result: Result) -> list[Chart]:
    """The median distance of the nearest found so far against passes, one chart per norm; none where nobody sought the nearest."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for curve in (curve for curve in curves(result) if curve.name != ALL_TOGETHER and not curve.scaled):
        largest = max((c for c in result.conditions if c.name in curve.conditions), key=lambda c: c.eps or 0)
        pairs = medians(result.of(largest.name))
        if pairs and pairs[-1][1] > 0:  # a logarithm has no zero: half of the images were wrong without an attack
            found.setdefault(curve.norm, {})[curve.name] = [pair for pair in pairs if pair[1] > 0]
    return [_median_curve(norm, lines, f"median{number}") for number, (norm, lines) in enumerate(found.items())]


def _accuracy_curve(norm: str, scaled: bool, lines: Sequence[Line], clean: Sequence[Row], ids: str) -> Chart:
    sizes = sorted({row.eps for line in lines for row in line.rows if row.eps is not None})
    continuous = any(line.curve for line in lines)
    far = max((_far(line.curve) for line in lines if line.curve), default=0.0)
    # an eps at which everything has long been broken would squash the curves against the axis; points of other attacks must be seen
    beyond = all(line.curve for line in lines) and sizes[-1] > SQUASHED * far > 0
    right = far if beyond else max(1.12 * sizes[-1], far)
    with drawing(WIDTH, 3.2 + 0.2 * len(lines)) as (figure, axes):
        for number, line in enumerate(lines):
            style = _style(number, line.rows)
            if line.curve is None:
                # at a single eps the points of all attacks would lie on each other; they stand side by side there
                aside = 0.035 * sizes[0] * (number - (len(lines) - 1) / 2) if len(sizes) == 1 else 0.0
                xs = _points(axes, line, clean, aside, style, whiskers=len(sizes) == 1)
            else:
                xs = _steps(axes, line, right, style)
            refuted = [(x, 100 * row.at_most) for x, row in zip(xs, line.rows, strict=True) if row.trust == "refuted"]
            if refuted:
                xs_refuted, ys_refuted = zip(*refuted, strict=True)
                axes.scatter(xs_refuted, ys_refuted, s=120, facecolors="none", edgecolors=INK, linewidths=1.2, zorder=5, label=RINGED)
        _whiskers(axes, [0.0] * len(clean), clean, INK)
        axes.plot([0.0] * len(clean), [100 * row.at_most for row in clean], color=INK, marker="o", linestyle="", markersize=5, zorder=4)
        axes.set(ylim=(-4, 104), ylabel="accuracy, %", xlim=(-0.05 * right / 1.12, right), xlabel=_unit(norm, scaled))
        if continuous:
            for size in (size for size in sizes if size <= right):
                axes.axvline(size, color=INK, alpha=0.35, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            axes.set_xticks(_ticks(sizes), ["0", *(size_text(size, scaled) for size in _ticks(sizes)[1:])])
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        legend(figure, axes)
        drawn = svg(figure, ids)
    bars = "Bands" if continuous or len(sizes) > 1 else "Error bars"
    note = f"{bars}: 95 % intervals{', point by point' if continuous else ''}. At eps 0: the clean images."
    if continuous:
        judged = " and ".join(size_text(size, scaled) for size in sizes) if len(sizes) < 4 else f"{len(sizes)} eps"
        seen = "right of the edge, where nothing more is drawn" if beyond else "dotted"
        note += f" Step curves come from the distance of the nearest broken image found; the table is about {judged} ({seen})."
    return Chart(f"Accuracy against eps, {norm}", note, drawn)


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each attack in the order of their eps, then those of the worst case where there are several attacks to choose from."""
    series: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda r: (r.kind == "worst", r.eps)):
        if row.kind == "attack":
            series.setdefault(row.attack or row.condition.partition("[")[0], []).append(row)
        elif row.kind == "worst" and len(series) > 1:
            series.setdefault(ALL_TOGETHER, []).append(row)
    return series


def _points(axes: Axes, line: Line, clean: Sequence[Row], aside: float, style: Mapping[str, Any], whiskers: bool) -> list[float]:
    """A point for each eps, joined; where they stand."""
    places = [(row.eps or 0.0) + aside for row in line.rows]
    xs = [*(0.0 for _ in clean), *places]
    axes.plot(xs, [100 * row.at_most for row in (*clean, *line.rows)], label=line.label, **style)
    if whiskers:
        _whiskers(axes, places, line.rows, style["color"])
    else:
        lows, highs = ([100 * getattr(row, bound) for row in (*clean, *line.rows)] for bound in ("ci_low", "ci_high"))
        axes.fill_between(xs, lows, highs, color=style["color"], alpha=0.15, linewidth=0)
    return places


def _steps(axes: Axes, line: Line, right: float, style: Mapping[str, Any]) -> list[float]:
    """A step wherever an image falls, and a mark at each eps that the table is about; where the marks stand."""
    assert line.curve is not None
    xs, counts = _falls(line.curve, right)
    bounds = [wilson(count, line.curve.n) for count in counts]
    shares = [100 * count / line.curve.n for count in counts]
    drawn = {key: style[key] for key in ("color", "linestyle", "linewidth")}
    axes.step(xs, shares, where="post", label=line.label, **drawn)
    lows, highs = ([100 * bound[side] for bound in bounds] for side in (0, 1))
    axes.fill_between(xs, lows, highs, step="post", color=style["color"], alpha=0.12, linewidth=0)
    marks = [row.eps or 0.0 for row in line.rows]  # those beyond the edge are clipped
    axes.plot(marks, [100 * row.at_most for row in line.rows], **{**style, "linestyle": ""}, zorder=4)
    return marks


def _falls(curve: Curve, right: float) -> tuple[list[float], list[int]]:
    """Where the curve falls, from 0 to its end or the chart's, and how many images are correct from there on."""
    end = min(curve.end, right)
    places = sorted({0.0, *(d for d in curve.distances if d < end), end})
    if len(places) > MOST_STEPS:
        places = [end * k / MOST_STEPS for k in range(MOST_STEPS + 1)]
    return places, [curve.correct(place) for place in places]


def _far(curve: Curve) -> float:
    found = [d for d in curve.distances if 0 < d < math.inf]
    return 1.05 * found[math.ceil(NEARLY_ALL * len(found)) - 1] if found else 0.0


def _unit(norm: str, scaled: bool) -> str:
    return f"eps ({norm}), multiples of each image's own eps" if scaled else f"eps ({norm})"


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


def _median_curve(norm: str, lines: Mapping[str, Sequence[tuple[int, float]]], ids: str) -> Chart:
    ticks = _one_two_five([distance for pairs in lines.values() for _, distance in pairs])
    most = max(pairs[-1][0] for pairs in lines.values())
    with drawing(WIDTH, 3.2 + 0.2 * len(lines)) as (figure, axes):
        for number, (name, pairs) in enumerate(lines.items()):
            dash = "-" if number < len(COLOURS) else (0, (4, 2))
            xs, ys = zip(*pairs, strict=True)
            axes.step(xs, ys, where="post", color=COLOURS[number % len(COLOURS)], linewidth=1.6, linestyle=dash, label=name)
        axes.set(xscale="log", yscale="log", xlim=(1, 1.1 * most), ylim=(ticks[0], ticks[-1]))
        axes.set(xlabel="passes per image, forward and backward", ylabel=f"median distance ({norm})")
        axes.set_yticks(ticks, [eps_text(tick) for tick in ticks])
        axes.yaxis.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        legend(figure, axes)
        drawn = svg(figure, ids)
    note = (
        "Of the nearest broken image found so far, over all images; lower is stronger. A curve begins where half of them have one. "
        "One that still falls at its end may be of an attack that was stopped too early."
    )
    return Chart(f"Median distance against passes, {norm}", note, drawn)


def _one_two_five(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times powers of ten, from the last that is no larger than all values to the first that is no smaller."""
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    ticks = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
    below = max(place for place, tick in enumerate(ticks) if tick <= min(values) * (1 + 1e-9))
    above = min(place for place, tick in enumerate(ticks) if tick >= max(values) * (1 - 1e-9))
    return ticks[below : max(above, below + 1) + 1]
