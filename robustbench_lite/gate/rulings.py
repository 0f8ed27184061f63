"""What a gate says: one ruling for every rule, and the exit code of all of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from robustbench_lite.results import Result

Outcome = Literal["pass", "fail", "inconclusive", "invalid"]
OnInconclusive = Literal["fail", "warn", "pass"]


@dataclass(frozen=True)
class Ruling:
    """What came of one rule.

    Args:
        rule: as it was written.
        condition: full name of the row that it is about, such as `pgd[linf,0.1]`; empty where it is about no row.
        outcome: `invalid` where the figure cannot be believed, so that no decision may rest on it.
        message: one sentence with n, estimate, interval and threshold, and where it is inconclusive the n that would decide it.
        blocking: whether an inconclusive outcome counts as a failure, by the policy for rules of this kind.
        n: images that it rests on; `of`: images that there are. They differ where the gate stopped early.
        estimate, low, high: of the figure, one-sided bounds at the gate's level; None where it has none.
        threshold: that the figure was held to.
        needed: images that would probably decide an inconclusive rule.
        figures: further numbers behind the decision (p, discordant pairs, ...), for machines.
        line: of the rule in the settings file, from 1.
    """

    rule: str
    condition: str
    outcome: Outcome
    message: str
    blocking: bool
    n: int = 0
    of: int = 0
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    needed: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    line: int | None = None


@dataclass(frozen=True)
class Judgement:
    """All rulings of a gate.

    Args:
        rulings: in the order of the rules.
        result: the run that they are about.
        settings: where the rules came from, for reports: the path of the file, or empty.
        alpha: one-sided level of every decision.
        notes: what else a reader must know, such as where the gate stopped early.
    """

    rulings: Sequence[Ruling]
    result: Result
    settings: str = ""
    alpha: float = 0.05
    notes: Sequence[str] = ()

    @property
    def outcome(self) -> Outcome:
        """The gravest of all: fail, which weak attacks cannot have made up, then invalid, then inconclusive. Without rulings: invalid."""
        outcomes = {ruling.outcome for ruling in self.rulings}
        order: tuple[Outcome, ...] = ("fail", "invalid", "inconclusive", "pass")
        return next((outcome for outcome in order if outcome in outcomes), "invalid")

    @property
    def exit_code(self) -> int:
        """1 failed, 4 invalid, 3 inconclusive where the policy says that this blocks, else 0."""
        if self.outcome in ("invalid", "fail"):
            return 4 if self.outcome == "invalid" else 1
        return 3 if any(ruling.outcome == "inconclusive" and ruling.blocking for ruling in self.rulings) else 0
