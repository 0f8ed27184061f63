"""What the tests of adversarial training share: a step of a small network, one of a linear one, and what they were asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustbench_lite.classifier import Classifier
from robustbench_lite.defending import About, Batch, Defenses, Step
from robustbench_lite.streams import Streams

CPU = torch.device("cpu")
ABOUT = About(counts=(5,) * 10, eps={"linf": 0.1, "l2": 0.8}, device=CPU, shape=(3, 8, 8))
RADII = "linf=0.1,l2=0.8,l1=4"
COUNT = 12


def draws(count: int = COUNT) -> Streams:
    return Streams(0, "training", [(f"image {k}", 0) for k in range(count)], None, CPU)


def images() -> Tensor:
    return torch.rand(COUNT, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def labels() -> Tensor:
    return torch.arange(COUNT) % 10


def network() -> Classifier:
    """With batch statistics, and vectors and matrices among its weights."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)]
    return Classifier(nn.Sequential(*layers).eval(), mean=(0.4,) * 3, std=(0.3,) * 3, classes=10).train()


def made_step(classifier: Any, **more: Any) -> Step:
    return Step(classifier, Batch(images(), torch.eye(10)[labels()]), draws(), **more)


def pixels(rows: list[list[float]], start: float, classes: list[int]) -> Step:
    """One step of a linear network whose answers are `rows` (K, D) times the image of D pixels, all of them at `start`."""
    weights = torch.tensor(rows)
    model = nn.Sequential(nn.Flatten(), nn.Linear(weights.shape[1], len(weights), bias=False)).eval()
    model[1].weight.data = weights
    x = torch.full((len(classes), 1, 1, weights.shape[1]), start)
    return Step(Classifier(model, classes=len(weights)).train(), Batch(x, torch.eye(len(weights))[classes]), draws(len(classes)))


class Watched(nn.Module):
    """Counts a classifier's passes by mode, and keeps what it was asked about."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier, self.asked = classifier, list[tuple[Tensor, bool]]()

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append((x.detach().clone(), self.classifier.training))
        answer: Tensor = self.classifier(x)
        return answer


def learnt_from(spec: str, classifier: Classifier | None = None) -> Tensor:
    """The last images that a defense puts before the network."""
    watched = Watched(classifier or network())
    Defenses.parse(spec).losses(made_step(watched))
    return watched.asked[-1][0]
