"""Augmentation policies as data (AutoAugment, Cubuk et al., CVPR 2019, https://arxiv.org/abs/1805.09501).

A policy is several sub-policies, one of which is drawn for every image; a sub-policy is operations that follow one another, each at one of
ten magnitudes. There are no probabilities, as in Adversarial AutoAugment (Zhang et al., ICLR 2020, https://arxiv.org/abs/1912.11188).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.errors import UsageError
from robustbench_lite.streams import Streams

from .operations import (
    Levels,
    autocontrast,
    brightness,
    color,
    contrast,
    cutout,
    equalize,
    inverted,
    looked_up,
    moved,
    paired,
    posterize,
    sharpness,
    sheared,
    shifted,
    solarize,
    turned,
)

MAGNITUDES = 10
FORMAT, VERSION = "robustbench-lite policies", 1
CHANCES = 3
"""What an operation draws for an image: which way or which partner, and how far down and across."""
PIXELS = 2**20
"""Images go through their operations in parts of about so many pixels."""


@dataclass(frozen=True)
class Operation:
    """What `act` makes of images (N, C, H, W), at strengths (N,) from `low` to `high` by magnitude, with chances (N, CHANCES) in [0, 1)
    and images (P, C, H, W) to pair with."""

    low: float
    high: float
    act: Callable[[Levels, Tensor, Tensor, Levels], Levels]

    def __call__(self, x: Levels, magnitude: Tensor, chances: Tensor, partners: Levels) -> Levels:
        strength = self.low + (self.high - self.low) * magnitude.double() / (MAGNITUDES - 1)
        return self.act(x, strength.to(x.dtype), chances, partners)


def _either_way(strength: Tensor, chances: Tensor) -> Tensor:
    return torch.where(chances[:, 0] < 0.5, -strength, strength)


def _sheared(x: Levels, across: Tensor, down: Tensor) -> Levels:
    return moved(x, sheared(across, down))


def _translated(x: Levels, across: Tensor, down: Tensor) -> Levels:
    """By shares of the sides, in whole pixels."""
    return moved(x, shifted((across * x.shape[3]).round(), (down * x.shape[2]).round()))


def _cut(x: Levels, v: Tensor, chances: Tensor) -> Levels:
    return cutout(x, v * min(x.shape[2:]), chances[:, 1:] * chances.new_tensor(x.shape[2:]))


def _paired(x: Levels, v: Tensor, chances: Tensor, partners: Levels) -> Levels:
    return paired(x, partners[(chances[:, 0] * len(partners)).long()].to(x), v)


OPERATIONS: Mapping[str, Operation] = {
    "shear_x": Operation(0, 0.3, lambda x, v, c, _: _sheared(x, _either_way(v, c), 0 * v)),
    "shear_y": Operation(0, 0.3, lambda x, v, c, _: _sheared(x, 0 * v, _either_way(v, c))),
    "translate_x": Operation(0, 0.45, lambda x, v, c, _: _translated(x, _either_way(v, c), 0 * v)),
    "translate_y": Operation(0, 0.45, lambda x, v, c, _: _translated(x, 0 * v, _either_way(v, c))),
    "rotate": Operation(0, 30, lambda x, v, c, _: moved(x, turned(_either_way(v, c), *x.shape[2:]))),
    "autocontrast": Operation(0, 0, lambda x, v, c, _: looked_up(x, autocontrast(x))),
    "invert": Operation(0, 0, lambda x, v, c, _: looked_up(x, inverted(x))),
    "equalize": Operation(0, 0, lambda x, v, c, _: looked_up(x, equalize(x))),
    "solarize": Operation(0, 256, lambda x, v, c, _: looked_up(x, solarize(x, v))),
    "posterize": Operation(4, 8, lambda x, v, c, _: looked_up(x, posterize(x, v.round()))),
    "contrast": Operation(0.1, 1.9, lambda x, v, c, _: looked_up(x, contrast(x, v))),
    "color": Operation(0.1, 1.9, lambda x, v, c, _: color(x, v)),
    "brightness": Operation(0.1, 1.9, lambda x, v, c, _: looked_up(x, brightness(x, v))),
    "sharpness": Operation(0.1, 1.9, lambda x, v, c, _: sharpness(x, v)),
    "cutout": Operation(0, 0.2, lambda x, v, c, _: _cut(x, v, c)),
    "sample_pairing": Operation(0, 0.4, _paired),
}
"""Those of AutoAugment (its table 6). The share of a partner is AutoAugment's too: the paper of Adversarial AutoAugment gives none."""

NAMES = tuple(OPERATIONS)


