"""What a run found: conditions, one verdict per condition and sample, and the table made from them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .errors import InvalidEvaluation
from .matrix import TransferRow, TransferVerdict, transfer_rows
from .quarantine import unreadable
from .stages import StageRow, stage_rows
from .stats import wilson

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from .diagnostics import Finding
    from .proofs import Bracket, Known, ProofRow, ProofVerdict
    from .sequences import SequenceRow, SequenceVerdict
    from .trust import Trust

Kind = Literal["clean", "attack", "corruption", "sequence", "worst", "doubt", "certified", "shift"]
Goal = Literal["first", "closest", "full"]
Norm = Literal["linf", "l2", "l1", "l0", "pixels", "patch", "handling", "spatial", "colour", "flow"]
Reduced = Literal["bf16", "tf32"]
REDUCED: Mapping[str, str] = {"bf16": "bfloat16", "tf32": "TF32"}
"""Precisions that are faster than float32 and rougher, in words."""
NOTHING_TO_GAIN = "it offers the attacker nothing"
LEARNT_FROM = "the attack learnt from it"
NOWHERE = "nothing was found at any distance"
WITHIN = 1e-5
"""Relative slack of a ball: float32 sums over an image's pixels are good to about this."""
Size = TypeVar("Size", float, "Tensor")


def reach(eps: Size) -> Size:
    """How far a ball of this size goes, with the slack of rounding."""
    return eps * (1 + WITHIN) + 1e-7


def size_of(reached: Size) -> Size:
    """The eps of the ball that goes so far."""
    return (reached - 1e-7) / (1 + WITHIN)


@dataclass(frozen=True)
class Condition:
    """One thing that was done to every image: nothing (`clean`), an attack at one eps, a corruption at one severity.

    `name` is unique in a run: `clean`, `pgd[linf,4/255]`, `worst[linf,4/255]`, `fog[3]`. `attack` is the spec that configured it, `source`
    the surrogate that a transfer attack was made on, `corruption` what a `severity` belongs to. `doors` says what each part of the attack
    was let see, as part -> door. A `doubt` is an attack that was tried on the images which those that were asked for had left; `eot` is
    how many answers of a randomised model it averages, where that is not as the run does. Where every image has a ball of its own size, eps
    is in multiples of that (`scaled`). A `certificate` is the spec of what proves, with the `confidence` of a single proof, and `proof_of`
    the digest of the model that it proves something of.
    """

    name: str
    kind: Kind
    attack: str | None = None
    norm: str | None = None
    eps: float | None = None
    severity: int | None = None
    goal: Goal = "first"
    target: int | str | None = None
    source: str | None = None
    corruption: str | None = None
    doors: Mapping[str, str] = field(default_factory=dict, hash=False)
    eot: int | None = None
    scaled: bool = False
    certificate: str | None = None
    confidence: float | None = None
    proof_of: str | None = None


