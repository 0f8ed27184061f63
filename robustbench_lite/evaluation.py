"""Conditions x images -> verdicts: the main job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from torch import nn

from .attacking import Enough, Progress
from .bpda import unheeded
from .checks import frozen, moved
from .conditions import Means, Target, checked_target, jobs
from .data import default_for
from .doubting import doubts
from .engines import local
from .errors import UsageError
from .fitting import learns, without_judged
from .labelled import LabelledImages
from .overlap import overlaps
from .patients import no_patient_in_both
from .plan import Attack
from .proofs import certified
from .radii import check_balls, radii_of
from .radii import digest as digest_of
from .requested import (
    Precision,
    check_numbers,
    check_words,
    classifier_of,
    images_of,
    make_folder,
    now,
    surrogates_of,
    versions_here,
    wide_images,
)
from .results import Condition, Goal, Result, goals_of
from .samples import Options
from .sequences import read_rates
from .session import Session
from .shifts import described, remarks, sequences, shifts
from .store import Store, explained
from .transfer import sources


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
    batch_size: int | Literal["auto"] = "auto",
    precision: Precision = "fp32",
    prepare: bool = True,
    query_budget: int | None = None,
    patience: int | None = None,
    radii: Mapping[str, float] | str | Path | None = None,
    surrogates: Sequence[str | nn.Module] = (),
    eot: int | None = None,
    votes: int = 10,
    doubt: bool = False,
    settle: bool = False,
    twin: str | nn.Module | None = None,
    training_data: str | LabelledImages | None = None,
    stated_accuracy: float | None = None,
    fit_data: str | LabelledImages | None = None,
    keep_outputs: bool = False,
    witnesses: int | Literal["all", "none"] = 1000,
    on_bad_image: Literal["fail", "undecided"] = "fail",
    seed: int = 0,
    shuffle_seed: int = 0,
    out: str | Path | None = None,
    fresh: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
    enough: Enough | None = None,
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
        batch_size: images at a time; `auto` guesses, and memory that does not suffice halves it.
        precision: bf16 searches in bfloat16 first and attacks the survivors again in float32, where the processor has it.
        prepare: fold and reorder the model for speed where that is safe; every verdict is settled on the model as given.
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
        training_data: spec of what the model was trained on, to be warned, in doubt, where test images are among them. None: what a
            checkpoint says.
        stated_accuracy: the clean accuracy that the model is said to have, in [0, 1]; another one hints at wrong preprocessing. None: what
            is known of published weights.
        fit_data: what attacks that learn (a universal patch) do so from. None: half of the images, which their rows are then without.
        keep_outputs: with every verdict the model's outputs, which AUROC needs; images that the model gets wrong by itself are then
            attacked too, for they can be made wrong more surely.
        witnesses: how many adversarial images to keep per condition (a seeded choice), `all` or `none`.
        on_bad_image: `fail` ends with an error that names the images that cannot be read; `undecided` counts them as not correct
            and goes on.
        seed: of every random draw. shuffle_seed: of the order in which images are taken; verdicts do not depend on it.
        out: folder to keep the run in, where the same call goes on after an interruption. None: in memory.
        fresh: throw away what an earlier run left in `out`.
        command: recorded as the way to repeat the run.
        progress: told a condition, how many images are decided, how many there are, and how many are broken.
        enough: told a condition and which of its images are broken so far; where it says yes, the others are not attacked.

    Returns:
        The result: `.table` is a DataFrame, `.verdicts` one record per condition and image.

    Raises:
        UsageError: the model, the data or an option cannot be used; nothing was evaluated.
        InvalidEvaluation: the evaluation began and cannot be trusted or kept (unreadable images, a full disk, NaN everywhere).
    """
    check_numbers(
        limit=(limit, 1),
        batch_size=(batch_size, 1),
        query_budget=(query_budget, 1),
        witnesses=(witnesses, 0),
        seed=(seed, 0),
        storage_jpeg=(storage_jpeg, 1),
        eot=(eot, 1),
        votes=(votes, 1),
        patience=(patience, 1),
    )
    check_words(goal, precision, batch_size, witnesses, on_bad_image)
    if storage_jpeg is not None and storage_jpeg > 100:
        raise UsageError(f"the quality of a JPEG file is 1..100, got {storage_jpeg}")
    classifier = classifier_of(model)
    others = surrogates_of(surrogates, classifier, query_budget)
    if others and goal == "closest":
        raise UsageError("a transfer attack has one try, and seeks nothing on the model: leave --goal closest or --surrogate out")
    goal = "full" if others else goal
    if radii is not None and (doubt or settle):
        raise UsageError("doubts are tried in balls of one size: leave --radii or --doubt out")
    if keep_outputs and goal != "full":
        raise UsageError("outputs are kept of attacks that use every step: add goal='full', or AUROC and confidences would flatter")
    doubt = doubt or settle
    if not doubt and (twin is not None or training_data is not None):
        raise UsageError("a twin and training data are looked at in doubt only: add --doubt, or leave --twin and --training-data out")
    if others and doubt:
        raise UsageError("doubts are attacks on the model itself: leave --surrogate out")
    if stated_accuracy is not None and not 0 <= stated_accuracy <= 1:
        raise UsageError(f"the stated accuracy is a share in [0, 1], got {stated_accuracy:g}: 76 % is 0.76")
    twins = surrogates_of([twin], classifier, None) if twin is not None else []
    source = default_for(classifier) if data is None else data
    images = images_of(source, classifier.preprocess, limit, seed)
    training = None if training_data is None else images_of(training_data, classifier.preprocess, None, seed)
    if training is not None:
        no_patient_in_both(training, images)
    if images.readout is not None:
        classifier, others = images.readout.applied(classifier), [images.readout.applied(other) for other in others]
        twins = [images.readout.applied(each) for each in twins]
    specs = [corruptions] if isinstance(corruptions, str) else list(corruptions)
    shifted, perturbed = shifts(specs, images, None if frost_dir is None else str(frost_dir)), sequences(specs)
    if images.variants and (storage_jpeg is not None or frost_dir is not None):
        raise UsageError(f"{images.name} was corrupted and stored by others: leave --storage-jpeg and --frost-dir out")
    if attacks is None:
        attacks = () if shifted or perturbed or certify else ("pgd",)
    asked: list[str | Attack | Means] = list(attacks) if isinstance(attacks, (list, tuple)) else [attacks]  # type: ignore[list-item]  # one alone
    if not images.has_clean and (asked or perturbed):
        raise UsageError(
            f"{images.name} holds corrupted images only, and attacks and sequences start from clean ones: add clean=/path to --data"
        )
    target = checked_target(target)
    planned = jobs(
        asked,
        norm=norm,
        eps=eps,
        default_eps=images.default_eps,
        data=images.name,
        target=target,
        goal=goal,
        sources=list(sources(others)),
        disease=images.disease,
        scaled=radii is not None,
    )
    if radii is not None and certify:
        raise UsageError("certificates are for balls of one size: leave --radii or --certify out")
    if radii is not None and any(learns(job) for job in planned):
        raise UsageError("what an attack learns is made for one size and all images: leave --radii out, or the attack")
    proofs = certified([certify] if isinstance(certify, str) else certify, classifier, images, planned, norm, eps)
    own_radii = None if radii is None else radii_of(radii, images.ids)
    if own_radii is not None:
        check_balls(own_radii, (job.condition for job in planned))
    if patience is not None and all(job.condition.goal != "closest" for job in planned):
        raise UsageError("patience is of attacks that seek the nearest: leave --patience out, or add --goal closest")
    goals = goals_of(job.condition for job in planned)
    aim = planned[0].target if planned else target
    learn_from = (
        None if fit_data is None or not any(learns(job) for job in planned) else images_of(fit_data, classifier.preprocess, None, seed)
    )
    shared = 0
    if learn_from is not None:
        no_patient_in_both(learn_from, images)
        offered = len(learn_from)
        learn_from = without_judged(learn_from, images)
        shared = offered - len(learn_from)
    doubted = doubts(planned, aim, twins[0].name if twins else None) if doubt else []
    where = local.pick_device(device)
    bf16 = precision == "bf16" and local.bfloat16_here(where)
    options = Options(
        seed=seed,
        shuffle_seed=shuffle_seed,
        device=where,
        batch_size=batch_size,
        bf16=bf16,
        prepare=prepare,
        query_budget=query_budget,
        witnesses=len(images) if witnesses == "all" else 0 if witnesses == "none" else witnesses,
        on_bad_image=on_bad_image,
        eot=eot,
        votes=votes,
        storage_jpeg=storage_jpeg,
        outputs=keep_outputs,
        patience=patience,
        radii=own_radii,
    )
    conditions = [
        *([Condition("clean", "clean")] if images.has_clean else []),
        *(shift.condition for shift in shifted),
        *(each.condition for each in perturbed),
        *(each.condition for each in proofs),
        *(job.condition for job in planned),
        *(each.job.condition for each in doubted),
    ]
    about_corruptions = described(shifted, images, storage_jpeg, baseline)
    digest, versions, device_used = classifier.digest, versions_here(), local.described(where)
    identity = {
        "version": versions["robustbench-lite"],
        "model": digest,
        "data": images.digest,
        "conditions": [c.name for c in conditions],
        "goal": goals,
        "seed": seed,
        "precision": "bf16" if bf16 else "fp32",
        "query_budget": query_budget,
        "surrogates": [s.digest for s in others],
        "eot": eot,
        "votes": votes,
        "storage_jpeg": storage_jpeg,
        "settle": settle,
        "twin": [each.digest for each in twins],
        "training": None if training is None else training.digest,
        "fit_data": None if learn_from is None else learn_from.digest,
        "outputs": keep_outputs,
        "patience": patience,
        "radii": None if own_radii is None else digest_of(own_radii),
    }
    config: dict[str, Any] = {
        "identity": identity,
        "command": command,
        "model": {"name": classifier.name, "recipe": classifier.recipe, "digest": digest},
        "data": {
            "name": images.name,
            "spec": source if isinstance(source, str) else None,
            "digest": images.digest,
            "n": len(images),
            "limit": limit,
            "classes": images.classes,
            "source": images.source,
            "readout": images.readout is not None and isinstance(source, str),
            "task": images.task,
            "synthetic": images.synthetic,
            "disease": None if images.disease is None else list(images.disease),
            "class_names": None if images.class_names is None else list(images.class_names),
        },
        "stated_accuracy": stated_accuracy,
        "radii": own_radii,
        "corruptions": about_corruptions,
        "sequence_rates": None if baseline is None or not perturbed else asdict(read_rates(baseline)),
        "conditions": [asdict(c) for c in conditions],
        "attacks": sorted({str(job.condition.attack) for job in planned}),
        "norm": sorted({str(job.condition.norm) for job in planned}),
        "eps": sorted({float(job.condition.eps or 0) for job in planned}),
        "target": aim,
        "goal": goals,
        "seed": seed,
        "precision": identity["precision"],
        "query_budget": query_budget,
        "surrogates": [s.name for s in others],
        "device": device_used,
        "versions": versions,
        "notes": [
            *([] if bf16 or precision == "fp32" else ["this processor does not compute in bfloat16: searched in float32"]),
            *([f"{shared} images to learn from are judged on as well: nothing was learnt from them"] if shared else []),
            *remarks(about_corruptions),
            *unheeded(classifier, [str(job.condition.attack) for job in planned]),
            *overlaps(
                list(dict.fromkeys([*trained_on, *classifier.trained_on])),
                sorted({*(str(shift.condition.corruption) for shift in shifted), *(each.kind for each in perturbed)}),
            ),
        ],
        "created": now(),
        "sessions": [{"started": now(), "device": device_used, "versions": versions, "shuffle_seed": shuffle_seed}],
    }
    folder = None if out is None else Path(out)
    if folder is not None:
        make_folder(folder)
    with ExitStack() as during:
        store = during.enter_context(Store(folder, config, fresh=fresh))
        during.enter_context(explained(folder))
        during.enter_context(local.exact())
        for each in (classifier, *others, *twins):
            during.enter_context(frozen(each))
            during.enter_context(moved(each, where))
        wide = wide_images(source, classifier.preprocess, limit, seed) if perturbed else None
        session = Session(
            classifier,
            others,
            images,
            planned,
            store,
            options,
            progress or (lambda *_: None),
            shifted,
            perturbed,
            wide,
            twin=twins[0] if twins else None,
            doubt=doubt,
            doubts=doubted,
            settle=settle,
            certified=proofs,
            training=training,
            learn_from=learn_from,
            enough=enough or (lambda *_: False),
        )
        try:
            session.run()
            session.about["complete"] = True
        finally:
            store.commit(now=True)
            store.record_session({"ended": now(), **session.about}, session.notes)
            if folder is not None and store.empty:
                (folder / "run.json").unlink()  # refused before the first verdict: the corrected command may have the folder
        return store.result()
