"""What the scheduler is given and what it gives back: an attack and its state, the images, the plan, and what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from .classifier import Images, Logits
from .criteria import Criterion
from .judge import Judge
from .oracle import Labels, Surrogate
from .passes import Passes
from .results import Goal
from .rows import Rows
from .streams import Streams
from .threat import Ball, sized


@dataclass(frozen=True)
class State(Rows):
    """What an attack remembers between two steps; attacks add fields. Every field is a tensor with the row first.

    x: (B, C, H, W) the current images. t: (B,) steps done: the rows of one batch may be at different steps. done: (B,) bool, rows that
    have nothing left to do before their steps are used up.
    """

    x: Images
    t: Tensor
    done: Tensor

    @classmethod
    def at(cls, x: Images, **more: Tensor) -> Self:
        t = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return cls(x=x, t=t, done=torch.zeros_like(t, dtype=torch.bool), **more)

    def moved(self, x: Images, **more: Tensor) -> Self:
        """One step on, at x."""
        return replace(self, x=x, t=self.t + 1, **more)


class Attack(Protocol):
    """A frozen dataclass whose fields are its hyper-parameters. It may also have

    - `restarts`, `targets`: how many of each to try, one lane each;
    - `goal = "closest"`: it looks for the nearest broken image, wherever that is. Unless the run asks for another goal, it searches the
      whole box, and eps only says which distances count as broken;
    - `hooks(model, probe)`: a context in which the gradients are other than the model's own; probe (1, C, H, W) is to trace it with.

    What is registered may be several attacks in turn, or another one for every norm: then it has `parts(norm)` and no steps of its own.
    """

    access: ClassVar[type[Labels]]
    norms: ClassVar[tuple[str, ...]]
    steps: int

    def start(self, oracle: Any, draw: Streams) -> State: ...
    def step(self, oracle: Any, state: Any, draw: Streams) -> State: ...


@dataclass(frozen=True)
class Subject:
    """An image to be attacked: criterion and logits are records of one row, logits the clean ones (1, K)."""

    id: str
    image: Callable[[], Tensor]
    criterion: Criterion
    logits: Logits
    spent: int = 0  # of its query budget, in an earlier search
    scale: float | None = None  # of its own ball, as a multiple of the plan's eps; None: as the plan says


@dataclass(frozen=True)
class Finding:
    """What came of one image: `image` (C, H, W) is the witness where broken, else the image of highest margin, with its logits (K,).

    Under the goal `closest`, it is the nearest image that meets the criterion, where there is one, in the ball or not; `approach` says
    after how many passes which distance was reached, in steps of a twentieth and the last.
    """

    id: str
    broken: bool | None
    reason: str | None
    image: Tensor
    logits: Tensor
    margin: float
    distance: float
    restart: int
    target: int | None
    steps: int
    forwards: int
    backwards: int
    reduced: bool = False  # the search ran in reduced precision
    gradient: float | None = None  # the largest absolute value in the gradients that the search saw
    approach: Sequence[tuple[int, float]] = ()
    origin: Tensor | None = None  # what `image` was made from, where it is a witness: reading it again takes longer than some attacks
    unconfirmed: int | None = None  # witnesses that only the prepared model took for such; None: the search was on the model as given

    @property
    def met(self) -> bool:
        """An image that meets the criterion was found, in the ball or, by a search that goes further, beyond it."""
        return bool(self.broken or self.approach)

    @property
    def flat(self) -> bool:
        """Every gradient that the search saw was exactly zero."""
        return self.gradient == 0

    def merged(self, other: Finding, goal: Goal) -> Finding:
        """The better of two lanes of one image, with the cost of both; of two searches for the nearest, what either could not decide."""

        def rank(f: Finding) -> tuple[bool, bool, float]:
            if goal == "closest" and f.met:
                return True, False, -f.distance
            return f.met, f.broken is None, f.margin

        first, second = sorted((self, other), key=rank)
        best = replace(second.after(first), approach=self._approach_with(other))
        if goal != "closest":
            return best
        undecided = None if first.broken is None or second.broken is None else False
        return replace(best, broken=True if first.broken or second.broken else undecided, reason=second.reason or first.reason)

    def _approach_with(self, later: Finding) -> Sequence[tuple[int, float]]:
        """Of two lanes, the second after the first."""
        spent, nearest = self.forwards + self.backwards, min((distance for _, distance in self.approach), default=math.inf)
        return (*self.approach, *((spent + passes, distance) for passes, distance in later.approach if distance < nearest))

    def after(self, earlier: Finding) -> Finding:
        """This finding, with the cost of an earlier search added."""
        return replace(
            self,
            steps=self.steps + earlier.steps,
            forwards=self.forwards + earlier.forwards,
            backwards=self.backwards + earlier.backwards,
            gradient=max((size for size in (self.gradient, earlier.gradient) if size is not None), default=None),
            unconfirmed=_sum(self.unconfirmed, earlier.unconfirmed),
        )


def _sum(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


@dataclass(frozen=True)
class Plan:
    """How a set of images is attacked.

    Args:
        search: the model that the attack asks, perhaps prepared; a surrogate where `transfer`.
        judge: the model as it was given, in float32: it settles every witness.
        side_by_side: where no image waits, fill the batch with further lanes of the images in it. Pays on an accelerator.
        patience: goal `closest`: an image leaves after so many steps without its nearest coming a thousandth nearer; None: never.
        random: the model draws random numbers of its own; its draws are then fixed by seed, condition and step.
        transfer: the model attacked is only asked about the last image of every lane.
    """

    attack: Attack
    threat: Ball
    condition: str
    search: Passes
    judge: Judge
    goal: Goal = "first"
    seed: int = 0
    budget: int | None = None
    patience: int | None = None
    side_by_side: bool = False
    random: bool = False
    transfer: bool = False

    @property
    def door(self) -> type[Labels]:
        return Surrogate if self.transfer else self.attack.access

    @property
    def boundless(self) -> bool:
        """Whether the attack searches the whole box: it seeks the nearest, and is asked for it."""
        return boundless(self.attack, self.goal)

    def ball(self, subjects: Sequence[Subject]) -> Ball:
        """What counts as broken: the threat, or each image's own where they have some."""
        if subjects[0].scale is None:
            return self.threat
        return sized(self.threat, torch.tensor([subject.scale for subject in subjects], device=self.threat.eps.device))

    def searched(self, subjects: Sequence[Subject]) -> Ball:
        """Where the attack may look."""
        return replace(self.threat, eps=torch.full_like(self.threat.eps, torch.inf)) if self.boundless else self.ball(subjects)

    def targets(self, subject: Subject) -> int:
        """How many targets are tried, 1 for an attack without: there are no more than the criterion has."""
        return max(1, min(getattr(self.attack, "targets", 0), len(subject.criterion.aims(subject.logits))))

    def lanes(self, subject: Subject) -> int:
        return int(getattr(self.attack, "restarts", 1)) * self.targets(subject)


def boundless(attack: Any, goal: Goal) -> bool:
    """Whether an attack searches the whole box under a goal: it seeks the nearest, and is asked for it."""
    return goal == "closest" and getattr(attack, "goal", None) == "closest"


def parts(attack: Any, norm: str) -> Mapping[str, Attack]:
    """The attacks that run one after the other, by name, each on what the ones before it left unbroken. One of its own name: itself."""
    made: Mapping[str, Attack] = attack.parts(norm) if hasattr(attack, "parts") else {"": attack}
    return made
