"""The batches of a training: which images a step learns from, in which order, and where they are read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.defending import Batch
from robustbench_lite.errors import DataError
from robustbench_lite.labelled import LabelledImages
from robustbench_lite.streams import Streams, generator

from .recipe import Recipe
from .world import World

IN_MEMORY = 2**30
"""Bytes of float32 images up to which all are held; beyond, they are read while the step before is computed."""

READERS = 8


@dataclass(frozen=True, eq=False)
class Feed:
    """Training images, in batches.

    Args:
        data: with one class an image.
        classes: K.
        recipe: for the batch size, the seed and label smoothing.
        world: whose share of every batch this process takes.
        held: all images, on the device of the world, where they are few enough; None reads them batch by batch.
    """

    data: LabelledImages
    classes: int
    recipe: Recipe
    world: World
    held: Images | None

    @classmethod
    def of(cls, data: LabelledImages, recipe: Recipe, world: World) -> Feed:
        """
        Raises:
            DataError: the number of classes is unknown, the labels are not one class an image, all are of one class, the images differ
                in shape, or there are too few for the processes.
        """
        counts = counted(data)
        smallest = len(data) // math.ceil(len(data) / recipe.batch_size)
        if smallest < world.size:
            raise DataError(f"{world.size} processes cannot share steps of {smallest} images: raise --batch-size or start fewer")
        values = data[0][0].numel()
        few = len(data) * values * 4 <= IN_MEMORY
        held = stacked([data.pictures[i] for i in range(len(data))], data.name).to(world.device) if few else None
        return cls(data, len(counts), recipe, world, held)

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return math.ceil(len(self.data) / self.recipe.batch_size)

    def batches(self, first: int) -> Iterator[tuple[Batch, Streams, int]]:
        """From this step on, counted from 0 over the whole training: this process's images, their draws, and how many images the step
        has over all processes."""
        steps = range(first, self.recipe.epochs * self.per_epoch)
        with ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(self._read, first) if steps else None
            for step in steps:
                assert waiting is not None
                batch = waiting.result()
                waiting = ahead.submit(self._read, step + 1) if step + 1 < steps.stop else None
                yield batch

    def _read(self, step: int) -> tuple[Batch, Streams, int]:
        epoch, number = divmod(step, self.per_epoch)
        everyone = _order(self.recipe.seed, epoch, len(self.data), self.per_epoch)[number]
        mine = self.world.share(everyone)
        if self.held is not None:
            images = self.held[mine.to(self.held.device)]
        else:
            with ThreadPoolExecutor(READERS) as readers:
                images = stacked(list(readers.map(self.data.pictures.__getitem__, mine.tolist())), self.data.name).to(self.world.device)
        labels = torch.tensor([self.data.labels[i] for i in mine.tolist()], device=self.world.device)
        draw = Streams(self.recipe.seed, "training", [(self.data.ids[i], epoch) for i in mine.tolist()], None, self.world.device)
        return Batch(images, smoothed(labels, self.classes, self.recipe.label_smoothing)), draw, len(everyone)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int, steps: int) -> tuple[Tensor, ...]:
    """Which images every step of an epoch learns from; parts differ by one image at most."""
    return torch.from_numpy(generator(seed, "order", epoch).permutation(count)).tensor_split(steps)


def counted(data: LabelledImages) -> tuple[int, ...]:
    """How many images each class has.

    Raises:
        DataError: the number of classes is unknown, the labels are not one class an image, or all are of one class.
    """
    if data.classes is None:
        raise DataError(f"{data.name} does not say how many classes it has")
    if not all(isinstance(label, int) for label in data.labels):
        raise DataError(f"{data.name} has several labels an image: only data with one class an image can be trained on")
    counts = Counter(data.labels)
    if data.classes < 2 or len(counts) < 2:
        raise DataError(f"all {len(data)} training images of {data.name} are of one class: there is nothing to learn")
    return tuple(counts[index] for index in range(data.classes))


def stacked(images: list[Tensor], name: str) -> Images:
    """(N, C, H, W).

    Raises:
        DataError: they differ in shape.
    """
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise DataError(f"{name}: the images differ in shape, {' and '.join(map(str, sorted(shapes)[:2]))}: give --size")
    return torch.stack(images)


def some_of(data: LabelledImages, seed: int, count: int) -> Images:
    """(N, C, H, W) so many of the images, drawn under the seed, or all if there are fewer."""
    chosen = generator(seed, "some images").permutation(len(data))[:count]
    return stacked([data.pictures[int(i)] for i in chosen], data.name)


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """(B, K) targets: 1 - smoothing for the label, the rest evenly over the other classes (He et al., CVPR 2019, section 5.2)."""
    targets = torch.full((len(labels), classes), smoothing / (classes - 1), device=labels.device)
    return targets.scatter_(1, labels[:, None], 1 - smoothing)
