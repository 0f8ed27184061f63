"""Runs of 100 images made by hand, for tests of what is made of a run's verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustbench_lite.results import VERDICT_FIELDS, Condition, Result, Verdict
from robustbench_lite.worst import worst_case

IMAGES = [f"image {number}" for number in range(100)]
DOORS = {"pgd": "white box", "apgd": "white box", "fgsm": "white box", "fab": "white box", "noise": "labels", "square": "scores"}
STEPS = {"pgd": 40, "apgd": 100, "fgsm": 1, "fab": 100, "noise": 100, "square": 1000}
CASCADE = {"apgd-ce": "white box", "fab-t": "white box", "square": "scores"}


def attack(spec: str, eps: float = 0.1, **more: Any) -> Condition:
    name = spec.partition(":")[0]
    known = {"attack": spec, "norm": "linf", "eps": eps, "doors": CASCADE if name == "autoattack" else {"": DOORS[name]}}
    return Condition(f"{spec}[linf,{eps:g}]", **{"kind": "attack", **known, **more})


def verdict(condition: Condition, sample: str, broken: bool | None, **more: Any) -> Verdict:
    steps = STEPS.get(str(condition.attack).partition(":")[0], 100)
    known: dict[str, Any] = dict.fromkeys(VERDICT_FIELDS) | {
        "label": 1, "clean_prediction": 1, "restart": 0, "distance": condition.eps or 0.0, "confidence": 0.5,
        "precision": "fp32", "seed": 0, "stages": {}, "steps": steps, "forwards": steps + 1, "backwards": steps,
        "broken_by": condition.attack if broken else None,
    }  # fmt: skip
    return Verdict(**known | {"sample_id": sample, "broken": broken, "condition": condition.name} | more)


def first(count: int, start: int = 0) -> set[str]:
    return set(IMAGES[start : start + count])


def left(broken: set[str]) -> list[str]:
    return [key for key in IMAGES if key not in broken]


def row(condition: Condition, broken: set[str], among: Sequence[str] = IMAGES, **more: Any) -> list[Verdict]:
    return [verdict(condition, key, key in broken, **more) for key in among]


def doubt(spec: str, broken: set[str], among: Sequence[str], eps: float = 0.1) -> tuple[Condition, list[Verdict]]:
    condition = attack(spec, eps, kind="doubt")
    return condition, row(condition, broken, among)


def made(*rows: tuple[Condition, list[Verdict]], config: Mapping[str, Any] | None = None) -> Result:
    """A run of these rows, with a clean one and the worst cases."""
    clean = Condition("clean", "clean")
    conditions = [clean, *(condition for condition, _ in rows)]
    verdicts = [*row(clean, set()), *(v for _, some in rows for v in some)]
    worst, worst_verdicts = worst_case(conditions, verdicts)
    known = {"data": {"name": "by hand", "n": len(IMAGES)}, **(config or {})}
    return Result(known, [*conditions, *worst], [*verdicts, *worst_verdicts], {}, lambda *_: None)


def simple(spec: str, broken: set[str], eps: float = 0.1, **more: Any) -> tuple[Condition, list[Verdict]]:
    condition = attack(spec, eps)
    return condition, row(condition, broken, **more)


def staged(fell: Mapping[str, set[str]]) -> tuple[Condition, list[Verdict]]:
    """A cascade of which each stage broke these images; 100 passes a stage."""
    condition, verdicts = attack("autoattack"), []
    for key in IMAGES:
        by = next((part for part in CASCADE if key in fell.get(part, set())), None)
        parts = list(CASCADE)[: list(CASCADE).index(by) + 1] if by else list(CASCADE)
        spent = {part: (60, 40) if CASCADE[part] == "white box" else (1000, 0) for part in parts}
        name = f"autoattack/{by}" if by else None
        verdicts.append(verdict(condition, key, by is not None, broken_by=name, stages=spent, steps=300))
    return condition, verdicts
