"""One variant of one task in a process of its own: told `go` on standard input, it runs once and answers with what it took.

Processes of their own, because the allocator's settings, caches and peak memory belong to a process.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.conditions import clean_criterion
from robustbench_lite.engines.local import tune_process
from robustbench_lite.judge import Judge
from robustbench_lite.labelled import from_arrays
from robustbench_lite.passes import Passes
from robustbench_lite.plan import Plan, Subject
from robustbench_lite.prepare import prepare
from robustbench_lite.registry import ATTACKS
from robustbench_lite.scheduler import run
from robustbench_lite.threat import ball


@dataclass(frozen=True)
class Task:
    """A model, images that it gets right, and how hard they are attacked."""

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    steps: int


Run = Callable[[], Any]


def random_weights(model: nn.Module, images: int, size: int, steps: int) -> Task:
    """Images of noise, labelled with what the model says: nothing to learn from, and the same work as real ones."""
    model = model.eval()
    x = torch.rand(images, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = torch.cat([model(part).argmax(1) for part in x.split(8)])
    return Task(model, x, y, 8 / 255, steps)


def resnet50(images: int, steps: int) -> Task:
    import torchvision

    torch.manual_seed(0)
    return random_weights(torchvision.models.resnet50(), images, 224, steps)


def resnet18(images: int, steps: int) -> Task:
    """The CIFAR form: a 3x3 stem and no pooling after it."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return random_weights(model, images, 32, steps)


def real(name: str, eps: float, steps: int, limit: int | None = None) -> Task:
    classifier = rb.load_model(name)
    data = rb.load_data(str(classifier.data), preprocess=classifier.preprocess, limit=limit)
    x, y = torch.stack([image for image, _ in data]), torch.tensor(data.labels)
    with torch.no_grad():
        right = torch.cat([classifier(part).argmax(1) for part in x.split(20)]) == y
    return Task(classifier, x[right], y[right], eps, steps)


def first(count: int, task: Task) -> Task:
    return replace(task, x=task.x[:count], y=task.y[:count])


TASKS: dict[str, Callable[[int], Task]] = {
    "resnet50, 8 images": lambda steps: resnet50(8, steps),
    "resnet50, 32 images": lambda steps: resnet50(32, steps),
    "resnet50, 64 images": lambda steps: resnet50(64, steps),
    "resnet18, 64 images": lambda steps: resnet18(64, steps),
    "resnet18, 128 images": lambda steps: resnet18(128, steps),
    "resnet18, 64 images, all survive": lambda steps: replace(resnet18(64, steps), eps=1e-6),
    "efficientnet_lite0, all broken": lambda steps: real("efficientnet_lite0", 4 / 255, steps),
    "resnet18, 10 images, all survive": lambda steps: replace(resnet18(10, steps), eps=1e-6),
    "digits_cnn, about half survive": lambda steps: first(100, real("digits_cnn", 0.05, steps)),
    "digits_cnn, most survive": lambda steps: real("digits_cnn", 0.02, steps),
}


