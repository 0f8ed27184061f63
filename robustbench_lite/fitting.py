"""What universal attacks learn: on images that they are not judged on, before any image is attacked.

An attack that learns has `fit(lesson) -> tensors by name` and `fitted(tensors) -> attack`. What was learnt is stored, so that a run that
goes on attacks with the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checks import checked
from .classifier import Images, Labels, Logits
from .conditions import Job, Target, criterion, offered
from .criteria import Criterion
from .errors import DataError, UsageError
from .labelled import LabelledImages, label_tensor
from .passes import Passes
from .rows import Rows
from .streams import Streams
from .threat import Ball

if TYPE_CHECKING:
    from .store import Store


@dataclass(frozen=True)
class Pupils(Rows):
    """Some images to learn from: x (B, C, H, W), their labels, what counts as broken, the clean logits (B, K)."""

    x: Images
    labels: Labels
    criterion: Criterion
    logits: Logits


@dataclass(frozen=True)
class Lesson:
    """Images to learn from and the model that may be asked: the one that is attacked, or a surrogate.

    Args:
        passes: how it is asked.
        images: none that the attack is judged on.
        threat: what the attacker may do to an image.
        target: what the attacker wants; images that offer him nothing are not among those of `batches`.
        key: of the random draws, beside the seed.
        batch_size: images at a time.
    """

    passes: Passes
    images: LabelledImages
    threat: Ball
    target: Target | None
    device: torch.device
    seed: int
    key: str
    batch_size: int
    seen: dict[int, Logits] = field(default_factory=dict)

    def batches(self, epoch: int, limit: int | None = None) -> Iterator[tuple[Pupils, Streams]]:
        """All images, or the same `limit` of them in every epoch, in an order of the epoch's own; with draws keyed by image and epoch.

        Raises:
            UsageError: no image offers the attacker anything.
        """
        ids = self.images.ids
        chosen = self._shuffled(range(len(ids)), "choice")[:limit]
        order, met = self._shuffled(chosen, f"epoch {epoch}"), 0
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            x, logits = self._asked(rows)
            labels = label_tensor(self.images.labels[row] for row in rows).to(self.device)
            pupils = Pupils(x, labels, criterion(labels, self.target, logits), logits)
            use = torch.ones(len(rows), dtype=torch.bool, device=self.device)
            if self.target is not None:
                use = offered(labels, self.target, logits)[0]
            if use.any():
                met += int(use.sum())
                kept = [(ids[row], epoch) for row, used in zip(rows, use.tolist(), strict=True) if used]
                yield pupils.take(use), Streams(self.seed, f"{self.key}/fit", kept, None, self.device)
        if not met:
            raise UsageError(
                f"{self.key}: none of the {len(order)} images of {self.images.name} to learn from offers the attacker anything: "
                "give others with --fit-data"
            )

    def gradient(self, x: Images, rule: Criterion, loss: str | Callable[..., Tensor] = "ce") -> tuple[Logits, Images]:
        """Logits at x and the gradient of the loss there."""
        return self.passes.gradient(x, rule, loss)

    def _shuffled(self, rows: Sequence[int], what: str) -> list[int]:
        ids = self.images.ids
        return sorted(rows, key=lambda row: blake2b(f"{self.seed}/{self.key}/{what}/{ids[row]}".encode(), digest_size=16).digest())

    def _asked(self, rows: Sequence[int]) -> tuple[Images, Logits]:
        """The images, read anew in every epoch since not all may fit into memory, and the model's answers, which are asked for once."""
        images = torch.stack([checked(self.images.pictures[row], self.images.ids[row]) for row in rows]).to(self.device)
        new = [place for place, row in enumerate(rows) if row not in self.seen]
        if new:
            self.seen.update({rows[place]: answer for place, answer in zip(new, self.passes.logits(images[new]), strict=True)})
        return images, torch.stack([self.seen[row] for row in rows])


def learns(job: Job) -> bool:
    """Whether a part of the job's attack learns."""
    return any(hasattr(attack, "fit") for attack in job.parts.values())


def taught(job: Job, lesson: Callable[[str], Lesson], store: Store) -> Job:
    """The job with attacks that have learnt: now, or in an earlier session.

    Args:
        lesson: for an attack under a key.

    Raises:
        DataError: an image to learn from cannot be used.
    """
    parts: dict[str, Any] = dict(job.parts)
    for name, attack in parts.items():
        if hasattr(attack, "fit"):
            key = f"{job.condition.name}/{name}" if name else job.condition.name
            tensors = store.learnt(key)
            if tensors is None:
                try:
                    tensors = attack.fit(lesson(key))
                except DataError as error:
                    raise DataError(f"{key} cannot learn from these images: {error}") from error
                store.learn(key, tensors)
            parts[name] = attack.fitted({what: tensor.cpu() for what, tensor in tensors.items()})
    return replace(job, parts=parts)


def halves(images: LabelledImages, seed: int) -> tuple[LabelledImages, set[str]]:
    """Half of the images, every class in proportion, to learn from; and their ids, for they are not to be judged on.

    Whoever belongs together (`groups`) is on one side.

    Raises:
        UsageError: there are fewer than two images, or one group.
    """
    if images.groups is None:
        chosen = images.subset(len(images) // 2, seed) if len(images) > 1 else None
    else:
        order = sorted(set(images.groups), key=lambda group: blake2b(f"{seed}/fit/{group}".encode(), digest_size=16).digest())
        first = set(order[: len(order) // 2])
        rows = [row for row, group in enumerate(images.groups) if group in first]
        chosen = images.take(rows) if rows else None
    if chosen is None:
        raise UsageError(f"{images.name} has too few images to learn from some and judge on others: give others with --fit-data")
    return chosen, set(chosen.ids)


def without_judged(learn_from: LabelledImages, judged_on: LabelledImages) -> LabelledImages:
    """The images to learn from that are not judged on as well, by id and pixels (folders may use one name for two images): splits of
    published sets share some.

    Raises:
        UsageError: none is left.
    """
    place = {key: row for row, key in enumerate(judged_on.ids)}
    kept = [
        row
        for row, key in enumerate(learn_from.ids)
        if key not in place or not torch.equal(learn_from.pictures[row], judged_on.pictures[place[key]])
    ]
    if not kept:
        raise UsageError("the images to learn from are those that are judged on: give images of another split with --fit-data")
    return learn_from.take(kept) if len(kept) < len(learn_from) else learn_from
