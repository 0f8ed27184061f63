"""A gate's rulings as every one of its outputs words them."""

from __future__ import annotations

from pathlib import Path

from robustbench_lite.gate.rulings import Judgement, Outcome, Ruling

MEANINGS: dict[Outcome, str] = {
    "pass": "every rule holds",
    "fail": "a rule is broken",
    "inconclusive": "there are too few images to decide",
    "invalid": "a figure cannot be believed",
}
COLOURS: dict[Outcome, tuple[str, str]] = {
    "pass": ("green", "#2e7d32"),
    "fail": ("red", "#c62828"),
    "inconclusive": ("yellow", "#8a5a00"),
    "invalid": ("magenta", "#7b1fa2"),
}
"""By outcome, the colour's name in a terminal and the colour under white letters."""


def subject(judgement: Judgement) -> str:
    """`digits_pgd_at on digits`"""
    config = judgement.result.config
    return f"{config['model']['name']} on {config['data']['name']}"


def verdict(ruling: Ruling) -> str:
    """The outcome of a rule, and whether an inconclusive one stops the gate."""
    return f"{ruling.outcome}, which blocks" if ruling.outcome == "inconclusive" and ruling.blocking else ruling.outcome


def figure(value: float | None) -> str:
    """Four decimals, in the unit of the rule; empty for none."""
    return "" if value is None else f"{value:.4f}"


def interval(ruling: Ruling) -> str:
    """`0.4310–0.4720`, open where a bound is missing; empty where both are."""
    return "" if ruling.low is None and ruling.high is None else f"{figure(ruling.low)}–{figure(ruling.high)}"


def images(ruling: Ruling) -> str:
    """`450 of 900`, `900`, or empty for a rule that rests on no images."""
    return "" if not ruling.n else str(ruling.n) if ruling.n == ruling.of or not ruling.of else f"{ruling.n} of {ruling.of}"


def level(judgement: Judgement) -> str:
    """Of every bound, such as `95 %`."""
    return f"{100 * (1 - judgement.alpha):g} %"


def settings_path(judgement: Judgement) -> str:
    """The settings file as code hosts know it: from the root of its git checkout, where it lies in one; empty where there is no file."""
    if not judgement.settings:
        return ""
    path = Path(judgement.settings).absolute()
    root = next((folder for folder in path.parents if (folder / ".git").exists()), None)
    return Path(judgement.settings).as_posix() if root is None else path.relative_to(root).as_posix()
