"""What the attacks of a cascade did, one by one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .results import Condition, Verdict


@dataclass(frozen=True)
class StageRow:
    """What one attack of a cascade did: how many images it was given, how many of them it broke, and its passes per image."""

    condition: str
    stage: str
    attacked: int
    broken: int
    mean_forwards: float
    mean_backwards: float


def stage_rows(condition: Condition, verdicts: Sequence[Verdict]) -> list[StageRow]:
    """One row per attack of a cascade, in the order in which they ran; none for a single attack."""
    costs: dict[str, list[Sequence[int]]] = {}
    broken: dict[str, int] = {}
    for v in verdicts:
        for stage, cost in v.stages.items():
            costs.setdefault(stage, []).append(cost)
        if v.broken and v.broken_by is not None and v.stages:
            stage = v.broken_by.removeprefix(f"{condition.attack}/")
            broken[stage] = broken.get(stage, 0) + 1
    # the image that came furthest names the order
    order = max((list(v.stages) for v in verdicts), key=len, default=[])
    return [
        StageRow(
            condition.name,
            stage,
            len(costs[stage]),
            broken.get(stage, 0),
            statistics.fmean(cost[0] for cost in costs[stage]),
            statistics.fmean(cost[1] for cost in costs[stage]),
        )
        for stage in order
    ]
