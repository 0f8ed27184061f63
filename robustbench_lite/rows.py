"""Records of per-row tensors: the one place that selects rows and puts batches together."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    class _Record(DataclassInstance): ...
else:

    class _Record: ...


Selection = Tensor | slice
"""A boolean mask (B,), an index tensor, or a slice."""


class Rows(_Record):
    """Base of dataclasses whose tensors have the row first. Scalars, 0-d tensors and other values are shared by all rows."""

    def take(self, rows: Selection) -> Self:
        """The record of these rows only."""
        return replace(self, **{f.name: _take(getattr(self, f.name), rows) for f in fields(self) if f.init})

    def join(self, *others: Self) -> Self:
        """The rows of `self`, then those of the others."""
        records = (self, *others)
        return replace(self, **{f.name: _join([getattr(r, f.name) for r in records]) for f in fields(self) if f.init})

    def put(self, rows: Tensor, other: Self) -> None:
        """Overwrite these rows, by their numbers, with those of another record; for records that may change."""
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor) and value.dim():
                value[rows] = getattr(other, f.name)

    def to(self, device: torch.device) -> Self:
        """The record on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return replace(self, **{name: v.to(device) for name, v in values.items() if isinstance(v, (Tensor, Rows))})


def _take(value: Any, rows: Selection) -> Any:
    if isinstance(value, Rows):
        return value.take(rows)
    return value[rows] if isinstance(value, Tensor) and value.dim() else value


def _join(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Rows):
        return first.join(*values[1:])
    return torch.cat(values) if isinstance(first, Tensor) and first.dim() else first


def pick(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """The rows (B,) of `yes`, the others of `no`; both finite. On a CPU `where` takes three times as long (measured)."""
    return torch.lerp(no, yes, per_sample(rows.to(no.dtype), no))


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, ..., 1), to broadcast against a batch of images; a 0-d tensor stays as it is."""
    return values.reshape(-1, *(1,) * (like.dim() - 1)) if values.dim() else values
