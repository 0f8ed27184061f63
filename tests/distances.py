"""How near attacks that seek the nearest broken image come, beside other libraries: two models of the digits, a hundred images."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from robustbench_lite.criteria import Criterion, Misclassified
from robustbench_lite.data import load_data
from robustbench_lite.judge import Judge
from robustbench_lite.models import load_model
from robustbench_lite.passes import Passes
from robustbench_lite.plan import Finding, Plan, Subject
from robustbench_lite.registry import ATTACKS
from robustbench_lite.scheduler import run
from robustbench_lite.threat import ball

MODELS = ("digits_standard", "digits_pgd_at")


@cache
def digits(model: str, count: int = 100) -> tuple[nn.Module, Tensor, Tensor]:
    """A model (images in [0, 1] to logits), and the first images (N, 1, 8, 8) that it gets right, with their labels (N,)."""
    classifier = load_model(model).eval().requires_grad_(False)
    images = load_data("digits")
    x = torch.stack([images.pictures[row] for row in range(len(images))])
    labels = torch.tensor([int(label) for label in images.labels])
    with torch.no_grad():
        right = (classifier(x).argmax(1) == labels).nonzero()[:count, 0]
    return classifier, x[right], labels[right]


def findings(model: nn.Module, spec: str, x: Tensor, rules: Criterion, norm: str, eps: float = 1.0, **plan: object) -> list[Finding]:
    """What an attack finds under the goal `closest`, in the images' order."""
    passes = Passes(model)
    with torch.no_grad():
        logits = model(x)
    subjects = [
        Subject(f"{row:04}", lambda row=row: x[row], rules.take(slice(row, row + 1)), logits[row : row + 1]) for row in range(len(x))
    ]
    made = Plan(ATTACKS.build(spec), ball(norm, eps), "distances", passes, Judge(passes), "closest", **plan)  # type: ignore[arg-type]
    return sorted((f for found in run(made, subjects, len(x)) for f in found), key=lambda f: f.id)


def nearest(model: nn.Module, spec: str, x: Tensor, labels: Tensor, norm: str) -> Tensor:
    """(N,) how far the nearest image that an attack found lies; infinite where it found none."""
    found = findings(model, spec, x, Misclassified(labels), norm)
    return torch.tensor([f.distance if f.met else torch.inf for f in found])


def of_images(model: nn.Module, made: Tensor, x: Tensor, labels: Tensor, norm: str) -> Tensor:
    """(N,) how far another library's images lie, by our measure; infinite where they are not misclassified or no images."""
    with torch.no_grad():
        broken = model(made).argmax(1) != labels
    inside = ((made >= 0) & (made <= 1)).flatten(1).all(1)
    return ball(norm, 1.0).distance(made, x).where(broken & inside, torch.inf)
