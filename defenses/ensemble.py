"""An ensemble of classifiers (Lakshminarayanan, Pritzel, Blundell, NIPS 2017, https://arxiv.org/abs/1612.01474)."""

import re
from dataclasses import dataclass
from math import log
from typing import ClassVar, Literal

import torch
from torch import nn

from robustbench_lite.classifier import Classifier, Images, Logits
from robustbench_lite.defending import Kind
from robustbench_lite.errors import ModelError
from robustbench_lite.models import load_model
from robustbench_lite.registry import defense

from .around import in_place_of


class Members(nn.Module):
    """The mean of what several classifiers say of the same images, each of which normalises for itself."""

    def __init__(self, members: list[Classifier], mean: str) -> None:
        super().__init__()
        self.members, self.mean = nn.ModuleList(members), mean

    def forward(self, x: Images) -> Logits:
        answers = torch.stack([member(x) for member in self.members])
        if self.mean == "logits":
            return answers.mean(0)
        if answers.shape[2] == 1:  # the log odds of a mean probability
            yes, no = (nn.functional.logsigmoid(each).logsumexp(0) for each in (answers, -answers))
            return yes - no
        return answers.log_softmax(2).logsumexp(0) - log(len(answers))

    def extra_repr(self) -> str:
        return f"mean={self.mean}"


@defense("ensemble")
@dataclass(frozen=True)
class Ensemble:
    """Answer with the mean of the given model and of others, all of which take the same images and know the same classes.

    Costs a pass of every member. Gradients reach all of them, so that an attack is on the mean; what fools one member tends to fool the
    others, and an ensemble of weak defenses is a weak one (He et al., WOOT 2017, https://arxiv.org/abs/1706.04701).

    Pictures are resized and cropped as the given model has it, for all members alike.

    Args:
        models: the other members, as `robust-eval` names them: ensemble:models=(digits_kwta,digits_pgd_at).
        mean: of what: their probabilities, whose logarithm is the answer, or their logits, where a member of larger logits weighs more.
    """

    kind: ClassVar[Kind] = "output"

    models: str
    mean: Literal["probabilities", "logits"] = "probabilities"

    def __post_init__(self) -> None:
        if not all(self.named):
            raise ValueError(f"models={self.models} names no model between two commas: write models=(one,other)")

    @property
    def named(self) -> list[str]:
        """Specs of the other members."""
        return re.split(r",(?!\w+=)", self.models)

    def wrap(self, classifier: Classifier) -> Classifier:
        """Loads the other members; each normalises images in [0, 1] for itself.

        Raises:
            ModelError: a member cannot be had, has other classes, or takes other images.
        """
        others = [load_model(name).to(classifier.device) for name in self.named]
        for other in others:
            _same(classifier, other)
        members = [classifier, *others]
        ensemble = in_place_of(classifier, ensemble=Members(members, self.mean))
        ensemble.trained_on = tuple(dict.fromkeys(seen for member in members for seen in member.trained_on))
        ensemble.learnt_from = tuple(dict.fromkeys(spec for member in members for spec in member.learnt_from))
        ensemble.differentiable = all(member.differentiable for member in members)
        return ensemble


def _same(classifier: Classifier, other: Classifier) -> None:
    """Refuse a member that does not fit the first."""
    if classifier.classes != other.classes:
        counts = [f"{each.name} {each.classes or 'an unknown number of'}" for each in (classifier, other)]
        raise ModelError(f"ensemble: {counts[0]} and {counts[1]} classes: members must have the same")
    ours, theirs = ((each.preprocess.size, each.preprocess.channels) for each in (classifier, other))
    sizes = {size for size, _ in (ours, theirs) if size is not None}
    if ours[1] != theirs[1] or len(sizes) > 1:
        raise ModelError(
            f"ensemble: {classifier.name} takes images of {_said(classifier)} and {other.name} of {_said(other)}: members must agree"
        )


def _said(classifier: Classifier) -> str:
    """Channels and size of what it takes."""
    size, channels = classifier.preprocess.size, classifier.preprocess.channels
    return f"{channels} channels" if size is None else f"{channels}x{size[0]}x{size[1]}"
