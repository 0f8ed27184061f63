"""Models of torchvision and timm, with their published weights and their own preprocessing."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from . import private
from .checkpoints import load_into, read_state_dict
from .classifier import Classifier, Preprocess
from .errors import ModelError, UnknownName

OFFLINE = "or use efficientnet_lite0, which needs no network"


def torchvision_names() -> list[str]:
    """Every image classifier of torchvision."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def timm_names() -> list[str]:
    """Every model of timm that has published weights."""
    import timm

    return list(timm.list_models(pretrained=True))


def untrained(name: str, classes: int, channels: int) -> nn.Module:
    """A network of torchvision, or of timm as `timm:NAME`, with weights freshly drawn from torch's global generator; in eval mode.

    Raises:
        UnknownName: there is no such network.
        ModelError: it cannot be built with so many classes or channels.
    """
    import timm
    import torchvision

    from .registry import ARCHITECTURES

    is_timm = name.startswith("timm:")
    if not is_timm and name not in torchvision_names():
        raise UnknownName("architecture", name, [*ARCHITECTURES.names(), *torchvision_names()], "timm's are timm:NAME")
    if is_timm and not timm.is_model(name.removeprefix("timm:")):
        raise UnknownName("architecture", name, [f"timm:{each}" for each in timm.list_models()])
    if not is_timm and channels != 3:
        raise ModelError(f"torchvision's {name} takes colour images, and these have {channels} channel: take a timm:NAME")
    try:
        if is_timm:
            made: nn.Module = timm.create_model(name.removeprefix("timm:"), pretrained=False, num_classes=classes, in_chans=channels)
        else:
            auxiliary = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
            made = torchvision.models.get_model_builder(name)(weights=None, num_classes=classes, **auxiliary)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ModelError(f"{name} cannot be built with {classes} classes and {channels} channels: {error}") from error
    return made.eval()


def torchvision_model(name: str, weights: str | Path | None, num_classes: int | None, allow_pickle: bool) -> Classifier:
    """A torchvision classifier with its newest official weights, or with those of a file; prepared as the official weights ask for.

    The weights are part of the classifier's name: `resnet50[IMAGENET1K_V2]`, `resnet50[mine.pth]`.

    Raises:
        ModelError: the weights cannot be fetched, or do not fit.
    """
    import torchvision

    official = torchvision.models.get_model_weights(name).DEFAULT
    published = len(official.meta["categories"])
    classes = num_classes or published
    _refuse_random_head(name, weights, classes, published)
    file = Path(weights) if weights is not None else _fetched(name, official.url)
    tensors = _as_torchvision_names(name, read_state_dict(file, allow_pickle=allow_pickle))
    build = torchvision.models.get_model_builder(name)
    model = _built(lambda: build(weights=None, num_classes=classes, **_structure(name, official)))
    load_into(model, tensors, file, name, classes)
    asked = official.transforms()
    preprocess = Preprocess(
        size=(asked.crop_size[0], asked.crop_size[0]), resize=asked.resize_size[0], interpolation=asked.interpolation.value
    )
    described = f"{name}[{official.name if weights is None else Path(weights).name}]"
    classifier = Classifier(model, mean=asked.mean, std=asked.std, preprocess=preprocess, classes=classes, name=described)
    if weights is None:
        classifier.stated = official.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100, "imagenet"
    return classifier


def _structure(name: str, official: Any) -> dict[str, Any]:
    """What torchvision's builders change silently when they are given official weights: these fit, and answer rightly, only then."""
    if name in ("googlenet", "inception_v3"):
        # the auxiliary heads do nothing outside training; transform_input undoes ImageNet's normalisation for Inception's own
        return {"transform_input": True, "aux_logits": False, "init_weights": False}
    if name.startswith("vit_"):
        return {"image_size": official.meta["min_size"][0]}
    return {}


