"""What defenses around a finished model share: the classifier that stands in its place, and labelled images that they are fitted on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import nn

from robustbench_lite.classifier import Classifier, Images, Labels
from robustbench_lite.data import load_data
from robustbench_lite.errors import UsageError
from robustbench_lite.labelled import LabelledImages

AT_ONCE = 256
"""Images in one pass while a defense is fitted."""


def in_place_of(classifier: Classifier, /, **layers: nn.Module) -> Classifier:
    """A classifier of these layers in a row, with all else that is known of `classifier`, which is one of them."""
    model = nn.Sequential(OrderedDict(layers))
    for module in model.modules():
        if getattr(module, "training", False):
            module.training = False  # not .eval(): an exported program refuses it, and the classifier has been checked
    wrapped = Classifier(
        model,
        preprocess=classifier.preprocess,
        classes=classifier.classes,
        name=classifier.name,
        data=classifier.data,
        differentiable=classifier.differentiable,
    )
    wrapped.trained_on, wrapped.learnt_from = classifier.trained_on, classifier.learnt_from
    return wrapped


def fitted_on(spec: str, classifier: Classifier, defense: str) -> LabelledImages:
    """The images that `spec` names, prepared for the classifier.

    Raises:
        UsageError: an image has several labels, or the labels are of more classes than the classifier has.
        UnknownName, BadSpec, DataError: they cannot be had.
    """
    images = load_data(spec, preprocess=classifier.preprocess)
    if not all(isinstance(label, int) for label in images.labels):
        raise UsageError(f"{defense} is fitted on images of one class each, and those of {spec} have several: name other data")
    most = max(label for label in images.labels if isinstance(label, int))
    if classifier.classes is not None and most >= max(2, classifier.classes):
        raise UsageError(
            f"{defense}: {spec} has the label {most}, and {classifier.name} {classifier.classes} classes: name data of the same"
        )
    return images


def batches(images: LabelledImages, device: torch.device) -> Iterator[tuple[Images, Labels]]:
    """All of them in turn: (B, C, H, W) and (B,), B at most `AT_ONCE`."""
    for start in range(0, len(images), AT_ONCE):
        some = list(images[start : start + AT_ONCE])
        labels = torch.tensor([label for _, label in some])
        yield torch.stack([image for image, _ in some]).to(device), labels.to(device)
