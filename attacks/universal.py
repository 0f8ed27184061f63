"""Universal perturbation (Moosavi-Dezfooli et al., CVPR 2017, https://arxiv.org/abs/1610.08401).

Learnt by gradient steps on the clipped loss, after Shafahi et al. (AAAI 2020, https://arxiv.org/abs/1811.11304).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.errors import UsageError
from robustbench_lite.fitting import Lesson, Pupils
from robustbench_lite.oracle import Labels, WhiteBox
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.streams import Streams


@attack("universal")
@dataclass(frozen=True)
class Universal:
    """Learn one perturbation on images that the model gets right, and add it to others: who knows the model needs not see the image.

    It breaks fewer images than a perturbation of each image's own. With --target it drives all images to that class.

    Args:
        epochs: how often every image to learn from is gone through.
        images: to learn from, at most.
        batch: images of a step.
        step_size: of the first step, in multiples of eps; the last ones go to zero.
        momentum: share of the last direction that is kept.
        clip: the cross-entropy beyond which an image counts no more: it is lost already, and the others are to be learnt from.
    """

    access = WhiteBox
    norms = ("linf", "l2")
    steps = 1
    cost = "1 forward, after learning"

    epochs: Annotated[int, Field(ge=1)] = 20
    images: Annotated[int, Field(ge=1)] = 1000
    batch: Annotated[int, Field(ge=1)] = 32
    step_size: Annotated[float, Field(gt=0)] = 0.25
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    clip: Annotated[float, Field(gt=0)] = 9.0

    def fit(self, lesson: Lesson) -> dict[str, Tensor]:
        lesson = replace(lesson, batch_size=self.batch)
        # a perturbation is kept as what it makes of a grey image, half as strong: so the box of images holds all that it may be
        half = replace(lesson.threat, eps=lesson.threat.eps / 2)
        picture = grey = velocity = torch.empty(0)
        for epoch in range(self.epochs):
            share = self.step_size * (1 - epoch / self.epochs)
            for pupils in self._right(lesson, epoch):
                if not len(picture):
                    grey = picture = torch.full_like(pupils.x[:1], 0.5)
                    velocity = torch.zeros_like(grey)
                images = lesson.threat.project(pupils.x + (2 * picture - 1), pupils.x)
                logits, gradient = lesson.gradient(images, pupils.criterion, "ce")
                # of many findings or classes, the loss may be beyond `clip` although nothing is lost yet
                unlost = (pupils.criterion.loss(logits, "ce") < self.clip) | (pupils.criterion.margin(logits) <= 0)
                counts = logits.isfinite().all(1) & unlost
                total = gradient[counts].nan_to_num(0, 0, 0).sum(0, keepdim=True)
                velocity = self.momentum * velocity + total / total.abs().sum().clamp(min=1e-30)
                picture = half.project(picture + half.ascent(velocity, share, picture), grey)
        return {"perturbation": 2 * picture - 1}

    def fitted(self, tensors: Mapping[str, Tensor]) -> "Added":
        return Added(self.access, tensors["perturbation"])

    def _right(self, lesson: Lesson, epoch: int) -> Iterator[Pupils]:
        """The images that are not broken as they are.

        Raises:
            UsageError: there is none.
        """
        met = asked = 0
        for pupils, _ in lesson.batches(epoch, self.images):
            right = pupils.criterion.margin(pupils.logits) <= 0
            asked, met = asked + len(right), met + int(right.sum())
            if right.any():
                yield pupils.take(right)
        if not met:
            raise UsageError(
                f"{lesson.key}: no clean image to fit a universal perturbation on: the model gets all {asked} of {lesson.images.name} "
                "wrong that it was to be learnt on: give others with --fit-data, or check the labels"
            )


@dataclass(frozen=True)
class Added:
    """Add the perturbation (1, C, H, W) to every image, scaled down where the image's own ball is smaller."""

    norms: ClassVar[tuple[str, ...]] = Universal.norms
    steps: ClassVar[int] = 1

    access: type[Labels]
    perturbation: Images

    def start(self, oracle: Labels, draw: Streams) -> State:
        """The images with what was learnt: nothing is left to be done.

        Raises:
            UsageError: it was learnt on images of another size.
        """
        origin, learnt = oracle.origin, self.perturbation
        if origin.shape[1:] != learnt.shape[1:]:
            there, here = ("x".join(map(str, images.shape[1:])) for images in (learnt, origin))
            raise UsageError(f"a perturbation learnt on images of {there} does not go onto images of {here}: learn from such images")
        made = State.at(oracle.threat.project(origin + learnt.to(origin), origin))
        return replace(made, done=~made.done)  # so that the image is asked about once, as the last one

    def step(self, oracle: Labels, state: State, draw: Streams) -> State:
        return state.moved(state.x)
