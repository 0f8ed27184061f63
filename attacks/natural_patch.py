"""Natural patch, the control of patches (Finlayson et al., Science 2019, https://arxiv.org/abs/1804.05296)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Logits
from robustbench_lite.criteria import Criterion, MultiLabel
from robustbench_lite.fitting import Lesson
from robustbench_lite.oracle import Scores
from robustbench_lite.pasting import Shape, centre_square
from robustbench_lite.registry import attack
from robustbench_lite.stamps import Stamps, most_wanted


@attack("natural-patch")
@dataclass(frozen=True)
class NaturalPatch:
    """Paste a piece of a real image: of those to learn from, the one that the model is surest shows what is wanted, cut to shape.

    Nothing is optimised. What it breaks is broken by the patch's covering something, so that a patch must break more to count as an attack.

    Args:
        at_most: classes that patches are cut for, those that most images can be driven to.
        placements: places that are tried on an image.
        shape, turn: as of the `patch` that it is the control of.
    """

    access = Scores
    norms = ("patch",)
    usual_eps = {"patch": 0.4}
    steps = 1
    cost = "1 forward a placement, after looking"

    at_most: Annotated[int, Field(ge=1)] = 10
    placements: Annotated[int, Field(ge=1)] = 1
    shape: Shape = "disc"
    turn: Annotated[float, Field(ge=0, le=180)] = 22.5

    @property
    def restarts(self) -> int:
        return self.placements

    def fit(self, lesson: Lesson) -> dict[str, Tensor]:
        wanted, rule = most_wanted(lesson, self.at_most), _everything_wanted(lesson)
        worth, patches = torch.full((len(wanted),), -torch.inf), [torch.empty(0)] * len(wanted)
        for pupils, _ in replace(lesson, target=None).batches(0):  # those too that offer nothing: the healthy show health best
            for number, each in enumerate(wanted):
                suited = _findings_suited(pupils.logits, rule) if isinstance(rule, MultiLabel) else _probabilities(pupils.logits)[:, each]
                best = int(suited.nan_to_num(-torch.inf).argmax())  # an answer that is no number shows nothing
                if suited[best] > worth[number]:
                    worth[number], patches[number] = float(suited[best]), centre_square(pupils.x[best : best + 1])
        return {"patches": torch.cat(patches), "classes": torch.tensor(wanted), "worth": worth}

    def fitted(self, tensors: Mapping[str, Tensor]) -> Stamps:
        return Stamps.of(self.access, self.placements, self.shape, self.turn, tensors)


def _everything_wanted(lesson: Lesson) -> Criterion:
    """What is wanted of all images to learn from, together."""
    first, *rest = [pupils.criterion for pupils, _ in lesson.batches(0)]
    return first.join(*rest)


def _probabilities(logits: Logits) -> Tensor:
    """(B, M) of the classes."""
    return torch.cat([-logits, logits], 1).sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def _findings_suited(logits: Logits, rule: Criterion) -> Tensor:
    """(B,) how well an attacker would be served if all images were answered as each of these is."""
    rows = len(vars(rule)["labels"])
    return torch.stack([rule.loss(row.expand(rows, -1), "ce").mean() for row in logits])
