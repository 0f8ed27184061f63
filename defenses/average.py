"""Exponential moving average of weights (Polyak and Juditsky, SIAM J. Control Optim. 1992, https://doi.org/10.1137/0330046)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from robustbench_lite.classifier import Classifier


@dataclass
class Average:
    """The averaged twin of a classifier; without a decay, the classifier itself.

    Args:
        model: the twin, None without averaging.
        decay: share of the old that is kept at a step; fewer in the first steps, (1 + t) / (10 + t), so that the start is forgotten.
        steps: done so far.
    """

    model: Classifier | None
    decay: float
    steps: int = 0

    @classmethod
    def of(cls, classifier: Classifier, decay: float | None) -> Average:
        if decay is None:
            return cls(None, 0.0)
        return cls(copy.deepcopy(classifier).eval().requires_grad_(False), decay)

    @torch.no_grad()
    def update(self, classifier: Classifier) -> None:
        """Take in the weights after a step; running statistics are averaged alike, whole numbers are copied."""
        if self.model is None:
            return
        kept = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for ours, theirs in zip(self.model.state_dict().values(), classifier.state_dict().values(), strict=True):
            ours.lerp_(theirs, 1 - kept) if ours.is_floating_point() else ours.copy_(theirs)
        self.steps += 1

    def of_model(self, classifier: Classifier) -> Classifier:
        """What is tested and written."""
        return classifier if self.model is None else self.model
