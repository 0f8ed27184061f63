"""Draws that are given instead of drawn, and the outputs of the published corruption functions under such draws.

`tests/goldens/imagenet_c_224.npz` and `imagenet_c_32.npz` hold one public-domain photograph (scikit-image's `astronaut`) as `input` and
what the published functions of ImageNet-C and CIFAR-10-C made of it, `<corruption>/<severity>`; at 224 only the rows and columns of WINDOW.
numpy's legacy generator was seeded with 100 * severity before each call. Versions: NumPy 2.4.6, SciPy 1.17.1, scikit-image 0.26,
Pillow 13, OpenCV 5.0.0 (exact affine coordinates), ImageMagick 6.9.11.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustbench_lite.streams import Streams

WINDOW = slice(84, 140)
GOLDENS = Path(__file__).parent / "goldens"


class Replayed(Streams):
    """Hands out what it was given, by the name of the stream: arrays without the batch dimension, the same for every row."""

    def __init__(self, rows: int = 1, **given: np.ndarray | Tensor) -> None:
        super().__init__(0, "replayed", [(str(row), 0) for row in range(rows)], None, torch.device("cpu"))
        object.__setattr__(self, "given", {name: torch.as_tensor(values) for name, values in given.items()})

    def _given(self, stream: str, *shape: int) -> Tensor:
        values: Tensor = self.given[stream]  # type: ignore[attr-defined]
        assert tuple(values.shape) == shape, f"{stream}: {tuple(values.shape)} given, {shape} asked for"
        return values.expand(len(self.rows), *shape)

    def take(self, rows: slice) -> Streams:
        return Replayed(len(self.rows[rows]), **self.given)  # type: ignore[attr-defined]

    def uniform(self, stream: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return self._given(stream, *shape)

    def normal(self, stream: str, *shape: int) -> Tensor:
        return self._given(stream, *shape)

    def integers(self, stream: str, low: int, high: int, *shape: int) -> Tensor:
        return self._given(stream, *shape)

    def poisson(self, stream: str, levels: Tensor, rates: Tensor) -> Tensor:
        return self._given(stream, *levels.shape[1:])


@cache
def reference(size: int) -> dict[str, np.ndarray]:
    """The goldens for images of 224 or 32 pixels: `input` and `<corruption>/<severity>`, (H, W, 3) uint8."""
    with np.load(GOLDENS / f"imagenet_c_{size}.npz") as archive:
        return dict(archive)


def photograph(size: int) -> Tensor:
    """(1, 3, size, size) float32 in [0, 1]."""
    return torch.from_numpy(reference(size)["input"]).permute(2, 0, 1)[None].float() / 255


def differences(size: int, corruption: str, severity: int, pixels: Tensor) -> tuple[int, float]:
    """The largest difference in grey levels of (1, 3, size, size) uint8 pixels from the golden, and the share of values that differ."""
    golden = reference(size)[f"{corruption}/{severity}"].astype(int)
    mine = pixels[0].permute(1, 2, 0).numpy().astype(int)
    if size == 224:
        mine = mine[WINDOW, WINDOW]
    apart = np.abs(mine - golden)
    return int(apart.max()), float((apart > 0).mean())
