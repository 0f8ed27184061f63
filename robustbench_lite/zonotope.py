"""Zonotopes through convolutions, linear layers and ReLUs: exactly, by random projections, and point by point.

A zonotope is `centre + sum_i symbol_i * error_i` over all symbols in [-1, 1]. An affine layer maps it exactly; a ReLU that may be on either
side of 0 becomes `slope * x + offset * (1 + symbol)` with a symbol of its own (DeepZ, Singh et al., NeurIPS 2018,
https://papers.nips.cc/paper/8278-fast-and-effective-robustness-certification).

`Zonotope` holds every error, and its bounds are proofs. `Projected` holds a few Cauchy projections of them (Li, Hastie, Church, JMLR 2007,
https://www.jmlr.org/papers/v8/li07b.html), whose bounds are estimates, on either side of the truth: they are for training and for nothing
else. `Region` holds none, and says where a choice of symbols leads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import ModelError

Noise = Callable[[tuple[int, ...]], Tensor]
"""Draws standard Cauchy values of a shape (k, ...), one set of k projections for a whole batch."""


def layers_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """The layers of a network that is one plain sequence, in order; sequences inside of it are opened.

    Raises:
        ModelError: it is no `nn.Sequential` of convolutions, linear layers, ReLUs and Flatten; the layer is named.
    """
    if not _sequence(model):
        raise ModelError(f"{type(model).__name__} is no plain nn.Sequential, and zonotopes follow nothing else: take small_cnn")
    found: list[nn.Module] = []
    for name, layer in model.named_modules(remove_duplicate=False):
        if _sequence(layer) or type(layer) is nn.Identity:
            continue
        if not _followed(layer):
            followed = "Conv2d (padded by zeros), Linear, ReLU and Flatten"
            raise ModelError(f"{name} is a {type(layer).__name__}, and zonotopes follow {followed} only: take small_cnn")
        found.append(layer)
    return tuple(found)


def _sequence(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Sequential) and type(layer).forward is nn.Sequential.forward


def _followed(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Flatten) and type(layer) is nn.Flatten:
        return (layer.start_dim, layer.end_dim) == (1, -1)
    # a class of somebody's own that inherits from these may compute anything
    return type(layer) in (nn.Linear, nn.ReLU) or (type(layer) is nn.Conv2d and layer.padding_mode == "zeros")


def linear(layer: nn.Module, x: Tensor, *, absolute: bool = False) -> Tensor:
    """What an affine layer makes of a difference of two inputs, (N, ...): no bias; if asked for, with the weights absolute."""
    if isinstance(layer, nn.Flatten):
        return x.flatten(1)
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    weight = layer.weight.abs() if absolute else layer.weight
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight)
    return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def relaxed(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The slope and the offset of every ReLU whose input lies in [lower, upper]: its output is within `offset` of `slope * x + offset`.

    Where the sign is certain, the ReLU is exact: slope 0 or 1 and no offset. Elsewhere the parallelogram of least area.
    """
    unstable = (lower < 0) & (upper > 0)
    width = torch.where(unstable, upper - lower, 1.0)
    slope = torch.where(unstable, upper / width, (lower >= 0).to(upper.dtype))
    return slope, torch.where(unstable, -slope * lower / 2, 0.0)


def _through(layer: nn.Module, errors: Tensor) -> Tensor:
    """(B, E, ...) of every error of every image."""
    count, size = errors.shape[:2]
    passed = linear(layer, errors.flatten(0, 1))
    return passed.reshape(count, size, *passed.shape[1:])


