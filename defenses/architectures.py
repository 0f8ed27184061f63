"""Untrained networks by name: what `robust-train --model NAME` starts from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from robustbench_lite.classifier import Classifier
from robustbench_lite.errors import UnknownName
from robustbench_lite.registry import Registry

Architecture = Callable[[int], Classifier]
"""Takes the number of classes; returns a classifier in eval mode with freshly drawn weights."""

A = TypeVar("A", bound=Architecture)

ARCHITECTURES = Registry("architecture", ("robustbench_lite.defenses",), "robustbench_lite.architectures")


def architecture(name: str) -> Callable[[A], A]:
    """Register an architecture under a name."""
    return lambda build: ARCHITECTURES.register(name, build)


def find_architecture(name: str) -> Architecture:
    """The architecture that is registered under a name.

    Raises:
        UnknownName: there is none; the message offers the nearest ones.
    """
    names = ARCHITECTURES.names()
    if name not in names:
        raise UnknownName("architecture", name, names)
    return ARCHITECTURES.get(name)
