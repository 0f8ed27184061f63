"""A run as a gate sees it, made from lists of verdicts instead of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from robustbench_lite.diagnostics import Finding
from robustbench_lite.results import VERDICT_FIELDS, Condition, Result, Verdict
from robustbench_lite.worst import worst_case

PGD = "pgd[linf,0.1]"
BLANK: dict[str, Any] = dict.fromkeys(VERDICT_FIELDS) | {
    "label": 1, "clean_prediction": 1, "restart": 0, "distance": 0.0, "confidence": 0.5, "steps": 40, "forwards": 41, "backwards": 40,
    "precision": "fp32", "seed": 0,
}  # fmt: skip
NOTHING = object()


def condition(name: str) -> Condition:
    """`clean`, `fog[3]`, or an attack such as `pgd:steps=5[linf,0.1]`."""
    spec, _, inside = name.partition("[")
    if name == "clean":
        return Condition(name, "clean")
    if "," not in inside:
        return Condition(name, "corruption", severity=int(inside.rstrip("]")), corruption=spec)
    norm, eps = inside.rstrip("]").split(",")[:2]
    return Condition(name, "attack", attack=spec, norm=norm, eps=float(eps), doors={spec: "white box"})


def judged_run(
    rows: Mapping[str, Sequence[Any]],
    *,
    findings: Sequence[Finding] = (),
    groups: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    more: Sequence[Mapping[str, Any]] = (),
    **config: Any,
) -> Result:
    """A finished run.

    Args:
        rows: by condition, whether each image is right; None where that is undecided, NOTHING where it was not asked about. Images without
            a clean row are right when clean.
        findings: what the checks found.
        ids, groups: of the images.
        more: further values of the clean verdicts.
        config: of the run, over the usual.
    """
    count = len(next(iter(rows.values())))
    keys = list(ids or (f"image {i}" for i in range(count)))
    rows = {"clean": [True] * count} | dict(rows)
    verdicts = [
        Verdict(
            **BLANK
            | {"sample_id": key, "condition": name, "broken": None if right is None else not right, "group": group}
            | {"distance": condition(name).eps or 0.0}
        )
        for name, row in rows.items()
        for key, right, group in zip(keys, row, groups or [None] * count, strict=True)
        if right is not NOTHING
    ]
    verdicts = [replace(v, **(more[i] if more and i < count else {})) for i, v in enumerate(verdicts)]
    conditions = [condition(name) for name in rows]
    worst_conditions, worst_verdicts = worst_case(conditions, verdicts)
    usual: dict[str, Any] = {
        "identity": {"seed": 0, "goal": "first"}, "model": {"name": "m", "digest": "m0"}, "target": None, "notes": [],
        "data": {"name": "d", "digest": "d0", "n": count, "classes": 10}, "sessions": [{"complete": True, "shuffle_seed": 0}],
    }  # fmt: skip
    result = Result(usual | config, [*conditions, *worst_conditions], [*verdicts, *worst_verdicts], {}, lambda *_: None)
    vars(result)["findings"] = list(findings)  # instead of what the checks make of these verdicts
    return result


def some(right: int, count: int) -> list[bool]:
    """So many images right of so many, spread evenly."""
    return [(i + 1) * right // count > i * right // count for i in range(count)]
