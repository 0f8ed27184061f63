"""Training: an adversarial step beside a bare loop with the same passes, k-WTA's step beside ReLU's, AugMix beside PIL pipelines.

Both sides take turns in one process and one thread, and the medians of their processor times are compared. A step is everything that
`robust-train` does for it: reading the images, their draws, the attack, both passes and the optimizer.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from robustbench_lite.defenses.recipe import Recipe, Tricks
from robustbench_lite.defenses.training import Training
from robustbench_lite.defenses.world import World
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize, ToTensor

from robustbench_lite.data import load_data
from robustbench_lite.defending import Batch, Defenses
from robustbench_lite.labelled import LabelledImages, from_arrays
from robustbench_lite.streams import Streams
from robustbench_lite.trained import Made

EPS, STEPS = 8 / 255, 10
CPU = torch.device("cpu")

Run = Callable[[], object]


def noise(count: int) -> LabelledImages:
    """Images of noise in ten classes: nothing to learn from, and the same work as real ones."""
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return from_arrays(images, torch.arange(count) % 10, "noise", classes=10)


def trained(architecture: str, defense: str, batch: int) -> Run:
    """A step of `robust-train`, every image of a batch as it is read."""
    made = Made(architecture, defense, "none", 10, 3, 32, None, "bilinear", (0.5,) * 3, (0.5,) * 3, "noise")
    recipe = Recipe(epochs=10**6, batch_size=batch, tricks=Tricks(schedule="constant", augment="none"))
    training = Training(made, noise(2 * batch), recipe, World(0, 1, CPU))
    batches = training.feed.batches(0)
    return lambda: training._step(*next(batches))


def bare(architecture: str, batch: int) -> Run:
    """The least that adversarial training is: a random start, steps along the sign, one pass to learn from."""
    made = Made(architecture, "none", "none", 10, 3, 32, None, "bilinear", (0.5,) * 3, (0.5,) * 3, "noise")
    torch.manual_seed(0)
    model = made.untrained().train()
    data = noise(2 * batch)
    images, labels = torch.stack([image for image, _ in data]), torch.tensor(data.labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def go() -> None:
        chosen = torch.randperm(len(images))[:batch]
        x, y = images[chosen], labels[chosen]
        model.eval()
        x_adv = (x + EPS * (2 * torch.rand_like(x) - 1)).clamp_(0, 1)
        for _ in range(STEPS):
            x_adv.requires_grad_()
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
            x_adv = x_adv.detach() + 0.25 * EPS * gradient.sign()
            x_adv = torch.clamp(x_adv, x - EPS, x + EPS).clamp_(0, 1)
        model.train()
        loss = nn.functional.cross_entropy(model(x_adv), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return go


def compared(one: Run, other: Run, rounds: int) -> tuple[float, float, str]:
    """Median processor seconds of each, and the ratio of the second to the first as a table has it, with its range over the rounds."""
    taken: dict[Run, list[float]] = {one: [], other: []}
    for go in taken:  # buffers are made, and gradients
        go()
    for _ in range(rounds):
        for go, seconds in taken.items():
            started = time.process_time()
            go()
            seconds.append(time.process_time() - started)
    first, second = (statistics.median(seconds) for seconds in taken.values())
    ratios = [b / a for a, b in zip(*taken.values(), strict=True)]
    return first, second, f"{second / first:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {rounds} rounds"


def adversarial() -> list[str]:
    """A line a network: ours over the bare loop."""
    lines = []
    for architecture, batch, rounds in (("digits_cnn", 32, 40), ("cifar_resnet18", 8, 3)):
        ours = trained(architecture, f"pgd-at:eps={EPS},attack=(pgd:steps={STEPS})", batch)
        least, took, ratio = compared(bare(architecture, batch), ours, rounds)
        lines.append(f"| {architecture}, {batch} images, PGD-{STEPS} | {1000 * least:.0f} ms | {1000 * took:.0f} ms | {ratio} |")
    return lines


def kwta() -> list[str]:
    """A line: the network with k-WTA over the same one with ReLU."""
    relu, took, ratio = compared(trained("cifar_resnet18", "none", 16), trained("cifar_resnet18", "kwta", 16), 5)
    return [f"| cifar_resnet18, 16 images | {1000 * relu:.0f} ms | {1000 * took:.0f} ms | {ratio} |"]


def augmix() -> list[str]:
    """A line a pipeline: an image and its two mixed views, ours over the authors' way, and over the least that PIL needs for the same."""
    data = load_data("cifar10")
    pictures, count = [data[k % len(data)][0] for k in range(128)], 128
    x, y = torch.stack(pictures), torch.eye(10)[torch.arange(count) % 10]
    draw = Streams(0, "training", [(str(k), 0) for k in range(count)], None, CPU)
    defense = Defenses.parse("augmix")
    given = [Image.fromarray(image) for image in (x * 255).round().byte().permute(0, 2, 3, 1).numpy()]

    def views(prepared: Callable[[Image.Image], Any]) -> list[Any]:
        generator = np.random.default_rng(0)
        return [view for image in given for view in (prepared(image), *(mixed(image, generator, prepared) for _ in range(2)))]

    def published() -> Tensor:
        return torch.stack(views(tensor))

    def lean() -> Tensor:
        return torch.from_numpy(np.stack(views(pixels))).permute(0, 3, 1, 2).contiguous() / 255

    lines = []
    for name, theirs in (("the authors' pipeline", published), ("PIL and numpy alone", lean)):
        took, peer, ratio = compared(lambda: defense.augment(Batch(x, y), draw), theirs, 9)
        lines.append(f"| {name}, 128 images of 32 x 32 pixels | {1000 * took / count:.2f} ms | {1000 * peer / count:.2f} ms | {ratio} |")
    return lines


