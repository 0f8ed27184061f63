"""What an attacker wants a prediction to be, in the terms of who has a motive: `missed-disease`, `upcoding`, `trial-eligibility`, ...

A goal is written like any target: `--target upcoding`, `--target missed-disease:positive=1+2`. Images that offer the attacker nothing (a
healthy patient to who wants a disease missed) are left out of a goal's rows, and a change in another direction is no success.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Protocol

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from .classifier import Labels
from .criteria import AnyFinding, Binary, Criterion, Towards
from .errors import UnknownName, UsageError
from .registry import GOALS, Spec, goal


def _classes(text: str | None) -> str | None:
    if text is not None and not all(part.isdecimal() for part in text.split("+")):
        raise ValueError(f"write class indices with pluses between them, such as 0+2, not {text!r}")
    return text


Classes = Annotated[str, AfterValidator(_classes)]
"""Class indices such as `1+2`."""


class Goal(Protocol):
    """A frozen dataclass, registered under its name."""

    def wanted(self, labels: Labels, classes: int) -> Tensor:
        """(B, K) which predictions the attacker would be content with, none for an image that offers him nothing.

        Args:
            labels: (B,) classes, or (B, K) floats 0/1: then, which findings he wants turned round.

        Raises:
            UsageError: the goal has no meaning for these labels.
        """
        ...


def _chosen(text: str, classes: int, what: str) -> list[int]:
    indices = [int(part) for part in text.split("+")]
    if max(indices) >= classes:
        raise UsageError(f"{what} names class {max(indices)}, and the model has the classes 0..{classes - 1}")
    return indices


def _members(indices: list[int], labels: Labels, classes: int) -> Tensor:
    """(K,) bool."""
    return torch.zeros(classes, dtype=torch.bool, device=labels.device).index_fill(0, torch.tensor(indices, device=labels.device), True)


@goal("missed-disease")
@dataclass(frozen=True)
class MissedDisease:
    """A positive image is to be called negative.

    Args:
        positive: classes (or findings) that mean disease; by default class 1 of two, or every finding.
    """

    positive: Classes | None = None

    def wanted(self, labels: Labels, classes: int) -> Tensor:
        if self.positive is None and labels.dim() == 1 and classes != 2:
            raise UsageError(f"say which of the {classes} classes mean disease: missed-disease:positive=1+2")
        sick = "1" if labels.dim() == 1 else "+".join(map(str, range(classes)))
        positive = _members(_chosen(self.positive or sick, classes, "missed-disease"), labels, classes)
        if labels.dim() == 2:
            return (labels == 1) & positive
        return ~positive & positive[labels][:, None]


@goal("upcoding")
@dataclass(frozen=True)
class Upcoding:
    """An image is to be given a more severe, better paid class; of several findings, one that is absent is to be seen.

    Args:
        order: the classes from mild to severe; by default as they are numbered.
    """

    order: Classes | None = None

    def wanted(self, labels: Labels, classes: int) -> Tensor:
        if labels.dim() == 2:
            if self.order is not None:
                raise UsageError("findings have no order of severity: write upcoding alone")
            return labels == 0
        order = _chosen(self.order or "+".join(map(str, range(classes))), classes, "upcoding")
        if sorted(order) != list(range(classes)):
            raise UsageError(f"upcoding:order must name each of the {classes} classes once, from mild to severe")
        severity = torch.empty(classes, dtype=torch.long, device=labels.device)
        severity[torch.tensor(order, device=labels.device)] = torch.arange(classes, device=labels.device)
        return severity > severity[labels][:, None]


@goal("trial-eligibility")
@dataclass(frozen=True)
class TrialEligibility:
    """A patient who is not eligible is to be taken into a study. Eligible patients are already in: nothing is to be gained by them.

    Args:
        eligible: classes that a study takes in; by default class 1 of two.
    """

    eligible: Classes | None = None

    def wanted(self, labels: Labels, classes: int) -> Tensor:
        if labels.dim() == 2:
            raise UsageError("trial-eligibility needs one class an image, and these labels are findings: use upcoding or missed-disease")
        if self.eligible is None and classes != 2:
            raise UsageError(f"say which of the {classes} classes a study takes in: trial-eligibility:eligible=1+2")
        inside = _members(_chosen(self.eligible or "1", classes, "trial-eligibility"), labels, classes)
        return inside & ~inside[labels][:, None]


@goal("grade-shift")
@dataclass(frozen=True)
class GradeShift:
    """An ordinal grade is to be called at least some grades off, in either direction.

    Args:
        steps: grades.
    """

    steps: Annotated[int, Field(ge=1)] = 1

    def wanted(self, labels: Labels, classes: int) -> Tensor:
        if labels.dim() == 2:
            raise UsageError("grade-shift needs grades, and these labels are findings: use upcoding or missed-disease")
        if self.steps >= classes:
            raise UsageError(f"grade-shift by {self.steps} is impossible among {classes} classes")
        return (torch.arange(classes, device=labels.device) - labels[:, None]).abs() >= self.steps


@lru_cache
def goal_of(text: str) -> Goal:
    """The goal that a text such as `missed-disease:positive=1` names.

    Raises:
        UnknownName, BadSpec: no such goal, or an option that it does not have.
    """
    name = Spec.parse(text).name
    if name not in GOALS.names():
        raise UnknownName("target", name, [*GOALS.names(), "least-likely"], "a target is a class index, least-likely or a goal")
    made: Goal = GOALS.build(text)
    return made


def meant(text: str, disease: Sequence[int]) -> str:
    """The goal, where it says no classes, with those that mean disease in the data."""
    match goal_of(text):
        case MissedDisease(None):
            return f"missed-disease:positive={'+'.join(map(str, disease))}"
        case Upcoding(None) if tuple(disease) == (0,):
            return "upcoding:order=1+0"
        case TrialEligibility(None):
            return f"trial-eligibility:eligible={'+'.join(map(str, disease))}"
    return text


def towards(text: str, labels: Labels, outputs: int) -> tuple[Criterion, Tensor]:
    """What counts as broken for the goal, and (B,) bool: whether an image offers the attacker anything.

    Raises:
        UsageError: the goal has no meaning for these labels.
    """
    if labels.dim() == 2 and not labels.is_floating_point():
        raise UsageError(f"{text} needs one class an image, and these labels have several right ones")
    wanted = goal_of(text).wanted(labels, outputs if labels.dim() == 2 else max(2, outputs))
    if labels.dim() == 2:
        return AnyFinding(labels, among=wanted), wanted.any(1)
    return (Binary(labels) if outputs == 1 else Towards(wanted)), wanted.any(1)
