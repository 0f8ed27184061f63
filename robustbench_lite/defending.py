"""What a defense is, and how several of them work as one.

A defense is a frozen dataclass, registered in a file of its own, that has a `kind` and as many of these methods as it needs:

    rebuild(model) -> nn.Module          the network before it has weights: other layers, or the same ones changed in place
    scheduled(model, epoch, epochs)      called before every step with its epoch, counted from 0
    phases(model) -> int                 how many parts of equal length the training has, each with the recipe's whole schedule
    settled(model, progress) -> bool     whether the weights of an epoch that ends here may be kept as the best; the last ones always may
    augment(batch, draw) -> Batch        other images, other targets, or further views of the images
    fit(step) -> (B,)                    what is minimised in place of the cross-entropy of the images
    penalty(step) -> (B,)                what is minimised besides
    informed(about) -> Defense           the same defense, told of the training data before the first step
    stepped(together, over) -> None      called after every step; `over` after the last of an epoch
    state() -> dict, restore(state)      what a defense that learns needs besides, to go on where a training was interrupted
    written() -> dict[str, str]          texts to leave beside the checkpoint, by how the files' names end
    wrap(classifier) -> Classifier       around a trained classifier, when it is used
    replays: int                         a field: how many updates in a row learn from the same batch, augmented the same way

A trained defense has no `wrap`; one that is put around a model has nothing else. What is random is drawn from `draw`, whose rows are
the batch's images under keys of their own, so that a step does not depend on how its images are spread over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from .classifier import Classifier, Images, Labels, Logits
from .errors import BadSpec, UsageError
from .registry import DEFENSES, split
from .streams import Streams

Kind = Literal["network", "augmentation", "mixing", "adversarial", "distillation", "input", "output"]
ORDER: tuple[Kind, ...] = ("network", "augmentation", "mixing", "adversarial", "distillation", "input", "output")
SAID: dict[Kind, str] = {
    "network": "change the network's layers",
    "augmentation": "choose the augmentation",
    "mixing": "mix images with each other",
    "adversarial": "choose the adversarial images",
    "distillation": "name a teacher",
    "input": "stand before the model",
    "output": "change its answers",
}


@dataclass(frozen=True)
class Batch:
    """What is learnt from in one step.

    Args:
        images: (B, C, H, W) in [0, 1].
        targets: (B, K) the share of each class; a row sums to 1.
        views: further versions of the same images, each (B, C, H, W), for a penalty to compare.
    """

    images: Images
    targets: Tensor
    views: tuple[Images, ...] = ()

    @property
    def labels(self) -> Labels:
        """(B,) the class of largest share."""
        return self.targets.argmax(1)


@dataclass(eq=False)
class Replay:
    """One of the updates in a row that learn from the same batch; between two batches nothing is carried on.

    Args:
        number: of this one, from 0.
        moved: (B, C, H, W) what a defense put before the network in the one before; `.grad` is the gradient of that loss, up to a
            positive factor.
    """

    number: int = 0
    moved: Images | None = None


@dataclass(eq=False)
class Step:
    """One step of training, as `fit` and `penalty` see it.

    Args:
        classifier: in training mode; takes images in [0, 1].
        batch: after every augmentation.
        draw: keyed by (seed, image, epoch); a stream of the same name gives the same numbers again.
        progress: share of the training that is done, from 0 at the first step.
        replay: which of a batch's updates this is, where there are several.
    """

    classifier: Classifier
    batch: Batch
    draw: Streams
    progress: float = 1.0
    replay: Replay = field(default_factory=Replay)

    @cached_property
    def answers(self) -> tuple[Logits, ...]:
        """Logits (B, K) of the images and of every view, from one pass over all of them, so that batch statistics are over all."""
        together: Logits = self.classifier(torch.cat([self.batch.images, *self.batch.views]))
        return together.float().chunk(1 + len(self.batch.views))

    @property
    def logits(self) -> Logits:
        """(B, K) of the images as the augmentations left them; asked for once, and not at all where nothing needs them."""
        return self.answers[0]


def soft_cross_entropy(logits: Logits, targets: Tensor) -> Tensor:
    """(B,) cross-entropy with shares (B, K) of the classes as targets."""
    return -(targets * logits.log_softmax(1)).sum(1)


def _no_images(count: int) -> Images:
    raise ValueError("no training images are at hand: give About.some")


@dataclass(frozen=True)
class About:
    """What a defense may have to know before training.

    Args:
        counts: how many training images each class has.
        eps: the usual radius of an attack on these data, per norm.
        device: where the computing is done.
        shape: (C, H, W) of an image.
        seed: of the training.
        some: so many training images (N, C, H, W), or all if there are fewer; the same ones each time.
    """

    counts: tuple[int, ...]
    eps: dict[str, float]
    device: torch.device
    shape: tuple[int, int, int]
    seed: int = 0
    some: Callable[[int], Images] = _no_images


class Together(Protocol):
    """The processes that train together, as a defense may need them; one alone changes nothing."""

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all of them."""

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """All take the values of the first."""


