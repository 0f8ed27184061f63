"""What is to be done to the images: attacks x eps, each with a name that is unique in the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .classifier import Logits
from .criteria import Criterion, Misclassified, MultiLabel, Targeted
from .errors import UsageError
from .plan import Attack
from .registry import ATTACKS, number
from .results import Condition, Goal, eps_text
from .threat import Ball, ball

Target = int | Literal["least-likely"]


@dataclass(frozen=True)
class Job:
    """One condition, and how it is brought about."""

    condition: Condition
    attack: Attack
    threat: Ball
    target: Target | None


def jobs(
    attacks: Sequence[str | Attack],
    *,
    norm: str | None,
    eps: Sequence[float | str] | float | str | None,
    default_eps: Mapping[str, float],
    data: str,
    target: Target | None = None,
    goal: Goal = "first",
) -> list[Job]:
    """Every attack at every eps.

    Args:
        norm: None takes each attack's first.
        eps: numbers or texts such as `8/255`; None takes the data set's default for the norm.

    Raises:
        UsageError: an attack without this norm, an eps that is no size, no default eps for the data, the same condition twice.
    """
    sizes = None if eps is None else [_size(e) for e in (eps if isinstance(eps, Sequence) and not isinstance(eps, str) else [eps])]
    if sizes == []:
        raise UsageError("the list of eps is empty: leave eps out for the data set's usual one")
    planned: list[Job] = []
    for spec in attacks:
        attack: Attack = ATTACKS.build(spec) if isinstance(spec, str) else spec
        name = ATTACKS.spec_of(attack)
        if norm is not None and norm not in attack.norms:
            raise UsageError(f"{name} has no norm {norm}: it has {', '.join(attack.norms)}")
        used = norm or attack.norms[0]
        if sizes is None and used not in default_eps:
            raise UsageError(f"there is no usual eps for {used} on {data}: say how far the attack may go with --eps")
        for size in sizes if sizes is not None else [default_eps[used]]:
            threat = ball(used, size)
            aim = "" if target is None else f",target={target}"
            condition = Condition(
                f"{name}[{used},{eps_text(size)}{aim}]", "attack", attack=name, norm=used, eps=size, goal=goal, target=target
            )
            if any(job.condition.name == condition.name for job in planned):
                raise UsageError(f"{condition.name} is asked for twice")
            planned.append(Job(condition, attack, threat, target))
    return planned


def _size(eps: float | str) -> float:
    try:
        return number(str(eps))
    except ValueError as error:
        raise UsageError(f"eps: {error}") from None


def clean_criterion(labels: Tensor) -> Criterion:
    """What counts as wrong without an attack. labels: (B,) classes or (B, K) 0/1."""
    return MultiLabel(labels) if labels.dim() == 2 else Misclassified(labels)


def criterion(labels: Tensor, target: Target | None, logits: Logits) -> Criterion:
    """What counts as broken under attack: a wrong prediction, or the target's.

    Raises:
        UsageError: a target that is not one of the model's classes, or for multi-label data.
    """
    if target is None:
        return clean_criterion(labels)
    if labels.dim() == 2:
        raise UsageError("a target is a class, and these labels hold several: leave --target out")
    if target == "least-likely":
        return Targeted(labels, logits.argmin(1))
    if not 0 <= target < logits.shape[1]:
        raise UsageError(f"the target must be one of the model's classes 0..{logits.shape[1] - 1}, got {target}")
    return Targeted(labels, torch.full_like(labels, target))
