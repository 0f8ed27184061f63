"""`robust-eval scenario list`, `show` and `run`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Group, Parameter

from .console import AllowCode, application, bars, batch_size_of, complain, default_folder, show, whole
from .errors import UsageError
from .plain_text import say

if TYPE_CHECKING:
    from .scenario_running import Outcome
    from .scenarios import ScenarioReport

Debug = Annotated[bool, Parameter(show=False, negative="")]
PARTS, RUN, LOADING = Group("Who takes part", sort_key=1), Group("Run", sort_key=2), Group("How the model is loaded", sort_key=3)
EVERY = "all"


def opt(group: Group, text: str, *names: str) -> Parameter:
    return Parameter(name=names or None, help=text, negative="", group=group)


def add_to(app: App) -> None:
    """Give the app these commands."""
    scenarios = application("scenario", help="What an attacker with a motive can do to a clinical model, in clinical terms.")
    scenarios.command(list_scenarios, name="list")
    scenarios.command(show_scenario, name="show")
    scenarios.command(run)
    app.command(scenarios)


def list_scenarios(*, debug: Debug = False) -> int:
    """List the scenarios."""
    from rich.table import Table

    from .scenarios import scenario_named, scenario_names

    table = Table("scenario", "images", "the attacker wants", "tried on", box=None)
    for name in scenario_names():
        scenario = scenario_named(name)
        table.add_row(name, scenario.domain, scenario.goal or "any error", scenario.data or "-")
    show(table)
    return 0


def show_scenario(scenario: str, /, *, debug: Debug = False) -> int:
    """Say everything about a scenario: a name, or a file of your own, which is checked."""
    from rich.console import Group as Lines
    from rich.table import Column, Table
    from rich.text import Text

    from .scenario_files import scenario_of

    name, made = scenario_of(scenario)
    told = Table(box=None, show_header=False)
    told.add_column(no_wrap=True)
    about = {
        "scenario": f"{name}: {made.title}",
        "images": made.domain,
        "who": made.who,
        "what they can do": made.can,
        "what happens": made.happens,
        "what they want": made.goal or "any error",
        "sensitivity": f"{made.sensitivity:g} on clean images sets the operating point",
        "tried on": made.data or "-",
    }
    for what, text in about.items():
        told.add_row(what, Text(text))
    rows = Table("row", "the attacker has", Column("means", overflow="fold"), "norm", "eps", box=None)
    for row in made.rows:
        rows.add_row(row.name, row.knowledge, Text(row.means), row.norm or "", "" if row.eps is None else f"{row.eps:g}")
    parts: list[Any] = [told, "", rows]
    if made.published is not None:
        published = Table("published", "accuracy", "AUROC", "mean confidence", box=None)
        for each in made.published.rows:
            published.add_row(each.row, f"{each.accuracy:.4f}", f"{each.auroc:.4f}", f"{each.confidence:.3f}")
        parts += ["", published, Text(f"{made.published.source}; {made.published.setting}; for the other rows see the paper")]
    show(Lines(*parts))
    return 0


def run(
    scenario: str,
    /,
    *,
    model: Annotated[str | None, opt(PARTS, "The model that is attacked. Default, on phantoms: the one made for them.")] = None,
    data: Annotated[str | None, opt(PARTS, "medmnist:FILE, imagefolder:PATH, phantom:chest, ... Default: the scenario's phantoms.")] = None,
    surrogate: Annotated[list[str] | None, opt(PARTS, "A model like it that was trained independently. Repeat for more.")] = None,
    backbone: Annotated[str | None, opt(PARTS, "A public pre-trained network that the model may have been made from.")] = None,
    fit_data: Annotated[str | None, opt(PARTS, "What attackers learn from. Default: a split of its own, else half of the images.")] = None,
    limit: Annotated[int | None, opt(RUN, "A seeded, stratified subset of this many images. Default: all; of phantoms 100.")] = None,
    seed: Annotated[int, opt(RUN, "Of every random draw.")] = 0,
    device: Annotated[str, opt(RUN, "auto, cpu, cuda, cuda:N or mps.")] = "auto",
    batch_size: Annotated[str, opt(RUN, "Images at a time, auto (a guess) or tune (measured).")] = "auto",
    witnesses: Annotated[str, opt(RUN, "Adversarial images to keep per row: a number, all or none.")] = "1000",
    out: Annotated[Path | None, opt(RUN, "Folder. Default: one under robust-eval-runs that belongs to this command.")] = None,
    fresh: Annotated[bool, opt(RUN, "Start over instead of going on where an earlier run stopped.")] = False,
    weights: Annotated[Path | None, opt(LOADING, "State dict: .safetensors, .pt or .pth.")] = None,
    num_classes: Annotated[int | None, opt(LOADING, "Classes of the model that the weights are for.")] = None,
    defense: Annotated[str | None, opt(LOADING, "What is put on the model.")] = None,
    allow_pickle: Annotated[bool, opt(LOADING, "Read weights that can run code.")] = False,
    allow_code: AllowCode = False,
    debug: Debug = False,
) -> int:
    """Run a scenario: a name, a file of your own (.toml, .yaml), or all that fit the data. An interrupted run goes on."""
    from .engines.local import tune_process
    from .models import load_model
    from .registry import REPORTS
    from .scenario_files import scenario_of
    from .scenario_running import run_all, run_scenario
    from .store import explained

    recipe: dict[str, Any] = {"weights": weights, "num_classes": num_classes, "defense": defense}
    if model is None and any(value is not None for value in recipe.values()):
        raise UsageError("--weights, --num-classes and --defense are of a model: name it with --model")
    tune_process()
    label = scenario if scenario == EVERY else scenario_of(scenario)[0]
    asked = [scenario, model, recipe, data, surrogate, backbone, fit_data, limit, seed]
    folder = out or default_folder(asked, f"scenario-{label}")
    attacked = None if model is None else load_model(model, **recipe, allow_pickle=allow_pickle)
    options: dict[str, Any] = {
        "surrogates": surrogate or (),
        "backbone": backbone,
        "fit_data": fit_data,
        "limit": limit,
        "seed": seed,
        "device": device,
        "batch_size": batch_size_of(batch_size),
        "witnesses": witnesses if witnesses in ("all", "none") else whole("--witnesses", witnesses),
        "fresh": fresh,
        "command": shlex.join(["robust-eval", *sys.argv[1:]]),
    }
    with bars() as progress:
        if scenario != EVERY:
            report = run_scenario(scenario, attacked, data, out=folder, progress=progress, **options)
            reports, left_out = [report], {}
        else:
            outcome: Outcome = run_all(attacked, data, out=folder, progress=progress, **options)
            reports, left_out = list(outcome.reports), dict(outcome.left_out)
    for each in reports:
        with explained(each.result.folder):
            each.result.write(("csv",))
        table, page = REPORTS.get("scenario")(each, folder if scenario != EVERY else folder / each.name)
        show(table)
        say(f"page: {page}")
    if scenario == EVERY:
        for name, reason in left_out.items():
            say(f"left out: {name}: {reason}")
        say(f"all of them: {REPORTS.get('scenarios-index')(reports, folder)}")
    return _undecided(reports)


def _undecided(reports: list[ScenarioReport]) -> int:
    """4 where an image could not be decided, which is said, else 0."""
    for report in reports:
        undecided = {verdict.sample_id for verdict in report.result.verdicts if verdict.broken is None}
        if undecided:
            complain("robust-eval", f"{report.name}: {len(undecided)} images are undecided; they count as not correct")
            return 4
    return 0
