"""The rules of a gate, read from text.

    pgd.accuracy >= 0.45                                    a floor; also >, and <=, < as ceilings
    worst.certified >= 0.3                                  what is proven of the model, where the gate has certificates
    corruptions.mean_error <= 0.8                           a figure over all corruptions of the run
    calibration.rms <= 0.1                                  of the clean images: rms, ece, nll, brier, aurra
    autoattack.accuracy no_worse_than baseline by 0.02      paired, image by image; without `by`, 0.02
    findings: none of [refuted]                             refuted, doubtful, or names of checks

Before `.accuracy` stands a row of the run: `clean`, `worst`, `fog[3]`, `pgd[linf,0.1]`, or a short name that fits one row only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import BadSpec, UsageError, did_you_mean
from ..registry import DIAGNOSTICS
from ..results import Condition

MARGIN = 0.02
"""By how much accuracy may fall below a baseline's where the rule does not say."""
CALIBRATION = ("rms", "ece", "nll", "brier", "aurra")
OF_ROWS = ("accuracy", "certified")
LARGEST = {"accuracy": 1.0, "certified": 1.0, "rms": 1.0, "ece": 1.0, "aurra": 1.0, "brier": 2.0, "nll": float("inf")}
"""Of a figure; errors over corruptions are shares too, and may exceed 1 where they are divided by another model's."""
LARGEST_ERROR = 10.0
UNJUDGED = ("doubt", "sequence")
"""Kinds of conditions without a row of accuracies over all images."""
FIGURE = re.compile(r"(?P<row>.+)\.(?P<metric>\w+)")
HELD_TO = re.compile(r"(?P<figure>.+?)\s*(?P<comparison>>=|<=|>|<)\s*(?P<threshold>[^<>=]+)")
NO_WORSE = re.compile(r"(?P<figure>.+?)\s+no_worse_than\s+baseline(?:\s+by\s+(?P<margin>.+))?")
NONE_OF = re.compile(r"findings\s*:\s*none\s+of\s*\[(?P<words>[^\[\]]*)\]")
FORMS = "ROW.accuracy >= 0.45, corruptions.mean_error <= 0.8, ROW.accuracy no_worse_than baseline by 0.02, findings: none of [refuted]"


@dataclass(frozen=True)
class Bound:
    """A figure is held to a threshold.

    Args:
        text: the rule as it was written; `line`: where, from 1.
        row: as it was written: a condition or a short name of one, `corruptions`, or `calibration`.
        metric: `accuracy`, `certified`, one of CALIBRATION, or the name of a figure over corruptions such as `mean_error`.
        comparison: one of >=, >, <=, <.
        threshold: a share of 1; of nll in nats, of brier up to 2.
    """

    text: str
    line: int | None
    row: str
    metric: str
    comparison: str
    threshold: float

    @property
    def is_floor(self) -> bool:
        return self.comparison.startswith(">")


@dataclass(frozen=True)
class NoWorse:
    """Accuracy is compared with a baseline's on the same images.

    Args:
        text, line, row: as of `Bound`.
        margin: share of all images by which it may fall, in (0, 1).
    """

    text: str
    line: int | None
    row: str
    margin: float


@dataclass(frozen=True)
class NoneOf:
    """No row may be judged so, or no check may have found anything.

    Args:
        text, line: as of `Bound`.
        words: `refuted`, `doubtful` (which a refuted row is too), or names of checks.
    """

    text: str
    line: int | None
    words: tuple[str, ...]


Rule = Bound | NoWorse | NoneOf


def parse(text: str, line: int | None = None) -> Rule:
    """A rule from its text.

    Args:
        line: of the settings file, for messages and reports.

    Raises:
        BadSpec: it cannot be read, or a number in it is not what it must be.
    """
    rule = " ".join(text.split())
    if found := NONE_OF.fullmatch(rule):
        return NoneOf(rule, line, _words(rule, found["words"]))
    if found := NO_WORSE.fullmatch(rule):
        row, metric = _figure(rule, found["figure"])
        if metric != "accuracy":
            raise BadSpec(f"{rule}: only accuracy can be compared with a baseline, image by image; hold {metric} to a number instead")
        return NoWorse(rule, line, row, _margin(rule, found["margin"]))
    if found := HELD_TO.fullmatch(rule):
        row, metric = _figure(rule, found["figure"])
        return Bound(rule, line, row, metric, found["comparison"], _threshold(rule, row, metric, found["threshold"]))
    raise BadSpec(f"the rule {text.strip()!r} cannot be read: write one of {FORMS}")


