"""Fuzzing what is typed: specs, severities, goals, rules of a gate, numbers. What is accepted is written as text that reads the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from damage import TEXT_EDITS, fuzz, needs_limits, spoilt
from hypothesis import strategies as st

from robustbench_lite.corrupting import members
from robustbench_lite.defending import Defenses
from robustbench_lite.gate.rules import parse
from robustbench_lite.goals import goal_of
from robustbench_lite.registry import ATTACKS, CERTIFICATES, DATA, Registry, Spec, number

pytestmark = needs_limits

SPECS = {
    "attacks": (ATTACKS, ["pgd:steps=10,restarts=2,loss=dlr", "apgd:steps=5,loss=ce", "square", "sgm:gamma=0.5+mi+di", "patch"]),
    "certificates": (CERTIFICATES, ["crown", "smoothing:sigma=0.25,alpha=0.001"]),
    "data": (DATA, ["npz:/path,patients=FILE.csv", "imagefolder:/a/b,mapping=c.json", "digits:split=train", "medmnist:x,size=28"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPECS)
def test_specs(kind: str) -> None:
    registry: Registry
    registry, samples = SPECS[kind]

    def check(case: tuple[str, Any]) -> None:
        text = spoilt(*case)
        Spec.parse(text)
        made = registry.build(text)
        if type(made) in registry.found.values():  # what a function makes has no spec of its own
            written = registry.spec_of(made)
            assert registry.build(written) == made, written

    fuzz(st.tuples(st.sampled_from([*samples, *registry.names()]), TEXT_EDITS), check)


WORDS: dict[str, tuple[Callable[[str], object], list[str]]] = {
    "corruptions": (members, ["fog:severity=1-3", "imagenet-c", "all:severity=2", "gaussian_noise"]),
    "defenses": (Defenses.parse, ["pgd-at:attack=(apgd:steps=5,loss=dlr)+bit-depth:bits=3", "trades:beta=6", "jpeg"]),
    "goals": (goal_of, ["missed-disease:positive=1", "false-alarm:positive=1/2"]),
    "rules": (parse, ["pgd.accuracy >= 0.45", "no-worse(baseline, margin=2%)", "worst.certified >= 30%", "findings: none of mask"]),
}


@pytest.mark.parametrize("kind", WORDS)
def test_words(kind: str) -> None:
    read, samples = WORDS[kind]
    fuzz(st.tuples(st.sampled_from(samples), TEXT_EDITS), lambda case: read(spoilt(*case)))


def test_numbers() -> None:
    def check(case: tuple[str, Any]) -> None:
        try:
            value = number(spoilt(*case))
        except ValueError:  # which those that ask put into words
            return
        assert number(repr(value)) == value

    fuzz(st.tuples(st.sampled_from(["8/255", "0.03", "1e-3", "-2"]), TEXT_EDITS), check)
