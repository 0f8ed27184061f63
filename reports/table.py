"""The table as every report shows it: one row per condition, its numbers put into words in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from robustbench_lite.results import REDUCED, Result
from robustbench_lite.stats import wilson
from robustbench_lite.trust import Level

FEW_IMAGES = 100
"""Below so many images a report says in words how wide the interval is."""


@dataclass(frozen=True)
class Row:
    """One row of `Result.table`; the numbers as they are there, the properties as a person reads them.

    No report may show `accuracy` itself, which a refuted row has too high: `percent` qualifies it. `ci_low` and `ci_high` are of `at_most`,
    which is the accuracy unless the row is refuted. `first_pass_only` is the precision, bf16 or tf32, of a row whose surviving images
    were never searched again in float32, and else empty.
    """

    condition: str
    kind: str
    attack: str | None
    norm: str | None
    eps: float | None
    n: int
    correct: int
    accuracy: float
    ci_low: float
    ci_high: float
    undecided: int
    success_correct: float | None
    median_distance: float | None
    mean_forwards: float
    mean_backwards: float
    seconds: float
    trust: Level
    at_most: float
    reasons: tuple[str, ...]
    first_pass_only: str
    certified: float | None = None
    unsettled: int | None = None

    @property
    def share(self) -> str:
        """Correct / n; in brackets where some of those correct are known to be broken."""
        share = f"{self.correct}/{self.n}"
        return f"({share})" if self.trust == "refuted" else share

    @property
    def left(self) -> int:
        """Images that nothing is known to break."""
        return round(self.at_most * self.n)

    @property
    def percent(self) -> str:
        """`79.0 %` of a sound row, `79.0 % ?` of a doubtful one, `≤ 52.0 %` of a refuted one, whose own figure is not shown;
        `[31.0, 79.0] %` where certificates make a bracket."""
        if self.certified is None:
            return qualified(self.at_most, self.trust)
        most = signed(percent(self.at_most), "refuted") if self.trust == "refuted" else percent(self.at_most)
        return f"[{percent(self.certified)}, {most}] %" + (" ?" if self.trust == "doubtful" else "")

    @property
    def interval(self) -> str:
        return f"{percent(self.ci_low)}–{percent(self.ci_high)}"

    @property
    def median(self) -> str:
        """Distance of the nearest broken image, the median over all, with the signs of `percent`; empty where none was sought."""
        return "" if self.median_distance is None else signed(distance(self.median_distance), self.trust)

    @property
    def time(self) -> str:
        """Seconds; empty for the worst case, which is put together from what was timed already."""
        return "" if self.kind == "worst" else amount(self.seconds)

    @property
    def width(self) -> float:
        """Of the interval, in percentage points."""
        return 100 * (self.ci_high - self.ci_low)


def rows(result: Result) -> list[Row]:
    """The rows of `result.table`, in its order."""
    table = result.table
    first_pass_only = {name: search for name, search in zip(table.condition, table.search, strict=True) if search in REDUCED}
    # images that were wrong when clean may carry another precision, so the survivors decide as well
    first_pass_only |= {v.condition: v.precision for v in result.verdicts if v.broken is False and v.precision in REDUCED}
    records = table.astype(object).where(table.notna(), None).to_dict("records")
    computed = ("ci_low", "ci_high", "reasons", "first_pass_only")
    stored = [field.name for field in fields(Row) if field.name not in computed]
    found = []
    for r in records:
        name, (low, high) = r["condition"], wilson(round(r["at_most"] * r["n"]), r["n"])
        known = {key: r[key] for key in stored}
        found.append(
            Row(**known, ci_low=low, ci_high=high, reasons=result.trust[name].reasons, first_pass_only=first_pass_only.get(name, ""))
        )
    return found


def qualified(at_most: float, trust: Level) -> str:
    """A share of 1 in %, with the sign of how far it can be believed."""
    return signed(f"{percent(at_most)} %", trust)


def signed(text: str, trust: Level) -> str:
    """A figure with the sign of how far it can be believed."""
    return {"sound": text, "doubtful": f"{text} ?", "refuted": f"≤ {text}"}[trust]


def legend(shown: Sequence[Row]) -> list[str]:
    """What the signs beside accuracies mean; a line for each that is there."""
    levels = {row.trust for row in shown}
    lines = {
        "refuted": "≤ refuted: of the images in brackets, which the row counts as correct, some are known to be broken.",
        "doubtful": "? doubtful: the accuracy may be lower, or known too roughly.",
    }
    return [line for level, line in lines.items() if level in levels]


def bracket_legend(shown: Sequence[Row]) -> list[str]:
    """What a bracket is, where a row has one."""
    if all(row.certified is None for row in shown):
        return []
    return ["[certified, surviving]: the share that is proven to stand whatever the attack, and the share that no attack broke."]


def distance_legend(shown: Sequence[Row]) -> list[str]:
    """What the median distance is, where a row has one."""
    if all(row.median_distance is None for row in shown):
        return []
    return [
        "Median distance: how far the nearest broken image found lies, in the row's norm on images in [0, 1], over all images; 0 where one "
        "was wrong without an attack or undecided, none found where half or more have none."
    ]


def distance(value: float) -> str:
    """Four digits, or that none is known."""
    return f"{value:.4g}" if value < math.inf else "none found"


def percent(share: float) -> str:
    """One decimal; `0.0` and `100.0` are kept for none and all, so 1,999 of 2,000 reads 99.9 and not 100.0."""
    if 0 < share < 1:
        share = min(max(share, 0.001), 0.999)
    return f"{100 * share:.1f}"


def amount(value: float) -> str:
    """A mean or a time: one decimal below 100, whole numbers with thousands marked above."""
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"
