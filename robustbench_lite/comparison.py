"""Runs beside the first of them, image by image: what differs, by how much, how surely, and on which images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from .cards import Difference
from .errors import UsageError
from .paired import holm, mcnemar
from .pairing import Run, pair
from .quarantine import unreadable
from .results import Condition, Result, Verdict
from .stats import paired_interval, wilson
from .trust import Trust

LEVEL = 0.05
"""A difference with an adjusted p above this may be the luck of these images."""
MOST = 26
"""Runs that have a letter each."""


@dataclass(frozen=True)
class Share:
    """How many of n images are right."""

    right: int
    n: int

    @property
    def accuracy(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95 %."""
        return wilson(self.right, self.n)


@dataclass(frozen=True)
class Paired:
    """The same n images under two models: how many both, one and none of the two got right."""

    both: int
    only_reference: int
    only_other: int
    neither: int

    @classmethod
    def of(cls, pairs: Sequence[tuple[bool, bool]]) -> Paired:
        """Of (right under the reference, right under the other), one an image."""
        return cls(*(pairs.count(each) for each in ((True, True), (True, False), (False, True), (False, False))))

    @property
    def n(self) -> int:
        return self.both + self.only_reference + self.only_other + self.neither

    @property
    def reference(self) -> Share:
        return Share(self.both + self.only_reference, self.n)

    @property
    def other(self) -> Share:
        return Share(self.both + self.only_other, self.n)

    @property
    def difference(self) -> Difference:
        """The other's accuracy minus the reference's, with Newcombe's 95 % interval."""
        low, high = paired_interval(self.both, self.only_other, self.only_reference, self.neither)
        return Difference((self.only_other - self.only_reference) / self.n, low, high)

    @property
    def p(self) -> float:
        """Exact two-sided McNemar test that the two are right equally often."""
        return mcnemar(self.only_other, self.only_reference, two_sided=True)


@dataclass(frozen=True)
class Flip:
    """An image that one of the two alone gets right.

    Args:
        direction: `lost` where the reference is right, `gained` where the other is.
        prediction, broken_by: of the one that is wrong. What broke it is `clean` where nothing had to, and None where only another row of
            its run knows.
    """

    sample_id: str
    label: Any
    direction: Literal["lost", "gained"]
    prediction: Any
    broken_by: str | None


@dataclass(frozen=True)
class Row:
    """One condition of the reference and of the other run, over the images that both decided under it.

    Args:
        condition: the reference's.
        pairs: the two verdicts on each image.
        right: whether each of the two is right on it, as `standing` says.
        trust: in the row of the reference, and of the other.
        unpaired: images of both runs that one of the two alone has a verdict on here.
        adjusted: p after Holm's adjustment over all rows of the comparison.
        remarks: what a reader of this row must know, one sentence each.
    """

    condition: Condition
    pairs: Sequence[tuple[Verdict, Verdict]]
    right: Sequence[tuple[bool, bool]]
    trust: tuple[Trust, Trust]
    unpaired: int
    remarks: tuple[str, ...] = ()
    adjusted: float = 1.0

    @property
    def name(self) -> str:
        return self.condition.name

    @cached_property
    def all(self) -> Paired:
        """Over all images."""
        return Paired.of(self.right)

    @cached_property
    def classes(self) -> dict[int, Paired]:
        """By label, where a label is one class."""
        found: dict[int, list[tuple[bool, bool]]] = {}
        for (verdict, _), right in zip(self.pairs, self.right, strict=True):
            if isinstance(verdict.label, int):
                found.setdefault(verdict.label, []).append(right)
        return {label: Paired.of(found[label]) for label in sorted(found)}

    @cached_property
    def flips(self) -> list[Flip]:
        """The images that one of the two alone gets right, those that were lost first."""
        found = []
        for verdicts, right in zip(self.pairs, self.right, strict=True):
            if right[0] != right[1]:
                wrong = verdicts[1] if right[0] else verdicts[0]
                direction: Literal["lost", "gained"] = "lost" if right[0] else "gained"
                found.append(Flip(wrong.sample_id, wrong.label, direction, wrong.prediction, wrong.broken_by))
        return sorted(found, key=lambda flip: flip.direction, reverse=True)

    @property
    def sure(self) -> bool:
        """Whether the difference is more than the luck of these images."""
        return self.adjusted <= LEVEL


@dataclass(frozen=True)
class Beside:
    """One run beside the reference.

    Args:
        rows: one for every condition of both.
        only_reference, only_other, unlike: conditions that are not compared, as `pairing.Pairing` has them.
        remarks: what a reader must know, one sentence each.
    """

    run: Run
    rows: Sequence[Row]
    only_reference: Sequence[str]
    only_other: Sequence[str]
    unlike: Sequence[str]
    remarks: Sequence[str]