@dataclass(frozen=True)
class Zonotope:
    """Every error, one by one. Holds as many as there are input values and unstable ReLUs: for small networks and few images at once.

    Args:
        centre: (B, ...).
        errors: (B, E, ...).
    """

    centre: Tensor
    errors: Tensor

    @classmethod
    def of_box(cls, lower: Tensor, upper: Tensor) -> Zonotope:
        """All points between (B, ...) and (B, ...)."""
        radius = ((upper - lower) / 2).flatten(1)
        return cls((lower + upper) / 2, radius.diag_embed().reshape(*radius.shape, *lower.shape[1:]))

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The least and the largest value of every coordinate, (B, ...) each; both are attained, up to rounding."""
        radius = self.errors.abs().sum(1)
        return self.centre - radius, self.centre + radius

    def after(self, layer: nn.Module, bounds: tuple[Tensor, Tensor] | None = None) -> Zonotope:
        """A zonotope that holds what the layer makes of every point of this one.

        Args:
            bounds: of a ReLU's input, where tighter ones are known than this zonotope's own; they have to be true.
        """
        if not isinstance(layer, nn.ReLU):
            return Zonotope(layer(self.centre), _through(layer, self.errors))
        slope, offset = relaxed(*(self.bounds if bounds is None else bounds))
        return Zonotope(slope * self.centre + offset, torch.cat([slope[:, None] * self.errors, _own_symbols(offset)], 1))


def _own_symbols(offset: Tensor) -> Tensor:
    """(B, U, ...) an error for every neuron that is unstable in any of the images."""
    flat = offset.flatten(1)
    unstable = (flat != 0).any(0).nonzero()[:, 0]
    errors = flat.new_zeros(len(flat), len(unstable), flat.shape[1])
    errors[:, torch.arange(len(unstable), device=flat.device), unstable] = flat[:, unstable]
    return errors.reshape(*errors.shape[:2], *offset.shape[1:])


@dataclass(frozen=True)
class Projected:
    """k random projections of the errors, in their place: sum_i c_i * error_i with standard Cauchy c has the median |error|_1.

    With k = 50 a bound's distance from the centre is estimated to about a fifth of it, too small as often as too large. Never a proof.

    Args:
        centre: (B, ...).
        errors: (B, k, ...) projections, summed over all symbols, since a sum of Cauchy variables is one too.
        radius: (B, ...) the distance of the bounds from the centre, where it is known: of a box, and after its first affine layer.
        box: whether each value has a symbol of its own.
    """

    centre: Tensor
    errors: Tensor
    radius: Tensor | None = None
    box: bool = False

    @classmethod
    def of_box(cls, centre: Tensor, radius: Tensor, projections: int, noise: Noise) -> Projected:
        return cls(centre, radius[:, None] * noise((projections, *radius.shape[1:])), radius, box=True)

    @property
    def estimated_bounds(self) -> tuple[Tensor, Tensor]:
        """About the least and the largest value of every coordinate, (B, ...) each, with gradients."""
        radius = self.radius
        if radius is None:
            middle = self.errors.shape[1] // 2 + 1
            radius = self.errors.abs().topk(middle, dim=1, sorted=False).values.amin(1)  # the median in a third of the time
        return self.centre - radius, self.centre + radius

    def affine(self, layer: nn.Module) -> Projected:
        radius = linear(layer, self.radius, absolute=True) if self.box and self.radius is not None else None
        return Projected(layer(self.centre), _through(layer, self.errors), radius, self.box and isinstance(layer, nn.Flatten))

    def relu(self, slope: Tensor, offset: Tensor, noise: Noise) -> Projected:
        fresh = noise(tuple(self.errors.shape[1:]))
        return Projected(slope * self.centre + offset, slope[:, None] * self.errors + offset[:, None] * fresh)


@dataclass(frozen=True)
class Region:
    """What a box becomes after some layers, as a function of the symbols: one for every input value and every ReLU.

    Args:
        centre, radius: (B, C, H, W) of the box.
        layers: passed so far.
        relaxations: slope and offset, (B, ...) each, of every ReLU among them.
    """

    centre: Tensor
    radius: Tensor
    layers: tuple[nn.Module, ...] = ()
    relaxations: tuple[tuple[Tensor, Tensor], ...] = ()

    def cut(self, layers: int) -> Region:
        """The same after the first so many layers only."""
        kept = self.layers[:layers]
        return replace(self, layers=kept, relaxations=self.relaxations[: sum(isinstance(layer, nn.ReLU) for layer in kept)])

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the symbols of one image: those of the box, then those of every ReLU."""
        return (tuple(self.radius.shape[1:]), *(tuple(offset.shape[1:]) for _, offset in self.relaxations))

    def at(self, symbols: Sequence[Tensor]) -> Tensor:
        """(B, ...) the point that these symbols, (B, *shape) each and in [-1, 1], lead to."""
        x = self.centre + self.radius * symbols[0]
        relus = zip(self.relaxations, symbols[1:], strict=True)
        for layer in self.layers:
            if isinstance(layer, nn.ReLU):
                (slope, offset), symbol = next(relus)
                x = slope * x + offset * (1 + symbol)
            else:
                x = layer(x)
        return x


def estimated_region(
    centre: Tensor, radius: Tensor, layers: Sequence[nn.Module], projections: int, noise: Noise
) -> tuple[Region, Projected]:
    """The region of a box after these layers, whose ReLUs are relaxed on estimated bounds, and the projections of it."""
    projected, relaxations = Projected.of_box(centre, radius, projections, noise), list[tuple[Tensor, Tensor]]()
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            relaxations.append(relaxed(*projected.estimated_bounds))
            projected = projected.relu(*relaxations[-1], noise)
        else:
            projected = projected.affine(layer)
    return Region(centre, radius, tuple(layers), tuple(relaxations)), projected


def exact_region(centre: Tensor, radius: Tensor, layers: Sequence[nn.Module]) -> tuple[Region, Zonotope]:
    """The same on exact bounds, and the zonotope itself."""
    zonotope, relaxations = Zonotope.of_box(centre - radius, centre + radius), list[tuple[Tensor, Tensor]]()
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            relaxations.append(relaxed(*zonotope.bounds))
        zonotope = zonotope.after(layer)
    return Region(centre, radius, tuple(layers), tuple(relaxations)), zonotope


def cauchy(uniform: Tensor) -> Tensor:
    """Standard Cauchy values from uniform ones in [0, 1), finite for every one of them."""
    return ((uniform - 0.5) * math.pi).clamp(-1.5707, 1.5707).tan()
