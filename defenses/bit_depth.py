"""Bit-depth reduction, a feature squeezing (Xu, Evans, Qi, NDSS 2018, https://arxiv.org/abs/1704.01155)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from robustbench_lite.classifier import Classifier, Images
from robustbench_lite.defending import Kind
from robustbench_lite.registry import defense

from .around import in_place_of


class Rounding(nn.Module):
    """Each value to the nearest of 2^bits levels from 0 to 1. Attacks take its gradient for that of the identity (BPDA)."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Images) -> Images:
        steps = 2**self.bits - 1
        return torch.round(x * steps).div(steps)

    def surrogate_backward(self, x: Images) -> Images:
        return x

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


@defense("bit-depth")
@dataclass(frozen=True)
class BitDepth:
    """Round every value of an image to few levels before the model sees it.

    Costs nothing, and is not to be relied on: rounding stops gradients, and attacks that replace them by the identity's, as all here do,
    break what it protects (Athalye et al., ICML 2018). Take it as a test of attacks. The paper detects attacks by comparing the answers
    with it and without; here it only stands before the model.

    Args:
        bits: of a value; 2^bits levels.
    """

    kind: ClassVar[Kind] = "input"

    bits: Annotated[int, Field(ge=1, le=8)] = 3

    def wrap(self, classifier: Classifier) -> Classifier:
        """Rounds images in [0, 1]; the classifier inside normalises."""
        return in_place_of(classifier, rounding=Rounding(self.bits).eval(), classifier=classifier)