class Defense(Protocol):
    """The least that every defense has; which methods it may have besides is said at the top of this file.

    `trained_on` names what it does to the training images, as `overlap.overlaps` understands it.
    What learns from files besides, such as those of a teacher, has `taught_by`, a digest of them, without which an interrupted training
    could go on with others.
    """

    kind: ClassVar[Kind]
    trained_on: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Defenses:
    """Several defenses as one, in the order in which they act; none of them is standard training."""

    parts: tuple[Any, ...] = ()

    @classmethod
    def parse(cls, spec: str | None) -> Defenses:
        """`augmix+trades:beta=6`; None or `none` is no defense.

        Raises:
            UnknownName, BadSpec: no such defense or parameter, or two that contradict each other.
        """
        if spec is None or spec == "none":
            return cls()
        parts = sorted((DEFENSES.build(part) for part in split(spec)), key=lambda part: ORDER.index(part.kind))
        for one, other in pairwise(parts):
            if one.kind == other.kind:
                raise BadSpec(f"{_name(one)} and {_name(other)} both {SAID[one.kind]}: take one of the two")
        return cls(tuple(parts))

    @property
    def spec(self) -> str:
        """The spec string that `parse` makes the same of."""
        return "+".join(DEFENSES.spec_of(part) for part in self.parts) or "none"

    @property
    def trained_on(self) -> tuple[str, ...]:
        return tuple(seen for part in self.parts for seen in getattr(part, "trained_on", ()))

    @property
    def taught_by(self) -> str | None:
        """Digests of what is read besides the data, a teacher's weights or paintings: a spec may name other ones tomorrow."""
        return " ".join(f"{_name(part)} {part.taught_by}" for part in self._having("taught_by")) or None

    @property
    def adversarial(self) -> bool:
        return any(part.kind == "adversarial" for part in self.parts)

    @property
    def replays(self) -> int:
        """How many updates in a row learn from the same batch."""
        return max((part.replays for part in self._having("replays")), default=1)

    def trainable(self) -> Defenses:
        """Itself.

        Raises:
            UsageError: a part is put around a trained model, and has no place in training.
        """
        for part in self.parts:
            if part.kind in ("input", "output"):
                raise UsageError(f"{_name(part)} is not trained but put around a model: robust-eval --defense {DEFENSES.spec_of(part)}")
        return self

    def informed(self, about: About) -> Defenses:
        """
        Raises:
            BadSpec: two parts say what is minimised in place of the cross-entropy, so that one would do nothing.
        """
        told = Defenses(tuple(part.informed(about) if hasattr(part, "informed") else part for part in self.parts))
        if len(fits := told._having("fit")) > 1:
            one, other = map(_name, fits[:2])
            raise BadSpec(f"{one} and {other} both say what is minimised: take one of the two")
        return told

    def stepped(self, together: Together, over: bool) -> None:
        for part in self._having("stepped"):
            part.stepped(together, over)

    def state(self) -> list[dict[str, Any]]:
        """What `restore` takes, tensors and plain values."""
        return [part.state() for part in self._having("state")]

    def restore(self, states: Sequence[dict[str, Any]]) -> None:
        for part, state in zip(self._having("state"), states, strict=True):
            part.restore(state)

    def written(self) -> dict[str, str]:
        """Texts to leave beside the checkpoint, by how the files' names end: `policies.json`."""
        return {ending: text for part in self._having("written") for ending, text in part.written().items()}

    def rebuild(self, model: nn.Module) -> nn.Module:
        for part in self._having("rebuild"):
            model = part.rebuild(model)
        return model

    def scheduled(self, model: nn.Module, epoch: int, epochs: int) -> None:
        for part in self._having("scheduled"):
            part.scheduled(model, epoch, epochs)

    def phases(self, model: nn.Module) -> int:
        return max((part.phases(model) for part in self._having("phases")), default=1)

    def settled(self, model: nn.Module, progress: float) -> bool:
        return progress >= 1 or all(part.settled(model, progress) for part in self._having("settled"))

    def augment(self, batch: Batch, draw: Streams) -> Batch:
        for part in self._having("augment"):
            batch = part.augment(batch, draw)
        return batch

    def losses(self, step: Step) -> Tensor:
        """(B,) what is minimised: one fit, and every penalty."""
        fits = self._having("fit")
        total: Tensor = fits[0].fit(step) if fits else soft_cross_entropy(step.logits, step.batch.targets)
        for part in self._having("penalty"):
            total = total + part.penalty(step)
        return total

    def applied(self, classifier: Classifier) -> Classifier:
        """A classifier with this defense put on: its layers changed, or something put around it.

        Raises:
            UsageError: a part only acts in training.
        """
        for part in self.parts:
            if not (hasattr(part, "rebuild") or hasattr(part, "wrap")):
                raise UsageError(f"{_name(part)} is learnt, and cannot be put on a model: robust-train --defense {DEFENSES.spec_of(part)}")
        classifier.model = self.rebuild(classifier.model).eval()
        seen, learnt_from = classifier.trained_on, classifier.learnt_from
        for part in self._having("wrap"):
            classifier = part.wrap(classifier)
        classifier.trained_on = tuple(dict.fromkeys([*seen, *classifier.trained_on]))  # other members of an ensemble have seen more
        classifier.learnt_from = tuple(dict.fromkeys([*learnt_from, *classifier.learnt_from]))
        classifier.name = "+".join([classifier.name, *(DEFENSES.spec_of(part) for part in self.parts)])
        return classifier

    def _having(self, method: str) -> Sequence[Any]:
        return [part for part in self.parts if hasattr(part, method)]


def _name(part: Any) -> str:
    return DEFENSES.spec_of(part).partition(":")[0]
