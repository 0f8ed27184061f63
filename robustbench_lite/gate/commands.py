"""The commands `gate` and `baseline write`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Group, Parameter

from ..console import AllowCode, application, bars, complain, show, whole
from ..errors import UsageError
from ..plain_text import say
from ..results import Norm
from .rulings import Judgement, OnInconclusive

if TYPE_CHECKING:
    from ..results import Result

Debug = Annotated[bool, Parameter(show=False, negative="")]
GATE, BESIDE = Group("Gate", sort_key=1), Group("Instead of what the settings say", sort_key=2)
FAIL_EXIT_CODE = "ROBUST_EVAL_FAIL_EXIT_CODE"
FILES = ("gate-json", "gate-junit", "gate-sarif", "gate-badge")


def opt(text: str, *names: str, group: Group | None = BESIDE) -> Parameter:
    return Parameter(name=names or None, help=text, negative="", group=group)


def add_to(app: App) -> None:
    """Give the app these commands."""
    app.command(gate)
    baselines = application("baseline", help="What later models are compared with by `robust-eval gate`.")
    baselines.command(write)
    app.command(baselines)


def gate(
    *,
    config: Annotated[Path | None, opt("Settings. Default: robust-eval.toml here, else pyproject.toml.", group=GATE)] = None,
    model: Annotated[str | None, opt("Name, checkpoint, archive, file.py:build or package.module:build.")] = None,
    weights: Annotated[str | None, opt("State dict to load: .safetensors, .pt or .pth.")] = None,
    data: Annotated[str | None, opt("digits, imagenet, imagefolder:PATH, npz:FILE, ...")] = None,
    limit: Annotated[int | None, opt("A seeded, stratified subset of this many images.")] = None,
    attack: Annotated[list[str] | None, opt("Repeat for more.", "--attack", "-a")] = None,
    eps: Annotated[list[str] | None, opt("Repeat for more.")] = None,
    norm: Annotated[Norm | None, opt("Of the attacks.")] = None,
    corruption: Annotated[list[str] | None, opt("Repeat for more.", "--corruption", "-c")] = None,
    rule: Annotated[list[str] | None, opt("Such as 'pgd.accuracy >= 0.45'. Repeat for more; those of the settings go.")] = None,
    on_inconclusive: Annotated[OnInconclusive | None, opt("What a rule does that the images cannot decide.")] = None,
    baseline: Annotated[str | None, opt("What `baseline write` wrote, or the folder of a run.")] = None,
    margin: Annotated[float | None, opt("Loss of accuracy against the baseline that is allowed.")] = None,
    certify: Annotated[list[str] | None, opt("Prove what no attack can break: crown, ibp. Repeat for more.")] = None,
    doubt: Annotated[bool | None, opt("Try further attacks on the images that those asked for left.")] = None,
    sequential: Annotated[bool | None, opt("Also stop once a floor is missed at a level that allows for looking all the time.")] = None,
    device: Annotated[str | None, opt("auto, cpu, cuda, cuda:N or mps.")] = None,
    out: Annotated[str | None, opt("Folder of the run and of what is written about it.")] = None,
    fresh: Annotated[bool, opt("Start over instead of going on where an earlier run stopped.", group=GATE)] = False,
    allow_pickle: Annotated[bool, opt("Read weights that can run code. Only for files that you trust.", group=GATE)] = False,
    allow_code: AllowCode = False,
    debug: Debug = False,
) -> int:
    """Hold a model to the rules of robust-eval.toml: exit code 0 passed, 1 failed, 3 inconclusive, 4 invalid. A broken-off one goes on."""
    given = {
        "model": model,
        "weights": weights,
        "data": data,
        "limit": limit,
        "attacks": attack,
        "eps": eps,
        "norm": norm,
        "corruptions": corruption,
        "rules": rule,
        "on_inconclusive": on_inconclusive,
        "baseline": baseline,
        "margin": margin,
        "certify": certify,
        "doubt": doubt,
        "sequential": sequential,
        "device": device,
        "out": out,
    }
    failed = _fail_exit_code()
    from ..engines.local import tune_process
    from .running import run_gate
    from .settings import read_settings

    tune_process()
    asked = read_settings(config, {name: value for name, value in given.items() if value is not None})
    with bars() as progress:
        judgement = run_gate(
            asked, fresh=fresh, allow_pickle=allow_pickle, command=shlex.join(["robust-eval", *sys.argv[1:]]), progress=progress
        )
    try:
        _say(judgement)
        sys.stdout.flush()
    except BrokenPipeError:
        # a reader of our output that has gone, as in `robust-eval gate | head`, must not turn a failed gate into a passed one
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return failed if judgement.exit_code == 1 else judgement.exit_code


def write(
    run: Path,
    /,
    *,
    out: Annotated[Path, opt("File to write.", group=None)] = Path("baseline.json"),
    update: Annotated[bool, opt("Replace the baseline that is there.", group=None)] = False,
    debug: Debug = False,
) -> int:
    """Write a finished run as a small file that `robust-eval gate --baseline FILE` compares later models with; commit it."""
    from ..store import read_run
    from . import baseline

    if out.exists() and not update:
        raise UsageError(f"{out} is there already: --update replaces it, and later models are then held to this run instead")
    result = read_run(run)
    _refuse_unfit(result)
    baseline.write(result, out)
    say(f"baseline: {out} ({len(result.of('clean'))} images of {result.config['data']['name']}); commit it")
    return 0


def _refuse_unfit(result: Result) -> None:
    """Refuse a run that later models would be wrongly compared with.

    Raises:
        UsageError: images that it could not decide, which would make every later model look better; or a figure known to be too high.
    """
    undecided = {v.sample_id for v in result.verdicts if v.broken is None}
    if undecided:
        raise UsageError(f"{len(undecided)} images of {result.folder} are undecided: mend the run before it is used as a baseline")
    refuted = [name for name, trust in result.headlines.items() if trust.level == "refuted"]
    if refuted:
        raise UsageError(
            f"{', '.join(refuted)} of {result.folder} is refuted, its figure is too high: evaluate with a stronger attack first"
        )


def _fail_exit_code() -> int:
    """What a failed gate ends with.

    Raises:
        UsageError: the environment asks for something that is no exit code.
    """
    text = os.environ.get(FAIL_EXIT_CODE, "1")
    code = whole(FAIL_EXIT_CODE, text)
    if not 0 <= code <= 255:
        raise UsageError(f"{FAIL_EXIT_CODE} must be 0..255, got {code}")
    return code


def _say(judgement: Judgement) -> None:
    """Write the files, print the rulings, and tell GitHub where it runs this; printing comes last, because it ends where nobody reads."""
    from ..registry import REPORTS
    from ..store import explained

    result = judgement.result
    with explained(result.folder):
        result.write()
        for name in FILES:
            REPORTS.get(name)(judgement)
        summary = REPORTS.get("gate-markdown")(judgement)
    if step := os.environ.get("GITHUB_STEP_SUMMARY"):
        _append(summary, Path(step))
    show(REPORTS.get("gate-terminal")(judgement))
    say(f"written: {summary.with_name('gate.json')}, and beside it gate.md, gate-junit.xml, gate.sarif, badge.svg, report.html")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in REPORTS.get("gate-annotations")(judgement):
            print(line)


def _append(summary: Path, step: Path) -> None:
    """Add the summary to that of the step. Where that cannot be, the outcome stands and is what the command ends with."""
    try:
        with step.open("a", encoding="utf-8") as stream:
            stream.write(summary.read_text(encoding="utf-8"))
    except OSError as error:
        complain("robust-eval", f"GITHUB_STEP_SUMMARY: {step} cannot be written ({error.strerror}); {summary} has the text")
