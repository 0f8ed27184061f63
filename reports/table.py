"""The table as every report shows it: one row per condition, its numbers put into words in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields

from robustbench_lite.results import Result

FEW_IMAGES = 100
"""Below so many images a report says in words how wide the interval is."""


@dataclass(frozen=True)
class Row:
    """One row of `Result.table`; the numbers as they are there, the properties as a person reads them.

    `first_pass_only` marks a row whose surviving images were searched in bf16 and never again in float32.
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
    first_pass_only: bool

    @property
    def share(self) -> str:
        return f"{self.correct}/{self.n}"

    @property
    def percent(self) -> str:
        return f"{percent(self.accuracy)} %"

    @property
    def interval(self) -> str:
        return f"{percent(self.ci_low)}–{percent(self.ci_high)}"

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
    first_pass_only = set(table.condition[table.search == "bf16"])
    # images that were wrong when clean may carry another precision, so the survivors decide as well
    first_pass_only |= {v.condition for v in result.verdicts if v.broken is False and v.precision == "bf16"}
    records = table.astype(object).where(table.notna(), None).to_dict("records")
    stored = [field.name for field in fields(Row) if field.name != "first_pass_only"]
    return [Row(**{name: r[name] for name in stored}, first_pass_only=r["condition"] in first_pass_only) for r in records]


def percent(share: float) -> str:
    """One decimal; `0.0` and `100.0` are kept for none and all, so 1,999 of 2,000 reads 99.9 and not 100.0."""
    if 0 < share < 1:
        share = min(max(share, 0.001), 0.999)
    return f"{100 * share:.1f}"


def amount(value: float) -> str:
    """A mean or a time: one decimal below 100, whole numbers with thousands marked above."""
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"
