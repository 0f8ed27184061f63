"""The figures of docs/scale.md: 10,000 images of a model that takes 5 ms a forward, by one process and by workers; what the driver costs.

`python tests/benchmarks/scale.py [IMAGES [ATTACK [IMAGES_A_BATCH]]]`
"""

from __future__ import annotations

import resource
import sys
import time

import torch
from torch import Tensor, nn

from robustbench_lite import evaluate
from robustbench_lite.classifier import Classifier

SECONDS = 0.005


class Waiting(nn.Module):
    """A linear model of 1x8x8 images that takes its time, as one on another device would."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(SECONDS)
        logits: Tensor = self.linear(x.flatten(1))
        return logits


def measured(images: tuple[Tensor, Tensor], attack: str, batch: int, workers: int | None) -> str:
    model = Classifier(Waiting().eval(), name="waiting")
    before, began = time.process_time(), time.monotonic()
    result = evaluate(model, attack, images, eps=0.02, norm="linf", witnesses="none", batch_size=batch, workers=workers)
    wall, cpu = time.monotonic() - began, time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"| {workers or 'none'} | {wall:.1f} | {cpu:.1f} | {100 * cpu / wall:.1f} % | {peak:.0f} | {result.verdict_digest[:16]} |"


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    attack = sys.argv[2] if len(sys.argv) > 2 else "pgd:steps=10"
    batch = int(sys.argv[3]) if len(sys.argv) > 3 else 128
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(count, 1, 8, 8, generator=generator).mul(255).round().div(255)
    images = pixels, Waiting()(pixels).argmax(1)  # every image is right, and attacked
    print("| workers | wall s | driver's processor s | share | driver's peak MB | verdicts |\n|---|---|---|---|---|---|")
    for workers in (None, 1, 2, 4):
        print(measured(images, attack, batch, workers), flush=True)