def bare(task: Task) -> Run:
    """The least that PGD is: forward, backward to the input, sign, clamp."""
    task.model.requires_grad_(False)

    def go() -> None:
        x = task.x.clone()
        for _ in range(task.steps):
            x.requires_grad_()
            loss = nn.functional.cross_entropy(task.model(x), task.y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
            x = x.detach() + 2 / 255 * gradient.sign()
            x = torch.clamp(x, task.x - task.eps, task.x + task.eps).clamp_(0, 1)

    return go


def _scheduled(task: Task, search: Passes, given: Passes) -> Run:
    """Every step of every image, as under the goal `full`."""
    with torch.no_grad():
        logits = torch.cat([task.model(part) for part in task.x.split(8)])
    rules = [clean_criterion(task.y[i : i + 1], 2) for i in range(len(task.y))]
    subjects = [Subject(str(i), lambda i=i: task.x[i], rule, logits[i : i + 1]) for i, rule in enumerate(rules)]
    plan = Plan(ATTACKS.build(f"pgd:steps={task.steps}"), ball("linf", task.eps), "bench", search, Judge(given), goal="full")
    return lambda: list(run(plan, subjects, len(subjects)))


def as_given(task: Task) -> Run:
    """Ours, early leaving off, the model as it is."""
    passes = Passes(task.model.requires_grad_(False))
    return _scheduled(task, passes, passes)


def prepared(task: Task) -> Run:
    """Ours, early leaving off, with what is the default for a frozen model."""
    tune_process()
    search = prepare(task.model.requires_grad_(False), task.x[:4]).passes
    return _scheduled(task, search, Passes(task.model, search.micro))


def prepared_bf16(task: Task) -> Run:
    tune_process()
    search = replace(prepare(task.model.requires_grad_(False), task.x[:4]).passes, reduced="bf16", prepared=True)
    return _scheduled(task, search, Passes(task.model, search.micro))


def evaluated(task: Task) -> Run:
    """Ours as a user runs it: clean pass, preparing, attack, settling, everything."""
    tune_process()
    data = from_arrays(task.x, task.y)
    return lambda: rb.evaluate(task.model, f"pgd:steps={task.steps}", data, eps=task.eps, witnesses="none")


def evaluated_bf16(task: Task) -> Run:
    tune_process()
    data = from_arrays(task.x, task.y)
    return lambda: rb.evaluate(task.model, f"pgd:steps={task.steps}", data, eps=task.eps, witnesses="none", precision="bf16")


class Counted(nn.Module):
    """The model, counting the images of its forwards and those of them that a gradient was taken at."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        self.backwards += len(x) if x.requires_grad else 0
        logits: Tensor = self.model(x)
        return logits


def autoattack(task: Task) -> Run:
    """Ours as a user runs it."""
    tune_process()
    data = from_arrays(task.x, task.y)

    def go() -> dict[str, float]:
        verdicts = rb.evaluate(task.model, "autoattack", data, eps=task.eps, witnesses="none").verdicts
        found = [v for v in verdicts if v.condition.startswith("autoattack")]
        return {"passes": sum(v.forwards + v.backwards for v in found), "robust": sum(v.broken is False for v in found)}

    return go


def pyautoattack(task: Task) -> Run:
    """The official implementation, as a package."""
    from contextlib import redirect_stdout

    from pyautoattack import AutoAttack

    def go() -> dict[str, float]:
        counted = Counted(task.model)
        attack = AutoAttack(counted, norm="Linf", eps=task.eps, version="standard", seed=0, device="cpu")
        with redirect_stdout(sys.stderr):
            made, _ = attack.run_standard_evaluation(task.x, task.y, batch_size=PEER_BATCH)
        passes = counted.forwards + counted.backwards
        with torch.no_grad():
            robust = int((task.model(made).argmax(1) == task.y).sum())
        return {"passes": passes, "robust": robust}

    return go


SHORT = ("apgd:steps=20", "apgd-t:steps=10,targets=3", "fab-t:steps=10,targets=3", "square:queries=200")


def shortened(task: Task) -> Run:
    """AutoAttack's attacks with few steps, on images that all survive; `inside` is the time spent in the model's own passes."""
    tune_process()
    data, inside = from_arrays(task.x, task.y), [0.0]

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*arguments: Any) -> Any:
            started = time.process_time()
            try:
                return method(*arguments)
            finally:
                inside[0] += time.process_time() - started

        return ask

    for name in ("logits", "gradient"):
        setattr(Passes, name, timed(getattr(Passes, name)))

    def go() -> dict[str, float]:
        inside[0] = 0.0
        rb.evaluate(task.model, SHORT, data, eps=task.eps, witnesses="none")
        return {"inside": inside[0]}

    return go


PEER_BATCH = 100


def foolbox(task: Task) -> Run:
    import foolbox as library

    attack = library.attacks.LinfPGD(steps=task.steps, rel_stepsize=2.5 / task.steps)
    model = library.PyTorchModel(task.model, bounds=(0, 1), device="cpu")
    parts = list(zip(task.x.split(PEER_BATCH), task.y.split(PEER_BATCH), strict=True))
    return lambda: [attack(model, x, y, epsilons=task.eps) for x, y in parts]


def torchattacks(task: Task) -> Run:
    import torchattacks as library

    attack = library.PGD(task.model, eps=task.eps, alpha=2.5 * task.eps / task.steps, steps=task.steps)
    parts = list(zip(task.x.split(PEER_BATCH), task.y.split(PEER_BATCH), strict=True))
    return lambda: [attack(x, y) for x, y in parts]


def adv_lib(task: Task) -> Run:
    # its plotting tool is a hard import that cannot be installed; the attack does not use it
    sys.modules.setdefault("visdom", ModuleType("visdom"))
    from adv_lib.attacks import pgd_linf

    arguments = {"ε": task.eps, "steps": task.steps, "absolute_step_size": 2.5 * task.eps / task.steps}
    parts = list(zip(task.x.split(PEER_BATCH), task.y.split(PEER_BATCH), strict=True))
    return lambda: [pgd_linf(task.model, x, y, **arguments) for x, y in parts]


VARIANTS: dict[str, Callable[[Task], Run]] = {
    v.__name__: v
    for v in (
        bare,
        as_given,
        prepared,
        prepared_bf16,
        evaluated,
        evaluated_bf16,
        foolbox,
        torchattacks,
        adv_lib,
        autoattack,
        pyautoattack,
        shortened,
    )
}


def main() -> None:
    task_name, variant, steps, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    task = TASKS[task_name](int(steps))
    go = VARIANTS[variant](task)
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        about = go()
        took = about if isinstance(about, dict) else {}
        took |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(took | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)


if __name__ == "__main__":
    main()
