"""What a model says of the same images before and under a condition, as arrays, read from a run's verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .clinical_statistics import Bools, Floats, Indices, probabilities
from .conditions import LEAST_LIKELY
from .errors import InvalidEvaluation, UsageError
from .results import LEARNT_FROM, NOTHING_TO_GAIN, Condition, Result, Verdict


@dataclass(frozen=True)
class Said:
    """What a model says of N images.

    Args:
        chances: (N, K) probabilities of classes or findings, NaN where an image is undecided.
        called: (N, K) the class, or the findings, that it predicts; none where an image is undecided.
        findings: whether the K are findings.
    """

    chances: Floats
    called: Bools
    findings: bool

    @property
    def decided(self) -> Bools:
        return ~np.isnan(self.chances[:, 0])

    def right(self, truth: Bools) -> Bools:
        """(N, 1) whether the class is, or (N, K) which findings are."""
        if self.findings:
            return np.asarray((self.called == truth) & self.decided[:, None])
        return np.asarray((self.called & truth).any(1, keepdims=True))

    @property
    def confidence(self) -> Floats:
        """(N, 1) probability of the class that is predicted, or (N, K) of what is said of each finding."""
        if self.findings:
            return np.maximum(self.chances, 1 - self.chances)
        return np.asarray(self.chances.max(1, keepdims=True))


@dataclass(frozen=True)
class Answers:
    """The N images that a condition's figures are over.

    Args:
        names: of the K classes or findings.
        truth: (N, K).
        groups: (N,) which patient an image is of, 0..G-1; each its own where nobody knows.
        patients: how many there are; None where nobody knows.
        before, after: of the clean images, and under the condition.
        attacked: (N, K) where an attacker could win: the image was right when clean, was attacked and is decided. Of classes in the column
            of the label; of findings in those that he wants turned.
        won: (N, K) where he did.
        unclear: images that were right when clean and are undecided under the attack.
        disease: of two classes, the one that means disease.
    """

    names: Sequence[str]
    truth: Bools
    groups: Indices
    patients: int | None
    before: Said
    after: Said
    attacked: Bools
    won: Bools
    unclear: int
    disease: int = 1

    @cached_property
    def sides(self) -> list[int]:
        """Classes or findings that are told from the rest; of two classes the one that means disease."""
        return [self.disease] if len(self.names) == 2 and not self.after.findings else list(range(len(self.names)))


def answers(result: Result, condition: str) -> Answers:
    """The images of a condition with what the model says of them.

    Where the condition offers the attacker nothing by an image, he leaves it, and the clean answer stands. Images that the attack learnt
    from are left out, before and after.

    Raises:
        InvalidEvaluation: there is no such condition, it is not finished, or outputs were not kept.
        UsageError: labels with several right classes an image.
    """
    about = next((c for c in result.conditions if c.name == condition), None)
    left_out, own = result.left_out.get(condition, {}), {v.sample_id: v for v in result.of(condition)}
    clean = [v for v in result.of("clean") if left_out.get(v.sample_id) != LEARNT_FROM]
    if about is None or not clean:
        raise InvalidEvaluation(f"clinical figures need verdicts on clean images and under {condition}: evaluate both")
    lacking = sum(v.sample_id not in own and left_out.get(v.sample_id) != NOTHING_TO_GAIN for v in clean)
    if lacking:
        raise InvalidEvaluation(f"{condition} has no verdict yet on {lacking} of {len(clean)} images: let the run come to its end")
    given = [own.get(v.sample_id, v) for v in clean]
    outputs = _outputs(clean)
    if not np.isfinite(outputs).any():
        raise InvalidEvaluation("the model decided none of the clean images: there is nothing to measure")
    truth, findings = _truth(clean, outputs.shape[1])
    before = _said(outputs, findings)
    # what is undecided when clean stays so: before and after are of the same images
    after = _said(np.where(before.decided[:, None], _outputs(given, outputs.shape[1]), np.nan), findings)
    fallible = np.array([about.kind in ("attack", "worst") and v.broken is False and v.sample_id in own for v in clean])
    attacked = (_wanted(about, truth) if findings else truth) & (fallible & after.decided)[:, None]
    broken = np.array([v.broken is True for v in given])
    won = attacked & broken[:, None] & (after.called != truth if findings else True)
    known = result.config["data"].get("class_names") or [f"{'finding' if findings else 'class'} {k}" for k in range(truth.shape[1])]
    groups = [v.group for v in clean]
    grouped = all(group is not None for group in groups)
    members = np.unique([str(group) for group in groups], return_inverse=True)[1] if grouped else np.arange(len(clean))
    patients = int(members.max()) + 1 if grouped else None
    unclear = int((fallible & ~after.decided).sum())
    disease = (result.config["data"].get("disease") or [1])[0]
    return Answers(list(known), truth, members, patients, before, after, attacked, won, unclear, disease)


def _outputs(verdicts: Sequence[Verdict], width: int = 1) -> Floats:
    """(N, K) NaN where a verdict is undecided.

    Args:
        width: K, where no verdict says it.
    """
    if any(v.broken is not None and v.outputs is None for v in verdicts):
        raise InvalidEvaluation("the run did not keep the model's outputs, which clinical figures need: evaluate with keep_outputs=True")
    width = max([len(v.outputs) for v in verdicts if v.outputs is not None], default=width)
    found = np.array([v.outputs if v.broken is not None and v.outputs is not None else [np.nan] * width for v in verdicts], np.float64)
    found[~np.isfinite(found).all(1)] = np.nan
    return found


def _said(outputs: Floats, findings: bool) -> Said:
    chances = probabilities(outputs, findings)
    if findings:
        called = outputs > 0
    elif outputs.shape[1] == 1:
        called = np.concatenate([outputs <= 0, outputs > 0], 1)
    else:
        called = np.arange(outputs.shape[1]) == outputs.argmax(1)[:, None]
    return Said(chances, called & ~np.isnan(outputs[:, :1]), findings)


def _truth(verdicts: Sequence[Verdict], outputs: int) -> tuple[Bools, bool]:
    """(N, K) the label as one column of several, or the findings; and whether they are findings."""
    labels = [v.label for v in verdicts]
    if not any(isinstance(label, Sequence | frozenset) for label in labels):
        return np.arange(max(2, outputs)) == np.array(labels)[:, None], False
    if not all(isinstance(label, Sequence) and len(label) == outputs and set(label) <= {0, 1} for label in labels):
        raise UsageError("clinical figures need one class an image, or findings that are there or not: these labels are neither")
    return np.array(labels) == 1, True


def _wanted(condition: Condition, truth: Bools) -> Any:
    """(N, K) which findings the attacker wants turned."""
    import torch

    from .goals import goal_of

    if not isinstance(condition.target, str) or condition.target == LEAST_LIKELY:
        return np.ones_like(truth)
    return goal_of(condition.target).wanted(torch.from_numpy(truth.astype(np.float32)), truth.shape[1]).numpy()
