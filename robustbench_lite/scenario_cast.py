"""Who takes part in a scenario: the model that is attacked, what its attacker has, and the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from .backbones import with_head
from .checks import taken
from .classifier import Classifier
from .data import default_for
from .engines import local
from .errors import UsageError
from .goals import towards
from .labelled import LabelledImages, label_tensor
from .registry import DATA, MODELS, Spec, parameters
from .requested import classifier_of, images_of, surrogates_of
from .scenarios import Scenario

PHANTOM = "phantom"
PHANTOM_LIMIT = 100
"""Images of a scenario on phantoms unless another number is asked for: they show how it works, within minutes."""

GIVE = {
    "same architecture": "an independently trained model of the same architecture: give one with --surrogate",
    "other architecture": "an independently trained model of another architecture: give one with --surrogate",
    "public backbone": "a public pre-trained network: give one with --backbone",
}


@dataclass(frozen=True)
class Cast:
    """Who takes part.

    Args:
        surrogates: what the attacker has, by kind of knowledge. missing: what is to be given so that he has more.
        source, learn_from: specs of the images that are judged on and of those that attackers learn from, or these images themselves;
            `limit` is of the former.
        notes: what a reader must know of who was chosen.
    """

    model: Classifier
    surrogates: Mapping[str, Classifier]
    missing: Mapping[str, str]
    images: LabelledImages
    source: Any
    learn_from: Any
    limit: int | None
    notes: Sequence[str]

    def check(self, name: str, scenario: Scenario) -> None:
        """Raise UsageError where the labels do not fit the model, or the scenario's goal has no meaning for them."""
        outputs, classes = answer(self.model, self.images).shape[1], self.images.classes
        findings = label_tensor(self.images.labels).dim() == 2
        if classes is not None and classes != (outputs if findings else max(2, outputs)):
            has = f"{self.model.name} has {outputs} outputs and {self.images.name} {classes} {'findings' if findings else 'classes'}"
            raise UsageError(f"{has}: clinical figures need a model that was made for these labels")
        reason = without_meaning(scenario, self.images, outputs)
        if reason is not None:
            raise UsageError(f"{name} does not fit {self.images.name}: {reason}")


def cast(
    scenario: Scenario,
    model: str | nn.Module | None,
    data: Any,
    *,
    surrogates: Sequence[str | nn.Module] = (),
    backbone: str | nn.Module | None = None,
    fit_data: Any = None,
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Cast:
    """Who plays which part; arguments as of `run_scenario`.

    Raises:
        UsageError: a model or images that are missing or cannot be used, a surrogate that is the model itself.
    """
    if data is None and model is None:
        if scenario.data is None:
            raise UsageError("say what is attacked, with --model and --data: this scenario names no phantoms to try it on")
        data = scenario.data
    attacked = model_of(model, data)
    source = default_for(attacked) if data is None else data
    bundled = _bundled(source)
    if not surrogates and bundled and model in (None, bundled[0]):
        surrogates = bundled[1:]
    limit = PHANTOM_LIMIT if limit is None and _phantom(source) else limit
    images = images_of(source, attacked.preprocess, limit, seed)
    playing, notes = _roles(attacked, surrogates_of(surrogates, attacked, None))
    learn_from = _learn_from(source) if fit_data is None else fit_data
    missing = dict(GIVE)
    if backbone is not None and learn_from is None:
        missing["public backbone"] = "images that the attacker fits the backbone's last layer to: give them with --fit-data"
    elif backbone is not None and any(row.knowledge == "public backbone" for row in scenario.rows):
        lesson = images_of(learn_from, attacked.preprocess, None, seed)
        outputs = answer(attacked, images).shape[1]
        playing["public backbone"] = with_head(classifier_of(backbone), lesson, outputs, local.pick_device(device))
    missing = {role: text for role, text in missing.items() if role not in playing}
    return Cast(attacked, playing, missing, images, source, learn_from, limit, notes)


def model_of(model: str | nn.Module | None, data: Any) -> Classifier:
    """The model that is attacked; on phantoms that which was made for them, unless another is given.

    Raises:
        UsageError: none is given, and the data bring none.
    """
    if model is None and not _bundled(data):
        known = [name for name in MODELS.names() if f"{name}_twin" in MODELS.names() and name.startswith(PHANTOM)]
        bring = ", ".join(name.replace("_", ":", 1) for name in known)
        raise UsageError(f"say which model is attacked, with --model: only {bring} bring one")
    return classifier_of(_bundled(data)[0] if model is None else model)


def structure(model: nn.Module) -> list[tuple[str, list[tuple[int, ...]]]]:
    """Its layers, as (type, shapes of what was learnt), in order; what learns nothing is no part of it."""
    layers = [(type(layer).__name__, [tuple(each.shape) for each in layer.parameters(recurse=False)]) for layer in model.modules()]
    return [(name, shapes) for name, shapes in layers if shapes]


def without_meaning(scenario: Scenario, images: LabelledImages, outputs: int) -> str | None:
    """Why the scenario's goal has no meaning for these labels; None where it has one."""
    if scenario.goal is None:
        return None
    try:
        gains = towards(scenario.goal, label_tensor(images.labels), outputs)[1]
    except UsageError as error:
        return str(error)
    return None if gains.any() else f"none of the {len(images)} images offers the attacker anything"


def answer(model: Classifier, images: LabelledImages) -> torch.Tensor:
    """(1, K) what the model says of the first image; ModelError where it does not take it."""
    return taken(model, images[0][0][None].to(model.device))


def _roles(model: Classifier, others: Sequence[Classifier]) -> tuple[dict[str, Classifier], list[str]]:
    """The first of the surrogates that are built like the model, and of those that are not; and a note of those left over."""
    playing: dict[str, Classifier] = {}
    notes = []
    for other in others:
        role = "same architecture" if structure(other) == structure(model) else "other architecture"
        if role in playing:
            notes.append(f"{playing[role].name} and {other.name} are both of the {role}: {other.name} is not used")
        playing.setdefault(role, other)
    return playing, notes


def _phantom(data: Any) -> bool:
    return isinstance(data, str) and Spec.parse(data).name == PHANTOM


def _bundled(data: Any) -> list[str]:
    """The registered models for phantoms of a kind, that which is attacked first; none for other data."""
    if not _phantom(data):
        return []
    spec = Spec.parse(data)
    kind = f"{PHANTOM}_{spec.first or spec.options.get('kind', '')}".replace("-", "_")
    names = [name for name in (kind, f"{kind}_twin", f"{kind}_other") if name in MODELS.names()]
    return names if kind in names else []


def _learn_from(source: Any) -> str | None:
    """The validation split, or else the training split, of data that have splits, where it is not what is judged on."""
    if not isinstance(source, str):
        return None
    spec = Spec.parse(source)
    known = parameters(DATA.get(spec.name))
    if "split" not in known:
        return None
    judged = spec.options.get("split", known["split"].default)
    free = [each for each in ("val", "train") if each in get_args(known["split"].annotation) and each != judged]
    if not free:
        return None
    kept = [f"{key}={value}" for key, value in spec.options.items() if key not in ("split", "n")]
    return f"{spec.name}:{','.join([*([spec.first] if spec.first else []), *kept, f'split={free[0]}'])}"
