"""A scenario's report made by hand: two attacks of which one is refuted, a control, a row that was not run, published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from report_run import believed

from robustbench_lite.clinical import Figure, Figures, OperatingPoint
from robustbench_lite.diagnostics import Finding
from robustbench_lite.results import VERDICT_FIELDS, Condition, Result, Verdict, Witness
from robustbench_lite.scenarios import Measured, Published, PublishedRow, Row, Scenario, ScenarioReport

EVIL = "<script>alert('pneumonia & co')</script>"
N = 40
WHITE, TWIN, WEAK = "pgd:steps=20[linf,0.01]", "pgd:steps=20[linf,0.01,from=twin]", "fgsm[linf,0.01]"
FOG = "fog[3]"
PAPER = "A & B, Journal of <Medicine> 2019"


@dataclass(frozen=True)
class ByHand(Scenario):
    """One white box, one twin, one weaker white box, an accident, and a patch that was not run."""

    title: ClassVar[str] = "A wrong answer on a chest <X-ray>"
    domain: ClassVar[str] = "chest X-ray"
    who: ClassVar[str] = "Somebody who is paid by the finding."
    can: ClassVar[str] = "They change the image between the scanner and the model."
    happens: ClassVar[str] = "A healthy patient is treated, a sick one sent home."
    rows: ClassVar[tuple[Row, ...]] = (
        Row("PGD, white box", "white box", "pgd:steps=20", "linf", 0.01),
        Row("PGD, twin", "same architecture", "pgd:steps=20", "linf", 0.01),
        Row("one step, white box", "white box", "fgsm", "linf", 0.01),
        Row("fog", "nothing", "fog:severity=3"),
        Row("patch, other architecture", "other architecture", "patch", "patch", 0.4),
    )
    published: ClassVar[Published | None] = Published(
        PAPER, "8,383 radiographs that are not these", (PublishedRow("PGD, twin", 0.151, 0.014, 0.926),)
    )


def witness(condition: str, sample: str) -> Witness:
    draw = torch.Generator().manual_seed(int(sample.split()[-1]))
    clean = 0.2 + 0.6 * torch.rand(1, 24, 24, generator=draw)
    return Witness(clean, clean + 0.01 * torch.randint(0, 2, clean.shape, generator=draw).mul(2).sub(1))


def verdict(number: int, condition: str, label: Any, prediction: Any, broken: bool, outputs: Sequence[float], **more: Any) -> Verdict:
    known: dict[str, Any] = dict.fromkeys(VERDICT_FIELDS) | {
        "sample_id": f"DOE^JANE {number}", "group": f"patient {number // 2}", "condition": condition, "label": label,
        "clean_prediction": label, "prediction": prediction, "broken": broken, "restart": 0, "distance": 0.01, "confidence": 0.93,
        "steps": 20, "forwards": 21, "backwards": 20, "precision": "fp32", "seed": 0, "stages": {}, "outputs": list(outputs),
    }  # fmt: skip
    return Verdict(**known | more)


def binary(number: int, condition: str, flipped: bool) -> Verdict:
    label = number % 2
    said = label != flipped
    lean = (1.0 + number / N) * (1 if said else -1)
    fallen = {"broken_by": "pgd", "witness": "ab" * 32} if flipped and condition not in ("clean", FOG) else {}
    return verdict(number, condition, label, int(said), flipped, (-lean, lean), **fallen)


def run(folder: Path | None, **config: Any) -> Result:
    """White box breaks all, the twin a half, the single step a quarter, fog a tenth."""
    attack: dict[str, Any] = {"kind": "attack", "norm": "linf", "eps": 0.01, "goal": "full"}
    conditions = [
        Condition("clean", "clean"),
        Condition(FOG, "corruption", severity=3, corruption="fog"),
        Condition(WHITE, attack="pgd:steps=20", **attack),
        Condition(TWIN, attack="pgd:steps=20", source="twin", **attack),
        Condition(WEAK, attack="fgsm", **attack),
    ]
    flipped = {"clean": 0, FOG: N // 10, WHITE: N, TWIN: N // 2, WEAK: N // 4}
    verdicts = [binary(number, c.name, number < flipped[c.name]) for c in conditions for number in range(N)]
    settings = {
        "model": {"name": "net", "classes": 2}, "data": {"name": "toys", "n": N, "task": "binary", "class_names": ["healthy", EVIL]},
        "versions": {"robustbench-lite": "0"}, "command": ["robust-eval", "scenario", "run", "by-hand", "--data", "my scans"],
    }  # fmt: skip
    result = Result(settings | config, conditions, verdicts, {}, witness, folder)
    known = tuple(v.sample_id for v in result.of(WEAK) if not v.broken)
    refuting = Finding("witnessed", "refutes", (WEAK,), "30 of its images have a witness", "too high", figures={}, samples=known)
    return believed(result, [refuting], {TWIN: ("no attack without gradients was tried",)})


def about(value: float) -> Figure:
    return Figure(value, max(0.0, value - 0.021), min(1.0, value + 0.034))


def figures(accuracy: float, auroc: float, *, success: float | None = None, **more: Any) -> Figures:
    """Every figure another number, so that none can stand in the place of another."""
    aimed: Mapping[str, Any] = {} if success is None else {
        "success": about(success),
        "successes": {"healthy": about(success * 0.9), EVIL: Figure(None, reason="none of this class was right")},
        "needed": Figure(1 / success, 1.0, float("inf")), "attacked": 38,
    }  # fmt: skip
    known: dict[str, Any] = {
        "n": N, "patients": N // 2, "accuracy": about(accuracy), "auroc": about(auroc), "aurocs": {EVIL: about(auroc)},
        "sensitivity": about(0.987 * accuracy), "specificity": about(0.876 * accuracy), "balanced_accuracy": about(0.931 * accuracy),
        "confidence": about(0.9 + accuracy / 20), "ece": about(0.4 - accuracy / 3),
        "change": {
            "accuracy": Figure(accuracy - 0.95, accuracy - 0.99, accuracy - 0.9),
            "auroc": Figure(auroc - 0.963, auroc - 0.98, auroc - 0.94),
        },
    }  # fmt: skip
    return Figures(**known | aimed | more)


def by_hand(folder: Path | None = None, *, synthetic: bool = True) -> ScenarioReport:
    scenario = ByHand()
    white, twin, weak, fog, patch = scenario.rows
    clean = replace(figures(0.95, 0.963), change={})
    measured = [
        Measured(Row("clean", "nothing", ""), "clean", clean),
        Measured(white, WHITE, figures(0.0, 0.0, success=1.0)),
        Measured(twin, TWIN, figures(0.502, 0.437, success=0.468)),
        Measured(weak, WEAK, figures(0.754, 0.611, success=0.213)),
        Measured(fog, FOG, replace(figures(0.9, 0.0), auroc=Figure(None, reason="AUROC is undefined: all 40 images are of one class"))),
        Measured(patch, missing="give a model of another architecture with --surrogate"),
    ]
    point = OperatingPoint((0.371,), "the highest threshold with a sensitivity of 90 % on clean images")
    models = {"model": "net", "same architecture": "twin & co"}
    notes = ("intervals rest on 20 patients only",)
    return ScenarioReport("by-hand", scenario, run(folder), measured, point, models, synthetic, notes)
