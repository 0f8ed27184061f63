"""What a person asks `robust-train` for; it becomes the command's options and the record in the checkpoint."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from robustbench_lite.registry import Spec

from .recipe import RECIPES, Optimizer, Recipe, Tricks


@dataclass(frozen=True)
class Request:
    """Everything that decides what comes out.

    Args:
        out: the .safetensors file to write; one that exists is kept unless --force is given. Beside it: .training.csv, .training.png.
        data: digits, cifar10:FOLDER, cifar100:FOLDER, medmnist:FILE, or imagefolder:FOLDER with the folders train and val in it.
        model: the architecture: robust-eval list architectures, a torchvision name, or timm:NAME.
        defense: what it is trained with, such as pgd-at:eps=8/255 or augmix+trades:beta=6; robust-eval list defenses.
        optimizer: sgd or adamw. This and the next five are by default what the data are usually trained with.
        epochs: passes over the training images.
        batch_size: images in a step, over all processes.
        lr: highest learning rate.
        weight_decay: of sgd, added to the gradient; of adamw, decoupled.
        label_smoothing: share of the target that is spread over the other classes.
        seed: of the first weights, the order of the images and every other draw.
        tricks: more about how.
        init: a checkpoint of robust-train with the weights to start from, instead of random ones.
        size: height and width that pictures are cropped to.
        validation: share of the training images that is held out, to keep the epoch that is best on them.
        validation_attack: what they are attacked with, or none. Default: pgd:steps=10 where the defense is adversarial, else none.
        validation_eps: its radius. Default: the usual one of the data.
        validation_norm: its norm.
    """

    out: Path
    data: str = "digits"
    model: str = "digits_cnn"
    defense: str = "none"
    optimizer: Optimizer | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    label_smoothing: float | None = None
    seed: int = 0
    tricks: Annotated[Tricks, Parameter(name="*")] = field(default_factory=Tricks)
    init: Path | None = None
    size: int | None = None
    validation: float = 0.0
    validation_attack: str | None = None
    validation_eps: str | None = None
    validation_norm: Literal["linf", "l2"] = "linf"

    @property
    def recipe(self) -> Recipe:
        """The usual one of the data, with what was asked for in its place.

        Raises:
            UsageError: a number outside its range.
        """
        usual = RECIPES.get(Spec.parse(self.data).name, Recipe())
        names = ("optimizer", "epochs", "batch_size", "lr", "weight_decay", "label_smoothing")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(usual, seed=self.seed, tricks=self.tricks, **given)

    @property
    def command(self) -> str:
        """The command with the whole recipe spelled out, so that it holds when a default changes; of the tricks, the unusual ones."""
        recipe, words = self.recipe, ["robust-train"]
        spelled = {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name != "tricks"}
        changed = {f.name: getattr(self.tricks, f.name) for f in fields(self.tricks) if getattr(self.tricks, f.name) != f.default}
        names = ("init", "size", "validation", "validation_attack", "validation_eps", "validation_norm")
        rest = {name: getattr(self, name) for name in (names if self.validation else names[:2])}
        settings = {"data": self.data, "model": self.model, "defense": self.defense} | spelled | changed | rest | {"out": self.out}
        for name, value in settings.items():
            if value is not None and value is not False:
                flag = f"--{name.replace('_', '-')}"
                values = value if isinstance(value, tuple) else (value,)
                words += [flag] if value is True else [word for each in values for word in (flag, str(each))]
        return shlex.join(words)
