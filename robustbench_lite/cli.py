"""The command `robust-eval`. The only place that prints, reads arguments and exits."""

from __future__ import annotations

import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter
from rich.console import Console

from .errors import RobustEvalError, UsageError, WitnessRefuted

if TYPE_CHECKING:
    from .results import Result

SHORT_HELP = """robust-eval: accuracy of an image classifier without and under attack. Three commands to try:

  robust-eval --model digits_cnn --attack pgd
  robust-eval --model efficientnet_lite0 --attack fgsm --attack pgd
  robust-eval --model efficientnet_lite0 --corruption imagenet-c

`robust-eval --help` lists the options, `robust-eval list` what there is to name."""

Kind = Literal["attacks", "corruptions", "perturbations", "suites", "defenses", "models", "data", "reports"]

app = App(
    name="robust-eval",
    help="Attack and corrupt an image classifier's images and say, with the evidence, how accurate it stays.",
    version="0.1.0",
    exit_on_error=False,
    print_error=False,
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # an interrupted run says that it can go on
)
MODEL = Group("Model", sort_key=1)
DATA = Group("Data", sort_key=2)
ATTACK = Group("Attack", sort_key=3)
CORRUPTION = Group("Corruption", sort_key=4)
RUN = Group("Run", sort_key=5)


def opt(group: Group, text: str, *names: str, **more: Any) -> Parameter:
    return Parameter(name=names or None, group=group, help=text, show_default=more.pop("show_default", True), **more)


