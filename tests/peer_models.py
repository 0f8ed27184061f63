"""Three small digits networks on which attacks are compared with those of other libraries, and how they were trained.

`python tests/peer_models.py` trains them again, from the same seeds, and measures them.

standard: cross-entropy. pgd: Madry et al. (ICLR 2018, https://arxiv.org/abs/1706.06083). kwta: Xiao et al. (ICLR 2020,
https://arxiv.org/abs/1905.10510), whose gradients mislead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from robustbench_lite.defenses.recipe import Recipe
from robustbench_lite.defenses.standard import Standard
from robustbench_lite.defenses.training import Objective, count_correct, save, splits, train
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from robustbench_lite.checkpoints import load_into, read_state_dict
from robustbench_lite.classifier import Classifier, Images, Labels
from robustbench_lite.data import load_data

MEAN, STD = (0.305,) * 3, (0.323,) * 3  # of the training images
GOLDENS = Path(__file__).parent / "goldens"

EPS = {
    "standard": {"linf": 0.05, "l2": 1.5, "l1": 20.0},
    "pgd": {"linf": 0.15, "l2": 2.5, "l1": 18.0},
    "kwta": {"linf": 0.04, "l2": 1.0, "l1": 12.0},
}
"""Radii at which each network keeps between 10 and 90 % of the images it gets right."""


class KeepLargest(nn.Module):
    """k-WTA: the largest values of an image's layer pass as they are, the others become 0; of equal ones at the threshold, all pass.

    Args:
        share: of a layer's values that pass.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        threshold = flat.topk(int(self.share * flat.shape[1]), dim=1).values[:, -1]
        return x * (x >= threshold.view(-1, *[1] * (x.ndim - 1)))


def network(activation: Callable[[], nn.Module], name: str) -> Callable[[int], Classifier]:
    """An architecture: three convolutions of stride 2 and a linear layer for 3 x 32 x 32 images; 20 thousand weights."""

    def untrained(classes: int) -> Classifier:
        layers = [
            *(nn.Conv2d(3, 16, 5, stride=2, padding=2), activation()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), activation()),
            *(nn.Conv2d(32, 32, 3, stride=2, padding=1), activation()),
            *(nn.Flatten(), nn.Linear(32 * 4 * 4, classes)),
        ]
        return Classifier(nn.Sequential(*layers).eval(), mean=MEAN, std=STD, classes=classes, name=f"peer-{name}", data="digits")

    return untrained


@dataclass(frozen=True)
class OnAttacked:
    """Cross-entropy on images, of which one half are as they were and the other half are what linf PGD makes of them.

    Args:
        eps: largest radius; every image's own is drawn below it. Nothing is learnt with the whole of it on all images from the first step.
        steps: of PGD, each 2.5 / steps of the radius, from a random start.
    """

    eps: float = 0.2
    steps: int = 5

    def __call__(self, classifier: Classifier, images: Images, labels: Labels, generator: Generator) -> Tensor:
        """(B,) losses to minimise."""
        return cross_entropy(classifier(self.attacked(classifier, images, labels, generator)), labels, reduction="none")

    def attacked(self, classifier: Classifier, x: Images, y: Labels, generator: Generator) -> Images:
        eps = self.eps * (2 * torch.rand(len(x), 1, 1, 1, generator=generator) - 1).clamp(min=0)
        x_adv = (x + eps * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
        for _ in range(self.steps):
            x_adv.requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(classifier(x_adv), y, reduction="sum"), x_adv)
            stepped = x_adv.detach() + 2.5 / self.steps * eps * gradient.sign()
            x_adv = torch.clamp(stepped, x - eps, x + eps).clamp(0, 1)
        return x_adv


@dataclass(frozen=True)
class Made:
    """How one of the networks is made."""

    architecture: Callable[[int], Classifier]
    objective: Objective
    recipe: Recipe


MODELS = {
    "standard": Made(network(nn.ReLU, "standard"), Standard(), Recipe(epochs=30, weight_decay=0.1)),
    "pgd": Made(network(nn.ReLU, "pgd"), OnAttacked(), Recipe(epochs=40, batch_size=64, weight_decay=0.1)),
    "kwta": Made(network(lambda: KeepLargest(0.2), "kwta"), Standard(), Recipe(epochs=30, weight_decay=0.1)),
}


def load(name: str) -> Classifier:
    """One of the trained networks."""
    classifier = MODELS[name].architecture(10)
    file = GOLDENS / f"peer_{name}.safetensors"
    load_into(classifier.model, read_state_dict(file), file, name, classes=10)
    return classifier.requires_grad_(False)


def right_digits(classifier: nn.Module, count: int, classes: int = 10) -> tuple[Images, Labels]:
    """The first `count` test digits below `classes` that a network gets right."""
    digits = load_data("digits")
    x, y = torch.stack([image for image, _ in digits]), torch.tensor(list(digits.labels))
    with torch.no_grad():
        right = classifier(x).argmax(1) == y
    chosen = (right & (y < classes)).nonzero()[:count, 0]
    return x[chosen], y[chosen]


def main() -> None:
    """Train the networks, write them to the goldens and print what they get right."""
    torch.set_num_threads(1)
    digits, held_out = splits("digits")
    for name, made in MODELS.items():
        started = time.perf_counter()
        classifier = train(made.architecture, digits, made.objective, made.recipe, torch.device("cpu"), lambda epoch, loss: None)
        save(classifier, GOLDENS / f"peer_{name}.safetensors", {"made by": "tests/peer_models.py"})
        print(f"{name}: {count_correct(classifier, held_out)} of {len(held_out)} right, {time.perf_counter() - started:.0f} s of training")


if __name__ == "__main__":
    main()
