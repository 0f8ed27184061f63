"""A chart of figures that are joined by lines, drawn as inline SVG without a library: text stays text, and colours follow the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from robustbench_lite.results import Condition

WIDTH, LEFT, TOP, HEIGHT = 440, 40, 14, 250  # in CSS pixels on a telephone; wider screens enlarge it
LINE = 15  # between two labels
LONGEST = 27  # letters of a label that fit beside the chart
TOGETHER = 12  # lines of corruptions that one chart holds
COLOURS = ("#2f7fc1", "#d9622b", "#1f9d78", "#b0609f", "#c8930a", "#7a6fd0")


@dataclass(frozen=True)
class Point:
    """A figure at a place from 0 (left) to 1 (right), with its interval where it has one; hollow where it cannot be believed as it is."""

    at: float
    value: float
    interval: tuple[float, float] | None
    told: str
    hollow: bool = False


@dataclass(frozen=True)
class Series:
    """Points that a line joins."""

    name: str
    points: Sequence[Point]


def apart_by_severity(conditions: Sequence[Condition]) -> Mapping[str, tuple[str, int]]:
    """What chart each condition goes into, by its name: (a title of the chart's own, its place); many corruptions by severity."""
    corrupted = {c.name for c in conditions if c.kind == "corruption"}
    if len(corrupted) <= TOGETHER:
        return {c.name: ("corruptions", 1) if c.name in corrupted else ("", 0) for c in conditions}
    return {c.name: (f"corruptions at severity {c.severity}", c.severity or 1) if c.name in corrupted else ("", 0) for c in conditions}


def chart(title: str, series: Sequence[Series], ticks: Sequence[tuple[float, str]], most: float = 100) -> str:
    """An `<svg>` element: figures from 0 to `most` upwards, the series' names on the right, `ticks` (place, text) below.

    Args:
        title: what a screen reader says it is.
    """
    ends = _apart([_y(one.points[-1].value, most) for one in series])
    height = max(HEIGHT + TOP, max(ends, default=0)) + 28
    right = WIDTH - 8 - 6.1 * min(max((len(one.name) for one in series), default=0), LONGEST)
    span = right - LEFT - 40
    drawn = [_grid(quarter / 4, right, most) for quarter in range(5)]
    drawn += [
        f'<text x="{LEFT + 14 + at * span:.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{escape(text)}</text>' for at, text in ticks
    ]
    for number, (one, end) in enumerate(zip(series, ends, strict=True)):
        aside = 2.5 * (number - (len(series) - 1) / 2) if len(series) < 9 else 0.0  # whiskers stand side by side while they can
        drawn.append(_series(one, COLOURS[number % len(COLOURS)], span, aside, end, right, most))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" font-size="11.5" fill="currentColor">'
        f"<title>{escape(title)}</title>{''.join(drawn)}</svg>"
    )


def _grid(part: float, right: float, most: float) -> str:
    y = _y(part * most, most)
    return (
        f'<line x1="{LEFT}" x2="{right - 8:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity=".15"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" opacity=".75">{part * most:.3g}</text>'
    )


def _series(one: Series, colour: str, span: float, aside: float, end: float, right: float, most: float) -> str:
    places = [(LEFT + 14 + point.at * span + aside, _y(point.value, most)) for point in one.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    drawn = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>']
    for (x, y), point in zip(places, one.points, strict=True):
        if point.interval is not None:
            low, high = (_y(bound, most) for bound in point.interval)
            drawn.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" stroke-width="3" opacity=".35"/>'
            )
        fill = "var(--paper)" if point.hollow else colour
        drawn.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{fill}" stroke="{colour}" stroke-width="1.6">'
            f"<title>{escape(point.told)}</title></circle>"
        )
    x, y = places[-1]
    drawn.append(f'<polyline points="{x + 6:.1f},{y:.1f} {right - 4:.1f},{end:.1f}" fill="none" stroke="{colour}" opacity=".5"/>')
    # both ends of a long name tell: the attack's and the radius
    name = one.name if len(one.name) <= LONGEST else f"{one.name[: LONGEST - 13]}…{one.name[-12:]}"
    drawn.append(f'<text x="{right:.1f}" y="{end + 4:.1f}">{escape(name)}</text>')
    return f"<g><title>{escape(one.name)}</title>{''.join(drawn)}</g>"


def _y(value: float, most: float) -> float:
    return TOP + HEIGHT * (1 - value / most)


def _apart(wanted: Sequence[float]) -> list[float]:
    """Heights near the wanted ones, in their order, of which no two are nearer than a line of text."""
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    placed: list[float] = []
    for place in order:
        placed.append(max(wanted[place], placed[-1] + LINE) if placed else wanted[place])
    # what was pushed below the chart goes up again as far as there is room
    floor = float(max(TOP + HEIGHT, TOP + LINE * (len(placed) - 1)))
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], floor)
        floor = placed[index] - LINE
    return [placed[order.index(place)] for place in range(len(wanted))]
