"""How the outputs of a model for ImageNet's 1000 classes become the classes of a data set that has fewer."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import inf, log
from typing import Protocol

import torch
from torch import Tensor, fx, nn

from .classifier import Classifier, Logits
from .errors import ModelError

IMAGENET_CLASSES = 1000


class Readout(Protocol):
    """What a data set may bring with it: the classifier to be asked about it, made of one for ImageNet."""

    def applied(self, classifier: Classifier) -> Classifier:
        """The classifier, its model followed by the readout: one output a class of the data.

        Raises:
            ModelError: it is not for ImageNet's 1000 classes; on the first forward pass where only that can tell.
        """
        ...


@dataclass(frozen=True)
class Subset:
    """Some of the 1000 classes and no others: the logits are sliced before anything is read off them. indices: one a class of the data."""

    indices: tuple[int, ...]

    def applied(self, classifier: Classifier) -> Classifier:
        return _followed(classifier, _Sliced(self.indices), len(self.indices))


@dataclass(frozen=True)
class Groups:
    """Classes of classes: the logarithm of the mean probability in each. groups: ImageNet's indices, one tuple a class of the data."""

    groups: tuple[tuple[int, ...], ...]

    def applied(self, classifier: Classifier) -> Classifier:
        return _followed(classifier, _Pooled(self.groups), len(self.groups))


class _Sliced(nn.Module):
    indices: Tensor

    def __init__(self, indices: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("indices", torch.tensor(indices))

    def forward(self, logits: Logits) -> Logits:
        return _of_imagenet(logits)[:, self.indices]


class _Pooled(nn.Module):
    indices: Tensor
    weights: Tensor

    def __init__(self, groups: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        longest = max(map(len, groups))
        # short groups are filled up with class 0, whose weight there is log 0
        self.register_buffer("indices", torch.tensor([[*group, *[0] * (longest - len(group))] for group in groups]))
        weights = [[-log(len(group))] * len(group) + [-inf] * (longest - len(group)) for group in groups]
        self.register_buffer("weights", torch.tensor(weights))

    def forward(self, logits: Logits) -> Logits:
        return (_of_imagenet(logits).log_softmax(1)[:, self.indices] + self.weights).logsumexp(2)


@fx.wrap  # one step to whoever traces the model: a traced model cannot be asked for its shape
def _of_imagenet(logits: Logits) -> Logits:
    if logits.shape[1] != IMAGENET_CLASSES:
        raise ModelError(_refusal("the model", logits.shape[1]))
    return logits


def _refusal(name: str, outputs: int) -> str:
    return f"{name} has {outputs} classes, and these data are read off the {IMAGENET_CLASSES} of ImageNet: choose a model with those"


def _followed(classifier: Classifier, readout: nn.Module, classes: int) -> Classifier:
    if classifier.classes not in (None, IMAGENET_CLASSES):
        raise ModelError(_refusal(classifier.name, int(classifier.classes or 0)))
    model = nn.Sequential(OrderedDict(model=classifier.model, readout=readout.eval()))
    model.training = False  # not .eval(): an exported program refuses it, and the classifier has been checked
    mean, std = (None if values is None else values.flatten().tolist() for values in (classifier.mean, classifier.std))
    made = Classifier(
        model,
        mean=mean,
        std=std,
        preprocess=classifier.preprocess,
        classes=classes,
        name=classifier.name,
        data=classifier.data,
        differentiable=classifier.differentiable,
    )
    made.recipe, made.trained_on, made.learnt_from = classifier.recipe, classifier.trained_on, classifier.learnt_from
    return made.to(classifier.device)
