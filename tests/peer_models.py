"""Three small digits networks on which attacks are compared with those of other libraries, and how they were trained.

The stored ones in `goldens/` were trained by an earlier training loop, with draws of its own. `python tests/peer_models.py FOLDER` trains
them again under the same recipes and measures them: networks alike, not identical, for which `EPS` may need another look.

standard: cross-entropy. pgd: Madry et al. (ICLR 2018, https://arxiv.org/abs/1706.06083). kwta: Xiao et al. (ICLR 2020,
https://arxiv.org/abs/1905.10510), whose gradients mislead.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from robustbench_lite.defenses.job import count_correct, save
from robustbench_lite.defenses.recipe import Recipe, Tricks
from robustbench_lite.defenses.splitting import splits
from robustbench_lite.defenses.training import Training
from robustbench_lite.defenses.world import World
from torch import Tensor, nn

from robustbench_lite.checkpoints import load_into, read_state_dict
from robustbench_lite.classifier import Classifier, Images, Labels
from robustbench_lite.data import load_data
from robustbench_lite.defending import Kind, Step, soft_cross_entropy
from robustbench_lite.registry import architecture, defense
from robustbench_lite.trained import Made

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


def kwta() -> nn.Module:
    return KeepLargest(0.2)


def network(activation: Callable[[], nn.Module], classes: int = 10, channels: int = 3) -> nn.Module:
    """Three convolutions of stride 2 and a linear layer for 32 x 32 images; 20 thousand weights."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 16, 5, stride=2, padding=2), activation()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), activation()),
        *(nn.Conv2d(32, 32, 3, stride=2, padding=1), activation()),
        *(nn.Flatten(), nn.Linear(32 * 4 * 4, classes)),
    )


@dataclass(frozen=True)
class OnAttacked:
    """Cross-entropy on images, of which one half are as they were and the other half are what linf PGD makes of them.

    Args:
        eps: largest radius; every image's own is drawn below it. Nothing is learnt with the whole of it on all images from the first step.
        steps: of PGD, each 2.5 / steps of the radius, from a random start.
    """

    kind: ClassVar[Kind] = "adversarial"

    eps: float = 0.2
    steps: int = 5

    def fit(self, step: Step) -> Tensor:
        return soft_cross_entropy(step.classifier(self.attacked(step)), step.batch.targets)

    def attacked(self, step: Step) -> Images:
        x, y = step.batch.images, step.batch.labels
        eps = self.eps * step.draw.uniform("radius", 1, 1, 1, low=-1.0, high=1.0).clamp(min=0)
        x_adv = (x + eps * step.draw.uniform("start", *x.shape[1:], low=-1.0, high=1.0)).clamp(0, 1)
        for _ in range(self.steps):
            x_adv.requires_grad_()
            loss = nn.functional.cross_entropy(step.classifier(x_adv), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x_adv)
            stepped = x_adv.detach() + 2.5 / self.steps * eps * gradient.sign()
            x_adv = torch.clamp(stepped, x - eps, x + eps).clamp(0, 1)
        return x_adv


STANDARD = Recipe("adamw", epochs=30, batch_size=32, lr=3e-3, weight_decay=0.1, label_smoothing=0.1, tricks=Tricks(augment="turn-shift"))
ATTACKED = Recipe("adamw", epochs=40, batch_size=64, lr=3e-3, weight_decay=0.1, tricks=Tricks(augment="none"))

MODELS: dict[str, tuple[Callable[[], nn.Module], str, Recipe]] = {
    "standard": (nn.ReLU, "none", STANDARD),
    "pgd": (nn.ReLU, "peer_pgd", ATTACKED),
    "kwta": (kwta, "none", STANDARD),
}
"""The activation, the defense and the recipe of each."""


def load(name: str) -> Classifier:
    """One of the trained networks."""
    model, file = network(MODELS[name][0]).eval(), GOLDENS / f"peer_{name}.safetensors"
    load_into(model, read_state_dict(file), file, name, classes=10)
    return Classifier(model, mean=MEAN, std=STD, classes=10, name=f"peer-{name}", data="digits").requires_grad_(False)


def right_digits(classifier: nn.Module, count: int, classes: int = 10) -> tuple[Images, Labels]:
    """The first `count` test digits below `classes` that a network gets right."""
    digits = load_data("digits")
    x, y = torch.stack([image for image, _ in digits]), torch.tensor(list(digits.labels))
    with torch.no_grad():
        right = classifier(x).argmax(1) == y
    chosen = (right & (y < classes)).nonzero()[:count, 0]
    return x[chosen], y[chosen]


def main(folder: Path) -> None:
    """Train the networks, write them to a folder and print what they get right."""
    torch.set_num_threads(1)
    defense("peer_pgd")(OnAttacked)  # here, since a test of all defenses would meet it otherwise
    found, world = splits("digits"), World(0, 1, torch.device("cpu"))
    for name, (activation, against, recipe) in MODELS.items():
        architecture(f"peer_{name}")(lambda classes, channels=3, activation=activation: network(activation, classes, channels))
        made = Made(f"peer_{name}", against, "turn-shift", 10, 3, 32, None, "bilinear", MEAN, STD, "digits")
        started = time.perf_counter()
        classifier = Training(made, found.train, recipe, world).run()
        save(classifier, folder / f"peer_{name}.safetensors", made, {"made by": "tests/peer_models.py"})
        right = count_correct(classifier, found.test)
        print(f"{name}: {right} of {len(found.test)} right, {time.perf_counter() - started:.0f} s of training")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
