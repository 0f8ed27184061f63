"""Transforms of other libraries, which take one image and draw from torch's global random state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustbench_lite.classifier import Images


def each_transformed(images: Images, transform: Callable[[Tensor], Tensor], seeds: list[int]) -> Images:
    """Every image after a transform of 8-bit images (C, H, W), under a seed of its own; the random state is put back.

    Values that are no whole 255ths are rounded to them. It takes one image at a time, on the device where they are.
    """
    pixels = (images * 255).round().to(torch.uint8)
    made = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(pixels, seeds, strict=True):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators too, for good
            made.append(transform(image))
    return torch.stack(made).to(images) / 255