@dataclass(frozen=True)
class Comparison:
    """Runs beside the first of them."""

    reference: Run
    others: Sequence[Beside]

    @property
    def runs(self) -> list[Run]:
        return [self.reference, *(beside.run for beside in self.others)]

    @property
    def tests(self) -> int:
        """Rows that p was adjusted over."""
        return sum(len(beside.rows) for beside in self.others)


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Runs beside the first of them.

    Args:
        folders: of two runs or more, finished or not.

    Raises:
        UsageError: one is no run, or nothing of it can be paired with the first.
    """
    if not 2 <= len(folders) <= MOST:
        also = "; `robust-eval history` draws more" if len(folders) > MOST else ""
        raise UsageError(f"a comparison takes 2 to {MOST} runs, got {len(folders)}: name their folders{also}")
    return compared([Run.read(chr(ord("A") + place), Path(folder)) for place, folder in enumerate(folders)])


def compared(runs: Sequence[Run]) -> Comparison:
    """Runs that were read already beside the first of them; p is adjusted over all rows of all runs.

    Raises:
        UsageError: nothing of one can be paired with the first.
    """
    reference, *rest = runs
    others = [_beside(reference, run) for run in rest]
    adjusted = iter(holm([row.all.p for beside in others for row in beside.rows]))
    return Comparison(
        reference, [replace(beside, rows=[replace(row, adjusted=next(adjusted)) for row in beside.rows]) for beside in others]
    )


def _beside(reference: Run, other: Run) -> Beside:
    shared = pair(reference, other)
    rows = [row for one, two in shared.conditions if (row := _row(reference, other, one, two, shared.ids)) is not None]
    if not rows:
        raise UsageError(f"{reference.letter} and {other.letter} have decided no image under the same condition yet: let both runs finish")
    return Beside(other, rows, shared.only_reference, shared.only_other, shared.unlike, shared.remarks)


def _row(reference: Run, other: Run, one: Condition, two: Condition, ids: Sequence[str]) -> Row | None:
    """None where no image has a verdict in both."""
    verdicts = [{v.sample_id: v for v in run.result.of(c.name)} for run, c in ((reference, one), (other, two))]
    right = [standing(run.result, c.name) for run, c in ((reference, one), (other, two))]
    both = [key for key in ids if key in verdicts[0] and key in verdicts[1]]
    if not both:
        return None
    row = Row(
        condition=one,
        pairs=[(verdicts[0][key], verdicts[1][key]) for key in both],
        right=[(right[0][key], right[1][key]) for key in both],
        trust=(reference.result.trust[one.name], other.result.trust[two.name]),
        unpaired=sum((key in verdicts[0]) != (key in verdicts[1]) for key in ids),
    )
    return replace(row, remarks=tuple(_remarks((reference, other), (one, two), row)))


def standing(result: Result, condition: str) -> dict[str, bool]:
    """Whether each image is right under a condition, by id: not where it is undecided, nor where something else in its ball broke it."""
    refuting = (finding for finding in result.trust[condition].findings if finding.weight == "refutes")
    known = {key for finding in refuting for key in finding.samples}
    return {v.sample_id: v.broken is False and v.sample_id not in known for v in result.of(condition)}


def _remarks(runs: tuple[Run, Run], conditions: tuple[Condition, Condition], row: Row) -> Iterator[str]:
    said: dict[str, list[str]] = {}
    for run, trust in zip(runs, row.trust, strict=True):
        refuting = [finding.seen for finding in trust.findings if finding.weight == "refutes"]
        for why in refuting if trust.level == "refuted" else trust.reasons:
            counted = ", and these count as broken here" if trust.level == "refuted" else ""
            said.setdefault(f"{trust.level}: {why.rstrip('.')}{counted}.", []).append(run.letter)
    yield from (f"{' and '.join(letters)} {'is' if len(letters) == 1 else 'are'} {what}" for what, letters in said.items())
    refuted = "refuted" in {trust.level for trust in row.trust}
    if row.condition.kind == "worst" or (row.condition.kind == "attack" and refuted):
        tried = [run.searches(condition) for run, condition in zip(runs, conditions, strict=True)]
        for run, own, others in zip(runs, tried, reversed(tried), strict=True):
            if own - others:
                yield f"Only {run.letter} counts what was broken by {', '.join(sorted(own - others))}."
    if row.unpaired:
        yield f"{row.unpaired:,} images are decided in one of the two alone and left out, which may favour either."
    for place, (run, condition) in enumerate(zip(runs, conditions, strict=True)):
        if (bracket := run.result.brackets.get(condition.name)) is not None:
            proven = sum(verdicts[place].sample_id in bracket.safe for verdicts in row.pairs)
            yield f"Of these images {proven:,} are proven in {run.letter}, whatever the attack."
        if undecided := sum(verdicts[place].broken is None for verdicts in row.pairs):
            unread = sum(unreadable(verdicts[place]) for verdicts in row.pairs)
            yield (
                f"{undecided:,} images are undecided in {run.letter} and count as not right"
                + (f", {unread:,} of them because they could not be read." if unread else ".")
            )
