"""Shape bias as every report shows it: all images and each category of shape, of a run on cue-conflict images."""

from __future__ import annotations

from dataclasses import dataclass

from robustbench_lite.results import Result
from robustbench_lite.shape_bias import CATEGORIES, Cues, cues, shape_bias

CUE_CONFLICT = "cue-conflict"


@dataclass(frozen=True)
class ShapeRow:
    """Decisions on images whose shape is of one category; of `all`, on all of them. `bias` is None where none was for shape or texture."""

    category: str
    n: int
    shape_correct: int
    texture_correct: int
    bias: float | None
    ci_low: float
    ci_high: float
    cue_accuracy: float
    cue_low: float
    cue_high: float


def shape_rows(result: Result) -> list[ShapeRow]:
    """One row for all images and one per category; none of a run on other images. An undecided image is a decision for neither cue."""
    if result.config["data"]["name"] != CUE_CONFLICT:
        return []
    names = result.config["data"].get("class_names") or list(CATEGORIES)
    conflicts = [v for v in result.of("clean") if len(set(cues(v.sample_id, names))) == 2]
    if not conflicts:
        return []
    found = shape_bias(((v.sample_id, v.prediction if v.broken is not None else None) for v in conflicts), names)
    return [_row("all", found), *(_row(name, counted) for name, counted in found.per_class.items())]


def _row(category: str, counted: Cues) -> ShapeRow:
    counts = (counted.n, counted.shape_correct, counted.texture_correct)
    return ShapeRow(category, *counts, counted.bias, *counted.interval, counted.cue_accuracy, *counted.cue_interval)
