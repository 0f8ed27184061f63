"""A made-up run of two attacks, and how its reports are read, for the tests of the reports."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from robustbench_lite.diagnostics import Counter, Finding
from robustbench_lite.registry import REPORTS
from robustbench_lite.results import Condition, Result, Verdict, Witness
from robustbench_lite.trust import Level, Trust
from robustbench_lite.worst import worst_case

N = 20
EVIL = "<script>alert('1 & 2')</script>"


FGSM, PGD, WORST = "fgsm[linf,4/255]", "pgd[linf,4/255]", "worst[linf,4/255]"
KNOWN = tuple(f"image,{i:03d}" for i in range(6, 12))
"""Of the 14 images of 20 that fgsm leaves at 4/255, the six that pgd breaks."""


def verdict(number: int, condition: str, **changed: Any) -> Verdict:
    """One that survived; `changed` says otherwise."""
    fields: dict[str, Any] = {
        "sample_id": f"image,{number:03d}", "group": None, "condition": condition, "label": number % 3, "target": None, "seed": 0,
        "clean_prediction": number % 3, "prediction": number % 3, "broken": False, "broken_by": None, "restart": 0, "reason": None,
        "distance": 1 / 3, "confidence": 0.1 + 0.7 / (number + 1), "steps": 10, "forwards": 11, "backwards": 10, "precision": "fp32",
        "witness": None,
    }  # fmt: skip
    return Verdict(**fields | changed)


def witness(number: int, eps: float, size: int, channels: int = 3) -> Witness:
    """Every pixel of a random picture that keeps clear of the box moved by eps, up or down."""
    draw = np.random.default_rng(number)
    clean = draw.uniform(0.3, 0.7, (channels, size, size)).astype(np.float32)
    moved = clean + np.float32(eps) * draw.choice(np.array([-1, 1], np.float32), clean.shape)
    return Witness(torch.from_numpy(clean), torch.from_numpy(moved))


def example(
    folder: Path | None,
    sizes: tuple[float, ...] = (2 / 255, 4 / 255),
    *,
    pixels: int = 8,
    survivors_in: str = "fp32",
    undecided: int = 2,
    n: int = N,
) -> Result:
    """A run of two attacks: images 0 and 1 wrong when clean, the next `undecided` ones not decided, `fgsm` weaker than `pgd:steps=10`."""
    conditions, verdicts = [Condition("clean", "clean")], []
    for i in range(n):
        wrong = {"broken": True, "broken_by": "clean", "prediction": 2, "clean_prediction": 2} if i < 2 else {}
        verdicts.append(verdict(i, "clean", forwards=1, backwards=0, steps=0, confidence=0.99 - i / 200, **wrong))
    for attack, short, power in (("fgsm", "fgsm", 200), ("pgd:steps=10", "pgd", 600)):
        for eps in sizes:
            name = f"{short}[linf,{round(eps * 255)}/255]"
            conditions.append(Condition(name, "attack", attack, "linf", eps))
            for i in range(n):
                if i < 2:
                    changed: dict[str, Any] = {"broken": True, "broken_by": "clean", "forwards": 0, "backwards": 0, "prediction": 2}
                elif i < 2 + undecided:
                    changed = {"broken": None, "reason": "NaN in the logits"}
                elif i < 2 + undecided + power * eps:
                    changed = {"broken": True, "broken_by": short, "prediction": 1, "forwards": i, "backwards": i - 1, "witness": "ab" * 32}
                else:
                    changed = {"precision": survivors_in}
                verdicts.append(verdict(i, name, **changed))
    worst_conditions, worst_verdicts = worst_case(conditions, verdicts)
    config = {
        "model": {"name": "toy <model>", "spec": "toy", "digest": "9f" * 32, "classes": 3},
        "data": {"name": "toys", "digest": "77" * 32, "n": n, "source": "made up", "class_names": [EVIL, "cat", "dog & fox"]},
        "versions": {"python": "3.11", "robustbench-lite": "0.1.0"}, "device": "cpu", "seed": 0, "norm": "linf", "eps": list(sizes),
        "command": ["robust-eval", "--model", "toy model", "--attack", "pgd:steps=10"],
    }  # fmt: skip
    seconds = {c.name: 1.5 for c in conditions}
    by_name = {c.name: c for c in conditions}
    result = Result(
        config,
        conditions + worst_conditions,
        verdicts + worst_verdicts,
        seconds,
        lambda condition, sample: witness(int(sample[-3:]), by_name[condition].eps or 0.0, pixels),
        folder,
    )
    return believed(result)


def believed(result: Result, findings: Sequence[Finding] = (), missing: Mapping[str, tuple[str, ...]] | None = None) -> Result:
    """The run with these findings and nothing else against it, whatever the checks would say of made-up verdicts."""
    trusts = {}
    for c in (c for c in result.conditions if c.kind != "doubt"):
        about = tuple(f for f in findings if c.name in f.conditions and f.weight != "notes")
        lacking = (missing or {}).get(c.name, ())
        known = {key for f in about if f.weight == "refutes" for key in f.samples}
        verdicts = result.of(c.name)
        left = {v.sample_id for v in verdicts if v.broken is False} - known
        level: Level = "refuted" if any(f.weight == "refutes" for f in about) else "doubtful" if about or lacking else "sound"
        trusts[c.name] = Trust(level, (*(f.seen for f in about), *lacking), about, lacking, len(left) / max(len(verdicts), 1))
    # where `cached_property` keeps what it computed
    vars(result).update(findings=list(findings), trust=trusts)
    return result


def refuted(folder: Path | None, sizes: tuple[float, ...] = (2 / 255, 4 / 255)) -> Result:
    """`fgsm` is refuted, `pgd` doubtful, and an attack was tried in doubt on the eight images that were left."""
    result = example(folder, sizes, undecided=0)
    doubt = Condition("square[linf,4/255]", "doubt", "square", "linf", 4 / 255)
    tried = [verdict(i, doubt.name, broken=i == 19, broken_by="square" if i == 19 else None, forwards=500) for i in range(12, 20)]
    result = replace(result, conditions=[*result.conditions, doubt], verdicts=[*result.verdicts, *tried])
    witnessed = Finding(
        "witnessed", "refutes", (FGSM,), "six have a witness", "the figure is too high", figures={"broken": 6}, samples=KNOWN
    )
    masked = Finding("masked", "doubts", (PGD, FGSM), f"gradients vanish {EVIL}", "the search was blind", (Counter("bpda", eot=100),))
    note = Finding("eight-bit", "notes", (), "one witness dies in 8 bits", "files hold fewer")
    return believed(result, [witnessed, masked, note], {WORST: ("no attack without gradients was tried: add square",)})


def page(result: Result) -> str:
    return Path(REPORTS.get("html")(result)[0]).read_text(encoding="utf-8")


def tree(text: str) -> ElementTree.Element:
    """The page as XML: a tag that isn't closed or text that isn't escaped is a ParseError."""
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))


def texts(element: ElementTree.Element) -> str:
    return re.sub(r"\s+", " ", "".join(element.itertext())).strip()


def svgs(text: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", text, re.DOTALL)


def picture(uri: str) -> np.ndarray[Any, Any]:
    assert uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def in_terminal(result: Result, width: int = 80) -> str:
    written = io.StringIO()
    Console(width=width, file=written, color_system=None).print(REPORTS.get("terminal")(result))
    return written.getvalue()
