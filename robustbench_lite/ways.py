"""How one model is searched for witnesses: as given, prepared, compiled, in reduced precision first, averaged where it is random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .classifier import Images
from .compiling import compiled
from .oracle import WholeModel
from .passes import Passes
from .plan import Attack
from .prepare import prepare
from .results import Reduced

DRAWS = 20
"""Answers that are averaged where a randomised model is asked and nothing else was said (Croce et al., AutoAttack `rand`)."""


SLOWER = 1.1
"""Times as long as uncompiled: from here on it is no accident of the clock."""


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
        """What this attack searches on. One that changes gradients by hooks needs the layers that preparing folds away; one that is not
        ours runs the model by itself, and in float32.
        """
        draws = (eot or DRAWS) if self.random else 1
        search = [self.plain] if hasattr(attack, "hooks") else self.fast[-1:] if attack.access is WholeModel else self.fast
        return [replace(passes, draws=draws) for passes in search]


def ways(
    model: torch.nn.Module,
    probe: Images,
    *,
    speed_up: bool,
    first_pass: Reduced | None,
    compile: bool,
    random: bool,
    say: Callable[[str], object],
) -> Ways:
    """Args:
    model: frozen, in eval mode.
    probe: (B, C, H, W) a few images.
    speed_up: prepare it where that is safe.
    first_pass: search in this precision first.
    compile: search on the model as torch.compile makes it, where that is safe.
    say: told, for a reader of the run, what could not be done.
    """
    plain = search = Passes(model)
    prepared: dict[str, Any] | None = None
    if speed_up:
        preparation = prepare(model, probe, cut=probe.device.type == "cpu")
        search, prepared = preparation.passes, preparation.described()
        plain = Passes(model, search.micro)
    if compile:
        name = getattr(model, "name", "the ensemble of surrogates")
        done = compiled(search, probe, first_pass, lambda reason: say(f"{name} was searched uncompiled from some image on: {reason}"))
        search, prepared = done.passes, (prepared or {}) | done.described()
        if done.reason:
            say(f"{name} was searched uncompiled: {done.reason}")
        elif done.pace > SLOWER:
            say(f"{name} takes longer compiled than uncompiled on this machine: leave --compile out")
    first = [replace(search, reduced=first_pass, prepared=True)] if first_pass else []
    return Ways(plain, [*first, search], random, prepared)
