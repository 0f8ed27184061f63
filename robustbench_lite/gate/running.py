"""A gate from its settings to its judgement: read the rules, refuse what cannot be decided, evaluate as far as needed, decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

from ..allowing import named_in
from ..attacking import Enough, Progress
from ..classifier import Classifier
from ..conditions import jobs
from ..console import default_folder
from ..data import default_for, load_data
from ..errors import BadSpec, RunMismatch, UsageError
from ..evaluation import evaluate
from ..labelled import LabelledImages
from ..models import load_model
from ..results import Condition, Result, eps_text, goals_of
from ..shifts import sequences, shifts
from . import baseline as baselines
from .baseline import TERMS, Baseline
from .decisions import decide
from .early import Watch
from .figures import check_level
from .rules import NO_WORSE, Bound, NoneOf, NoWorse, Rule, parse, row_of
from .rulings import Judgement
from .settings import Asked, Settings

MODEL = ("weights", "num_classes", "mean", "std", "size", "resize", "interpolation", "defense")
EVALUATED = (*MODEL, "model", "data", "limit", "attacks", "eps", "norm", "corruptions", "certify", "doubt", "seed")
"""Settings that say which run this is; the rules are held to it, and may change while it goes on."""


@dataclass(frozen=True)
class Plan:
    """What a gate is about to do.

    Args:
        conditions: what will be evaluated, the worst cases last.
    """

    settings: Settings
    classifier: Classifier
    data: str
    images: LabelledImages
    conditions: Sequence[Condition]
    rules: Sequence[Rule]
    baseline: Baseline | None

    @property
    def enough(self) -> Enough | None:
        """What ends conditions early; None where all images are wanted."""
        settings, images = self.settings, self.images
        if not (settings.fast or settings.sequential):
            return None
        evaluated = [c for c in self.conditions if c.kind != "worst"]
        return Watch(self.rules, evaluated, images.ids, images.groups, self.baseline, settings.alpha, settings.sequential)


def run_gate(
    asked: Asked, *, fresh: bool = False, allow_pickle: bool = False, command: str | None = None, progress: Progress | None = None
) -> Judgement:
    """Evaluate a model as far as its gate's rules need, into a folder where the same call goes on, and decide.

    Args:
        fresh: throw away what an earlier run left in the folder.
        allow_pickle: as for `load_model`; settings cannot allow it to themselves, and no more that code runs which they name.
        command: recorded as the way to repeat the run.
        progress: as `evaluate` takes it.

    Raises:
        UsageError: a rule, the model, the data, the baseline or an option cannot be used.
        InvalidEvaluation: the evaluation began and cannot be trusted or kept.
    """
    made = planned(asked, allow_pickle)
    settings = made.settings
    result = evaluate(
        made.classifier,
        settings.attacks,
        made.data,
        corruptions=settings.corruptions,
        eps=settings.eps,
        norm=settings.norm,
        limit=settings.limit,
        device=settings.device,
        certify=settings.certify,
        doubt=settings.doubt,
        seed=settings.seed,
        out=folder_of(settings),
        fresh=fresh,
        command=command,
        progress=progress,
        enough=made.enough,
    )
    short = list(_cut_short(result, len(made.images)))
    result = replace(result, config={**result.config, "notes": [*result.config["notes"], *short]})  # a reader of the report must know
    rulings = decide(
        made.rules,
        result,
        made.baseline,
        alpha=settings.alpha,
        on_inconclusive=settings.on_inconclusive,
        sequential=settings.sequential,
    )
    return Judgement(rulings, result, asked.file, settings.alpha, [_policy(settings), *short])


def planned(asked: Asked, allow_pickle: bool = False) -> Plan:
    """Everything that can be refused before an image is attacked.

    Raises:
        UsageError: a rule that cannot be read or names no condition, a baseline that does not compare, or what `evaluate` refuses.
    """
    settings = asked.settings
    rules = [_rule(settings, text, asked.file, line) for text, line in zip(settings.rules, asked.lines, strict=True)]
    baseline = None if settings.baseline is None else baselines.read(settings.baseline)
    with named_in(asked.source):
        classifier = load_model(settings.model, **{name: getattr(settings, name) for name in MODEL}, allow_pickle=allow_pickle)
    data = settings.data or default_for(classifier)
    images = load_data(data, limit=settings.limit, seed=settings.seed, preprocess=classifier.preprocess)
    conditions = _conditions(settings, images)
    if baseline is not None and not any(isinstance(rule, NoWorse) for rule in rules):
        rules += [_rule(settings, f"{c.name}.accuracy no_worse_than baseline") for c in conditions if c.kind in ("clean", "worst")]
    _check(rules, asked.file, conditions, settings)
    _compare(rules, baseline, images, conditions, settings)
    return Plan(settings, classifier, data, images, conditions, rules, baseline)


def folder_of(settings: Settings) -> Path:
    """The same settings, the same place, however the rules change."""
    if settings.out is not None:
        return Path(settings.out)
    asked = [(name, getattr(settings, name)) for name in sorted(EVALUATED)]
    return default_folder(asked, f"gate-{Path(settings.model).name.split(':')[0]}")


def _rule(settings: Settings, text: str, file: str = "", line: int | None = None) -> Rule:
    try:
        rule = parse(text, line)
    except BadSpec as error:
        raise BadSpec(f"{_place(file, line)}{error}") from None
    said = NO_WORSE.fullmatch(rule.text)
    return replace(rule, margin=settings.margin) if isinstance(rule, NoWorse) and said and said["margin"] is None else rule


def _place(file: str, line: int | None) -> str:
    return f"{file}, line {line}: " if file and line is not None else ""


def _conditions(settings: Settings, images: LabelledImages) -> list[Condition]:
    """What will be evaluated, by the names that its rows will have."""
    planned = jobs(settings.attacks, norm=settings.norm, eps=settings.eps, default_eps=images.default_eps, data=images.name)
    balls = dict.fromkeys((job.condition.norm, job.condition.eps) for job in planned)
    return [
        *([Condition("clean", "clean")] if images.has_clean else []),
        *(shift.condition for shift in shifts(settings.corruptions, images, None)),
        *(each.condition for each in sequences(settings.corruptions)),
        *(job.condition for job in planned),
        *(Condition(f"worst[{norm},{eps_text(eps or 0)}]", "worst", norm=norm, eps=eps) for norm, eps in balls),
    ]


def _check(rules: Sequence[Rule], file: str, conditions: Sequence[Condition], settings: Settings) -> None:
    """Refuse rules that no row of the run can answer."""
    kinds = {c.kind for c in conditions}
    for rule in rules:
        where = _place(file, rule.line)
        if isinstance(rule, NoneOf):
            continue
        if rule.row == "corruptions" and "corruption" not in kinds:
            raise UsageError(f'{where}{rule.text}: the gate evaluates no corruptions: add corruptions = ["imagenet-c"]')
        if isinstance(rule, Bound) and rule.metric == "certified" and not settings.certify:
            raise UsageError(f'{where}{rule.text}: nothing is to be proven: add certify = ["crown"]')
        if rule.row == "calibration" and "clean" not in kinds:
            raise UsageError(f"{where}{rule.text}: calibration is of clean images, and the data holds none")
        try:
            if isinstance(rule, Bound):
                check_level(rule, settings.alpha)
            if rule.row not in ("corruptions", "calibration"):
                row_of(rule, conditions)
        except UsageError as error:
            raise UsageError(f"{where}{error}") from None


def _compare(
    rules: Sequence[Rule], baseline: Baseline | None, images: LabelledImages, conditions: Sequence[Condition], settings: Settings
) -> None:
    """Refuse a baseline that is known not to compare before anything was evaluated; `decide` looks at the rest."""
    compared = [rule for rule in rules if isinstance(rule, NoWorse)]
    if baseline is None:
        if compared:
            raise UsageError(f"{compared[0].text}: there is no baseline: give one with --baseline, or baseline = ... in the settings")
        return
    for term, here in _terms(settings, conditions).items():
        if baseline.terms.get(term) != here:
            raise RunMismatch(
                f"{baseline.source} was made with {term} {baseline.terms.get(term)}, not {here}: use the same, or write it anew"
            )
    other = [key for key in images.ids if key not in baseline.labels]
    if other:
        raise RunMismatch(
            f"{baseline.source} is of other data: it has {len(baseline.labels)} images of {baseline.data['name']}, and lacks {len(other)} "
            f"of the {len(images)} here: evaluate on the same images, or write it anew with `robust-eval baseline write`"
        )
    for rule in compared:
        name = row_of(rule, conditions).name
        if name not in baseline.rows:
            had = f"it has {', '.join(baseline.rows)}"
            raise RunMismatch(f"{baseline.source} has no {name}, {had}: evaluate the same conditions, or write it anew")


def _terms(settings: Settings, conditions: Sequence[Condition]) -> dict[str, Any]:
    """What a gate's run has of `TERMS`: the seed, its attacks' goals, and else what `evaluate` does by itself."""
    usual = {name: each.default for name, each in signature(evaluate).parameters.items() if name in TERMS}
    return {**usual, "surrogates": list(usual["surrogates"]), "seed": settings.seed, "goal": goals_of(conditions), "no_stand_ins": None}


def _cut_short(result: Result, images: int) -> Iterator[str]:
    """What to say of rows that lack images."""
    for c in result.conditions:
        decided = len(result.of(c.name))
        if c.kind in ("attack", "corruption") and decided < images:
            yield (
                f"{c.name} was stopped after {decided} of {images} images, which decide its rules; the accuracy in its row is of these "
                "alone, and they are not a fair sample"
            )


def _policy(settings: Settings) -> str:
    if settings.on_inconclusive is None:
        return "an inconclusive rule fails the gate, and one against a baseline only warns (on_inconclusive is not set)"
    meaning = {"fail": "fails the gate", "warn": "only warns", "pass": "passes"}[settings.on_inconclusive]
    return f'an inconclusive rule {meaning} (on_inconclusive = "{settings.on_inconclusive}")'