@dataclass(frozen=True, slots=True)  # there are millions of them
class Verdict:
    """One line of the results: what one condition did to one image.

    `broken` is None where the evaluation could not decide (NaN, error; `reason` says which): it never counts as robust. Of an image that a
    search for the nearest broke before it met with such a thing, `reason` says so too: at smaller sizes it is undecided.
    `prediction`, `confidence` (softmax probability of the prediction) and `distance` belong to the witness of a broken image, and to
    the image of highest margin that the attack asked about otherwise. `precision` is the search's; a witness is always settled in
    float32. `witness` is the SHA-256 of the witness's file, None where none was kept. `stages` holds what each attack of a cascade
    cost, as name -> (forwards, backwards), in the order in which they ran; an image that left early lacks the later ones. Without an
    attack, `nll` is the negative logarithm of the label's probability and `brier` the sum over classes of (probability - truth) squared;
    None where a label is not one class. `gradient` is the largest absolute value in the gradients that the attack followed, None where it
    followed none. `outputs` are the model's, of the image that `prediction` belongs to, where they were asked for (`keep_outputs`).

    Under the goal `closest`, `approach` holds after how many passes (forward and backward) which distance was reached, as [passes,
    distance] pairs in steps of a twentieth; the last is the nearest image that was found. `distance`, `prediction` and `witness` belong to
    it even where it lies outside the ball, so that the image is not `broken` at this eps. `radius` is the image's own eps where it has one.
    `unconfirmed` counts the witnesses that the search found on the model as it was prepared for speed and that did not hold on the model
    as given, so that they do not count; None where no prepared model was searched.
    """

    sample_id: str
    group: str | None
    condition: str
    label: Any
    clean_prediction: Any
    prediction: Any
    target: int | None
    broken: bool | None
    broken_by: str | None
    restart: int
    reason: str | None
    distance: float
    confidence: float
    steps: int
    forwards: int
    backwards: int
    precision: str
    seed: int
    witness: str | None
    stages: Mapping[str, Sequence[int]] = field(default_factory=dict)
    nll: float | None = None
    brier: float | None = None
    gradient: float | None = None
    outputs: Sequence[float] | None = None
    approach: Sequence[Sequence[float]] = field(default_factory=list)
    radius: float | None = None
    unconfirmed: int | None = None

    @property
    def nearest(self) -> float:
        """How far the nearest image lies that is known to be broken: 0 without an attack, infinite where none is known."""
        if self.broken_by == "clean":
            return 0.0
        return self.distance if self.broken or self.approach else math.inf

    @property
    def cut_short(self) -> bool:
        """Whether something that could not be decided ended the search: it might have found a nearer image."""
        return self.broken is None or bool(self.broken and self.reason)


VERDICT_FIELDS = tuple(f.name for f in fields(Verdict))


@dataclass(frozen=True)
class Witness:
    """The proof that an image is broken: the clean image and the adversarial one, both (C, H, W) float32 in [0, 1]."""

    clean: Tensor
    adversarial: Tensor


def goals_of(conditions: Iterable[Condition]) -> str:
    """Of a run's attacks, `first` where there are none; `closest+first` where they have several."""
    return "+".join(sorted({c.goal for c in conditions if c.kind == "attack"})) or "first"


def eps_text(eps: float) -> str:
    """The plain number where it is short (0.15), else `4/255` where eps is a multiple of a half 255th."""
    plain, parts = f"{eps:g}", round(eps * 255 * 2) / 2
    if len(plain) > 5 and parts > 0 and math.isclose(eps, parts / 255, rel_tol=1e-9):
        return f"{parts:g}/255"
    return plain


def size_text(eps: float, scaled: bool) -> str:
    """An eps, or so many times each image's own."""
    return f"{eps:g}x" if scaled else eps_text(eps)


TABLE_COLUMNS = (
    "model", "data", "condition", "kind", "norm", "eps", "severity", "n", "correct", "accuracy", "ci_low", "ci_high", "undecided",
    "mean_forwards", "mean_backwards", "seconds", "attack", "goal", "search", "success_all", "success_correct", "median_distance",
    "trust", "at_most", "reasons", "certified", "unsettled", "unreadable",
)  # fmt: skip


