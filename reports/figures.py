"""The charts of the HTML report but those of distances, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from robustbench_lite.baselines import PUBLISHED
from robustbench_lite.calibration import answers, reliability
from robustbench_lite.corruption_metrics import Figure as Score
from robustbench_lite.distances import broken_after
from robustbench_lite.results import Result, Verdict
from robustbench_lite.shape_bias import CATEGORIES
from robustbench_lite.shape_bias import PUBLISHED as SHAPE_PUBLISHED

from .drawing import COLOURS, INK, MARKERS, WIDTH, Chart, drawing, legend, svg
from .shapes import ShapeRow

SEVERITY_COLOURS = ("#3b8ec2", "#2fa08f", "#8aa53a", "#d99a2b", "#d9622b")
MANY_PASSES = 200  # above, a linear axis would squash the cheap attacks


def queries(result: Result) -> Chart | None:
    """How many passes it took to break images: for each attack the share of those attacked that was broken so far; None without any."""
    spent: dict[str, list[Verdict]] = {c.name: [] for c in result.conditions if c.kind == "attack"}
    for v in result.verdicts:
        if v.condition in spent and v.broken_by != "clean" and v.forwards > 0:
            spent[v.condition].append(v)
    spent = {name: verdicts for name, verdicts in spent.items() if verdicts}
    if not spent:
        return None
    sizes = {c.name: float(c.eps or 0) for c in result.conditions}
    most = max(v.forwards + v.backwards for verdicts in spent.values() for v in verdicts)
    first = 0 if most <= MANY_PASSES else 1  # a logarithm has no zero
    with drawing(WIDTH, 3.2 + 0.2 * len(spent)) as (figure, axes):
        for number, (name, verdicts) in enumerate(spent.items()):
            ends = sorted(passes for v in verdicts if (passes := broken_after(v, sizes[name])) is not None)
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
        legend(figure, axes)
        drawn = svg(figure, "queries")
    note = "A line climbs where images break. One that still climbs at its end may be of an attack that was stopped too early."
    return Chart("Passes until an image breaks", note, drawn)


def calibration_curves(pools: Mapping[str, Sequence[Verdict]]) -> Chart | None:
    """Accuracy against confidence in bins, on clean images and at each severity; None where no confidences are known."""
    found = {name: reliability(*answers(verdicts)) for name, verdicts in pools.items() if answers(verdicts)[0]}
    if not found:
        return None
    with drawing(WIDTH, 4.6) as (figure, axes):
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
        legend(figure, axes)
        drawn = svg(figure, "calibration")
    note = "15 bins of confidence; the larger a point, the more of the images. Below the dashed line the model is surer than it is right."
    return Chart("Accuracy against confidence", note, drawn)


def published_scores(score: Score, model: str) -> Chart:
    """The mCE of the run beside those of published models."""
    estimate = score.estimate
    entries = sorted([*((p.name, p.mce, p.images) for p in PUBLISHED), (model, estimate.value, 0)], key=lambda entry: -entry[1])
    with drawing(WIDTH, 0.7 + 0.36 * len(entries)) as (figure, axes):
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
        drawn = svg(figure, "mce")
    note = "In orange this run, with its 95 % interval. Published: on 5,000 images (RobustBench's data), with * on 50,000."
    return Chart("mCE beside published models", note, drawn)


def shape_biases(rows: Sequence[ShapeRow]) -> Chart:
    """Shape bias per category, beside the figures over all images that were published for people and networks."""
    categories = [row for row in rows if row.category != "all" and row.bias is not None]
    whole = rows[0]
    known_of = SHAPE_PUBLISHED if {row.category for row in rows} <= {"all", *CATEGORIES} else ()
    with drawing(WIDTH, 1.2 + 0.3 * (len(categories) + len(known_of) + 2)) as (figure, axes):
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
        for offset, known in enumerate(sorted(known_of, key=lambda p: -p.bias), 1):
            human = known.name == "humans"
            marker, colour = ("^", COLOURS[2]) if human else ("s", COLOURS[0])
            axes.plot([100 * known.bias], [below + offset], marker=marker, color=colour, markersize=7 if human else 5, linestyle="")
            labels.append((below + offset, known.name))
        axes.set_yticks([at for at, _ in labels], [text for _, text in labels], fontsize=9)
        axes.set_ylim(below + len(known_of) + 0.7, -0.7)
        axes.set(xlim=(-2, 102), xlabel="shape bias, %")
        axes.axhline(len(categories) - 0.2, color=INK, alpha=0.25, linewidth=0.8)
        axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
        drawn = svg(figure, "shapes")
    note = (
        "0: by texture alone, 100: by shape alone. Above the line: this model by the category of the shape, with 95 % intervals. "
        f"Below: all images{', and published figures' if known_of else ''}."
    )
    return Chart("Shape bias", note, drawn)
