"""The charts of the HTML report, as inline SVG: the same run draws the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustbench_lite.baselines import PUBLISHED
from robustbench_lite.calibration import answers, reliability
from robustbench_lite.corruption_metrics import Figure as Score
from robustbench_lite.results import Result, Verdict, eps_text
from robustbench_lite.shape_bias import PUBLISHED as SHAPE_PUBLISHED

from .shapes import ShapeRow
from .table import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"  # replaced by currentColor, so that the page's dark mode reaches the charts
COLOURS = ("#2f7fc1", "#d9622b", "#1f9d78", "#b0609f", "#c8930a", "#7a6fd0")
MARKERS = ("o", "s", "^", "D", "v")
SEVERITY_COLOURS = ("#3b8ec2", "#2fa08f", "#8aa53a", "#d99a2b", "#d9622b")
WIDTH = 5.6  # inches; 403 points, so that letters stay legible on a telephone
MANY_PASSES = 200  # above, a linear axis would squash the cheap attacks
RINGED = "ringed: refuted, at most this"


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
    """How many passes it took to break images: for each attack the share of those attacked that was broken so far; None without any."""
    spent: dict[str, list[Verdict]] = {c.name: [] for c in result.conditions if c.kind == "attack"}
    for v in result.verdicts:
        if v.condition in spent and v.broken_by != "clean" and v.forwards > 0:
            spent[v.condition].append(v)
    spent = {name: verdicts for name, verdicts in spent.items() if verdicts}
    if not spent:
        return None
    most = max(v.forwards + v.backwards for verdicts in spent.values() for v in verdicts)
    first = 0 if most <= MANY_PASSES else 1  # a logarithm has no zero
    with _drawing(WIDTH, 3.2 + 0.2 * len(spent)) as (figure, axes):
        for number, (name, verdicts) in enumerate(spent.items()):
            ends = sorted(v.forwards + v.backwards for v in verdicts if v.broken)
            shares = [100 * count / len(verdicts) for count in range(len(ends) + 1)]
            dash = "-" if number < len(COLOURS) else (0, (4, 2))
            xs, ys = [first, *ends, most], [*shares, shares[-1]]
            label = f"{name}, refuted: at least this" if result.trust[name].level == "refuted" else name
            axes.step(xs, ys, where="post", color=COLOURS[number % len(COLOURS)], linewidth=1.6, linestyle=dash, label=label)
        axes.set(ylim=(-4, 104), ylabel="broken of those attacked, %", xlabel="passes per image, forward and backward", xlim=(first, most))
        if first:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        _legend(figure, axes)
        svg = _svg(figure, "queries")
    note = "A line climbs where images break. One that still climbs at its end may be of an attack that was stopped too early."
    return Chart("Passes until an image breaks", note, svg)


def calibration_curves(pools: Mapping[str, Sequence[Verdict]]) -> Chart | None:
    """Accuracy against confidence in bins, on clean images and at each severity; None where no confidences are known."""
    found = {name: reliability(*answers(verdicts)) for name, verdicts in pools.items() if answers(verdicts)[0]}
    if not found:
        return None
    with _drawing(WIDTH, 4.6) as (figure, axes):
        axes.plot([0, 100], [0, 100], color=INK, linewidth=0.8, alpha=0.4, linestyle=(0, (3, 3)))
        for name, bins in found.items():
            number = 0 if name == "clean" else int(name[-1]) - 1
            colour, marker = (INK, "x") if name == "clean" else (SEVERITY_COLOURS[number], MARKERS[number])
            xs, ys = [100 * b.confidence for b in bins], [100 * b.accuracy for b in bins]
            axes.plot(xs, ys, color=colour, linewidth=1.2, alpha=0.8, label=name)
            most = max(b.n for b in bins)
            axes.scatter(xs, ys, s=[8 + 40 * b.n / most for b in bins], color=colour, marker=marker, linewidths=1.2)
        axes.set(xlim=(-2, 102), ylim=(-4, 104), xlabel="confidence, %", ylabel="accuracy, %")
        axes.grid(color=INK, alpha=0.1, linewidth=0.6)
        _legend(figure, axes)
        svg = _svg(figure, "calibration")
    note = "15 bins of confidence; the larger a point, the more of the images. Below the dashed line the model is surer than it is right."
    return Chart("Accuracy against confidence", note, svg)


def published_scores(score: Score, model: str) -> Chart:
    """The mCE of the run beside those of published models."""
    estimate = score.estimate
    entries = sorted([*((p.name, p.mce, p.images) for p in PUBLISHED), (model, estimate.value, 0)], key=lambda entry: -entry[1])
    with _drawing(WIDTH, 0.7 + 0.36 * len(entries)) as (figure, axes):
        for place, (name, mce, images) in enumerate(entries):
            own = images == 0
            axes.text(0, place - 0.2, name, fontsize=9, weight="bold" if own else "normal", va="bottom")
            axes.barh(place, mce, height=0.3, color=COLOURS[1] if own else COLOURS[0], alpha=0.9 if own else 0.45)
            end = mce if not own or estimate.high is None else max(mce, estimate.high)
            axes.text(
                end + 1, place, f"{mce:.1f}{'*' if images == 50000 else ''}", fontsize=9, va="center", weight="bold" if own else "normal"
            )
            if own and estimate.low is not None and estimate.high is not None:
                axes.hlines(place, estimate.low, estimate.high, color=INK, linewidth=1.4)
        axes.set_ylim(len(entries) - 0.6, -0.9)
        axes.set_xlim(0, 1.12 * max(100.0, estimate.high or estimate.value))
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("mCE, lower is better (AlexNet: 100)")
        svg = _svg(figure, "mce")
    note = "In orange this run, with its 95 % interval. Published: on 5,000 images (RobustBench's data), with * on 50,000."
    return Chart("mCE beside published models", note, svg)


def shape_biases(rows: Sequence[ShapeRow]) -> Chart:
    """Shape bias per category, beside the figures over all images that were published for people and networks."""
    categories = [row for row in rows if row.category != "all" and row.bias is not None]
    whole = rows[0]
    with _drawing(WIDTH, 1.2 + 0.3 * (len(categories) + len(SHAPE_PUBLISHED) + 2)) as (figure, axes):
        labels: list[tuple[float, str]] = []
        for place, row in enumerate(categories):
            axes.hlines(place, 100 * row.ci_low, 100 * row.ci_high, color=COLOURS[1], linewidth=1.4)
            axes.plot([100 * (row.bias or 0)], [place], marker="o", color=COLOURS[1], markersize=6, linestyle="")
            labels.append((place, row.category))
        below = len(categories) + 0.6
        if whole.bias is not None:
            axes.hlines(below, 100 * whole.ci_low, 100 * whole.ci_high, color=INK, linewidth=1.6)
            axes.plot([100 * whole.bias], [below], marker="D", color=INK, markersize=7, linestyle="")
        labels.append((below, "this model, all"))
        for offset, known in enumerate(sorted(SHAPE_PUBLISHED, key=lambda p: -p.bias), 1):
            human = known.name == "humans"
            marker, colour = ("^", COLOURS[2]) if human else ("s", COLOURS[0])
            axes.plot([100 * known.bias], [below + offset], marker=marker, color=colour, markersize=7 if human else 5, linestyle="")
            labels.append((below + offset, known.name))
        axes.set_yticks([at for at, _ in labels], [text for _, text in labels], fontsize=9)
        axes.set_ylim(below + len(SHAPE_PUBLISHED) + 0.7, -0.7)
        axes.set(xlim=(-2, 102), xlabel="shape bias, %")
        axes.axhline(len(categories) - 0.2, color=INK, alpha=0.25, linewidth=0.8)
        axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
        svg = _svg(figure, "shapes")
    note = (
        "0: by texture alone, 100: by shape alone. Above the line: this model by the category of the shape, with 95 % intervals. "
        "Below: all images, and published figures."
    )
    return Chart("Shape bias", note, svg)


def _accuracy_curve(norm: str, series: dict[str, list[Row]], clean: list[Row], ids: str) -> Chart:
    sizes = sorted({row.eps for points in series.values() for row in points if row.eps is not None})
    with _drawing(WIDTH, 3.2 + 0.2 * len(series)) as (figure, axes):
        for number, (name, points) in enumerate(series.items()):
            # at a single eps the points of all attacks would lie on each other; they stand side by side there
            aside = 0.035 * sizes[0] * (number - (len(series) - 1) / 2) if len(sizes) == 1 else 0.0
            xs = [*(0.0 for _ in clean), *((row.eps or 0.0) + aside for row in points)]
            style = _style(number, points)
            axes.plot(xs, [100 * row.at_most for row in (*clean, *points)], label=name, **style)
            refuted = [(x, 100 * row.at_most) for x, row in zip(xs[len(clean) :], points, strict=True) if row.trust == "refuted"]
            if refuted:
                xs_refuted, ys_refuted = zip(*refuted, strict=True)
                axes.scatter(xs_refuted, ys_refuted, s=120, facecolors="none", edgecolors=INK, linewidths=1.2, zorder=5, label=RINGED)
            if len(sizes) == 1:
                _whiskers(axes, xs[len(clean) :], points, style["color"])
            else:
                lows, highs = ([100 * getattr(row, bound) for row in (*clean, *points)] for bound in ("ci_low", "ci_high"))
                axes.fill_between(xs, lows, highs, color=style["color"], alpha=0.15, linewidth=0)
        _whiskers(axes, [0.0] * len(clean), clean, INK)
        axes.plot([0.0] * len(clean), [100 * row.at_most for row in clean], color=INK, marker="o", linestyle="", markersize=5, zorder=4)
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


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(sorted(zip(labels, handles, strict=True), key=lambda entry: entry[0] == RINGED))  # the ring last, after every line
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