def table_row(
    condition: Condition, verdicts: Sequence[Verdict], model: str, data: str, seconds: float, right_when_clean: Set[str] = frozenset()
) -> dict[str, Any]:
    """One row of the table.

    `accuracy = correct / n`: an undecided image is in n and is not correct. `success_all` is broken / n, `success_correct` the share
    of the initially correct images that were broken. A corrupted image is judged by itself, for a corruption may also mend one:
    `right_when_clean` says which were correct before. `mean_forwards` and `mean_backwards` are over the images that were attacked,
    that is, all but those that met the criterion when clean; on the clean row, over all. `median_distance` is given under the goal
    `closest` only, over all n: images without a known broken one count as infinitely far, those that were wrong already and those that
    could not be decided as 0.

    Raises:
        ValueError: there are no verdicts; an empty evaluation has no accuracy.
    """
    n = len(verdicts)
    if n == 0:
        raise ValueError(f"no verdicts under {condition.name}: an empty evaluation has no accuracy")
    undecided = sum(v.broken is None for v in verdicts)
    broken = sum(v.broken is True for v in verdicts)
    correct = n - broken - undecided
    low, high = wilson(correct, n)
    distances = [0.0 if v.broken is None else v.nearest for v in verdicts]
    paid = verdicts if condition.kind == "clean" else [v for v in verdicts if v.broken_by != "clean" and v.forwards > 0]
    wrong_when_clean = sum(v.broken_by == "clean" for v in verdicts)
    attackable = n - wrong_when_clean - sum(v.clean_prediction is None for v in verdicts)
    fallen = broken - wrong_when_clean
    if condition.kind == "corruption":
        attackable, fallen = (sum(v.sample_id in right_when_clean for v in some) for some in (verdicts, [v for v in verdicts if v.broken]))
    return {
        "model": model, "data": data, "condition": condition.name, "kind": condition.kind, "norm": condition.norm,
        "eps": condition.eps, "severity": condition.severity, "n": n, "correct": correct, "accuracy": correct / n,
        "ci_low": low, "ci_high": high, "undecided": undecided,
        "mean_forwards": statistics.fmean([v.forwards for v in paid] or [0]),
        "mean_backwards": statistics.fmean([v.backwards for v in paid] or [0]),
        "seconds": seconds, "attack": condition.attack, "goal": condition.goal,
        "search": "+".join(sorted({v.precision for v in verdicts})),
        "success_all": None if condition.kind == "clean" else broken / n,
        "success_correct": None if condition.kind == "clean" or not attackable else fallen / attackable,
        "median_distance": statistics.median(distances) if condition.goal == "closest" else None,
        "unreadable": sum(map(unreadable, verdicts)),
    }  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A finished run, for reports and for Python: `table`, `verdicts`, `conditions`, `config`, and the witnesses.

    Args:
        config: what `run.json` holds: resolved arguments, versions, device, digests.
        conditions: in the order in which they were evaluated; the worst-case conditions last.
        verdicts: of every condition and sample.
        seconds: wall time per condition, summed over all sessions of a resumed run.
        witness: the witness of (condition, sample id), or None where none was kept.
        folder: the run's folder, None for a run kept in memory.
        transferred: of a run with surrogates, what every model says of every image.
        sequenced: of a run with perturbation sequences, what the model says of every frame.
        shown: one image as it is (`clean`) and under every corruption, by condition, as a small JPEG.
        left_out: by condition, the images that it is not for, with the reason: NOTHING_TO_GAIN or LEARNT_FROM.
        proofs: what the `certificates` proved, image by image.
    """

    config: Mapping[str, Any]
    conditions: Sequence[Condition]
    verdicts: Sequence[Verdict]
    seconds: Mapping[str, float]
    witness: Callable[[str, str], Witness | None]
    folder: Path | None = None
    transferred: Sequence[TransferVerdict] = ()
    sequenced: Sequence[SequenceVerdict] = ()
    shown: Mapping[str, bytes] = field(default_factory=dict)
    left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    proofs: Sequence[ProofVerdict] = ()
    certificates: Sequence[Condition] = ()

    def of(self, condition: str) -> list[Verdict]:
        """The verdicts of one condition, in the data set's order."""
        return list(self._by_condition.get(condition, ()))

    @cached_property
    def _by_condition(self) -> Mapping[str, Sequence[Verdict]]:
        found: dict[str, list[Verdict]] = {}
        for v in self.verdicts:
            found.setdefault(v.condition, []).append(v)
        return found

    @property
    def verdict_digest(self) -> str:
        """SHA-256 of what was found of every image under every condition, and of nothing that depends on who found it."""
        said = sorted(repr((v.condition, v.sample_id, v.broken, v.broken_by, v.reason, v.prediction, v.target)) for v in self.verdicts)
        return sha256("\n".join(said).encode()).hexdigest()

    @property
    def table(self) -> pd.DataFrame:
        """One row per condition, the columns of `TABLE_COLUMNS`; doubts have none, since they met some images only."""
        import pandas as pd

        model, data = self.config["model"]["name"], self.config["data"]["name"]
        right = {v.sample_id for v in self.of("clean") if v.broken is False}
        rows = []
        for c in self.conditions:
            if c.kind != "doubt":
                between = self.brackets.get(c.name)
                row, trust = table_row(c, self.of(c.name), model, data, self.seconds.get(c.name, 0.0), right), self.trust[c.name]
                row |= {"trust": trust.level, "at_most": trust.at_most, "reasons": "; ".join(trust.reasons)}
                rows.append(row if between is None else row | {"certified": between.certified, "unsettled": len(between.unsettled)})
        # else names would become text of Arrow's where that is installed, which cannot hold a path whose bytes are no UTF-8
        with pd.option_context("mode.string_storage", "python"):
            return pd.DataFrame(rows, columns=list(TABLE_COLUMNS)).astype({"severity": "Int64", "unsettled": "Int64"})

    @cached_property
    def findings(self) -> list[Finding]:
        """What the checks of `diagnostics` found: whether the numbers can be believed."""
        from .diagnostics import findings

        return findings(self)

    @cached_property
    def trust(self) -> dict[str, Trust]:
        """How far each row can be believed, by condition."""
        from .trust import trusts

        return trusts(self)

    @cached_property
    def known(self) -> Known:
        """What is proven of the model.

        Raises:
            InvalidEvaluation: a verdict contradicts a proof, so that neither can be shown.
        """
        from .proofs import Known

        if not self.proofs:
            return Known({}, {})
        known = Known.of(self.certificates, self.proofs, self.config["model"]["digest"])
        contradiction = known.contradicted(self.conditions, self.verdicts)
        if contradiction is not None:
            raise InvalidEvaluation(contradiction)
        return known

    @cached_property
    def brackets(self) -> dict[str, Bracket]:
        """Per row of attacks, what is proven of its images beside what survived; where certificates of the same model have its norm."""
        found = {c.name: self.known.bracket(c, self.of(c.name)) for c in self.conditions}
        return {name: bracket for name, bracket in found.items() if bracket is not None}

    @property
    def proof_rows(self) -> list[ProofRow]:
        """What every certificate proved of all images."""
        from .proofs import proof_rows

        _ = self.known  # refuses what cannot be right
        return proof_rows(self.certificates, self.proofs, self.config["model"]["digest"]) if self.proofs else []

    @property
    def headlines(self) -> dict[str, Trust]:
        """The trust in what a run claims: every row but those of single attacks, for which the worst case of their size stands."""
        return {c.name: self.trust[c.name] for c in self.conditions if c.kind not in ("attack", "doubt") and c.name in self.trust}

    @property
    def cascade(self) -> list[StageRow]:
        """What each attack of a cascade did, for the conditions that are several attacks in turn."""
        return [row for c in self.conditions if c.kind == "attack" for row in stage_rows(c, self.of(c.name))]

    @property
    def transfer(self) -> list[TransferRow]:
        """The source x target matrix of a run with surrogates."""
        return transfer_rows(self.transferred)

    @property
    def sequences(self) -> list[SequenceRow]:
        """How often the prediction flips along each perturbation."""
        from .sequences import sequence_rows

        return sequence_rows(self.sequenced)

    @property
    def sequence_figures(self) -> list[str]:
        """What may be said of all perturbations together, one sentence a figure."""
        from .sequences import Rates, sequence_figures

        rates = self.config.get("sequence_rates")
        return sequence_figures(self.sequences, None if rates is None else Rates(**rates))

    def write(self, formats: Sequence[str] = ("html", "csv")) -> list[Path]:
        """Write the run into its folder in these formats (`robust-eval list formats`); the main file of each, in that order.

        Raises:
            UnknownName: nothing is registered under the name of a format.
            UsageError: the result has no folder, or a format needs a package that is not installed.
            InvalidEvaluation: a file could not be written.
        """
        from .registry import FORMATS

        writers = [FORMATS.get(name) for name in formats]
        return [writer(self)[0] for writer in writers]

    def _repr_html_(self) -> str:
        from .registry import REPORTS

        return str(REPORTS.get("notebook")(self))
