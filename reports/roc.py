"""ROC curves as inline SVG, drawn without a library: text stays text, and colours follow the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .slopes import COLOURS

SIDE, LEFT, TOP, BELOW = 300, 48, 12, 44  # in CSS pixels on a telephone; wider screens enlarge it
LINE = 17  # between two entries of the legend
LONGEST = 41  # letters of an entry that fit below the chart, in a wide typeface too
DASHES = ("", "7 3", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Curve:
    """One curve.

    Args:
        points: (false positive share, true positive share), from (0, 0) to (1, 1).
        at: where the operating point is, None where it is not drawn.
        plain: of the clean images, in the colour of the text.
        note: what the legend says after the name, and never shortens.
    """

    name: str
    points: Sequence[tuple[float, float]]
    at: tuple[float, float] | None = None
    plain: bool = False
    note: str = ""


def plot(title: str, curves: Sequence[Curve]) -> str:
    """An `<svg>` element: false alarms to the right, found upwards, a legend below.

    Args:
        title: what a screen reader says it is.
    """
    ends = TOP + SIDE + BELOW
    height = ends + LINE * len(curves) + 4
    drawn = [_grid(quarter / 4) for quarter in range(5)]
    drawn.append(f'<path d="M{_at((0, 0))} L{_at((1, 1))}" stroke="currentColor" opacity=".3" stroke-dasharray="3 4"/>')
    drawn.append(
        f'<text x="{LEFT + SIDE / 2}" y="{TOP + SIDE + 34}" text-anchor="middle">1 − specificity (false alarms)</text>'
        f'<text transform="translate(12 {TOP + SIDE / 2}) rotate(-90)" text-anchor="middle">sensitivity (found)</text>'
    )
    attacked = 0
    for place, curve in enumerate(curves):
        colour = "currentColor" if curve.plain else COLOURS[attacked % len(COLOURS)]
        dash = "" if curve.plain else DASHES[attacked // len(COLOURS) % len(DASHES)]
        attacked += not curve.plain
        drawn.append(_curve(curve, colour, dash, ends + LINE * place + LINE / 2))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + SIDE + 12} {height}" role="img" aria-label="{escape(title)}" '
        f'font-size="11.5" fill="currentColor"><title>{escape(title)}</title>{"".join(drawn)}</svg>'
    )


def _curve(curve: Curve, colour: str, dash: str, legend: float) -> str:
    stroke = f'stroke="{colour}" stroke-width="{2.4 if curve.plain else 1.9}" stroke-linejoin="round"'
    stroke += f' stroke-dasharray="{dash}"' if dash else ""
    path = " L".join(_at(point) for point in curve.points)
    room = LONGEST - len(curve.note)
    name = curve.name if len(curve.name) <= room else f"{curve.name[: room - 1]}…"
    drawn = [f'<path d="M{path}" fill="none" {stroke}/>', f'<path d="M{LEFT} {legend} h26" {stroke}/>']
    if curve.at is not None:
        x, y = _at(curve.at).split()
        drawn.append(f'<circle cx="{x}" cy="{y}" r="4.2" fill="{colour}" stroke="var(--paper)" stroke-width="1.2"/>')
    drawn.append(f'<text x="{LEFT + 34}" y="{legend + 4}">{escape(name + curve.note)}</text>')
    return f"<g><title>{escape(curve.name + curve.note)}</title>{''.join(drawn)}</g>"


def _grid(part: float) -> str:
    (x, _), (_, y) = (_at((part, 0)).split(), _at((0, part)).split())
    return (
        f'<path d="M{LEFT} {y} h{SIDE} M{x} {TOP} v{SIDE}" stroke="currentColor" opacity=".13"/>'
        f'<text x="{LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end" opacity=".8">{part:g}</text>'
        f'<text x="{x}" y="{TOP + SIDE + 16}" text-anchor="middle" opacity=".8">{part:g}</text>'
    )


def _at(point: tuple[float, float]) -> str:
    return f"{LEFT + SIDE * point[0]:.1f} {TOP + SIDE * (1 - point[1]):.1f}"