# --- AugMix as its authors run it (Hendrycks et al., ICLR 2020, https://arxiv.org/abs/1912.02781): one PIL image at a time, severity 3,
# three chains of one to three operations, torchvision's transforms after each chain

SEVERITY, WIDTH = 3, 3
tensor = Compose([ToTensor(), Normalize([0.5] * 3, [0.5] * 3)])


def pixels(image: Image.Image) -> Any:
    """(H, W, 3) in 0..255, which is all that a sum of chains needs."""
    return np.asarray(image, dtype=np.float32)


def mixed(image: Image.Image, generator: np.random.Generator, prepared: Callable[[Image.Image], Any]) -> Any:
    """What `prepared` makes of an image and of its chains, mixed."""
    weights, share = generator.dirichlet([1.0] * WIDTH).tolist(), float(generator.beta(1, 1))
    total: Any = 0
    for weight in weights:
        chain = image
        for _ in range(generator.integers(1, 4)):
            operation = OPERATIONS[generator.integers(len(OPERATIONS))]
            chain = operation(chain, generator.uniform(0.1, SEVERITY), generator.choice([-1, 1]))
        total = total + weight * prepared(chain)
    return (1 - share) * prepared(image) + share * total


def moved(image: Image.Image, matrix: Sequence[float]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, tuple(matrix), resample=Image.Resampling.BILINEAR)


OPERATIONS: tuple[Callable[[Image.Image, float, int], Image.Image], ...] = (
    lambda image, level, sign: ImageOps.autocontrast(image),
    lambda image, level, sign: ImageOps.equalize(image),
    lambda image, level, sign: ImageOps.posterize(image, 4 - int(level * 4 / 10)),
    lambda image, level, sign: image.rotate(sign * int(level * 30 / 10), resample=Image.Resampling.BILINEAR),
    lambda image, level, sign: ImageOps.solarize(image, 256 - int(level * 256 / 10)),
    lambda image, level, sign: moved(image, (1, sign * level * 0.3 / 10, 0, 0, 1, 0)),
    lambda image, level, sign: moved(image, (1, 0, 0, sign * level * 0.3 / 10, 1, 0)),
    lambda image, level, sign: moved(image, (1, 0, sign * int(level * image.width / 3 / 10), 0, 1, 0)),
    lambda image, level, sign: moved(image, (1, 0, 0, 0, 1, sign * int(level * image.height / 3 / 10))),
)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("\n".join({"adversarial": adversarial, "kwta": kwta, "augmix": augmix}[sys.argv[1]]()))
