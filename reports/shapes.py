"""Shape bias as every report shows it: all images and each category of shape, of a run on cue-conflict images."""

from __future__ import annotations

from dataclasses import dataclass

from robustbench_lite.results import Result
from robustbench_lite.shape_bias import Cues, shape_bias

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
    """One row for all images and one per category; none of a run on other images. Undecided images are left out."""
    clean = [v for v in result.of("clean") if v.broken is not None]
    if result.config["data"]["name"] != CUE_CONFLICT or not clean:
        return []
    found = shape_bias((v.sample_id, v.prediction) for v in clean)
    return [_row("all", found), *(_row(name, cues) for name, cues in found.per_class.items())]


def _row(category: str, cues: Cues) -> ShapeRow:
    counts = (cues.n, cues.shape_correct, cues.texture_correct)
    return ShapeRow(category, *counts, cues.bias, *cues.interval, cues.cue_accuracy, *cues.cue_interval)
