"""What `evaluate` is called with, made into models and images, or refused."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from . import private
from .bpda import declaring
from .classifier import Classifier, Preprocess
from .data import load_data
from .errors import UsageError
from .labelled import LabelledImages, from_arrays, from_loader
from .models import load_model
from .results import Goal
from .stored import read_config

Precision = Literal["fp32", "bf16", "tf32"]


def classifier_of(model: str | nn.Module) -> Classifier:
    return load_model(model) if isinstance(model, str) else model if isinstance(model, Classifier) else Classifier(model)


def surrogates_of(models: Sequence[str | nn.Module], classifier: Classifier, query_budget: int | None) -> list[Classifier]:
    """The surrogates, each under a name of its own.

    Raises:
        UsageError: one is the model that is attacked, two have one name, or the model is also to be queried.
    """
    made = [classifier_of(model) for model in models]
    if made and query_budget is not None:
        raise UsageError("a transfer attack asks the model once: leave --query-budget out")
    names = [classifier.name]
    for surrogate in made:
        if surrogate.digest == classifier.digest:
            raise UsageError(f"the surrogate {surrogate.name} is the model itself: leave it out for an attack on the model")
        if surrogate.name in names:
            raise UsageError(
                f"two of the models are called {surrogate.name}: name each surrogate once (Classifier(..., name=...) in Python)"
            )
        names.append(surrogate.name)
    return made


def hidden_in(classifier: Classifier, surrogates: Sequence[Classifier]) -> str:
    """The layers whose gradients are taken as they are, where stand-ins are not to be used.

    Raises:
        UsageError: there is none, or gradients are of surrogates.
    """
    if surrogates:
        raise UsageError("a transfer attack follows the gradients of surrogates: leave --surrogate or --no-stand-ins out")
    layers = declaring(classifier)
    if not layers:
        raise UsageError(f"no layer of {classifier.name} declares a stand-in for its gradient: leave --no-stand-ins out")
    return ", ".join(layers)


def wide_images(source: Any, preprocess: Preprocess, limit: int | None, seed: int) -> LabelledImages | None:
    """The images before the centre crop; None where they are not cropped, or nothing more is known of them."""
    if not isinstance(source, str) or preprocess.resize is None:
        return None
    return images_of(source, replace(preprocess, size=None), limit, seed)


def images_of(source: Any, preprocess: Preprocess, limit: int | None, seed: int) -> LabelledImages:
    if isinstance(source, str):
        return load_data(source, limit=limit, seed=seed, preprocess=preprocess)
    if isinstance(source, LabelledImages):
        images = source
    elif isinstance(source, tuple) and len(source) == 2:
        images = from_arrays(*source)
    else:
        images = from_loader(source)
    return images if limit is None else images.subset(limit, seed)


def check_numbers(**least: tuple[object, int]) -> None:
    for name, (value, smallest) in least.items():
        if isinstance(value, int) and value < smallest:
            raise UsageError(f"{name.replace('_', ' ')} must be {smallest} or more, got {value}")


def check_words(goal: object, precision: object, batch_size: object, witnesses: object, on_bad_image: object) -> None:
    for name, value, words in (
        ("goal", goal, (*get_args(Goal), None)),
        ("precision", precision, get_args(Precision)),
        ("batch size", batch_size, ("auto", "tune")),
        ("number of witnesses", witnesses, ("all", "none")),
        ("way with bad images", on_bad_image, ("fail", "quarantine")),
    ):
        if not isinstance(value, int) and value not in words:
            raise UsageError(f"the {name} must be {' or '.join(filter(None, words))}, got {value!r}")


def make_folder(folder: Path) -> None:
    """Have the folder before anything is computed for it.

    Raises:
        UsageError: it cannot be made or written to.
    """
    try:
        private.folder(folder)
    except OSError as error:
        raise UsageError(f"{folder} cannot be the run's folder ({error.strerror}): choose another --out") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{folder} cannot be written to: choose another --out")


def digest_as_begun(images: LabelledImages, folder: Path | None) -> str:
    """The images' digest, where those that an earlier session of the run in this folder could not read count as they were then: who mends
    a file is not to start over.

    Raises:
        UsageError: the folder holds a run whose record cannot be read.
    """
    if folder is None or not (folder / "run.json").exists():
        return images.digest
    sessions = read_config(folder)["sessions"]
    # the first to say so wins: what broke while a run was under way had its first size when the run began
    return images.digest_with({key: size for session in reversed(sessions) for key, size in session.get("unreadable", {}).items()})


def versions_here() -> dict[str, str]:
    names = ("robustbench-lite", "torch", "torchvision", "numpy", "foolbox", "timm")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
