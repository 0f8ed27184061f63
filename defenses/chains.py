"""Chains of random operations on images, as AugMix has them (Hendrycks et al., ICLR 2020, https://arxiv.org/abs/1912.02781)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .operations import (
    Levels,
    Matrices,
    Tables,
    autocontrast,
    brightness,
    color,
    contrast,
    equalize,
    looked_up,
    moved,
    posterize,
    sharpness,
    sheared,
    shifted,
    solarize,
    turned,
)

TABLES: Mapping[str, Callable[[Levels, Tensor], Tables]] = {
    "autocontrast": lambda x, level: autocontrast(x),
    "equalize": lambda x, level: equalize(x),
    "posterize": lambda x, level: posterize(x, 4 - (level * 4 / 10).floor()),
    "solarize": lambda x, level: solarize(x, 256 - (level * 256 / 10).floor()),
    "contrast": lambda x, level: contrast(x, level * 1.8 / 10 + 0.1),
    "brightness": lambda x, level: brightness(x, level * 1.8 / 10 + 0.1),
}
MOVES: Mapping[str, Callable[[Tensor, Tensor, int, int], Matrices]] = {
    "rotate": lambda level, sign, height, width: turned(sign * (level * 30 / 10).floor(), height, width),
    "shear_x": lambda level, sign, height, width: sheared(sign * level * 0.3 / 10, 0 * level),
    "shear_y": lambda level, sign, height, width: sheared(0 * level, sign * level * 0.3 / 10),
    "translate_x": lambda level, sign, height, width: shifted(sign * (level * (width / 3) / 10).floor(), 0 * level),
    "translate_y": lambda level, sign, height, width: shifted(0 * level, sign * (level * (height / 3) / 10).floor()),
}
OTHERS: Mapping[str, Callable[[Levels, Tensor], Levels]] = {
    "color": lambda x, level: color(x, level * 1.8 / 10 + 0.1),
    "sharpness": lambda x, level: sharpness(x, level * 1.8 / 10 + 0.1),
}
"""Operations at levels (N,) in 0..10; moves go one way or the other by signs (N,)."""

USUAL = ("autocontrast", "equalize", "posterize", "solarize", "rotate", "shear_x", "shear_y", "translate_x", "translate_y")
ALL = (*USUAL, "color", "contrast", "brightness", "sharpness")
"""With those that the paper leaves out for the sake of the test."""


def chained(x: Levels, names: Sequence[str], choice: Tensor, level: Tensor, sign: Tensor) -> Levels:
    """Every image under S chains of D operations.

    Args:
        x: (N, C, H, W).
        names: the operations that there are.
        choice: (N, S, D) which of them; len(names) is none.
        level: (N, S, D) in 0..10.
        sign: (N, S, D) 1, or -1 for a move the other way.

    Returns:
        (N, S, C, H, W).
    """
    ends = x.repeat_interleave(choice.shape[1], 0)
    steps = (each.flatten(0, 1).unbind(1) for each in (choice, level, sign))
    for chosen, strength, way in zip(*steps, strict=True):
        sizes = chosen.bincount(minlength=len(names) + 1).tolist()
        rows = dict(zip(names, chosen.argsort().split(sizes), strict=False))  # those after the last name have no operation
        for name in OTHERS.keys() & rows.keys():
            ends.index_copy_(0, rows[name], OTHERS[name](ends.index_select(0, rows[name]), strength[rows[name]]))
        named = [name for name in TABLES if name in rows]
        tables = [TABLES[name](ends.index_select(0, rows[name]), strength[rows[name]]) for name in named]
        mapped = torch.cat([rows[name] for name in named])
        ends.index_copy_(0, mapped, looked_up(ends.index_select(0, mapped), torch.cat(tables)))
        moving = torch.cat([rows[name] for name in MOVES])
        matrices = [matrix(strength[rows[name]], way[rows[name]], *x.shape[2:]) for name, matrix in MOVES.items()]
        ends.index_copy_(0, moving, moved(ends.index_select(0, moving), torch.cat(matrices)))
    return ends.view(*choice.shape[:2], *x.shape[1:])
