"""How one model is searched for witnesses: as given, prepared for speed, in reduced precision first, averaged where it is random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .classifier import Images
from .passes import Passes
from .plan import Attack
from .prepare import prepare

DRAWS = 20
"""Answers that are averaged where a randomised model is asked and nothing else was said (Croce et al., AutoAttack `rand`)."""


@dataclass(frozen=True)
class Ways:
    """Args:
    plain: the model as given, in micro-batches.
    fast: what an attack searches on, in turn; the last in float32.
    random: the model draws random numbers of its own.
    prepared: what was done, for the run's record; None where nothing was to be.
    """

    plain: Passes
    fast: Sequence[Passes]
    random: bool
    prepared: dict[str, Any] | None = None

    def of(self, attack: Attack, eot: int | None) -> list[Passes]:
        """What this attack searches on. One that changes gradients by hooks needs the layers that preparing folds away."""
        draws = (eot or DRAWS) if self.random else 1
        return [replace(passes, draws=draws) for passes in ([self.plain] if hasattr(attack, "hooks") else self.fast)]


def ways(model: torch.nn.Module, probe: Images, *, speed_up: bool, bf16: bool, random: bool) -> Ways:
    """Args:
    model: frozen, in eval mode.
    probe: (B, C, H, W) a few images.
    speed_up: prepare it where that is safe.
    bf16: search in bfloat16 first.
    """
    plain = search = Passes(model)
    prepared = None
    if speed_up:
        preparation = prepare(model, probe, cut=probe.device.type == "cpu")
        search, prepared = preparation.passes, preparation.described()
        plain = Passes(model, search.micro)
    first = [replace(search, reduced=torch.bfloat16, prepared=True)] if bf16 else []
    return Ways(plain, [*first, search], random, prepared)
