"""Overlap (stub: to be written whole)."""

from __future__ import annotations

from collections.abc import Sequence


def overlaps(trained_on: Sequence[str], corruptions: Sequence[str]) -> list[str]:
    return []
