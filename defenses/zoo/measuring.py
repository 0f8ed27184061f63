"""What is measured of a model of the zoo, by the public `evaluate`: its answers as it is, under attack, and on corrupted images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from robustbench_lite.cards import SEED, Figure
from robustbench_lite.classifier import Classifier
from robustbench_lite.errors import InvalidEvaluation
from robustbench_lite.evaluation import evaluate
from robustbench_lite.registry import ATTACKS
from robustbench_lite.results import Condition, Result

NORM = "linf"
RADII = (0.05, 0.1, 0.15)
"""The smallest is there for networks without any robustness, which lose all at the others."""
WIDER = 3
"""Autoattack takes about thirty times as long as all the rest."""
SUITE = "cifar-c"
CERTIFIED = (0.1,)
"""Where certificates are asked: one radius, since a proof of an image costs a second."""


def measure(
    classifier: Classifier, data: str, adaptive: tuple[str, ...], images: int | None, folder: Path, certificates: tuple[str, ...] = ()
) -> Sequence[Result]:
    """Ask everything that a card tells of; a measurement that was interrupted goes on.

    Args:
        adaptive: specs of attacks.
        certificates: specs of what proves.
        images: how many of the data's for autoattack and certificates; the rest is asked about WIDER as many. None is all.
        folder: where runs are kept.
    """
    return [
        evaluate(
            classifier,
            attacks,
            data,
            corruptions=corruptions,
            certify=() if attacks else certificates,
            norm=NORM,
            eps=radii,
            limit=count,
            seed=SEED,
            device="cpu",
            witnesses="none",
            out=folder / f"{classifier.name}-{classifier.digest[:16]}-{(attacks or certificates)[0]}-{count or 'all'}",
        )
        for attacks, corruptions, radii, count in (
            (["pgd", *adaptive], SUITE, RADII, images and WIDER * images),
            (["autoattack"], (), RADII, images),
            *([([], (), CERTIFIED, images)] if certificates else []),
        )
    ]


def figures(results: Sequence[Result], adaptive: tuple[str, ...]) -> tuple[Figure, ...]:
    """The figures of a card; of the adaptive attacks the strongest counts, for each image.

    Raises:
        InvalidEvaluation: an attack broke an image that is proven.
    """
    wide, narrow, *proven = results
    found = [Figure("clean", (), None, None, _right(wide, "clean"))]
    for result, name, specs in ((wide, "pgd", ("pgd",)), (narrow, "autoattack", ("autoattack",)), (wide, "adaptive", adaptive)):
        for eps in RADII:
            same = {ATTACKS.spec_of(ATTACKS.build(spec)) for spec in specs}  # as conditions spell them
            asked = [c for c in result.conditions if c.kind == "attack" and c.attack in same and c.eps == eps]
            if len(asked) != len(specs):
                raise ValueError(f"{name} is {', '.join(specs)}, but only {', '.join(c.name for c in asked)} ran")
            found.append(Figure(name, specs, NORM, eps, _together(result, asked, min)))
    corrupted = [c for c in wide.conditions if c.kind == "corruption"]
    found.append(Figure(SUITE, (SUITE,), None, None, _together(wide, corrupted, sum), len(corrupted)))
    for result in proven:
        for attacked in (wide, narrow):
            contradiction = result.known.contradicted(attacked.conditions, attacked.verdicts)
            if contradiction is not None:
                raise InvalidEvaluation(contradiction)
        for c in result.certificates:
            holds = {proof.sample_id: int(proof.proven) for proof in result.proofs if proof.condition == c.name}
            spec = str(c.certificate)
            right = tuple(holds[verdict.sample_id] for verdict in result.of("clean"))  # in the data's order
            found.append(Figure(spec, (spec,), c.norm, c.eps, right, proven=True))
    return tuple(found)


def _together(result: Result, conditions: Sequence[Condition], of: Callable[[Iterable[int]], int]) -> tuple[int, ...]:
    return tuple(of(answers) for answers in zip(*(_right(result, c.name) for c in conditions), strict=True))


def _right(result: Result, condition: str) -> tuple[int, ...]:
    """1 for every image that is right, in the data's order; what is undecided is not."""
    return tuple(int(verdict.broken is False) for verdict in result.of(condition))
