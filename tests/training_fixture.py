"""What the tests of training share: a linear network, a few digits, and one short training of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from robustbench_lite.defenses.recipe import Recipe, Tricks
from robustbench_lite.defenses.training import Training
from robustbench_lite.defenses.world import World
from safetensors import safe_open
from torch import nn

from robustbench_lite.data import load_data
from robustbench_lite.labelled import LabelledImages
from robustbench_lite.registry import ARCHITECTURES, architecture
from robustbench_lite.trained import Made

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


def digits(limit: int = 96) -> LabelledImages:
    return load_data("digits:train", limit=limit)


def made(architecture: str = "small_cnn", defense: str = "none", **changed: Any) -> Made:
    facts: dict[str, Any] = {"augment": "none", "classes": 10, "channels": 3, "size": 32, "resize": None, "interpolation": "bilinear"}
    return Made(architecture, defense, **(facts | {"mean": (0.3,) * 3, "std": (0.3,) * 3, "data": "digits"} | changed))


def recipe(**changed: Any) -> Recipe:
    """Two epochs in steps of 32 images, without augmentation; what is no setting of a recipe is a trick."""
    usual: dict[str, Any] = {"epochs": 2, "batch_size": 32, "lr": 0.05, "augment": "none"}
    given = usual | changed
    tricks = {name: given.pop(name) for name in Tricks.__dataclass_fields__ if name in given}
    return Recipe(**given, tricks=Tricks(**tricks))


def training(data: LabelledImages | None = None, *, what: Made | None = None, world: World = ALONE, **given: Any) -> Training:
    """`given` are settings of the recipe, and arguments of Training."""
    ours = {name: given.pop(name) for name in ("init", "selection", "state_file", "report") if name in given}
    return Training(what or made(), data or digits(), recipe(**given), world, **ours)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == name2 and torch.equal(value, value2) for (name, value), (name2, value2) in pairs)


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        found: dict[str, str] = opened.metadata()
    return found


def register_forgetful() -> None:
    """Register `forgetful`, a network with batch statistics and dropout: a resumed training must get all of its state back."""
    ARCHITECTURES.names()

    @architecture("forgetful")
    def build(classes: int, channels: int = 3) -> nn.Module:
        convolution = [nn.Conv2d(channels, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU()]
        return nn.Sequential(*convolution, nn.Flatten(), nn.Dropout(0.3), nn.Linear(8 * 7 * 7, classes))
