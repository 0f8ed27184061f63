"""Conditions x images -> verdicts: the main job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal

from torch import nn

from .attacking import Enough, Progress
from .conditions import Means, Target
from .engines.opening import Workers
from .errors import UsageError
from .hanging import watched
from .labelled import LabelledImages
from .plan import Attack
from .requested import Precision, digest_as_begun, make_folder, now
from .resolving import resolve
from .results import Goal, Result
from .samples import BatchSize
from .shards import Sharding
from .store import Store, explained


def evaluate(
    model: str | nn.Module,
    attacks: str | Attack | Means | Sequence[str | Attack | Means] | None = None,
    data: str | LabelledImages | Iterable[Any] | None = None,
    *,
    corruptions: str | Sequence[str] = (),
    storage_jpeg: int | None = None,
    frost_dir: str | Path | None = None,
    baseline: str | None = None,
    trained_on: Sequence[str] = (),
    certify: Sequence[str] | str = (),
    eps: float | str | Sequence[float | str] | None = None,
    norm: str | None = None,
    target: Target | None = None,
    goal: Goal | None = None,
    limit: int | None = None,
    device: str = "auto",
    batch_size: BatchSize = "auto",
    precision: Precision = "fp32",
    prepare: bool = True,
    compile: bool = False,
    query_budget: int | None = None,
    patience: int | None = None,
    radii: Mapping[str, float] | str | Path | None = None,
    surrogates: Sequence[str | nn.Module] = (),
    eot: int | None = None,
    votes: int = 10,
    doubt: bool = False,
    settle: bool = False,
    twin: str | nn.Module | None = None,
    stand_ins: bool = True,
    training_data: str | LabelledImages | None = None,
    stated_accuracy: float | None = None,
    fit_data: str | LabelledImages | None = None,
    keep_outputs: bool = False,
    witnesses: int | Literal["all", "none"] = 1000,
    on_bad_image: Literal["fail", "quarantine"] = "fail",
    seed: int = 0,
    shuffle_seed: int = 0,
    out: str | Path | None = None,
    fresh: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
    enough: Enough | None = None,
    workers: Workers | int | None = None,
) -> Result:
    """Accuracy of a model without and under attack, on corrupted images, and along sequences of perturbed ones.

    Args:
        model: a name (`resnet50`, `timm:convnext_tiny`, `file.py:build`), a `Classifier`, or a module in eval mode that takes images
            in [0, 1].
        attacks: spec strings such as `pgd:steps=100`, attacks, or `Means`, each with an eps or a source of its own. None: pgd, or no
            attack where there are corruptions.
        data: a spec (`imagenet`, `imagefolder:/path`), what `load_data` returns, a tuple of two arrays (images, labels), or a loader of
            (images, labels) batches; images in [0, 1]. None: the model's own.
        corruptions: spec strings such as `fog`, `fog:severity=1-3`, `imagenet-c`; `imagenet-p` and `cifar-p` are sequences. Of a
            published set of corrupted images (`imagenet-c:/path` as data) all that it holds, unless this chooses.
        storage_jpeg: quality of the JPEG files that corrupted images are to have gone through; those of ImageNet-C were stored at 85.
        frost_dir: folder of the frost pictures of the benchmark. None: frost is procedural, and named so.
        baseline: JSON file of what a model's errors and flip probabilities are divided by: {"name": ..., "clean": 0.43, "errors":
            {"fog": 0.82}, "flip_probability": {"translate": 0.11}, "t5d": {"translate": 1.2}}. None: AlexNet's errors for ImageNet-C.
        trained_on: augmentations that the model was trained on, for a warning where they are what the corruptions do; a checkpoint of
            `robust-train` says by itself which defense it has.
        certify: specs of certificates (`robust-eval list certificates`), which prove up to every eps of the run in a norm that they have;
            with the attacks they make brackets, [certified, surviving].
        eps: one or several radii, in [0, 1] pixel units (`8/255` as text is fine). None: the usual one of the data set.
        norm: linf, l2, l1, l0, pixels, patch, handling, spatial, colour or flow. None: each attack's first.
        target: a class that every image is driven to, `least-likely`, or a goal such as `upcoding`; images that have this label, or offer
            the attacker nothing, are left out. None: any wrong class.
        goal: `first` stops at an image's first witness; `closest` seeks the nearest; `full` uses every step and keeps the witness of
            highest margin, which figures on transfer, confidence and calibration need. None: each attack's own; those that seek the
            nearest (`fmn`, `ddn`, `hopskipjump`) then search at any distance, and eps says which distances count as broken.
        limit: a seeded, stratified subset of this many images.
        batch_size: images at a time; `auto` guesses, `tune` measures for some seconds which is the fastest, in every worker; memory that
            does not suffice halves it.
        precision: bf16 searches in bfloat16 first and attacks the survivors again in float32, where the processor has it; tf32 the same
            with products in TF32.
        prepare: fold and reorder the model for speed where that is safe; every verdict is settled on the model as given.
        compile: search on the model as torch.compile makes it, where that is safe; it takes a minute before the first attack.
        query_budget: forwards and backwards that an attack may spend on an image.
        patience: under the goal `closest`, an image is left after so many steps that brought its nearest no thousandth nearer. None: never.
        radii: for every image an eps of its own, by sample id or in a CSV file with the columns sample_id and eps; eps then says how many
            times that, 1 by default.
        surrogates: models to make the adversarial images on, each alone and all together; the model itself is asked about the last one
            only. `result.transfer` is the matrix of sources and targets.
        eot: answers of a randomised model that an attack averages. None: 20.
        votes: answers by which a randomised model is judged: an image counts as broken where at least half of them are.
        doubt: try further attacks on the images that those asked for left, to see how far the figures can be believed (`result.trust`).
        settle: doubt, and let every finding start the attacks that would settle it.
        twin: a plainly trained model for the same classes, whose adversarial images are tried in doubt.
        stand_ins: False takes the gradients of layers that declare a stand-in as they are, mostly zero, to show what that hides; figures
            are then too high, and doubted.
        training_data: spec of what the model was trained on, to be warned, in doubt, where test images are among them. None: what a
            checkpoint says.
        stated_accuracy: the clean accuracy that the model is said to have, in [0, 1]; another one hints at wrong preprocessing. None: what
            is known of published weights.
        fit_data: what attacks that learn (a universal patch) do so from. None: half of the images, which their rows are then without.
        keep_outputs: with every verdict the model's outputs, which AUROC needs; images that the model gets wrong by itself are then
            attacked too, for they can be made wrong more surely.
        witnesses: how many adversarial images to keep per condition (a seeded choice), `all` or `none`.
        on_bad_image: `fail` ends with an error that names the images that cannot be read; `quarantine` names them in the
            report and counts them as not correct; the same command asks about them again, in case they were mended
            and goes on.
        seed: of every random draw. shuffle_seed: of the order in which images are taken; verdicts do not depend on it.
        out: folder to keep the run in, where the same call goes on after an interruption. None: in memory.
        fresh: throw away what an earlier run left in `out`.
        command: recorded as the way to repeat the run.
        progress: told a condition, how many images are decided, how many there are, and how many are broken.
        enough: told a condition and which of its images are broken so far; where it says yes, the others are not attacked.
        workers: so many processes of this machine, or `Workers`, of a Ray cluster too. None: this process alone. Verdicts are the same.

    Returns:
        The result: `.table` is a DataFrame, `.verdicts` one record per condition and image.

    Raises:
        UsageError: the model, the data or an option cannot be used; nothing was evaluated.
        InvalidEvaluation: the evaluation began and cannot be trusted or kept (unreadable images, a full disk, NaN everywhere).
    """
    arguments = locals().copy()
    asked = {name: given for name, given in arguments.items() if name not in ("out", "fresh", "progress", "enough", "workers")}
    where = workers if isinstance(workers, Workers) else Workers(count=workers)
    resolved = resolve(**asked)
    if enough is not None and not where.alone:
        raise UsageError("an evaluation that ends early looks at every verdict as it comes: leave workers out")
    folder = None if out is None else Path(out)
    resolved.config["identity"]["data"] = digest_as_begun(resolved.images, None if fresh else folder)
    if folder is not None:
        make_folder(folder)
    with ExitStack() as during:
        store = during.enter_context(Store(folder, resolved.config, fresh=fresh))
        during.enter_context(explained(folder))
        during.enter_context(resolved.ready())
        told = during.enter_context(watched(store, progress or (lambda *_: None), where.hang_after if where.alone else None))
        session = resolved.session(store, told, enough)
        try:
            if not where.alone:
                engine = during.enter_context(closing(where.open(device)))
                session.spread = Sharding(engine, asked, resolved, where.shard, where.hang_after)
            session.run()
            session.about["complete"] = True
        finally:
            store.commit(now=True)
            store.record_session({"ended": now(), **session.about}, session.notes)
            if folder is not None and store.empty:
                (folder / "run.json").unlink()  # refused before the first verdict: the corrected command may have the folder
        return store.result()
