"""Handwritten digits with a texture, for measuring shape bias where there is no ImageNet: `python docs/texture_digits.py FOLDER`.

After the cue conflicts of Geirhos et al. (ICLR 2019, https://arxiv.org/abs/1811.12231). It writes, as PNG files,

    FOLDER/train/CLASS, FOLDER/test/CLASS    every digit with the texture of its own class, so that either cue says the class
    FOLDER/conflict/CLASS                    the test digits, each with the texture of another class, named SHAPE1-TEXTURE2.png

for `robust-train --data imagefolder:FOLDER` and `robust-eval --data cue-conflict:FOLDER/conflict,classes=own`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from robustbench_lite.data import load_data
from robustbench_lite.streams import generator

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

ANGLES, PERIODS = 5, (3.0, 6.0)
"""A texture is a class's own direction and spacing: five directions, from 0 to 144 degrees, in each of two spacings in pixels."""

WAVES = 4
"""Waves of about that direction and spacing whose sum is a texture; their phases are each image's own."""

GROUND, INK, GRAIN = 0.25, 0.5, 0.2
"""Brightness of the paper, what the digit adds, and what the texture adds or takes away."""

MARGIN = 37
"""Side of the pictures in train and test, which is what robust-train --size 32 crops 32 pixels from, without resizing."""


@dataclass(frozen=True)
class Picture:
    """Where a picture goes, below the folder, and its pixels (H, W) in [0, 1]."""

    file: str
    pixels: Tensor


def texture(kind: int, side: int, *key: object) -> Tensor:
    """(side, side) in [-1, 1]: the texture of a class, in phases that hang on the key alone."""
    random = generator("texture", kind, *key)
    rows, columns = np.mgrid[:side, :side]
    total = np.zeros((side, side))
    for _ in range(WAVES):
        angle = math.radians(180 / ANGLES * (kind % ANGLES) + random.uniform(-5, 5))
        period = PERIODS[kind // ANGLES] * random.uniform(0.9, 1.1)
        along = columns * math.cos(angle) + rows * math.sin(angle)
        total += np.cos(2 * math.pi * (along / period + random.random()))
    return torch.from_numpy(total / np.abs(total).max())


def textured(digit: Tensor, kind: int, *key: object, side: int = 32) -> Tensor:
    """(side, side) in [0, 1]: a digit (32, 32), in the middle, with the texture of a class over all of it."""
    before, after = (side - 32) // 2, (side - 31) // 2
    shape = pad(digit, (before, after, before, after))
    return GROUND + INK * shape + GRAIN * texture(kind, side, *key)


def pictures(split: str, limit: int | None = None) -> Iterator[Picture]:
    """The pictures of `train`, `test` or `conflict`."""
    digits = load_data("digits:split=train" if split == "train" else "digits", limit=limit)
    for number, ((image, label), key) in enumerate(zip(digits, digits.ids, strict=True)):
        assert isinstance(label, int)
        if split == "conflict":
            kind = (label + int(generator("conflict", key).integers(1, len(NAMES)))) % len(NAMES)
            file = f"{NAMES[label]}/{NAMES[label]}{number}-{NAMES[kind]}{number}.png"
            yield Picture(f"conflict/{file}", textured(image[0], kind, split, key))
        else:
            yield Picture(f"{split}/{NAMES[label]}/{NAMES[label]}{number}.png", textured(image[0], label, split, key, side=MARGIN))


def written(folder: Path, limit: int | None = None) -> int:
    """Write all three; returns how many pictures there are."""
    count = 0
    for split in ("train", "test", "conflict"):
        for picture in pictures(split, limit):
            file = folder / picture.file
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((picture.pixels * 255).round().byte().numpy()).convert("RGB").save(file)
            count += 1
    return count


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write digits with textures, and cue conflicts between the two.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(words).folder
    print(f"{written(folder)} pictures in {folder}")


if __name__ == "__main__":
    main()
