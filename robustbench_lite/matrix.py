"""Transfer results: one verdict per image, source and target, and the source x target matrix made from them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TransferVerdict:
    """One line of the transfer results: what one model says of one image that was made on one source.

    `wrong` is whether the target was wrong, or the goal met, when the image was clean. `white_box` marks a target that is part of the
    source. `broken_8bit` is the verdict on the image once
    it is rounded to whole 255ths, as a file holds it; `ssim` its structural similarity to the clean one, before rounding.
    """

    condition: str
    sample_id: str
    source: str
    target: str
    white_box: bool
    wrong: bool
    broken: bool
    broken_8bit: bool
    ssim: float


@dataclass(frozen=True)
class TransferRow:
    """One cell of the source x target matrix. `white_box` marks a target that is part of the source.

    `success_all` is over all n images, those included that were wrong when clean; `success_correct` over the n_correct that were right.
    """

    condition: str
    source: str
    target: str
    white_box: bool
    n: int
    success_all: float
    success_all_8bit: float
    n_correct: int
    success_correct: float | None
    success_correct_8bit: float | None
    ssim: float


def transfer_rows(verdicts: Sequence[TransferVerdict]) -> list[TransferRow]:
    """The matrix, one row per condition, source and target."""
    cells: dict[tuple[str, str, str], list[TransferVerdict]] = {}
    for v in verdicts:
        cells.setdefault((v.condition, v.source, v.target), []).append(v)
    rows = []
    for (condition, source, target), cell in cells.items():
        right = [v for v in cell if not v.wrong]
        rows.append(
            TransferRow(
                condition,
                source,
                target,
                cell[0].white_box,
                len(cell),
                statistics.fmean(v.broken for v in cell),
                statistics.fmean(v.broken_8bit for v in cell),
                len(right),
                statistics.fmean(v.broken for v in right) if right else None,
                statistics.fmean(v.broken_8bit for v in right) if right else None,
                statistics.fmean(v.ssim for v in cell),
            )
        )
    return rows
