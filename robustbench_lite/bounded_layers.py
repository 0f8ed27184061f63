"""The operations that bounds are followed through: what each makes of a batch, and of linear functions from behind.

They look their weights up when they are used, so that a network may learn between two uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input


@dataclass(frozen=True)
class Convolution:
    """Conv2d, padded by zeros: (N, C, H, W) to (N, D, I, J)."""

    layer: nn.Conv2d
    padding: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        return self._convolved(x, self.layer.weight, self.layer.bias)

    def radius(self, r: Tensor) -> Tensor:
        return self._convolved(r, self.layer.weight.abs(), None)

    def adjoint(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        c, size = self.layer, (len(rows), *shape)
        back: Tensor = conv2d_input(size, c.weight, rows, c.stride, self.padding, c.dilation, c.groups)  # type: ignore[no-untyped-call]  # torch's
        return back

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        c = self.layer
        return functional.conv2d(x, weight, bias, c.stride, self.padding, c.dilation, c.groups)


@dataclass(frozen=True)
class Dense:
    """Linear: (N, ..., I) to (N, ..., O)."""

    layer: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.layer.weight, self.layer.bias)

    def radius(self, r: Tensor) -> Tensor:
        return functional.linear(r, self.layer.weight.abs())

    def adjoint(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        return rows @ self.layer.weight


@dataclass(frozen=True)
class Scaled:
    """Every value by itself: factor * x + shift; of normalisation, and of arithmetic with what does not depend on the image.

    Args:
        terms: gives (factor, shift), of shapes that broadcast to (N, ...).
    """

    terms: Callable[[], tuple[Tensor | float, Tensor | float]]

    def forward(self, x: Tensor) -> Tensor:
        factor, shift = self.terms()
        return x * factor + shift

    def radius(self, r: Tensor) -> Tensor:
        factor, _ = self.terms()
        return r * (factor.abs() if isinstance(factor, Tensor) else abs(factor))

    def adjoint(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        return rows * self.terms()[0]


@dataclass(frozen=True)
class Positive:
    """A linear map without an offset whose weights are at least 0: averages, other shapes."""

    function: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def radius(self, r: Tensor) -> Tensor:
        return self.function(r)

    def adjoint(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        back: Callable[[Tensor], tuple[Tensor]] = torch.func.vjp(self.function, rows.new_zeros(len(rows), *shape))[1]
        (adjoint,) = back(rows)
        return adjoint


@dataclass(frozen=True)
class Rectifier:
    """ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x)


@dataclass(frozen=True)
class MaxPool:
    """The largest value of each window: (N, C, H, W) to (N, C, I, J)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, self.kernel, self.stride, self.padding, self.dilation)


@dataclass(frozen=True)
class Sum:
    """Two nodes of one shape, added."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


@dataclass(frozen=True)
class Image:
    """Where the image comes in."""

    def forward(self, x: Tensor) -> Tensor:
        return x


Affine = Convolution | Dense | Scaled | Positive
"""Each has `forward(x)`; `radius(r)`, which is forward with absolute weights and no offset; and `adjoint(rows, shape)`, which takes linear
functions of what comes out and gives them, up to a constant, as functions of what goes in, which has that shape."""

Operation = Image | Affine | Rectifier | MaxPool | Sum
