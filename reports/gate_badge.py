"""A gate's outcome as a badge: `badge.json` for shields.io's endpoint, and `badge.svg`, which needs no network."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from robustbench_lite.gate.rulings import Judgement
from robustbench_lite.registry import report

from .files import write
from .gate_words import COLOURS
from .plain_json import json_text

LABEL = "robustness"
LETTER, MARGIN, HEIGHT = 7, 6, 20
"""Pixels: the width that a letter is given, on either side of a word, and of the whole."""


@report("gate-badge")
def gate_badge(judgement: Judgement) -> list[Path]:
    """Write `badge.json` and `badge.svg` into the run's folder; returns their paths.

    Raises:
        UsageError: the result has no folder.
        InvalidEvaluation: a file could not be written.
    """
    colour = COLOURS[judgement.outcome][1]
    endpoint = {
        "schemaVersion": 1,
        "label": LABEL,
        "message": judgement.outcome,
        "color": colour.removeprefix("#"),
        "isError": judgement.outcome == "invalid",
    }
    files = {"badge.json": json_text(endpoint), "badge.svg": _drawing(judgement.outcome, colour)}
    return [write(judgement.result, name, text) for name, text in files.items()]


def _drawing(message: str, colour: str) -> str:
    """Two words side by side, each on a field as wide as it; `textLength` keeps them there in any typeface."""
    said, left, right = f"{LABEL}: {message}", _width(LABEL), _width(message)
    size = {"width": str(left + right), "height": str(HEIGHT)}
    svg = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria-label": said} | size)
    ElementTree.SubElement(svg, "title").text = said
    ElementTree.SubElement(svg, "rect", size | {"rx": "3", "fill": "#444"})
    ElementTree.SubElement(
        svg, "path", {"d": f"M{left} 0h{right - 3}a3 3 0 0 1 3 3v{HEIGHT - 6}a3 3 0 0 1-3 3h-{right - 3}z", "fill": colour}
    )
    for word, start in ((LABEL, 0), (message, left)):
        place = {"x": str(start + MARGIN), "y": "14", "textLength": str(_width(word) - 2 * MARGIN), "fill": "#fff"}
        ElementTree.SubElement(svg, "text", place | {"font-family": "Verdana,Geneva,sans-serif", "font-size": "11"}).text = word
    text: str = ElementTree.tostring(svg, encoding="unicode")
    return text + "\n"


def _width(word: str) -> int:
    return len(word) * LETTER + 2 * MARGIN
