"""The command `robust-eval`. The only place that prints, reads arguments and exits."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from . import commands
from .console import application, bars, batch_size_of, default_folder, exit_code, finish, formats_of, whole
from .errors import UsageError
from .results import Goal, Norm
from .worker_options import USUAL, WorkerOptions

SHORT_HELP = """robust-eval: accuracy of an image classifier without and under attack. Three commands to try:

  robust-eval --model digits_cnn --attack pgd
  robust-eval --model efficientnet_lite0 --attack fgsm --attack pgd
  robust-eval --model efficientnet_lite0 --corruption imagenet-c

`robust-eval --help` lists the options, `robust-eval list` what there is to name."""

app = application(
    "robust-eval",
    help="Attack and corrupt an image classifier's images and say, with the evidence, how accurate it stays.",
    version="0.1.0",
)
commands.add_to(app)
MODEL = Group("Model", sort_key=1)
DATA = Group("Data", sort_key=2)
ATTACK = Group("Attack", sort_key=3)
TRUST = Group("Trust", sort_key=4)
CORRUPTION = Group("Corruption", sort_key=5)
RUN = Group("Run", sort_key=6)


def opt(group: Group, text: str, *names: str, **more: Any) -> Parameter:
    return Parameter(name=names or None, group=group, help=text, show_default=more.pop("show_default", True), **more)


@app.default
def evaluate(
    *,
    model: Annotated[
        str,
        opt(
            MODEL,
            "Name (resnet50, timm:NAME, digits_cnn), checkpoint of robust-train (.safetensors), file.py:build, package.module:build, "
            "or archive (.pt2).",
        ),
    ],
    weights: Annotated[Path | None, opt(MODEL, "State dict to load: .safetensors, .pt or .pth.")] = None,
    defense: Annotated[
        str | None, opt(MODEL, "What is put on the model: other layers (kwta:gamma=0.1) or something before it (bit-depth:bits=3).")
    ] = None,
    num_classes: Annotated[int | None, opt(MODEL, "Classes of the model that the weights are for.")] = None,
    mean: Annotated[str | None, opt(MODEL, "Normalisation per channel in [0, 1] units, such as 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, opt(MODEL, "Its standard deviations.")] = None,
    size: Annotated[int | None, opt(MODEL, "Height and width of the model's input.")] = None,
    resize: Annotated[int | None, opt(MODEL, "Shorter side before the centre crop.")] = None,
    interpolation: Annotated[Literal["nearest", "bilinear", "bicubic", "lanczos"] | None, opt(MODEL, "Of the resize.")] = None,
    allow_pickle: Annotated[bool, opt(MODEL, "Read weights that can run code. Only for files that you trust.", negative="")] = False,
    allow_code: Annotated[bool, opt(MODEL, "Run file.py:build and the like where no terminal shows that it runs.", negative="")] = False,
    data: Annotated[
        str | None, opt(DATA, "imagenet, cifar10, cifar10:/path, digits, imagefolder:/path, npz:/path. Default: the model's.")
    ] = None,
    limit: Annotated[int | None, opt(DATA, "A seeded, stratified subset of this many images.")] = None,
    on_bad_image: Annotated[
        Literal["fail", "quarantine"],
        opt(
            DATA,
            "What an unreadable image does: end the run, or be named, counted as not correct, and asked about again by the same command.",
        ),
    ] = "fail",
    attack: Annotated[
        list[str] | None, opt(ATTACK, "Spec such as pgd or pgd:steps=100,restarts=5. Repeat for more.", "--attack", "-a", negative="")
    ] = None,
    eps: Annotated[
        list[str] | None, opt(ATTACK, "Radius in [0, 1] pixel units (8/255). Repeat for a curve. Default: the data's.", negative="")
    ] = None,
    norm: Annotated[Norm | None, opt(ATTACK, "Default: each attack's first.")] = None,
    target: Annotated[str | None, opt(ATTACK, "A class index that images are driven to, least-likely, or a goal (`list goals`).")] = None,
    goal: Annotated[
        Goal | None, opt(ATTACK, "Stop at the first witness, seek the nearest, or use every step. Default: each attack's own.")
    ] = None,
    query_budget: Annotated[int | None, opt(ATTACK, "Forwards and backwards that an attack may spend on an image.")] = None,
    patience: Annotated[int | None, opt(ATTACK, "Goal closest: leave an image after so many steps that brought it no nearer.")] = None,
    radii: Annotated[Path | None, opt(ATTACK, "CSV of sample_id and eps: a radius for each image, which --eps then multiplies.")] = None,
    surrogate: Annotated[
        list[str] | None, opt(ATTACK, "Transfer: make the images on this model, and ask --model at the end. Repeat for more.", negative="")
    ] = None,
    eot: Annotated[int | None, opt(ATTACK, "Answers of a randomised model that an attack averages. Default: 20.")] = None,
    votes: Annotated[int, opt(ATTACK, "Answers by which a randomised model is judged, image by image.")] = 10,
    certify: Annotated[
        list[str] | None, opt(TRUST, "Prove what no attack can break: crown, ibp or smoothing. Repeat for more.", negative="")
    ] = None,
    doubt: Annotated[
        bool, opt(TRUST, "Try further attacks on the images that are left, to say how far the figures can be believed.", negative="")
    ] = False,
    settle: Annotated[bool, opt(TRUST, "Doubt, and start the attacks that would settle what is found.", negative="")] = False,
    strict: Annotated[bool, opt(TRUST, "End with exit code 1 unless every worst-case row is sound.", negative="")] = False,
    twin: Annotated[str | None, opt(TRUST, "With --doubt: a plainly trained model whose adversarial images are tried too.")] = None,
    stand_ins: Annotated[
        bool, opt(TRUST, "Follow the stand-ins that layers declare for their gradients; without them, figures flatter and are doubted.")
    ] = True,
    training_data: Annotated[str | None, opt(TRUST, "With --doubt: what the model was trained on, to find test images among it.")] = None,
    stated_accuracy: Annotated[float | None, opt(TRUST, "The clean accuracy that the model is said to have, in [0, 1].")] = None,
    fit_data: Annotated[str | None, opt(ATTACK, "What a universal attack learns from. Default: half of the images.")] = None,
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
    batch_size: Annotated[str, opt(RUN, "Images at a time, auto (a guess) or tune (measured); halved where memory is short.")] = "auto",
    precision: Annotated[
        Literal["fp32", "bf16", "tf32"], opt(RUN, "bf16, tf32: a first pass, whose survivors are attacked again in fp32.")
    ] = "fp32",
    prepare: Annotated[bool, opt(RUN, "Fold and reorder the model for speed; verdicts are settled on the model as given.")] = True,
    compile: Annotated[
        bool, opt(RUN, "Search on the model through torch.compile; verdicts are settled on it as given.", negative="")
    ] = False,
    seed: Annotated[int, opt(RUN, "Of every random draw.")] = 0,
    shuffle_seed: Annotated[int, opt(RUN, "Of the order in which images are taken; verdicts do not depend on it.")] = 0,
    witnesses: Annotated[str, opt(RUN, "Adversarial images to keep per condition: a number, all or none.")] = "1000",
    format: Annotated[str, opt(RUN, "What is written there: html, csv, json, md, junit, parquet; several with commas.")] = "html,csv",
    out: Annotated[Path | None, opt(RUN, "Folder of the run. Default: one under robust-eval-runs that belongs to this command.")] = None,
    fresh: Annotated[bool, opt(RUN, "Start over instead of going on where an earlier run stopped.", negative="")] = False,
    where: WorkerOptions = USUAL,
    debug: Annotated[bool, opt(RUN, "Show tracebacks.", negative="")] = False,
) -> int:
    """Attack a model and write the run's table, samples, witnesses and report."""
    from .engines.local import tune_process
    from .evaluation import evaluate as run
    from .models import load_model

    started, formats = time.monotonic(), formats_of(format)
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
    if defense is not None:  # a request without one keeps the folder that it always had
        recipe["defense"] = defense
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
    asked += [certify] if certify else []
    asked += [fit_data] if fit_data else []
    asked += [patience, radii] if patience or radii else []
    asked += [settle, twin, training_data] if doubt or settle else []
    asked += [] if stand_ins else ["no stand-ins"]
    done = "+".join(spec.split(":")[0] for spec in [*(corruption or ()), *(attack or ()), *(certify or ())]) or "clean"
    folder = out or default_folder(asked, f"{Path(model).name.split(':')[0]}-{done}")
    with bars() as progress:
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
            target=target,
            goal=goal,
            limit=limit,
            device=device,
            batch_size=batch_size_of(batch_size),
            precision=precision,
            prepare=prepare,
            compile=compile,
            query_budget=query_budget,
            patience=patience,
            radii=radii,
            surrogates=surrogate or (),
            eot=eot,
            votes=votes,
            certify=certify or (),
            doubt=doubt,
            settle=settle,
            twin=twin,
            stand_ins=stand_ins,
            training_data=training_data,
            stated_accuracy=stated_accuracy,
            fit_data=fit_data,
            witnesses=witnesses if witnesses in ("all", "none") else whole("--witnesses", witnesses),  # type: ignore[arg-type]  # just checked
            on_bad_image=on_bad_image,
            seed=seed,
            shuffle_seed=shuffle_seed,
            out=folder,
            fresh=fresh,
            command=shlex.join(["robust-eval", *sys.argv[1:]]),
            progress=progress,
            workers=where.asked(),
        )
    return finish(result, time.monotonic() - started, formats, strict=strict)


def _numbers(option: str, text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} takes numbers with commas between them, got {text!r}") from None


def main() -> None:
    """Run the command line and exit with the code that the errors module documents."""
    if len(sys.argv) == 1:
        print(SHORT_HELP)
        sys.exit(0)
    sys.exit(exit_code("robust-eval", app, sys.argv[1:]))


if __name__ == "__main__":
    main()
