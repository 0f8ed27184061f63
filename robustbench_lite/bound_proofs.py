"""What bounds prove of a classifier as it runs: in float64, with room for the float32 that it is judged in."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from .bounded import Graph, graph, refuse_unbounded
from .certifying import Proof
from .classifier import Classifier, Images, Labels, one_a_class
from .crown import Region
from .errors import UsageError
from .smoothed import draws_itself
from .threat import Ball

SIZE = 1e-4
"""A margin proves where it is more than this share of the largest logit; float32 was seen to move those of four digits models and
of an untrained preact_resnet18 by up to 4e-7 of it."""

SEEN = 10
"""And more than so many times what float32 changes at the image and at two corners of the ball."""

OTHERWISE = 1e-3
"""A share of the largest logit; where the graph is farther than this from the classifier, it is a graph of something else."""

Margins = Callable[[Graph, Region, Labels], Tensor]


def fits(classifier: Classifier) -> None:
    """
    Raises:
        UsageError: a layer that bounds cannot follow, or that is in training mode; it is named.
    """
    for name, module in classifier.named_modules():
        if getattr(module, "training", False):  # a frozen TorchScript module has no such flag
            raise UsageError(f"{name or type(module).__name__} of {classifier.name} is in training mode: call .eval() on the model first")
    try:
        refuse_unbounded(classifier)
    except UsageError as error:
        raise UsageError(f"{classifier.name} cannot be certified by bounds: {error}") from error


def prove(classifier: Classifier, images: Images, labels: Labels, ball: Ball, margins: Margins, *, batch: int) -> Proof:
    """Proofs by lower bounds on margins; the classifier is copied and stays as it is.

    Args:
        ball: in linf or l2, cut to [0, 1]; the slack that attacks have for rounding is part of it.
        margins: (B, K) lower bounds on the label's logit less each other's.
        batch: images at once.

    Raises:
        UsageError: an image has several labels, the classifier draws numbers of its own, or its graph answers otherwise than it does.
    """
    if labels.dim() != 1:
        raise UsageError("bounds prove one class an image, and these images have several labels")
    fits(classifier)
    if draws_itself(classifier, images):
        raise UsageError(f"{classifier.name} answers otherwise when asked again: bounds need a model that draws nothing itself")
    with torch.no_grad():
        network = graph(copy.deepcopy(classifier).double(), images.shape[1:])
        reach = ball.reach.to(torch.float64).expand(len(images))
        parts = [slice(start, start + batch) for start in range(0, len(images), batch)]
        found = [_part(classifier, network, images[at], labels[at], reach[at], ball.norm == "l2", margins) for at in parts]
    prediction, margin, room = (torch.cat(column) for column in zip(*found, strict=True))
    proven = (prediction == labels) & margin.isfinite() & (margin > room)
    radius = torch.where(proven, ball.eps.to(torch.float64), 0.0)
    return Proof(proven, prediction, radius, margin)


def _part(
    classifier: Classifier, network: Graph, images: Images, labels: Labels, reach: Tensor, round_: bool, margins: Margins
) -> tuple[Tensor, Tensor, Tensor]:
    """(B,) each: prediction, least margin over the other classes, and what it has to exceed."""
    exact, size = images.to(torch.float64), reach.reshape(-1, 1, 1, 1)
    lower, upper = (exact - size).clamp(min=0), (exact + size).clamp(max=1)
    # two corners move all values alike, which an edge detector does not see; the others are the same for every image
    corners = torch.randint(0, 2, (4, 1, *images.shape[1:]), generator=torch.Generator().manual_seed(0)).bool().to(images.device)
    mixed = [torch.where(corner, lower, upper).to(images) for corner in corners]
    room = _room(classifier, network, (images, lower.to(images), upper.to(images), *mixed))
    region = Region(lower, upper, exact, reach) if round_ else Region(lower, upper)
    least = margins(network, region, labels).scatter(1, labels[:, None], torch.inf).amin(1)
    logits = one_a_class(classifier(images))
    return logits.argmax(1).where(logits.isfinite().all(1), -1), least, room


def _room(classifier: Classifier, network: Graph, points: tuple[Images, ...]) -> Tensor:
    """(B,) how far float32 may take a margin, with much to spare."""
    exact = torch.stack([network.logits(each.to(torch.float64)) for each in points])
    answers = torch.stack([one_a_class(classifier(each)) for each in points])
    if answers.dtype != torch.float32:
        raise UsageError(f"{classifier.name} answers in {answers.dtype}, and bounds leave room for float32's rounding only: take .float()")
    gap = (answers - exact).abs().amax((0, 2))
    size = exact.abs().amax((0, 2))
    if (gap > OTHERWISE * size + 1e-6).any():
        raise UsageError(
            f"the traced {classifier.name} answers otherwise than the model does, by {float(gap.max()):.2g} of {float(size.max()):.2g}: "
            "it is not the same on every call, or runs in less than float32"
        )
    return SIZE * size + SEEN * gap
