"""Two runs that are to say the same of every image."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from robustbench_lite.results import Result

NEAR = 1e-4
"""Sums are rounded otherwise in batches of other images: how far figures may lie apart, while everything that is counted is equal."""


def near(one: Any, other: Any) -> bool:
    """Whether two facts are the same, numbers with a fraction but for their rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return one == other or abs(one - other) <= NEAR * max(1, abs(one)) or (one != one and other != other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(near(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(near, one, other))
    return bool(one == other)


def facts(result: Result) -> dict[str, list[Any]]:
    """All that a run says of its images, in one order."""
    tables = {name: getattr(result, name) for name in ("verdicts", "transferred", "sequenced", "proofs")}
    found = {name: [asdict(row) | {"witness": None} for row in rows] for name, rows in tables.items()}
    for rows in found.values():
        rows.sort(key=lambda row: [str(row[key]) for key in ("condition", "sample_id", "target") if key in row])
    return found | {
        "left_out": sorted((name, *pair) for name, pairs in result.left_out.items() for pair in pairs.items()),
        "notes": sorted(result.config["notes"]),
        "observed": [result.config.get("observed")],
    }


def same(alone: Result, spread: Result, *, lost: bool = False) -> None:
    """Args:
    lost: workers were, as the notes say.
    """
    mine, theirs = facts(alone), facts(spread)
    if lost:
        theirs["notes"] = [note for note in theirs["notes"] if not note.startswith("a worker died at ")]
    for name, rows in mine.items():
        assert len(rows) == len(theirs[name]), name
        differ = [(one, other) for one, other in zip(rows, theirs[name], strict=True) if not near(one, other)]
        assert differ[:1] == [], (name, len(differ))
    kept = 0
    for v in alone.verdicts:
        one, other = alone.witness(v.condition, v.sample_id), spread.witness(v.condition, v.sample_id)
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            kept += 1
            assert torch.equal(one.clean, other.clean)
            assert torch.allclose(one.adversarial, other.adversarial, atol=NEAR)
    assert kept or not any(v.witness for v in alone.verdicts)
