"""Networks that `robust-train` made: what a checkpoint says about itself, and the classifier that it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import nn

from .allowing import named_in
from .checkpoints import load_into, read_state_dict
from .classifier import Classifier, Interpolation, Preprocess
from .defending import Defenses
from .errors import ModelError, RobustEvalError
from .registry import ARCHITECTURES

FRAMED = {
    "none": (),
    "flip": ("flip",),
    "crop-flip": ("crop", "flip"),
    "turn-shift": ("rotate", "translate"),
    "resized-crop-flip": ("crop", "flip"),
}
"""What training images usually go through, in the words of `overlap`."""


Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Made:
    """What a network is, but for its weights; the metadata of a checkpoint.

    Args:
        architecture: its registered name, a torchvision name, or `timm:NAME`.
        defense: spec of what it was trained with.
        augment: what was done to its training images before that, a name of `FRAMED`.
        classes, channels: K, and the channels of an image.
        size: height and width of an image.
        resize: shorter side of a picture before the centre crop; None resizes to `size`.
        interpolation: of that resize.
        mean, std: normalisation per channel.
        data: spec of the data that it was trained on.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    architecture: str
    defense: str
    augment: str
    classes: Annotated[int, Field(ge=1, le=10**6)]
    channels: Annotated[int, Field(ge=1, le=1000)]
    size: Annotated[int, Field(ge=1, le=2**16)]
    resize: Annotated[int, Field(ge=1, le=2**16)] | None
    interpolation: Interpolation
    mean: Annotated[tuple[Finite, ...], Field(min_length=1)]
    std: Annotated[tuple[Annotated[Finite, Field(gt=0)], ...], Field(min_length=1)]
    data: str

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(size=(self.size, self.size), resize=self.resize, interpolation=self.interpolation, channels=self.channels)

    @property
    def learnt_from(self) -> str:
        """Spec of the training images among `data`."""
        if self.data.startswith("imagefolder:"):
            return f"{self.data}/train"
        return f"{self.data}{',' if ':' in self.data else ':'}split=train"

    def untrained(self) -> Classifier:
        """The classifier with freshly drawn weights, in eval mode; they are drawn from torch's global generator.

        Raises:
            UnknownName, BadSpec: no such architecture or defense.
            ModelError: the architecture cannot be built for these images.
        """
        defenses = Defenses.parse(self.defense)
        classifier = Classifier(
            defenses.rebuild(network(self.architecture, self.classes, self.channels)).eval(),
            mean=self.mean,
            std=self.std,
            preprocess=self.preprocess,
            classes=self.classes,
            name=self.architecture if not defenses.parts else f"{self.architecture}+{defenses.spec}",
            data=self.data,
        )
        classifier.trained_on = (*FRAMED.get(self.augment, ()), *defenses.trained_on)
        classifier.learnt_from = (self.learnt_from,)
        return classifier

    def written(self) -> dict[str, str]:
        """As the metadata of a .safetensors file."""
        return {"robust_train": json.dumps(asdict(self))}

    @classmethod
    def read(cls, metadata: Mapping[str, str], file: Path) -> Made:
        """What `written` wrote.

        Raises:
            ModelError: it was not written by `robust-train`, or by another version of it.
        """
        if "robust_train" not in metadata:
            raise ModelError(f"{file} does not say which network its weights are for: if you know, write --model resnet50 --weights {file}")
        try:
            return TypeAdapter(cls).validate_json(metadata["robust_train"])
        except ValidationError as error:
            first = error.errors()[0]
            why = ": ".join((".".join(map(str, first["loc"])), first["msg"]))
            raise ModelError(f"{file} was damaged, or written by another version of robust-train ({why}): train it again") from error


def network(architecture: str, classes: int, channels: int) -> nn.Module:
    """An untrained network in eval mode: a registered architecture, torchvision's, or timm's as `timm:NAME`.

    Raises:
        UnknownName: there is no such architecture.
        ModelError: it cannot be built with so many classes or channels.
    """
    from .zoos import untrained

    if architecture in ARCHITECTURES.names():
        made: nn.Module = ARCHITECTURES.get(architecture)(classes, channels)
        return made.eval()
    return untrained(architecture, classes, channels)


def load_trained(file: str | Path) -> Classifier:
    """The classifier that a checkpoint of `robust-train` holds.

    Raises:
        ModelError: no such file, damaged, or not written by `robust-train`.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(file).expanduser()
    if not path.is_file():
        raise ModelError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, "pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or no safetensors file: {error}") from error
    made = Made.read(metadata, path)
    try:
        with torch.random.fork_rng(devices=[]), named_in(path):
            classifier = made.untrained()
    except (RobustEvalError, RuntimeError, ValueError) as error:  # the last two: of a layer that cannot have such a shape
        raise ModelError(f"{path} cannot be built here: {error}") from error
    load_into(classifier.model, read_state_dict(path), path, made.architecture, made.classes)
    classifier.name = path.stem
    return classifier
