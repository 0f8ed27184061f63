"""What is to be done to the images: attacks x eps, each with a name that is unique in the run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from .classifier import Logits
from .criteria import Among, Binary, Criterion, Misclassified, MultiLabel, Targeted
from .errors import UsageError
from .goals import goal_of, meant, towards
from .oracle import WhiteBox, WholeModel
from .plan import Attack, boundless, parts
from .registry import ATTACKS, number
from .results import Condition, Goal, Kind, size_text
from .threat import BALLS, Ball, ball

LEAST_LIKELY = "least-likely"
Target = int | str
"""A class, `least-likely`, or a goal such as `upcoding`."""


@dataclass(frozen=True)
class Means:
    """An attack with a norm, an eps and a source of its own, beside others that have theirs.

    Args:
        attack: a spec string or an attack.
        norm, eps: None: as for every attack.
        source: name of the surrogate that the images are made on; None attacks the model itself.
    """

    attack: Any
    norm: str | None = None
    eps: float | None = None
    source: str | None = None


@dataclass(frozen=True)
class Job:
    """One condition, and how it is brought about: by the attacks `parts` in turn."""

    condition: Condition
    attack: Any
    parts: Mapping[str, Attack]
    threat: Ball
    target: Target | None
    searched_as: str | None = None
    """The condition whose search, for the nearest at any distance, is this one's too."""


def job(
    attack: Any,
    norm: str,
    size: float,
    *,
    kind: Kind = "attack",
    target: Target | None = None,
    goal: Goal = "first",
    source: str = "",
    eot: int | None = None,
    scaled: bool = False,
) -> Job:
    """An attack of one size, under a name that says all of this."""
    name, made = ATTACKS.spec_of(attack), parts(attack, norm)
    told = [size_text(size, scaled), *([f"target={target}"] if target is not None else []), *([f"from={source}"] if source else [])]
    told += [f"eot={eot}"] if eot else []
    condition = Condition(
        f"{name}[{norm},{','.join(told)}]",
        kind,
        attack=name,
        norm=norm,
        eps=size,
        goal=goal,
        target=target,
        source=source or None,
        doors={part: door(each, bool(source)) for part, each in made.items()},
        eot=eot,
        scaled=scaled,
    )
    return Job(condition, attack, made, BALLS[norm](torch.tensor(size)) if scaled else ball(norm, size), target)


def door(attack: Attack, transfer: bool = False) -> str:
    """What an attack gets to see: `labels`, `scores`, `white box`, `stand-ins` (gradients that are not the model's own), `whole model`
    (an attack of others, that may do as it likes), or a `surrogate`."""
    if transfer:
        return "surrogate"
    return "stand-ins" if hasattr(attack, "hooks") else attack.access.name


def jobs(
    attacks: Sequence[str | Attack | Means],
    *,
    norm: str | None,
    eps: Sequence[float | str] | float | str | None,
    default_eps: Mapping[str, float],
    data: str,
    target: Target | None = None,
    goal: Goal | None = None,
    sources: Sequence[str] = (),
    disease: Sequence[int] | None = None,
    scaled: bool = False,
) -> list[Job]:
    """Every attack at every eps, from every source where there are surrogates.

    Args:
        sources: names of what a transfer attack is made on; none for attacks on the model itself.
        disease: classes that mean disease in the data, for goals that name none.
        norm: None takes each attack's first. goal: None takes each attack's own.
        eps: numbers or texts such as `8/255`; None takes the data set's default for the norm.
        scaled: every image has a size of its own, and eps are multiples of it; None is one.

    Raises:
        UsageError: an attack without this norm, an eps that is no size, no default eps for the data, the same condition twice, an
            attack that cannot be made on a surrogate.
    """
    sizes = sizes_of(eps)
    planned: list[Job] = []
    for asked in attacks:
        means = asked if isinstance(asked, Means) else None
        spec = asked if means is None else means.attack
        attack: Any = ATTACKS.build(spec) if isinstance(spec, str) else spec
        name = ATTACKS.spec_of(attack)
        wanted = norm if means is None or means.norm is None else means.norm
        if wanted is not None and wanted not in attack.norms:
            raise UsageError(f"{name} has no norm {wanted}: it has {', '.join(attack.norms)}")
        used = wanted or attack.norms[0]
        usual = {used: 1.0} if scaled else {**default_eps, **getattr(attack, "usual_eps", {})}
        own = sizes if means is None or means.eps is None else [means.eps]
        if own is None and used not in usual:
            raise UsageError(f"there is no usual eps for {used} on {data}: say how far the attack may go with --eps")
        made_on = (sources or ("",)) if means is None else (means.source or "",)
        if means is not None and means.source is not None and means.source not in sources:
            raise UsageError(f"{name} is to be made on {means.source}, which is none of the surrogates ({', '.join(sources) or 'none'})")
        if any(made_on):
            _need_one_try(name, parts(attack, used))
        for size, source in product(own if own is not None else [usual[used]], made_on):
            aim = getattr(attack, "target", None) if target is None else target
            if disease is not None and isinstance(aim, str) and aim != LEAST_LIKELY:
                aim = meant(aim, disease)
            # a scenario's goal is what its attacker wants, its target
            sought: Goal = goal if goal is not None else "closest" if getattr(attack, "goal", None) == "closest" else "first"
            made = job(attack, used, size, target=aim, goal=sought, source=source, scaled=scaled)
            made = replace(made, searched_as=next((other.condition.name for other in planned if _one_search(other, made)), None))
            if any(other.condition.name == made.condition.name for other in planned):
                raise UsageError(f"{made.condition.name} is asked for twice")
            planned.append(made)
    aims = sorted({str(made.target) for made in planned})
    if len(aims) > 1:
        raise UsageError(f"these attacks are after different things ({' and '.join(aims)}): run them apart, or say one --target")
    return planned


