"""A made-up run with corruptions, for the tests of the reports."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from robustbench_lite.baselines import THE_15
from robustbench_lite.results import VERDICT_FIELDS, Condition, Result, Verdict
from robustbench_lite.sequences import SequenceVerdict

FOUR_MORE = ("speckle_noise", "gaussian_blur", "spatter", "saturate")


def picture(seed: int, size: int = 96) -> bytes:
    """A JPEG of a ramp under noise."""
    noise = np.random.default_rng(seed).normal(0, 5 + 10 * (seed % 5), (size, size, 3))
    ramp = np.linspace(40, 215, size)[None, :, None]
    buffer = io.BytesIO()
    Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8)).save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()


def corrupted(
    folder: Path | None, names: tuple[str, ...] = THE_15, n: int = 40, *, about: dict[str, Any] | None = None, attack: bool = False
) -> Result:
    """Accuracy falls with severity from 80 %, by another slope for each corruption; confidences are too high by ten points."""
    draw = np.random.default_rng(0)
    hardness = draw.permutation(n) / n
    conditions = [Condition("clean", "clean")]
    if attack:
        conditions.append(Condition("pgd[linf,4/255]", "attack", "pgd", "linf", 4 / 255))
    conditions += [Condition(f"{name}[{s}]", "corruption", corruption=name, severity=s) for name in names for s in range(1, 6)]
    verdicts = []
    for c in conditions:
        slope = 0.03 + 0.12 * (names.index(c.corruption) % 7) / 7 if c.corruption else 0.0
        accuracy = 0.1 if c.kind == "attack" else 0.8 - slope * (c.severity or 0)
        for i in range(n):
            right = bool(hardness[i] + draw.normal(0, 0.08) < accuracy)
            confidence = float(np.clip(0.95 - 0.6 * hardness[i] + draw.normal(0, 0.05), 0.05, 1))
            likely = confidence if right else (1 - confidence) / 2
            known: dict[str, Any] = dict.fromkeys(VERDICT_FIELDS)
            known |= {"sample_id": f"{i}.png", "condition": c.name, "label": i % 10, "prediction": i % 10 if right else (i + 1) % 10}
            known |= {"clean_prediction": i % 10, "broken": not right, "confidence": confidence, "forwards": 1, "backwards": 0, "steps": 0}
            known |= {"distance": 0.0, "restart": 0, "seed": 0, "precision": "fp32", "stages": {}}
            if c.kind != "attack":
                known |= {"nll": -math.log(likely), "brier": (1 - likely) ** 2 + (1 - confidence) ** 2}
            verdicts.append(Verdict(**known))
    published = {"published": None, "storage_jpeg": 85, "frost": "pictures", "scaled_from": None, "size": [224, 224]}
    config = {
        "model": {"name": "toy"}, "data": {"name": "imagenet", "classes": 1000, "n": 50_000}, "notes": [], "goal": "first",
        "corruptions": published | (about or {}), "command": "robust-eval --model toy --corruption imagenet-c",
    }  # fmt: skip
    shown = {c.name: picture(place) for place, c in enumerate(conditions) if c.kind != "attack"}
    sequenced = [
        SequenceVerdict(f"sequence:{name}", f"{i}.png", int(draw.integers(0, 12)), 30, float(draw.uniform(0, 5)), [0] * 31)
        for name in ("gaussian_noise", "tilt")
        for i in range(n)
    ]
    seconds = {c.name: 2.5 for c in conditions}
    return Result(config, conditions, verdicts, seconds, lambda *_: None, folder, sequenced=sequenced, shown=shown)
