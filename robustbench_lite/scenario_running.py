"""Running a scenario: one evaluation over all of its rows, and the clinical figures of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from .attacking import Progress
from .classifier import Classifier
from .clinical import figures, operating_point
from .conditions import Means
from .corrupting import members
from .data import default_for
from .errors import UsageError
from .evaluation import evaluate
from .labelled import LabelledImages
from .registry import ATTACKS, Spec
from .requested import images_of
from .results import Condition, Result
from .samples import BatchSize
from .scenario_cast import Cast, answer, cast, model_of, without_meaning
from .scenario_files import scenario_of
from .scenarios import FROM_SURROGATES, Measured, Row, Scenario, ScenarioReport, scenario_named, scenario_names

Done = Callable[[ScenarioReport], None]


@dataclass(frozen=True)
class Outcome:
    """Several scenarios on one model: reports, and why others were left out, by name."""

    reports: Sequence[ScenarioReport]
    left_out: Mapping[str, str] = field(default_factory=dict)


def run_scenario(
    scenario: Scenario | str | Path,
    model: str | nn.Module | None = None,
    data: Any = None,
    *,
    surrogates: Sequence[str | nn.Module] = (),
    backbone: str | nn.Module | None = None,
    fit_data: Any = None,
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: BatchSize = "auto",
    witnesses: int | Literal["all", "none"] = 1000,
    out: str | Path | None = None,
    fresh: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
) -> ScenarioReport:
    """Every row of a scenario on a model, with clinical figures.

    Args:
        scenario: a name (`finlayson-cxr`), a file of the user's own, or a `Scenario`.
        model, data: as `evaluate` takes them. Without them, the phantoms that the scenario can be tried on and the models made for these.
        surrogates: models that were trained independently of `model`; their layers say whether they are of the same architecture.
        backbone: a public pre-trained network, to which the attacker fits a new last layer.
        fit_data: images that attackers learn from. None: the validation (or training) split of the data; where there is none, half of
            the images.
        limit: a seeded, stratified subset of this many images. None: all, of phantoms 100.
        out: folder of the run, where the same call goes on after an interruption. None: in memory.

    Raises:
        UsageError: something that was asked for cannot be used, or the scenario's goal has no meaning for the data.
        InvalidEvaluation: the evaluation began and cannot be trusted or kept.
    """
    name, made = scenario_of(scenario)
    taking_part = cast(
        made, model, data, surrogates=surrogates, backbone=backbone, fit_data=fit_data, limit=limit, seed=seed, device=device
    )
    taking_part.check(name, made)
    run = [row for row in made.rows if row.knowledge not in taking_part.missing]
    planned = [_means(row, made, taking_part) for row in run if not row.accident]
    needed = {means.source for means in planned}
    result = evaluate(
        taking_part.model,
        planned,
        taking_part.source,
        corruptions=[row.means for row in run if row.accident],
        target=made.goal,
        goal="full",
        limit=taking_part.limit,
        device=device,
        batch_size=batch_size,
        surrogates=[each for each in taking_part.surrogates.values() if each.name in needed],
        fit_data=taking_part.learn_from,
        keep_outputs=True,
        witnesses=witnesses,
        seed=seed,
        out=out,
        fresh=fresh,
        command=command,
        progress=progress,
    )
    return _report(name, made, taking_part, result)


def run_all(
    model: str | nn.Module | None = None,
    data: Any = None,
    *,
    out: str | Path | None = None,
    done: Done = lambda _: None,
    **options: Any,
) -> Outcome:
    """Every registered scenario that fits the data, each into a folder of its own name; other arguments as of `run_scenario`.

    Args:
        data: None without a model: every scenario on its own phantoms.
        done: told each report when it is there.

    Raises:
        UsageError: none fits, or something that was asked for cannot be used.
    """
    alone = model is None and data is None
    attacked = None if alone else model_of(model, data)
    source = None if attacked is None else default_for(attacked) if data is None else data
    images = None if attacked is None else images_of(source, attacked.preprocess, options.get("limit"), options.get("seed", 0))
    reports: list[ScenarioReport] = []
    left_out: dict[str, str] = {}
    for name in scenario_names():
        scenario = scenario_named(name)
        reason = None if attacked is None or images is None else _unfit(scenario, attacked, images)
        if reason is not None:
            left_out[name] = reason
        elif not alone or scenario.data is not None:
            reports.append(
                replace(run_scenario(scenario, model, source, out=None if out is None else Path(out) / name, **options), name=name)
            )
            done(reports[-1])
    if not reports:
        raise UsageError(f"no scenario fits: {'; '.join(f'{name}: {reason}' for name, reason in left_out.items())}")
    return Outcome(reports, left_out)


def _unfit(scenario: Scenario, model: Classifier, images: LabelledImages) -> str | None:
    """Why a scenario is left out where all are asked for."""
    if images.task is not None and images.task not in scenario.tasks:
        return f"it is for {' or '.join(scenario.tasks)} labels, and those of {images.name} are {images.task}"
    if images.synthetic and scenario.data is not None and _kind(scenario.data) != _kind(images.name):
        return f"it is about {scenario.domain}, and {images.name} is not"
    return without_meaning(scenario, images, answer(model, images).shape[1])


def _kind(phantoms: str) -> str:
    """What phantoms look like: `chest` of `phantom:chest-findings`."""
    return str(Spec.parse(phantoms).first).partition("-")[0]


def _means(row: Row, scenario: Scenario, taking_part: Cast) -> Means:
    """The row as `evaluate` takes it; an eps that it does not say is the attack's, or else the scenario's usual one."""
    attack = ATTACKS.build(row.means)
    norm = row.norm or attack.norms[0]
    eps = row.eps
    if eps is None and norm not in getattr(attack, "usual_eps", {}):
        eps = scenario.usual_eps.get(norm)
    source = taking_part.surrogates[row.knowledge].name if row.knowledge in FROM_SURROGATES else None
    return Means(attack, norm, eps, source)


def _report(name: str, scenario: Scenario, taking_part: Cast, result: Result) -> ScenarioReport:
    point = operating_point(result, scenario.sensitivity)
    attacks = iter([condition for condition in result.conditions if condition.kind == "attack"])
    clean = Row("clean images", "nothing", "")
    measured = [Measured(clean, "clean", figures(result, "clean", point))]
    notes = [*taking_part.notes, *result.config["notes"]]
    for row in scenario.rows:
        missing = taking_part.missing.get(row.knowledge)
        if missing is not None:
            measured.append(Measured(row, missing=missing))
            continue
        condition = _worst(row, result).name if row.accident else next(attacks).name
        if row.accident and len(members(row.means)) > 1:
            notes.append(
                f"{row.name}: of the {len(members(row.means))} corruptions of {row.means} that which costs most accuracy, {condition}"
            )
            row = replace(row, name=f"{row.name}: {condition}")
        measured.append(Measured(row, condition, figures(result, condition, point)))
    if scenario.data is None or not result.config["data"]["synthetic"]:
        notes.append(f"the scenario is about {scenario.domain}: whether {taking_part.images.name} is such, only you can say")
    models = {"model": taking_part.model.name, **{role: each.name for role, each in taking_part.surrogates.items()}}
    return ScenarioReport(name, scenario, result, measured, point, models, bool(result.config["data"]["synthetic"]), notes)


def _worst(row: Row, result: Result) -> Condition:
    """Of the corruptions that a row asks for, that which leaves the fewest images right; the first of equals."""
    asked = {f"{member.name}[{severity}]" for member, severity in members(row.means)}
    conditions = [condition for condition in result.conditions if condition.name in asked]
    return min(conditions, key=lambda condition: sum(verdict.broken is False for verdict in result.of(condition.name)))
