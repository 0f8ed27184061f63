"""The training loop: one for every architecture, data set and objective.

An objective says what is minimised. Augmentation, smoothing or an attack on the images while training are its business; the loop
only feeds it batches and follows its gradient:

    class Objective(Protocol):
        def __call__(self, classifier, images, labels, generator) -> Tensor: ...   # (B,) losses
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Generator, Tensor

from robustbench_lite.classifier import Classifier, Images, Labels
from robustbench_lite.data import load_data
from robustbench_lite.errors import BadSpec, DataError, InvalidEvaluation, UsageError
from robustbench_lite.labelled import LabelledImages

from .architectures import Architecture
from .recipe import Recipe

Report = Callable[[int, float], None]
"""Called after every epoch with its number, from 1, and the mean loss over it."""


class Objective(Protocol):
    """What training minimises."""

    def __call__(self, classifier: Classifier, images: Images, labels: Labels, generator: Generator) -> Tensor:
        """(B,) losses of a classifier in training mode; every draw comes from `generator`, which lives on the CPU."""
        ...


def splits(spec: str) -> tuple[LabelledImages, LabelledImages]:
    """The training and the test images of a data set that has both.

    Raises:
        UsageError: it has no training split.
        UnknownName, BadSpec, DataError: as `load_data`.
    """
    test = load_data(spec)
    try:
        train = load_data(f"{spec}{',' if ':' in spec else ':'}split=train")
    except BadSpec as error:
        raise UsageError(f"{spec} cannot be split into training and test images: {error}") from error
    if train.digest == test.digest:
        raise UsageError(f"{spec} has no training images, only {len(test)} test images: give the folder of the whole data set")
    return train, test


def train(
    architecture: Architecture, data: LabelledImages, objective: Objective, recipe: Recipe, device: torch.device, report: Report
) -> Classifier:
    """A classifier trained on `data`, on the CPU and in eval mode.

    The same arguments give the same weights on the same machine. All images are held in the device's memory; their labels must be
    class indices. Global random state is left as it was.

    Raises:
        DataError: the number of classes is unknown, or the labels are multi-label.
        InvalidEvaluation: the loss is no longer a finite number.
    """
    if data.classes is None:
        raise DataError(f"{data.name} does not say how many classes it has")
    images, labels = _stacked(data, device)
    classifier = _untrained(architecture, data.classes, recipe.seed).to(device).train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    batches = math.ceil(len(images) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.epochs * batches)
    generator = torch.Generator().manual_seed(recipe.seed)
    # cuDNN would otherwise pick kernels by their speed of the moment, and some of those add up in any order
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for epoch in range(1, recipe.epochs + 1):
            total = torch.zeros((), device=device)
            for chosen in torch.randperm(len(images), generator=generator).to(device).tensor_split(batches):
                losses = objective(classifier, images[chosen], labels[chosen], generator)
                optimizer.zero_grad()
                torch.autograd.backward(losses.mean())
                optimizer.step()
                schedule.step()
                total += losses.detach().sum()
            mean = total.item() / len(images)
            if not math.isfinite(mean):
                raise InvalidEvaluation(f"the loss became {mean} in epoch {epoch}: try a smaller --lr than {recipe.lr:g}")
            report(epoch, mean)
    return classifier.eval().cpu().requires_grad_(False)


def _untrained(architecture: Architecture, classes: int, seed: int) -> Classifier:
    """First weights are drawn from the global CPU generator, which every initialiser uses: it is lent and given back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators too, for good
        return architecture(classes)


def _stacked(data: LabelledImages, device: torch.device) -> tuple[Images, Labels]:
    images, labels = zip(*data, strict=True)
    if not all(isinstance(label, int) for label in labels):
        raise DataError(f"{data.name} has several labels an image: only data with one class an image can be trained on")
    return torch.stack(images).to(device), torch.tensor(labels).to(device)


@torch.inference_mode()
def count_correct(classifier: Classifier, data: LabelledImages, batch_size: int = 256) -> int:
    """How many images a classifier in eval mode gets right."""
    images, labels = _stacked(data, classifier.device)
    batches = math.ceil(len(images) / batch_size)
    pairs = zip(images.tensor_split(batches), labels.tensor_split(batches), strict=True)
    return sum(int((classifier(x).argmax(1) == y).sum()) for x, y in pairs)


def save(classifier: Classifier, out: Path, facts: Mapping[str, str]) -> None:
    """Write the weights of the inner model, which takes normalised images, to a .safetensors file with `facts` as its metadata.

    The file appears whole or not at all.

    Raises:
        InvalidEvaluation: the disk is full, or the folder cannot be written to.
    """
    from safetensors.torch import save as serialized

    tensors = {name: tensor.contiguous() for name, tensor in classifier.model.state_dict().items()}
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        part.write_bytes(serialized(tensors, dict(facts)))
        os.replace(part, out)
    except OSError as error:
        raise InvalidEvaluation(f"could not write {out}: {error.strerror or error}; nothing was kept") from error
    finally:
        part.unlink(missing_ok=True)