def _as_torchvision_names(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if name.startswith("densenet"):  # the official files are older than the model and call norm1 norm.1
        return {re.sub(r"\.(norm|relu|conv)\.([12])\.", r".\1\2.", key): value for key, value in tensors.items()}
    if name in ("googlenet", "inception_v3"):
        return {key: value for key, value in tensors.items() if not re.match(r"(module\.)?(aux1|aux2|AuxLogits)\.", key)}
    return tensors


def _fetched(name: str, url: str) -> Path:
    """Where the official weights lie in torch's cache, downloaded if they were not there."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if file.exists():
        return file
    expected = re.search(r"-([a-f0-9]{8,})\.", file.name)
    try:
        private.folder(file.parent)
        torch.hub.download_url_to_file(url, str(file), expected[1] if expected else None, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, HTTPException) as error:  # no network, no such file, no room, or a hash that does not fit
        raise ModelError(
            f"the weights of {name} could not be fetched from {url} ({error}): put that file at {file}, pass --weights FILE, {OFFLINE}"
        ) from error
    return file


def timm_model(name: str, weights: str | Path | None, num_classes: int | None, allow_pickle: bool) -> Classifier:
    """A timm classifier with its published weights, or with those of a file; prepared as its published weights ask for.

    Raises:
        UnknownName: timm has no such model.
        ModelError: the weights cannot be fetched, or do not fit, or pictures must be prepared in a way that is not supported.
    """
    import timm
    from timm.data.config import resolve_model_data_config

    published = _timm_config(name)
    if weights is None:
        _refuse_random_head(f"timm:{name}", weights, num_classes or published.num_classes, published.num_classes)
        model = _published_timm(name, published)
    else:
        head: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        model = _built(lambda: timm.create_model(name, pretrained=False, **head))
        load_into(model, read_state_dict(weights, allow_pickle=allow_pickle), weights, f"timm:{name}", model.num_classes)
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]  # timm leaves it untyped
    described = f"timm:{name}" if weights is None else f"timm:{name}[{Path(weights).name}]"
    preprocess = _timm_preprocess(name, config)
    return Classifier(model, mean=config["mean"], std=config["std"], preprocess=preprocess, classes=model.num_classes, name=described)


def _timm_config(name: str) -> Any:
    import timm

    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:  # no such model, or no such tag of it
        known = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True) or timm.list_models()
        raise UnknownName("model", f"timm:{name}", [f"timm:{each}" for each in known], "see `robust-eval list models`") from error


def _published_timm(name: str, published: Any) -> Any:
    import timm

    advice = f"pass --weights FILE, {OFFLINE}"
    if not published.has_weights:
        raise ModelError(f"timm publishes no weights for {name}: {advice}")
    reason = _unreachable_hub(published)
    if reason is not None:
        raise ModelError(f"the weights of timm:{name} could not be fetched from huggingface.co/{published.hf_hub_id} ({reason}): {advice}")
    try:
        return _built(lambda: timm.create_model(name, pretrained=True))
    except Exception as error:  # the hub's client raises the errors of several packages
        raise ModelError(f"the weights of timm:{name} could not be fetched ({' '.join(str(error).split())}): {advice}") from error


def _unreachable_hub(published: Any) -> str | None:
    """Why weights that lie on the Hugging Face hub cannot be had. Asked first, because its client tries again for 48 seconds."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    from huggingface_hub import constants, try_to_load_from_cache

    if not published.hf_hub_id:
        return None
    if any(isinstance(try_to_load_from_cache(published.hf_hub_id, file), str) for file in ("model.safetensors", "pytorch_model.bin")):
        return None
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=20).close()
    except HTTPError:
        return None  # it answered
    except OSError as error:
        return str(error)
    return None


def _timm_preprocess(name: str, config: dict[str, Any]) -> Preprocess:
    channels, height, width = config["input_size"]
    squashed = config["crop_mode"] == "squash" and config["crop_pct"] == 1
    if height != width or (config["crop_mode"] != "center" and not squashed):
        raise ModelError(f"timm:{name} wants pictures prepared with crop_mode={config['crop_mode']}, which is not supported")
    resize = None if squashed else math.floor(height / config["crop_pct"])
    return Preprocess(size=(height, width), resize=resize, interpolation=config["interpolation"], channels=channels)


def _refuse_random_head(name: str, weights: str | Path | None, classes: int, published: int) -> None:
    if weights is None and classes != published:
        raise ModelError(f"{name}'s published weights have {published} classes: --num-classes {classes} needs --weights FILE")


def _built(build: Callable[[], Any]) -> Any:
    """What `build` returns, in eval mode; the random weights that it starts from leave the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = build()
    return model.eval()
