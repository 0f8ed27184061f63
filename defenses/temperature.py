"""Temperature scaling (Guo, Pleiss, Sun, Weinberger, ICML 2017, https://arxiv.org/abs/1706.04599)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from robustbench_lite.classifier import Classifier, Labels, Logits, one_a_class
from robustbench_lite.defending import Kind
from robustbench_lite.registry import defense

from .around import batches, fitted_on, in_place_of

LEAST, MOST = 0.2, 5.0
"""Between these a temperature is looked for."""


class Tempered(nn.Module):
    """Logits divided by a temperature.

    Args:
        fitted_on: ids of the images that say what it is.
    """

    def __init__(self, t: float, fitted_on: Iterable[str] = ()) -> None:
        super().__init__()
        self.t, self.fitted_on = t, frozenset(fitted_on)

    def forward(self, logits: Logits) -> Logits:
        return logits / self.t

    def extra_repr(self) -> str:
        return f"t={self.t!r}"


def fitted_temperature(logits: Logits, labels: Labels) -> float:
    """The temperature in [0.2, 5] of the least cross-entropy, to three digits after the point, as far as any data can tell.

    The cross-entropy is convex in 1/t, and its slope there the mean over the images of the mean logit less the label's.

    Args:
        logits: (N, K), or (N, 1) of a model whose sign tells the classes 0 and 1 apart.
        labels: (N,) class indices.
    """
    z = one_a_class(logits).double()
    of_labels = z.gather(1, labels[:, None])[:, 0]
    low, high = 1 / MOST, 1 / LEAST
    for _ in range(60):
        middle = (low + high) / 2
        slope = float(((z * (middle * z).softmax(1)).sum(1) - of_labels).mean())
        low, high = (low, middle) if slope > 0 else (middle, high)
    return round(2 / (low + high), 3)


@defense("temperature")
@dataclass(frozen=True)
class Temperature:
    """Divide the logits by a temperature, given or fitted, so that the confidences are those that the accuracy bears out.

    It is no defense against an adversary: no prediction changes, and so no robust accuracy does, with or without an attack. If a figure
    changes all the same, the attack is at fault: at a low temperature the gradient of the cross-entropy vanishes in rounding where the
    margin is large, and at a high one a fixed confidence is out of reach. Losses that know no scale (dlr, margin) are not concerned.

    Args:
        data: spec of the images that it is fitted on, neither those that the model was trained on nor those it is tested on; a run that
            judges some of them notes it.
        t: the temperature, instead of `data`; above 1 lowers confidences.
    """

    kind: ClassVar[Kind] = "output"

    data: str | None = None
    t: Annotated[float, Field(gt=0)] | None = None

    def __post_init__(self) -> None:
        if (self.data is None) == (self.t is None):
            raise ValueError("give either data=SPEC, the images that it is fitted on, or the temperature itself, t=1.5")

    def wrap(self, classifier: Classifier) -> Classifier:
        """Fits the temperature where it is not given: one forward pass over the images.

        Raises:
            UsageError: the images have several labels each, or other classes.
        """
        tempered = self._fitted(classifier) if self.t is None else Tempered(self.t)
        return in_place_of(classifier, classifier=classifier, temperature=tempered)

    def _fitted(self, classifier: Classifier) -> Tempered:
        images = fitted_on(str(self.data), classifier, "temperature")
        with torch.no_grad():
            answers = [(classifier(x), labels) for x, labels in batches(images, classifier.device)]
        t = fitted_temperature(torch.cat([each for each, _ in answers]), torch.cat([each for _, each in answers]))
        return Tempered(t, images.ids)
