"""Losses that attacks climb: `(logits (B, K), labels (B,)) -> (B,)`, larger where the image is nearer to being misclassified."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .classifier import Labels, Logits

Loss = Literal["ce", "dlr", "margin"]
LossFunction = Callable[[Logits, Labels], Tensor]


def cross_entropy(logits: Logits, labels: Labels) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def margin(logits: Logits, labels: Labels) -> Tensor:
    """Largest other logit minus the label's: positive where misclassified (Carlini & Wagner, S&P 2017)."""
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - logits.gather(1, labels[:, None])[:, 0]


def dlr(logits: Logits, labels: Labels) -> Tensor:
    """Difference of logits ratio (Croce & Hein, ICML 2020, eq. 6); below four classes, where it is constant in places, the margin."""
    if logits.shape[1] < 4:
        return margin(logits, labels)
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def gap(logits: Logits, labels: Labels, target: Labels) -> Tensor:
    """The target's logit minus the label's."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, labels[:, None]))[:, 0]


def targeted_dlr(logits: Logits, labels: Labels, target: Labels) -> Tensor:
    """Its targeted form (eq. 7): climbs from the label to the class `target`; below four classes, the gap between the two."""
    return gap(logits, labels, target) / _spread(logits)


def reaching_dlr(logits: Logits, target: Labels) -> Tensor:
    """The same where the prediction must become the target: past every other class, and not only past the label."""
    return -margin(logits, target) / _spread(logits)


def _spread(logits: Logits) -> Tensor:
    if logits.shape[1] < 4:
        return torch.ones_like(logits[:, 0])
    top = logits.topk(4, dim=1).values
    return top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12


LOSSES: dict[str, LossFunction] = {"ce": cross_entropy, "dlr": dlr, "margin": margin}
