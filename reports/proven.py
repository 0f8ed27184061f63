"""What certificates proved, in words and lines, for every report."""

from __future__ import annotations

from collections.abc import Sequence

from robustbench_lite.proofs import ProofRow
from robustbench_lite.results import Result

NAMED = 5
"""Unsettled images that a line names; proofs.csv has all."""
ANOTHER = "A proof of another model, made of this one, says nothing of attacks on this one: it makes no bracket."


def unsettled(result: Result) -> list[str]:
    """For every worst case with a bracket, which of its images are neither proven nor broken."""
    lines = []
    for c in result.conditions:
        bracket = result.brackets.get(c.name)
        if bracket is not None and c.kind == "worst":
            ids = bracket.unsettled
            named = ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED} more, see proofs.csv" if len(ids) > NAMED else "")
            lines.append(f"Unsettled under {c.name}: {len(ids)} of {bracket.n} images{f': {named}' if ids else ''}.")
    return lines


def radii(row: ProofRow, most: int = 8) -> Sequence[tuple[float, float]]:
    """A few points of a curve of certified accuracy, evenly over its radii; none where all proofs are of one radius."""
    if len(row.curve) < 2:
        return []
    places = sorted({round(k * (len(row.curve) - 1) / (most - 1)) for k in range(most)})
    return [row.curve[place] for place in places]
