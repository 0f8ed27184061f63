"""What the tests share: quiet threads, repeatable hypothesis, small models and the parts of an evaluation around them."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: threads that spin starve each other

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from robustbench_lite.criteria import Criterion, Misclassified
from robustbench_lite.judge import Judge
from robustbench_lite.passes import Passes
from robustbench_lite.plan import Finding, Plan, Subject, parts
from robustbench_lite.registry import ATTACKS
from robustbench_lite.scheduler import run
from robustbench_lite.streams import Streams
from robustbench_lite.threat import ball

torch.set_num_threads(1)
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("repeatable")


class Counting(nn.Module):
    """A model that counts the images it is asked about and the calls that bring them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.rows, self.calls = model, 0, 0
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.rows, self.calls = self.rows + len(x), self.calls + 1
        return self.model(x)


def make_net(classes: int = 10, seed: int = 0) -> nn.Module:
    """A small convolutional network for 3x8x8 images, with weights large enough that it can be fooled."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, classes)
    )
    for layer in net:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=0.3)
    return net.eval().requires_grad_(False)


def make_images(count: int, seed: int = 0, shape: tuple[int, ...] = (3, 8, 8)) -> Tensor:
    """Images with values all over the box, a tenth of them at each of its ends."""
    draw = torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))
    return (draw * 1.25 - 0.125).clamp(0, 1)


def make_subjects(model: nn.Module, images: Tensor, labels: Tensor | None = None) -> list[Subject]:
    """Images to be attacked, labelled as the model sees them unless labels are given."""
    with torch.no_grad():
        logits = model(images)
    labels = logits.argmax(1) if labels is None else labels
    rules: list[Criterion] = [Misclassified(labels[i : i + 1]) for i in range(len(images))]
    return [Subject(f"image {i}", lambda i=i: images[i], rules[i], logits[i : i + 1]) for i in range(len(images))]


def attacked(
    model: nn.Module,
    attack: Any,
    images: Tensor,
    *,
    norm: str = "linf",
    eps: float = 0.1,
    labels: Tensor | None = None,
    batch_size: int = 16,
    **plan: Any,
) -> list[Finding]:
    """What an attack (or its spec) finds, in the images' order."""
    attack = ATTACKS.build(attack) if isinstance(attack, str) else attack
    passes, waiting, found = Passes(model), make_subjects(model, images, labels), {}
    search, judge = plan.pop("search", passes), plan.pop("judge", Judge(passes))
    for name, part in parts(attack, norm).items():
        wanted = {"goal": getattr(part, "goal", "first"), **plan}
        made = Plan(part, ball(norm, eps), f"the condition/{name}".rstrip("/"), search, judge, **wanted)
        size = batch_size if getattr(part, "batched", True) else 1
        with getattr(part, "hooks", lambda *_: nullcontext())(model, images[:1]):
            for finding in (finding for findings in run(made, waiting, size) for finding in findings):
                found[finding.id] = finding.after(found[finding.id]) if finding.id in found else finding
        waiting = [subject for subject in waiting if found[subject.id].broken is False]
    return sorted(found.values(), key=lambda finding: int(finding.id.split()[1]))


@pytest.fixture(scope="session")
def net() -> Callable[..., nn.Module]:
    return make_net


@pytest.fixture(scope="session")
def pictures() -> Callable[..., Tensor]:
    return make_images


@pytest.fixture(scope="session")
def counting() -> type[Counting]:
    return Counting


@pytest.fixture(scope="session")
def subjects() -> Callable[..., list[Subject]]:
    return make_subjects


@pytest.fixture(scope="session")
def attack() -> Callable[..., list[Finding]]:
    return attacked


@pytest.fixture(scope="session")
def streams() -> Callable[..., Streams]:
    def made(count: int, seed: int = 0, condition: str = "c", restart: int = 0, step: int | None = None, first: int = 0) -> Streams:
        steps = None if step is None else torch.full((count,), step)
        return Streams(seed, condition, [(f"image {first + i}", restart) for i in range(count)], steps, torch.device("cpu"))

    return made


sys.path.append(str(Path(__file__).parent))  # for what several test files import
pytest_plugins = ["cli_fixture"]