def row_of(rule: Bound | NoWorse, conditions: Iterable[Condition]) -> Condition:
    """The condition that a rule on accuracy is about.

    Args:
        conditions: those that the gate evaluates, the worst cases among them.

    Raises:
        UsageError: there is none of this name, or more than one.
    """
    known = [c for c in conditions if c.kind not in UNJUDGED]
    found = fitting(rule, known)
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{rule.text}: {rule.row} fits several rows: write one of {', '.join(c.name for c in found)}")
    names = [c.name for c in known]
    raise UsageError(
        f"{rule.text}: no such condition {rule.row!r}{did_you_mean(rule.row, [*names, *map(_short, names)])} "
        f"The gate evaluates {', '.join(names[:12]) or 'nothing'}{', ...' if len(names) > 12 else ''}"
    )


def fitting(rule: Bound | NoWorse, conditions: Iterable[Condition]) -> list[Condition]:
    """The conditions that a rule's row may mean: by full name, else by whole spec, else by short name."""
    known = [c for c in conditions if c.kind not in UNJUDGED]
    ways = ([c for c in known if fits(c, rule.row)] for fits in (_is_named, _is_configured, _is_short_for))
    return next((found for found in ways if found), [])


def _is_named(condition: Condition, row: str) -> bool:
    return condition.name == row.replace(" ", "")


def _is_configured(condition: Condition, row: str) -> bool:
    """By its whole spec: `pgd` is `pgd[linf,0.1]` and not `pgd:steps=100[linf,0.1]`."""
    return condition.name.partition("[")[0] == row


def _is_short_for(condition: Condition, row: str) -> bool:
    return _short(condition.name) == row


def _short(name: str) -> str:
    return name.partition("[")[0].partition(":")[0]


def _figure(rule: str, text: str) -> tuple[str, str]:
    """Row and metric, each known to fit the other."""
    found = FIGURE.fullmatch(text)
    if found is None:
        raise BadSpec(f"{rule}: {text!r} names no figure: write ROW.METRIC, such as pgd.accuracy or calibration.rms")
    row, metric = found["row"].strip(), found["metric"]
    if row == "calibration" and metric not in CALIBRATION:
        raise BadSpec(f"{rule}: calibration has no figure {metric!r}{did_you_mean(metric, CALIBRATION)}")
    if row not in ("calibration", "corruptions") and metric not in OF_ROWS:
        where = " (calibration.METRIC is of the clean images)" if metric in CALIBRATION else ""
        raise BadSpec(f"{rule}: {row} has no figure {metric!r}{did_you_mean(metric, OF_ROWS)}{where}")
    if row == "corruptions" and metric in OF_ROWS:
        raise BadSpec(f"{rule}: over corruptions there are errors: write corruptions.mean_error, or the accuracy of one, fog[3].accuracy")
    return row, metric


def _share(rule: str, text: str, largest: float) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        raise BadSpec(f"{rule}: {text!r} is not a number: write a share such as 0.45") from None
    if text.endswith("%") or (largest <= LARGEST_ERROR and largest < value <= 100):
        raise BadSpec(f"{rule}: {text} is no share: {value:g} % is {value / 100:g}")
    if not 0 <= value <= largest or value == float("inf"):
        limits = f"in [0, {largest:g}]" if largest < float("inf") else "of 0 or more"
        raise BadSpec(f"{rule}: the threshold must be a number {limits}, got {text}")
    return value


def _threshold(rule: str, row: str, metric: str, text: str) -> float:
    return _share(rule, text.strip(), LARGEST_ERROR if row == "corruptions" else LARGEST[metric])


def _margin(rule: str, text: str | None) -> float:
    margin = MARGIN if text is None else _share(rule, text.strip(), 1.0)
    if not 0 < margin < 1:
        raise BadSpec(
            f"{rule}: the margin must lie between 0 and 1, got {margin:g}: no number of images shows that nothing at all was lost"
        )
    return margin


def _words(rule: str, text: str) -> tuple[str, ...]:
    words, known = tuple(word.strip() for word in text.split(",") if word.strip()), ("refuted", "doubtful", *DIAGNOSTICS.names())
    if not words:
        raise BadSpec(f"{rule}: the list is empty: write refuted, doubtful or names of checks")
    for word in words:
        if word not in known:
            raise BadSpec(f"{rule}: there is no finding {word!r}{did_you_mean(word, known)}")
    return words
