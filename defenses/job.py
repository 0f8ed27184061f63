"""One training from the request to the files that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path

import torch

from robustbench_lite.classifier import Classifier
from robustbench_lite.defending import Defenses
from robustbench_lite.errors import InvalidEvaluation, UsageError
from robustbench_lite.labelled import LabelledImages
from robustbench_lite.registry import ARCHITECTURES, number
from robustbench_lite.stats import wilson
from robustbench_lite.threat import ball
from robustbench_lite.trained import Made

from .adversary import attack_for_training
from .feed import stacked
from .framing import USUAL
from .log import draw_plot, write_csv
from .recipe import Recipe
from .request import Request
from .selection import Selection, held_out
from .splitting import Splits, splits
from .states import write_whole
from .training import Diverged, Epoch, Training
from .world import World

SMALL = 64
"""Images up to so many pixels take the CIFAR variant of an architecture that has one: `resnet18` is `cifar_resnet18` then."""

Report = Callable[[Sequence[Epoch], int], None]
"""Told all epochs so far, and how many there will be."""


def run_job(request: Request, world: World, report: Report, *, fresh: bool = False) -> str:
    """Train, test, and write the checkpoint, its table and its picture; returns what came of it in one line.

    Raises:
        UsageError: something that was asked for cannot be had; nothing was trained.
        InvalidEvaluation: the loss is no number, or a file cannot be written.
    """
    out, recipe = request.out, request.recipe
    found = splits(request.data, request.size)
    defenses = Defenses.parse(request.defense).trainable()
    if recipe.tricks.augment == "auto":
        recipe = replace(recipe, tricks=replace(recipe.tricks, augment=USUAL.get(found.kind, "none")))
    made = _made(request, found, defenses, recipe)
    train, selection = found.train, None
    if not request.validation and (request.validation_attack or request.validation_eps):
        raise UsageError("--validation-attack and --validation-eps need images held out: add --validation 0.1")
    if request.validation:
        train, chosen_by = held_out(found.train, request.validation, recipe.seed)
        selection = _selection(request, defenses, chosen_by, recipe, world)
    state, table, picture = (out.with_name(f"{out.stem}.training.{suffix}") for suffix in ("state", "csv", "png"))
    if fresh and world.first:
        state.unlink(missing_ok=True)
    world.wait()

    def after_epoch(epochs: Sequence[Epoch]) -> None:
        if world.first:
            write_csv(table, epochs)
        report(epochs, recipe.epochs)

    training = Training(made, train, recipe, world, init=request.init, selection=selection, state_file=state, report=after_epoch)
    try:
        classifier = training.run()
    except Diverged as error:
        raise InvalidEvaluation(f"{error}; {_rescued(training, request, made)}") from error
    if not world.first:
        return ""
    correct, n = count_correct(classifier, found.test, world.device), len(found.test)
    facts = {"command": request.command, "seed": recipe.seed, "test_accuracy": f"{correct / n:.4f}", "torch": torch.__version__}
    if selection is not None and selection.score is not None:
        facts |= {"chosen_epoch": selection.epoch, "held_out_accuracy": selection.score.attacked}
    save(classifier, out, made, facts)
    for ending, text in training.defenses.written().items():
        write_whole(out.with_name(f"{out.stem}.{ending}"), partial(Path.write_text, data=text, encoding="utf-8"))
    draw_plot(picture, training.running.epochs, f"{made.architecture}, {made.defense}", None if selection is None else selection.epoch)
    state.unlink(missing_ok=True)
    low, high = wilson(correct, n)
    return f"{out}: {correct} of {n} test images right, {correct / n:.2%} [{low:.2%}, {high:.2%}]"


def _rescued(training: Training, request: Request, made: Made) -> str:
    """Write the last good weights of a training that came to nothing beside its checkpoint; says where they are."""
    good, file = training.last_good(), request.out.with_name(f"{request.out.stem}.last-good.safetensors")
    if good is None:
        return "no good weights were saved before"
    if training.world.first:
        save(good, file, made, {"command": request.command, "seed": request.seed, "step": training.running.step})
    return f"the last good weights, of step {training.running.step}, are in {file}"


def _made(request: Request, found: Splits, defenses: Defenses, recipe: Recipe) -> Made:
    channels, height, _ = found.train[0][0].shape
    small = f"cifar_{request.model}"
    assert found.train.classes is not None
    return Made(
        architecture=small if height <= SMALL and small in ARCHITECTURES.names() else request.model,
        defense=defenses.spec,
        augment=recipe.tricks.augment,
        classes=found.train.classes,
        channels=channels,
        size=height,
        resize=found.preprocess.resize,
        interpolation=found.preprocess.interpolation,
        mean=found.mean,
        std=found.std,
        data=request.data,
    )


def _selection(request: Request, defenses: Defenses, data: LabelledImages, recipe: Recipe, world: World) -> Selection:
    """Images held out, and what they are attacked with: nothing where the defense is against something else."""
    spec = request.validation_attack or ("pgd:steps=10" if defenses.adversarial else "none")
    if spec == "none":
        return Selection(data, None, None, recipe.seed, world)
    norm = request.validation_norm
    given = request.validation_eps
    try:
        eps = data.default_eps.get(norm) if given is None else number(given)
    except ValueError as error:
        raise UsageError(f"--validation-eps: {error}") from error
    if eps is None:
        raise UsageError(f"{data.name} has no usual radius in {norm}: pass --validation-eps")
    threat = ball(norm, eps)
    return Selection(data, attack_for_training(spec, norm), threat, recipe.seed, world)


@torch.inference_mode()
def count_correct(classifier: Classifier, data: LabelledImages, device: torch.device | None = None, batch_size: int = 256) -> int:
    """How many images a classifier in eval mode gets right; it is computed on `device` and left on the CPU."""
    where = device or classifier.device
    classifier.to(where)
    right = 0
    for chosen in torch.arange(len(data)).tensor_split(ceil(len(data) / batch_size)):
        x = stacked([data.pictures[i] for i in chosen.tolist()], data.name).to(where)
        y = torch.tensor([data.labels[i] for i in chosen.tolist()], device=where)
        logits = classifier(x)
        right += int(((logits.argmax(1) == y) & logits.isfinite().all(1)).sum())
    classifier.cpu()
    return right


def save(classifier: Classifier, out: Path, made: Made, facts: dict[str, object]) -> None:
    """Write the weights of the inner model, which takes normalised images, to a .safetensors file that says what it is.

    Raises:
        InvalidEvaluation: the disk is full, or the folder cannot be written to.
    """
    from safetensors.torch import save as serialized

    tensors = {name: tensor.contiguous() for name, tensor in classifier.model.state_dict().items()}
    metadata = made.written() | {name: str(value) for name, value in facts.items()}
    write_whole(out, lambda part: part.write_bytes(serialized(tensors, metadata)))