@dataclass(frozen=True, eq=False)
class Policies:
    """Several policies.

    Args:
        choices: (M, S, D, 2) int64: for each of M policies, S sub-policies of D operations, the number of the operation and its magnitude
            in 0..9.
    """

    choices: Tensor

    @property
    def merged(self) -> Policies:
        """One policy of all sub-policies."""
        return Policies(self.choices.flatten(0, 1)[None])

    def shown(self, images: Images, draw: Streams, partners: Levels) -> tuple[Images, ...]:
        """The images (B, C, H, W) under each of the policies, every image under a sub-policy of its own.

        Values that are no whole 255ths are rounded.

        Args:
            partners: (P, C, H, W) whole numbers in 0..255, what images are paired with.
        """
        count, subs, depth, _ = self.choices.shape
        chances = draw.uniform("policies", count, 1 + CHANCES * depth)
        which = (chances[..., 0] * subs).long()  # (B, M)
        choices = self.choices.to(images.device)[torch.arange(count, device=images.device), which].flatten(0, 1)
        x = (images * 255).round().repeat_interleave(count, 0)
        drawn = chances[..., 1:].reshape(len(x), depth, CHANCES)
        at_once = max(1, PIXELS // images[0, 0].numel())
        parts = zip(*(torch.split(each, at_once) for each in (x, choices, drawn)), strict=True)
        done = torch.cat([_under(each, ways, chance, partners) for each, ways, chance in parts]) / 255
        return done.view(len(images), count, *images.shape[1:]).unbind(1)

    def written(self) -> str:
        """As JSON, for `read`."""
        named = [[[[NAMES[k], m] for k, m in sub] for sub in policy] for policy in self.choices.tolist()]
        lines = ",\n".join("  [\n" + ",\n".join(f"    {json.dumps(sub)}" for sub in policy) + "\n  ]" for policy in named)
        return f'{{\n"format": {json.dumps(FORMAT)},\n"version": {VERSION},\n"policies": [\n{lines}\n]\n}}\n'

    @classmethod
    def read(cls, file: Path) -> Policies:
        """
        Raises:
            UsageError: there is no such file, it is damaged, of something else, or names an operation or a magnitude that there is not.
        """
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read the policies in {file}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{file} is damaged or no JSON: export the policies again ({error})") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise UsageError(f'{file} holds no policies: name a .policies.json that robust-train wrote ("format": "{FORMAT}")')
        if found.get("version") != VERSION:
            raise UsageError(f"{file} is of version {found.get('version')}, and version {VERSION} is read here: export the policies again")
        try:
            return cls(_numbered(found.get("policies")))
        except ValueError as error:
            raise UsageError(f"{file}: {error}") from error


def _under(x: Levels, choices: Tensor, chances: Tensor, partners: Levels) -> Levels:
    """Every image after its own operations (N, D, 2), one after the other."""
    x = x.clone()
    for (kind, magnitude), chance in zip((each.unbind(1) for each in choices.unbind(1)), chances.unbind(1), strict=True):
        sizes = kind.bincount(minlength=len(NAMES)).tolist()
        for name, rows in zip(NAMES, torch.split(kind.argsort(), sizes), strict=True):
            if len(rows):
                x[rows] = OPERATIONS[name](x[rows], magnitude[rows], chance[rows], partners)
    return x


def _numbered(policies: object) -> Tensor:
    """(M, S, D, 2) of lists of lists of lists of (name, magnitude).

    Raises:
        ValueError: they are not, with the place where.
    """
    numbers = [
        [[_number(one) for one in _filled(sub, "a sub-policy")] for sub in _filled(policy, "a policy")]
        for policy in _filled(policies, "policies")
    ]
    shapes = {(len(policy), len(sub)) for policy in numbers for sub in policy}
    if len(shapes) > 1:
        raise ValueError("all policies must have as many sub-policies, and all sub-policies as many operations, as the first")
    return torch.tensor(numbers)


def _filled(found: object, what: str) -> list[object]:
    if not isinstance(found, list) or not found:
        raise ValueError(f"{what} must be a list that is not empty, got {json.dumps(found)[:60]}")
    return found


def _number(found: object) -> tuple[int, int]:
    if not isinstance(found, list) or len(found) != 2:
        raise ValueError(f'an operation must be ["name", magnitude], got {json.dumps(found)[:60]}')
    name, magnitude = found
    if name not in NAMES:
        raise ValueError(f"there is no operation {json.dumps(name)[:60]}: take one of {', '.join(NAMES)}")
    if type(magnitude) is not int or not 0 <= magnitude < MAGNITUDES:
        raise ValueError(f"the magnitude of {name} must be a whole number in 0..{MAGNITUDES - 1}, got {json.dumps(magnitude)[:60]}")
    return NAMES.index(name), magnitude
