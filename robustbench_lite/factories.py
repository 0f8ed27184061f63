"""A model that the user's own Python code builds: `path/to/file.py:build` or `package.module:build`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from .allowing import ask
from .classifier import Classifier, Preprocess
from .errors import ModelError, RobustEvalError, did_you_mean


def build_model(spec: str, num_classes: int | None = None) -> Classifier:
    """What the function that `spec` names returns: a `Classifier`, or a module that takes [0, 1] images as they are.

    The folder of the file (or the current one, for a module) can be imported from while the function is imported and called.

    Args:
        num_classes: passed on to a function with a parameter of that name; otherwise only noted.

    Raises:
        UsageError: code may not run, as `allowing` has it.
        ModelError: nothing to import, an exception in the user's code, no module returned, or one in training mode.
    """
    ask(spec)
    place, _, name = spec.rpartition(":")
    folder = Path(place).expanduser().resolve().parent if place.endswith(".py") else Path.cwd()
    with _importable(folder):
        build = _function(_module(place, spec), name, spec)
        takes_classes = num_classes is not None and "num_classes" in inspect.signature(build).parameters
        try:
            built = build(num_classes=num_classes) if takes_classes else build()
        except RobustEvalError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(f"{spec} failed: {_told(error)}") from error
    if isinstance(built, Classifier):
        return built
    if not isinstance(built, nn.Module):
        raise ModelError(f"{spec} must return a torch.nn.Module or a Classifier, got {type(built).__name__}")
    preprocess = Preprocess(size=None, resize=None, channels=_channels(built))
    return Classifier(built, name=f"{Path(place).name}:{name}", classes=num_classes, preprocess=preprocess)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    entry = os.fspath(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def _module(place: str, spec: str) -> ModuleType:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except (Exception, SystemExit) as error:
            raise ModelError(f"cannot import {place!r} for the model {spec!r}: {_told(error)}") from error
    file = Path(place).expanduser().resolve()
    if not file.is_file():
        raise ModelError(f"there is no file {place} for the model {spec!r}")
    name = f"robust_eval_model_{hashlib.sha256(os.fsencode(file)).hexdigest()[:12]}"
    described = importlib.util.spec_from_file_location(name, file)
    assert described is not None  # it ends in .py
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    sys.modules[name] = module  # dataclasses and pickle look their module up here
    try:
        described.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ModelError(f"cannot import {place} for the model {spec!r}: {_told(error)}") from error
    return module


def _function(module: ModuleType, name: str, spec: str) -> Callable[..., Any]:
    build = getattr(module, name, None)
    if not callable(build):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ModelError(f"{spec} names no function{did_you_mean(name, known)}")
    return build  # type: ignore[no-any-return]  # callable() does not narrow Any


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _channels(model: nn.Module) -> int:
    """Channels of the pictures a module takes: grey where its first convolution takes one, else colour."""
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    return 1 if first is not None and first.in_channels == 1 else 3
