"""What is checked before a number is believed: the images, and that the model fits them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .classifier import Classifier, Images, Logits
from .engines.local import on_fewer, out_of_memory
from .errors import DataError, InvalidEvaluation, ModelError, RobustEvalError, UsageError, first_line
from .oracle import WhiteBox
from .plan import Attack

ASKED_AGAIN = 4
"""How often a model is asked about the first images again, to see whether it is randomised."""

SAME, WITHIN = 1e-4, 1e-5
"""Of the spread of an image's logits, and of the largest of them: what two answers of one model may differ by. Sums in another order differ
by less, and a model whose logits are tiny, or far from 0, must not hide its noise."""


def checked(image: Tensor, sample_id: str) -> Tensor:
    """The image, if it is one: (C, H, W), finite, in [0, 1].

    Raises:
        DataError: it is not.
    """
    if image.dim() != 3:
        raise DataError(f"image {sample_id} has shape {tuple(image.shape)}: (channels, height, width) is needed")
    low, high = float(image.amin()), float(image.amax())  # NaN comes through both
    if not (low >= 0 and high <= 1):
        if low != low or high != high:
            raise DataError(f"image {sample_id} holds NaN")
        raise DataError(f"image {sample_id} has values in [{low:g}, {high:g}]: images must be in [0, 1], normalising is the model's part")
    return image.float()


def size_text(image: Tensor) -> str:
    """`3x32x32`"""
    return "x".join(map(str, image.shape))


def taken(classifier: Classifier, probe: Images) -> Logits:
    """The model's logits on a few images, once it has been seen to take them.

    Raises:
        ModelError: it does not, or its answer is none.
    """
    shape = size_text(probe[0])
    inside = (module for module in classifier.modules() if isinstance(module, Classifier))  # a defense may stand before another
    for values in (each for module in inside for each in (module.mean, module.std)):  # which broadcasting would make three channels of one
        if values is not None and len(values) > 1 and len(values) != probe.shape[1]:
            raise ModelError(f"{classifier.name} does not take {shape} images: it is normalised for {len(values)} channels")
    try:
        with torch.no_grad():
            logits: Any = classifier(probe)
    except RobustEvalError:
        raise
    except Exception as error:  # whatever the model's own code raises
        if out_of_memory(error):
            raise
        raise ModelError(f"{classifier.name} does not take {shape} images: {first_line(error)}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(probe):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"{classifier.name} returns {got} for {len(probe)} images: logits ({len(probe)}, classes) are needed")
    return logits


def first_answer(classifier: Classifier, probe: Images, labels: Tensor) -> tuple[Logits, bool]:
    """The model's logits on a few images, once it has been seen to take them and to answer with a class for every label; and whether it
    is randomised, that is, answers otherwise when it is asked again.

    Raises:
        ModelError: it does not.
        InvalidEvaluation: all its answers are NaN.
    """
    # a frozen TorchScript module has no such flag
    modules = classifier.named_modules()
    training = next((name or type(module).__name__ for name, module in modules if getattr(module, "training", False)), None)
    if training is not None:
        raise ModelError(f"{training} of {classifier.name} is in training mode: call .eval() on the model first")
    logits = taken(classifier, probe)
    outputs = logits.shape[1]
    of_classes = not labels.is_floating_point()  # one or several right ones an image, and not one 0/1 a class
    if outputs == 1 and (labels.dim() != 1 or int(labels.max()) > 1):
        raise ModelError(f"{classifier.name} has one output, which can only tell the classes 0 and 1 apart: give it one logit per class")
    if not of_classes and labels.shape[1] != outputs:
        raise ModelError(f"{classifier.name} has {outputs} outputs, the data {labels.shape[1]} labels an image")
    if of_classes and int(labels.max()) >= max(2, outputs):
        label = int(labels.max())
        raise ModelError(f"{classifier.name} has {outputs} outputs, but the data has the label {label}: is it the model for these data?")
    if not logits.isfinite().any():
        raise InvalidEvaluation(f"{classifier.name} answers NaN to every image of the first batch: check its weights and its normalisation")
    with torch.no_grad():
        again = [classifier(probe) for _ in range(ASKED_AGAIN)]
    return logits, not all(_alike(logits, other) for other in again)


def first_answers(classifier: Classifier, others: Iterable[Classifier], probe: Images, labels: Tensor) -> tuple[Logits, bool]:
    """The same, once surrogates have been seen to answer in the same classes, and alike when they are asked again.

    Raises:
        ModelError: as above.
        UsageError: a surrogate does not.
        InvalidEvaluation: as above.
    """
    logits, random = first_answer(classifier, probe, labels)
    for surrogate in others:
        answers, wavers = first_answer(surrogate, probe, labels)
        if answers.shape != logits.shape:
            counts = f"{answers.shape[1]} classes and {classifier.name} {logits.shape[1]}"
            raise UsageError(f"the surrogate {surrogate.name} has {counts}: a surrogate must answer in the same classes")
        if wavers:
            raise UsageError(f"the surrogate {surrogate.name} answers the same images differently each time: use one that does not")
    return logits, random


def _alike(logits: Logits, others: Logits) -> bool:
    """Whether two answers differ by rounding only, whatever the scale of the logits and a constant that is added to them all."""
    finite = logits.isfinite()
    size = logits.abs().where(finite, 0).amax(1)
    spread = logits.where(finite, -torch.inf).amax(1) - logits.where(finite, torch.inf).amin(1) if logits.shape[1] > 1 else size
    close = (logits - others).abs() <= (SAME * spread + WITHIN * size)[:, None]
    return bool((close | (logits == others) | (logits.isnan() & others.isnan())).all())


def need_gradients(classifier: Classifier, probe: Images, attacks: Sequence[tuple[str, Iterable[Attack]]]) -> None:
    """Refuse white-box attacks on a model that cannot be differentiated, before they call the model robust.

    Gradients that are there and are zero are a finding about the rows that rest on them.

    Args:
        attacks: names, and the attacks that each consists of.

    Raises:
        ModelError: an attack needs gradients and the model has none.
    """
    white = [name for name, parts in attacks if any(map(_white, parts))]
    if not white:
        return

    def back(images: Images) -> bool:
        x = images.detach().requires_grad_()
        with torch.enable_grad():
            logits = classifier(x)
            leads_here: bool = classifier.differentiable and logits.requires_grad
            if leads_here:
                torch.autograd.grad(logits.amax(1).sum(), x)
        return leads_here

    reason = ""
    try:
        connected = on_fewer(back, probe)
    except (RuntimeError, NotImplementedError) as error:  # an operation without a backward, a graph that does not lead to the image
        connected, reason = False, f" ({first_line(error)})"
    if not connected:
        raise ModelError(
            f"{white[0]} needs gradients, and {classifier.name} has none{reason}: use a black-box attack (robust-eval list attacks)"
        )


def has_gradients(classifier: Classifier, probe: Images, parts: Mapping[str, Attack]) -> bool:
    """Whether a model has the gradients that the parts of an attack need."""
    try:
        need_gradients(classifier, probe, [("", parts.values())])
    except ModelError:
        return False
    return True


def _white(attack: Attack) -> bool:
    return issubclass(attack.access, WhiteBox)


@contextmanager
def moved(model: Classifier, device: torch.device) -> Iterator[Classifier]:
    """The model on a device for as long as this lasts, then where it was: it may be the caller's."""
    home = model.device
    try:
        yield model.to(device)
    finally:
        model.to(home)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Parameters without gradients for as long as this lasts, then as they were."""
    changed = [p for p in model.parameters() if p.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)