@app.default
def evaluate(
    *,
    model: Annotated[str, opt(MODEL, "Name (resnet50, timm:NAME, digits_cnn), file.py:build, package.module:build, or an archive (.pt2).")],
    weights: Annotated[Path | None, opt(MODEL, "State dict to load: .safetensors, .pt or .pth.")] = None,
    num_classes: Annotated[int | None, opt(MODEL, "Classes of the model that the weights are for.")] = None,
    mean: Annotated[str | None, opt(MODEL, "Normalisation per channel in [0, 1] units, such as 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, opt(MODEL, "Its standard deviations.")] = None,
    size: Annotated[int | None, opt(MODEL, "Height and width of the model's input.")] = None,
    resize: Annotated[int | None, opt(MODEL, "Shorter side before the centre crop.")] = None,
    interpolation: Annotated[Literal["nearest", "bilinear", "bicubic", "lanczos"] | None, opt(MODEL, "Of the resize.")] = None,
    allow_pickle: Annotated[bool, opt(MODEL, "Read weights that can run code. Only for files that you trust.", negative="")] = False,
    data: Annotated[
        str | None, opt(DATA, "imagenet, cifar10, cifar10:/path, digits, imagefolder:/path, npz:/path. Default: the model's.")
    ] = None,
    limit: Annotated[int | None, opt(DATA, "A seeded, stratified subset of this many images.")] = None,
    on_bad_image: Annotated[
        Literal["fail", "undecided"], opt(DATA, "What an unreadable image does: end the run, or count as not correct.")
    ] = "fail",
    attack: Annotated[
        list[str] | None, opt(ATTACK, "Spec such as pgd or pgd:steps=100,restarts=5. Repeat for more.", "--attack", "-a", negative="")
    ] = None,
    eps: Annotated[
        list[str] | None, opt(ATTACK, "Radius in [0, 1] pixel units (8/255). Repeat for a curve. Default: the data's.", negative="")
    ] = None,
    norm: Annotated[Literal["linf", "l2", "l1", "l0"] | None, opt(ATTACK, "Default: each attack's first.")] = None,
    target: Annotated[str | None, opt(ATTACK, "A class index, or least-likely: the prediction that every image is driven to.")] = None,
    goal: Annotated[
        Literal["first", "closest", "full"], opt(ATTACK, "Stop at the first witness, seek the nearest, or use every step.")
    ] = "first",
    query_budget: Annotated[int | None, opt(ATTACK, "Forwards and backwards that an attack may spend on an image.")] = None,
    surrogate: Annotated[
        list[str] | None, opt(ATTACK, "Transfer: make the images on this model, and ask --model at the end. Repeat for more.", negative="")
    ] = None,
    eot: Annotated[int | None, opt(ATTACK, "Answers of a randomised model that an attack averages. Default: 20.")] = None,
    votes: Annotated[int, opt(ATTACK, "Answers by which a randomised model is judged, image by image.")] = 10,
    corruption: Annotated[
        list[str] | None,
        opt(CORRUPTION, "fog, fog:severity=1-3, imagenet-c, all, c-bar, imagenet-p. Repeat for more.", "--corruption", "-c", negative=""),
    ] = None,
    storage_jpeg: Annotated[int | None, opt(CORRUPTION, "Quality of a JPEG file in between; the published ImageNet-C has 85.")] = None,
    frost_dir: Annotated[Path | None, opt(CORRUPTION, "Folder of ImageNet-C's frost pictures. Default: procedural frost.")] = None,
    baseline: Annotated[
        Path | None, opt(CORRUPTION, "JSON of a baseline's errors and flip probabilities. Default: AlexNet's errors.")
    ] = None,
    trained_on: Annotated[
        list[str] | None, opt(CORRUPTION, "An augmentation that the model was trained on, to be warned of overlap. Repeat.", negative="")
    ] = None,
    device: Annotated[str, opt(RUN, "auto, cpu, cuda, cuda:N or mps.")] = "auto",
    batch_size: Annotated[str, opt(RUN, "Images at a time, or auto; halved where memory does not suffice.")] = "auto",
    precision: Annotated[Literal["fp32", "bf16"], opt(RUN, "bf16: a first pass, whose survivors are attacked again in fp32.")] = "fp32",
    prepare: Annotated[bool, opt(RUN, "Fold and reorder the model for speed; verdicts are settled on the model as given.")] = True,
    seed: Annotated[int, opt(RUN, "Of every random draw.")] = 0,
    shuffle_seed: Annotated[int, opt(RUN, "Of the order in which images are taken; verdicts do not depend on it.")] = 0,
    witnesses: Annotated[str, opt(RUN, "Adversarial images to keep per condition: a number, all or none.")] = "1000",
    out: Annotated[Path | None, opt(RUN, "Folder of the run. Default: one under robust-eval-runs that belongs to this command.")] = None,
    fresh: Annotated[bool, opt(RUN, "Start over instead of going on where an earlier run stopped.", negative="")] = False,
    debug: Annotated[bool, opt(RUN, "Show tracebacks.", negative="")] = False,
) -> int:
    """Attack a model and write the run's table, samples, witnesses and report."""
    from .engines.local import tune_process
    from .evaluation import evaluate as run
    from .models import load_model

    started = time.monotonic()
    tune_process()
    recipe: dict[str, Any] = {
        "weights": weights,
        "num_classes": num_classes,
        "mean": _numbers("--mean", mean),
        "std": _numbers("--std", std),
        "size": size,
        "resize": resize,
        "interpolation": interpolation,
    }
    asked: list[object] = [
        model,
        recipe,
        data,
        limit,
        attack,
        eps,
        norm,
        target,
        goal,
        query_budget,
        surrogate,
        eot,
        votes,
        precision,
        seed,
    ]
    asked += [corruption, storage_jpeg, frost_dir] if corruption else []
    done = "+".join(spec.split(":")[0] for spec in [*(corruption or ()), *(attack or ())]) or "clean"
    folder = out or _default_folder(asked, f"{Path(model).name.split(':')[0]}-{done}")
    with _progress() as progress:
        result = run(
            load_model(model, **recipe, allow_pickle=allow_pickle),
            attack or (),
            data,
            corruptions=corruption or (),
            storage_jpeg=storage_jpeg,
            frost_dir=frost_dir,
            baseline=None if baseline is None else str(baseline),
            trained_on=trained_on or (),
            eps=eps,
            norm=norm,
            target=_target(target),
            goal=goal,
            limit=limit,
            device=device,
            batch_size="auto" if batch_size == "auto" else _whole("--batch-size", batch_size),
            precision=precision,
            prepare=prepare,
            query_budget=query_budget,
            surrogates=surrogate or (),
            eot=eot,
            votes=votes,
            witnesses=witnesses if witnesses in ("all", "none") else _whole("--witnesses", witnesses),  # type: ignore[arg-type]  # just checked
            on_bad_image=on_bad_image,
            seed=seed,
            shuffle_seed=shuffle_seed,
            out=folder,
            fresh=fresh,
            command=shlex.join(["robust-eval", *sys.argv[1:]]),
            progress=progress,
        )
    return _finish(result, time.monotonic() - started)


@app.command(name="list")
def list_names(kind: Kind = "attacks", /, *, debug: Annotated[bool, Parameter(show=False, negative="")] = False) -> int:
    """List what can be named: attacks, corruptions, perturbations, suites, defenses, models, data or reports."""
    from .catalogue import listing

    Console(soft_wrap=True).print(listing(kind), markup=False, highlight=False)
    return 0


@app.command
def describe(spec: str, /, *, debug: Annotated[bool, Parameter(show=False, negative="")] = False) -> int:
    """Say everything about one attack, model, data set, ... by its name."""
    from .catalogue import description

    Console(soft_wrap=True).print(description(spec), markup=False, highlight=False)
    return 0


@app.command
def corrupt(
    source: Path,
    target: Path,
    /,
    *,
    corruption: Annotated[
        list[str], Parameter(name=("--corruption", "-c"), help="fog, imagenet-c, all, ... Repeat for more.", negative="")
    ],
    severity: Annotated[str | None, Parameter(help="1 to 5, or two with a dash. Default: all five.")] = None,
    size: Annotated[int | None, Parameter(help="Height and width after the centre crop; the published sets have 224.")] = None,
    resize: Annotated[int | None, Parameter(help="Shorter side before the centre crop; the published sets have 256.")] = None,
    storage_jpeg: Annotated[
        int | None, Parameter(help="Write JPEG files of this quality (the published ones have 85) instead of PNG.")
    ] = None,
    frost_dir: Annotated[Path | None, Parameter(help="Folder of ImageNet-C's frost pictures. Default: procedural frost.")] = None,
    seed: Annotated[int, Parameter(help="Of every random draw.")] = 0,
    workers: Annotated[int | None, Parameter(help="Processes. Default: one per core.")] = None,
    fresh: Annotated[bool, Parameter(help="Write everything again.", negative="")] = False,
    debug: Annotated[bool, Parameter(show=False, negative="")] = False,
) -> int:
    """Write corrupted copies of a folder of pictures: `TARGET/<corruption>/<severity>/<path in SOURCE>`. An interrupted job goes on."""
    from .folders import corrupt_folder

    specs = [f"{spec}{',' if ':' in spec else ':'}severity={severity}" if severity else spec for spec in corruption]
    with _progress() as progress:
        written, known = corrupt_folder(
            source,
            target,
            specs,
            size=size,
            resize=resize,
            storage_jpeg=storage_jpeg,
            frost_dir=frost_dir,
            seed=seed,
            workers=workers,
            fresh=fresh,
            progress=lambda done, total: progress("pictures", done, total, 0),
        )
    print(f"{written} pictures written to {target}" + (f", {known} were there already" if known else ""))
    return 0


@app.command
def report(run: Path, /, *, debug: Annotated[bool, Parameter(show=False, negative="")] = False) -> int:
    """Write a run's table, samples and report again, from its verdicts."""
    from .store import read_run

    return _finish(read_run(run), None)


@app.command
def verify(
    run: Path,
    /,
    *,
    allow_pickle: Annotated[bool, Parameter(help="Read weights that can run code.", negative="")] = False,
    debug: Annotated[bool, Parameter(show=False, negative="")] = False,
) -> int:
    """Check every witness of a run against the model; exit 1 if one does not hold."""
    from .verification import verify as check

    with _progress() as progress:
        checked = check(run, allow_pickle=allow_pickle, progress=lambda done, total: progress("witnesses", done, total, 0))
    for failure in checked.failures[:20]:
        print(f"does not hold: {failure}")
    unkept = f"; of {checked.not_kept} more broken images no witness was kept" if checked.not_kept else ""
    if checked.failures:
        raise WitnessRefuted(f"{len(checked.failures)} of {checked.holding + len(checked.failures)} witnesses do not hold{unkept}")
    if not checked.holding:
        print("no image was broken by an attack, so that there is no witness to check")
        return 0
    print(f"all {checked.holding} witnesses hold{unkept}")
    return 0


def _finish(result: Result, seconds: float | None) -> int:
    """Print the table and write the run's files; 4 where an image could not be decided."""
    from .registry import REPORTS
    from .store import explained

    with explained(result.folder):
        path = result.write()
    console = Console()
    with console.capture() as table:  # rich would end the process by itself where the reader of our output has gone
        console.print(REPORTS.get("terminal")(result))
    print(table.get(), end="")
    for note in result.config["notes"]:
        print(f"note: {note}")
    print(f"report: {path}" + (f"  ({seconds:.0f} s)" if seconds is not None else ""))
    undecided = {v.sample_id for v in result.verdicts if v.broken is None}
    if undecided:
        reasons = sorted({str(v.reason) for v in result.verdicts if v.broken is None})
        _complain(f"{len(undecided)} images are undecided ({'; '.join(reasons[:2])}); they count as not correct, samples.csv names them")
        return 4
    return 0


def _numbers(option: str, text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} takes numbers with commas between them, got {text!r}") from None


def _whole(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} takes a whole number, got {text!r}") from None


def _target(text: str | None) -> Any:
    return text if text is None or text == "least-likely" else _whole("--target", text)


def _default_folder(asked: Sequence[object], label: str) -> Path:
    """The same request, the same place."""
    from hashlib import sha256

    return Path("robust-eval-runs") / f"{label[:80]}-{sha256(repr(asked).encode()).hexdigest()[:8]}"


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int, int], None]]:
    """Bars on a terminal; elsewhere a line now and then. Both on standard error, so that a pipe gets the table alone."""
    console = Console(stderr=True)
    if not console.is_terminal:
        said = time.monotonic()

        def line(name: str, done: int, total: int, broken: int) -> None:
            nonlocal said
            if time.monotonic() - said >= 10:
                said = time.monotonic()
                print(f"{name}: {done} of {total}, {broken} broken", file=sys.stderr, flush=True)

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def bar(name: str, done: int, total: int, broken: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name.replace("[", r"\["), note="")
            bars.update(tasks[name], completed=done, total=total, note=f"{broken} broken" if broken else "")

        yield bar


def _complain(message: str) -> None:
    print(f"robust-eval: {' '.join(message.split())}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the command line and exit with the code that the errors module documents."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if len(sys.argv) == 1:
        print(SHORT_HELP)
        sys.exit(0)
    debug = "--debug" in sys.argv
    try:
        code = app(sys.argv[1:])
    except CycloptsError as error:
        _complain(f"{error} (robust-eval --help lists the options)")
        code = 2
    except RobustEvalError as error:
        if debug:
            traceback.print_exc()
        _complain(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted; the same command goes on where it stopped")
        code = 130
    except BrokenPipeError:
        # whoever read our output has gone, as in `robust-eval list models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception:
        traceback.print_exc()
        _complain("this is a bug in robust-eval: please report it with the lines above")
        code = 4
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
