"""Patches that are made once and serve for many images: whom they serve, and the attack that pastes them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from .classifier import Images
from .criteria import Criterion, MultiLabel
from .errors import UsageError
from .oracle import Labels
from .pasting import Shape, Window, pasted
from .plan import State
from .streams import Streams
from .threat import Patch

if TYPE_CHECKING:
    from .fitting import Lesson


def serves(criterion: Criterion, outputs: int) -> Tensor:
    """(B, M) bool, which patches are of use on an image: there is one for every class; for findings there is one for all of them, M = 1."""
    rows = len(next(value for value in vars(criterion).values() if isinstance(value, Tensor)))
    if isinstance(criterion, MultiLabel):
        return torch.ones(rows, 1, dtype=torch.bool)
    found, any_logits = torch.zeros(rows, max(2, outputs), dtype=torch.bool), torch.zeros(1, outputs)
    for row in range(rows):
        found[row, criterion.take(slice(row, row + 1)).to(torch.device("cpu")).aims(any_logits)] = True
    return found


def aimed(criterion: Criterion, wanted: int, rows: int, device: torch.device) -> Criterion:
    """What a patch for a class (or for all findings) is to bring about."""
    return criterion if isinstance(criterion, MultiLabel) else criterion.aimed(torch.full((rows,), wanted, device=device))


def most_wanted(lesson: Lesson, at_most: int) -> list[int]:
    """The classes, in order, that most images to learn from can be driven to; [0] where one patch is for all findings."""
    count: Counter[int] = Counter()
    for pupils, _ in lesson.batches(0):
        count.update(serves(pupils.criterion, pupils.logits.shape[1]).nonzero()[:, 1].tolist())
    return sorted(sorted(count, key=lambda each: (-count[each], each))[:at_most])


def turned(draw: Streams, stream: str, most: float) -> Tensor:
    """(B,) radians, at random, to either side at most so many degrees."""
    return draw.uniform(stream, 1, low=-math.radians(most), high=math.radians(most))[:, 0]


@dataclass(frozen=True)
class Stamps:
    """Paste, somewhere on each image, the patch that serves it; where several do, the one of highest worth.

    Args:
        access: what making the patches took.
        restarts: places that are tried on an image.
        shape, turn: what is cut out of them, and by how many degrees that is turned at most.
        patches: (M, C, S, S). classes: (M,) what each is for. worth: (M,) how well it did while it was made.
    """

    norms: ClassVar[tuple[str, ...]] = ("patch",)
    steps: ClassVar[int] = 1

    access: type[Labels]
    restarts: int
    shape: Shape
    turn: float
    patches: Images
    classes: Tensor
    worth: Tensor

    @classmethod
    def of(cls, access: type[Labels], restarts: int, shape: Shape, turn: float, learnt: Mapping[str, Tensor]) -> Self:
        return cls(access, restarts, shape, turn, learnt["patches"], learnt["classes"], learnt["worth"])

    def start(self, oracle: Labels, draw: Streams) -> State:
        """The images with their patches: nothing is left to be done.

        Raises:
            UsageError: the patches were made of images with other channels.
        """
        origin, threat = oracle.origin, oracle.threat
        if origin.shape[1] != self.patches.shape[1]:
            raise UsageError(
                f"a patch of {self.patches.shape[1]} channels does not go onto images of {origin.shape[1]}: learn from such images"
            )
        assert isinstance(threat, Patch)
        useful = serves(oracle.criterion, oracle.ledger.logits.shape[1])[:, self.classes]
        # where none was made for what is wanted of an image, any is better than none
        best = torch.where(useful, 1 + self.worth, self.worth - self.worth.amax()).argmax(1)
        window = Window.drawn(origin, threat.side(origin), draw, "place")
        made = State.at(pasted(origin, self.patches[best].to(origin), window, turned(draw, "turn", self.turn), self.shape))
        return replace(made, done=~made.done)  # so that the image is asked about once, as the last one

    def step(self, oracle: Labels, state: State, draw: Streams) -> State:
        return state.moved(state.x)
