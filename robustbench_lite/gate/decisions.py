"""Pass, fail, inconclusive or invalid: every rule of a gate held against a run. docs/gate_statistics.md says why, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..diagnostics import Evidence, Finding
from ..errors import UsageError
from ..paired import holm
from ..registry import DIAGNOSTICS
from ..results import Condition, Result, eps_text
from .baseline import Baseline
from .figures import limited
from .outcomes import Decided, Levels, by_bounds, held, limits, needed_to_compare, needed_to_hold, needed_to_narrow
from .rules import Bound, NoneOf, NoWorse, Rule, row_of
from .rulings import OnInconclusive, Outcome, Ruling
from .sequential import decided_first, fails_early
from .standing import Standing, standing

ALPHA = 0.05
COUNTED_HERE = "few-images"
"""The check that says how few images there are; a rule knows by itself."""
OPEN = {
    "fail": "an undecided rule counts as a failure here",
    "warn": "an undecided rule is a warning here",
    "pass": "an undecided rule is let pass here",
}
LOSS: Mapping[Decided, str] = {
    "pass": "shows that less than {margin:g} is lost",
    "fail": "shows a loss, which is estimated at more than {margin:g}",
    "inconclusive": "shows neither a loss beyond {margin:g} nor that there is none",
}
SAYS: Mapping[Decided, str] = {"pass": "shows", "fail": "excludes", "inconclusive": "neither shows nor excludes"}


def decide(
    rules: Sequence[Rule],
    result: Result,
    baseline: Baseline | None = None,
    *,
    alpha: float = ALPHA,
    on_inconclusive: OnInconclusive | None = None,
    sequential: bool = False,
) -> list[Ruling]:
    """A ruling for every rule, in their order.

    Args:
        baseline: what rules with `no_worse_than baseline` compare with.
        alpha: one-sided level of every decision, in (0, 0.5).
        on_inconclusive: `fail`, `warn` or `pass`; None: `fail` for bounds, `warn` for comparisons with a baseline.
        sequential: the run was watched by a `Watch` that might end a row as failed early; half of alpha is spent on that.

    Raises:
        UsageError: a rule about what the run does not have, or without the baseline that it needs.
        RunMismatch: the baseline does not compare.
    """
    if not 0 < alpha < 0.5:
        raise UsageError(f"alpha must lie between 0 and 0.5, got {alpha:g}: 0.05 is usual")
    return list(_Gate(rules, result, baseline, alpha, on_inconclusive, sequential).rulings())


@dataclass(frozen=True)
class _Gate:
    rules: Sequence[Rule]
    result: Result
    baseline: Baseline | None
    alpha: float
    on_inconclusive: OnInconclusive | None
    sequential: bool

    def rulings(self) -> Sequence[Ruling]:
        return [
            self._none_of(rule) if isinstance(rule, NoneOf)
            else self._no_worse(rule) if isinstance(rule, NoWorse)
            else self._figure(rule) if rule.metric != "accuracy"
            else self._share(rule)
            for rule in self.rules
        ]  # fmt: skip

    # ------------------------------------------------------------------ accuracies

    def _share(self, rule: Bound) -> Ruling:
        condition = row_of(rule, self.result.conditions)
        row, levels = standing(condition, self.result), Levels.of(rule, self.alpha, self.sequential)
        worst, best = (row.counted(best=best) for best in (False, True))
        low, high = limits(rule, *worst, levels)[0], limits(rule, *best, levels)[1]
        watched = self.sequential and rule.is_floor and condition.kind == "attack" and not row.groups
        ruling = Ruling(
            rule.text, condition.name, "inconclusive", "", self._blocks("fail"), len(row.fates), len(row.ids),
            None if row.missing else sum(row.right(best=False)) / len(row.ids), low, high, rule.threshold,
            figures={"undecided": row.undecided, "independent_images": worst[1]}, line=rule.line,
        )  # fmt: skip
        said = f"accuracy {self._estimate(ruling)} [{low:.4f}, {high:.4f}]"
        said += f", {row.undecided} undecided images counted as not correct," if row.undecided else ""
        outcomes = held(rule, *worst, levels), held(rule, *best, levels)
        if watched and self._fails_early(rule, row, levels):
            message = f"the first images in the run's order already exclude accuracy {rule.comparison} {rule.threshold:g}, {_of(ruling)}"
            return self._told(ruling, "fail", f"{message} [{low:.4f}, {high:.4f}]")
        if outcomes[0] != outcomes[1] or (row.groups and row.missing):
            return self._unsettled(ruling, row, f"{said} against {rule.comparison} {rule.threshold:g}")
        message = f"{said} {SAYS[outcomes[0]]} {rule.comparison} {rule.threshold:g}"
        if outcomes[0] == "inconclusive" and ruling.estimate is not None:
            needed = needed_to_hold(rule, ruling.estimate, len(row.ids), levels)
            ruling = replace(ruling, needed=needed)
        return self._told(ruling, outcomes[0], message, lambda without: held(rule, *row.counted(best=False, without=without), levels))

    def _fails_early(self, rule: Bound, row: Standing, levels: Levels) -> bool:
        order = self.result.config["sessions"][-1]["shuffle_seed"]
        return fails_early(decided_first(row.ids, row.fates, order), rule.threshold, levels.failing)

    # ------------------------------------------------------------------ against the baseline

    @cached_property
    def _rows(self) -> Mapping[NoWorse, tuple[Condition, Standing, Mapping[str, bool]]]:
        """Of every comparison, the row, and which of its images the baseline got right."""
        found = {}
        for rule in (rule for rule in self.rules if isinstance(rule, NoWorse)):
            if self.baseline is None:
                raise UsageError(f"{rule.text}: there is no baseline: name one, or write it with `robust-eval baseline write`")
            condition = row_of(rule, self.result.conditions)
            found[rule] = condition, standing(condition, self.result), self.baseline.row(condition, self.result)
        return found

    def _adjusted(self, *, best: bool) -> Mapping[NoWorse, float]:
        """p of every comparison by Holm, if all open images are wrong, or right."""
        p = [row.change(before, best=best).p for _, row, before in self._rows.values()]
        return dict(zip(self._rows, holm(p), strict=True))

    def _no_worse(self, rule: NoWorse) -> Ruling:
        condition, row, before = self._rows[rule]
        worst, best = (row.change(before, best=best) for best in (False, True))
        p = {best: self._adjusted(best=best)[rule] for best in (False, True)}
        low, high = worst.limits(self.alpha)[0], best.limits(self.alpha)[1]
        paired = sum(key in before for key in row.ids)
        ruling = Ruling(
            rule.text, condition.name, "inconclusive", "", self._blocks("warn"), sum(key in before for key in row.fates), paired,
            None if row.missing else worst.difference, low, high, -rule.margin,
            figures={"gained": worst.gained, "lost": worst.lost, "p": p[False], "comparisons": len(self._rows)}, line=rule.line,
        )  # fmt: skip
        among = f" by Holm over {len(self._rows)} comparisons" if len(self._rows) > 1 else ""
        said = f"change against the baseline {self._estimate(ruling)} [{low:+.4f}, {high:+.4f}]"
        said += "" if row.missing else f", {worst.gained:g} gained and {worst.lost:g} lost, McNemar p {p[False]:.3g}{among},"
        outcomes = worst.outcome(rule, self.alpha, p[False]), best.outcome(rule, self.alpha, p[True])
        if outcomes[0] != outcomes[1] or (row.groups and row.missing):
            return self._unsettled(ruling, row, f"{said} against a margin of {rule.margin:g}")
        message = f"{said} {LOSS[outcomes[0]].format(margin=rule.margin)}"
        if outcomes[0] == "inconclusive" and not row.missing:
            # each independent image stands for paired / n images
            needed = needed_to_compare(rule, worst, int(worst.n), self.alpha)
            scaled = None if needed is None else max(round(needed * paired / worst.n), paired + 1)
            ruling = replace(ruling, needed=scaled)
        return self._told(
            ruling,
            outcomes[0],
            message,
            lambda without: row.change(before, best=False, without=without).outcome(rule, self.alpha, p[False]),
        )

    # ------------------------------------------------------------------ other figures, and findings

    def _figure(self, rule: Bound) -> Ruling:
        found = limited(rule, self.result, self.alpha)
        outcome = by_bounds(rule, found.low, found.high)
        ruling = Ruling(
            rule.text, found.about[0] if len(found.about) == 1 else "", outcome, "", self._blocks("fail"), found.n, found.n,
            found.value, found.low, found.high, rule.threshold, figures={"undecided": found.undecided}, line=rule.line,
        )  # fmt: skip
        message = f"{found.meaning}: {found.value:.4f} on {found.n:,} images [{found.low:.4f}, {found.high:.4f}]"
        message += f" {SAYS[outcome]} {rule.comparison} {rule.threshold:g}"
        if outcome == "pass" and found.undecided:
            return replace(ruling, outcome="invalid", message=f"{message}, but {found.undecided} images are undecided")
        if outcome == "inconclusive":
            needed = needed_to_narrow((found.low, found.value, found.high), rule.threshold, found.n, self.alpha)
            ruling = replace(ruling, needed=needed)
        # a proof stands whatever is doubted of the attacks beside it
        return self._told(ruling, outcome, message, about=() if rule.metric == "certified" else found.about)

    def _none_of(self, rule: NoneOf) -> Ruling:
        """The worst cases are judged: beside a stronger attack a weaker one is always refuted, which is no fault of the model.

        What was asked for is refuted together, where an image that all of it left has a witness.
        """
        names = [c.name for c in self.result.conditions if c.kind == "worst"] or list(self.result.trust)
        seen = []
        for word in rule.words:
            if word in ("refuted", "doubtful"):
                seen += self._refuted(names)
            if word == "doubtful":
                judged = {name: self.result.trust[name] for name in names}
                seen += [f"{name} is {t.level}: {'; '.join(t.reasons)}" for name, t in judged.items() if t.level != "sound"]
            elif word != "refuted":
                seen += [f"{word}: {finding.seen}" for finding in self.result.findings if finding.check == word]
        seen = list(dict.fromkeys(seen))
        message = " / ".join(seen) if seen else f"none in {', '.join(names)}{_untried(self.result, names)}{self._unasked(rule)}"
        return Ruling(rule.text, "", "fail" if seen else "pass", message, False, figures={"findings": len(seen)}, line=rule.line)

    def _refuted(self, names: Sequence[str]) -> list[str]:
        """Of the rows judged, those that are refuted, and the images that all attacks at one size left and that have a witness."""
        trusts, evidence = self.result.trust, Evidence(self.result)
        missed = {(norm, eps): len(evidence.missed(norm, eps)) for norm, eps in evidence.balls}
        said = [f"{name} is refuted: {'; '.join(trusts[name].reasons)}" for name in names if trusts[name].level == "refuted"]
        return said + [
            f"{count} images that the attacks at {norm} {eps_text(eps)} left have a witness of another"
            for (norm, eps), count in missed.items()
            if count
        ]

    def _unasked(self, rule: NoneOf) -> str:
        """The checks of a rule that had less to look at than they might, to be said where they found nothing."""
        doubted = any(c.kind == "doubt" for c in self.result.conditions)
        words = [] if doubted else [word for word in rule.words if word in DIAGNOSTICS.names() and _doubts(word)]
        return f"; only with doubt = true there is all that {', '.join(words)} can look at" if words else ""

    # ------------------------------------------------------------------ what is said of it

    def _blocks(self, usual: OnInconclusive) -> bool:
        return (self.on_inconclusive or usual) == "fail"

    def _policy(self, ruling: Ruling) -> str:
        return OPEN["fail" if ruling.blocking else self.on_inconclusive or "warn"]

    def _estimate(self, ruling: Ruling) -> str:
        if ruling.estimate is None:
            return f"open, with {_of(ruling)}"
        return f"{ruling.estimate:.4f} on {ruling.n:,} images"

    def _unsettled(self, ruling: Ruling, row: Standing, said: str) -> Ruling:
        """The open images could still turn it: ended early that is inconclusive, and with answers that are no numbers invalid."""
        if row.undecided and not row.missing:
            message = f"{said}: the {row.undecided} undecided images could turn it, so that no figure stands"
            return replace(ruling, outcome="invalid", message=message)
        left = f"the {row.missing} images that are left" if row.missing else "comparisons that were ended early"
        return replace(ruling, message=f"{said}: {left} could turn it; {self._policy(ruling)}")

    def _told(
        self,
        ruling: Ruling,
        outcome: Decided,
        message: str,
        corrected: Callable[[frozenset[str]], Decided] | None = None,
        about: Sequence[str] = (),
    ) -> Ruling:
        """The ruling with its message; a pass on a figure that cannot be believed is invalid.

        Args:
            corrected: the outcome once images that are known to be broken are taken away.
            about: the rows whose figure it is, where that is not the ruling's own.
        """
        judged: Outcome = outcome
        if outcome == "inconclusive":
            wanted = (
                f"about {ruling.needed:,} images would probably decide it"
                if ruling.needed
                else "no number of images is likely to decide it"
            )
            message = f"{message}: {wanted}; {self._policy(ruling)}"
        names = about or [ruling.condition]
        against = _against(self.result.findings, names)
        if corrected is not None:  # the bounds of shares allow for every image that is left, both ways
            against = [finding for finding in against if "lacking" not in finding.figures]
        named = [finding for finding in against if finding.weight == "refutes" and finding.samples]
        refuted = frozenset(key for finding in named for key in finding.samples)
        if outcome == "pass" and named and corrected is not None and corrected(refuted) == "pass":
            against = [finding for finding in against if finding not in named]
            message += f", also without the {len(refuted)} images that something else broke"
        if against:
            judged = "invalid" if outcome == "pass" else outcome
            reasons = "; ".join(f"{finding.check}: {finding.seen}" for finding in against)
            message += f", {'but this figure cannot be believed' if outcome == 'pass' else 'and the figure is in doubt'} ({reasons})"
        return replace(ruling, outcome=judged, message=message + (_untried(self.result, names) if judged == "pass" else ""))


def _against(findings: Sequence[Finding], names: Sequence[str]) -> list[Finding]:
    """What speaks against the figures of some rows."""
    return [f for f in findings if f.weight != "notes" and f.check != COUNTED_HERE and set(f.conditions) & set(names)]


def _untried(result: Result, names: Sequence[str]) -> str:
    """What sound rows must have had and these had not, to be said beside a pass."""
    missing = list(dict.fromkeys(lacking for name in names for lacking in result.trust[name].missing))
    return f"; not tried: {'; '.join(missing)}" if missing else ""


def _doubts(check: str) -> bool:
    """Whether a check tries or asks more in doubt."""
    built = DIAGNOSTICS.build(check)
    return hasattr(built, "doubts") or bool(getattr(built, "dear", False))


def _of(ruling: Ruling) -> str:
    return f"{ruling.n:,} of {ruling.of:,} images decided"