def _one_search(first: Job, other: Job) -> bool:
    """Whether a search of the whole box for the first says what one for the other would."""
    shared = ("attack", "norm", "goal", "target", "source")
    same = all(getattr(first.condition, each) == getattr(other.condition, each) for each in shared)
    return same and boundless(first.attack, first.condition.goal)


def sizes_of(eps: Sequence[float | str] | float | str | None) -> list[float] | None:
    """The sizes that were asked for, None for the usual ones.

    Raises:
        UsageError: there are none, or one is no number.
    """
    if eps is None:
        return None
    sizes = [_size(each) for each in (eps if isinstance(eps, Sequence) and not isinstance(eps, str) else [eps])]
    if not sizes:
        raise UsageError("the list of eps is empty: leave eps out for the data set's usual one")
    return sizes


def _size(eps: float | str) -> float:
    try:
        return number(str(eps))
    except ValueError as error:
        raise UsageError(f"eps: {error}") from None


def _need_one_try(name: str, made: Mapping[str, Attack]) -> None:
    """Refuse what cannot be made on a surrogate, whose target answers once and is not searched.

    Raises:
        UsageError: the attack asks the target itself, or would try several images on it.
    """
    for part in made.values():
        if not issubclass(part.access, WhiteBox) or issubclass(part.access, WholeModel):
            raise UsageError(f"{name} asks the model that it attacks, and not a surrogate: leave --surrogate out, or use pgd, mi, sgm, ...")
        if getattr(part, "goal", None) == "closest":
            raise UsageError(f"{name} ends at the boundary of the model that it asks, from where nothing transfers: use pgd, mi, sgm, ...")
        if len(made) > 1 or getattr(part, "restarts", 1) > 1 or getattr(part, "targets", 0):
            raise UsageError(f"{name} makes several images of one, and a transfer attack has one try: use one restart and no targets")


def clean_criterion(labels: Tensor, outputs: int) -> Criterion:
    """What counts as wrong without an attack, for a model with so many outputs.

    Args:
        labels: (B,) classes, (B, K) floats 0/1, or (B, M) int64, the right classes filled up with -1.
    """
    if labels.dim() == 2:
        return MultiLabel(labels) if labels.is_floating_point() else Among(labels)
    return Binary(labels) if outputs == 1 else Misclassified(labels)


def criterion(labels: Tensor, target: Target | None, logits: Logits) -> Criterion:
    """What counts as broken under attack: a wrong prediction, or the target's.

    Raises:
        UsageError: a target that is not one of the model's classes, or for multi-label data; labels with several right classes an image.
    """
    outputs = logits.shape[1]
    if labels.dim() == 2 and not labels.is_floating_point():
        raise UsageError("these labels have several right classes an image, and an attack needs one: leave real=... or the attack out")
    if target is None:
        return clean_criterion(labels, outputs)
    if isinstance(target, str) and target != LEAST_LIKELY:
        return towards(target, labels, outputs)[0]
    if labels.dim() == 2:
        raise UsageError("a target is a class, and these labels hold several: leave --target out, or name a goal such as missed-disease")
    if isinstance(target, int) and not 0 <= target < max(2, outputs):
        raise UsageError(f"the target must be one of the model's classes 0..{max(2, outputs) - 1}, got {target}")
    if outputs == 1:
        return Binary(1 - aimed_class(target, logits))
    return Targeted(labels, aimed_class(target, logits))


def checked_target(text: Target | None) -> Target | None:
    """The target, which may be written as text.

    Raises:
        UnknownName, BadSpec: it is no class, not `least-likely` and no goal.
    """
    if not isinstance(text, str) or text == LEAST_LIKELY:
        return text
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    goal_of(text)
    return text


def offered(labels: Tensor, target: Target, logits: Logits) -> tuple[Tensor, Tensor | None]:
    """(B,) bool, whether the attacker gains by an image; and (B,) the class that it is driven to, where that is one for every image."""
    if isinstance(target, str) and target != LEAST_LIKELY:
        return towards(target, labels, logits.shape[1])[1], None
    aimed = aimed_class(target, logits)
    return aimed != labels, aimed


def need_something_to_gain(job: Job, labels: Tensor, logits: Logits) -> None:
    """Refuse a row that no image would be in.

    Args:
        labels: of all images that are judged in it.
        logits: (B, K) of any.

    Raises:
        UsageError: it is such a row.
    """
    if job.target is None or job.target == LEAST_LIKELY:  # which class that is, is not known yet
        return
    if not offered(labels, job.target, logits[:1].expand(len(labels), -1))[0].any():
        raise UsageError(f"{job.condition.name}: none of the {len(labels)} images to be judged on offers the attacker anything")


def aimed_class(target: Target, logits: Logits) -> Tensor:
    """(B,) the class that each image is to be driven to."""
    if isinstance(target, int):
        return torch.full((len(logits),), target, device=logits.device)
    return (logits[:, 0] <= 0).long() if logits.shape[1] == 1 else logits.argmin(1)
