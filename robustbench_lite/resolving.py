"""What `evaluate` was asked, resolved: models, images, conditions and the run's record; the same here and in every worker."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from .attacking import Enough, Progress
from .bpda import unheeded
from .checks import frozen, moved
from .classifier import Classifier
from .compiling import graphs_kept
from .conditions import Job, Means, Target, checked_target, jobs
from .data import default_for
from .doubting import Doubt, doubts
from .engines import local
from .errors import UsageError
from .fitting import learns, without_judged
from .labelled import LabelledImages
from .overlap import fitted_on_judged, overlaps
from .patients import no_patient_in_both
from .plan import Attack
from .proofs import Certified, certified
from .radii import check_balls, radii_of
from .radii import digest as digest_of
from .requested import (
    Precision,
    check_numbers,
    check_words,
    classifier_of,
    hidden_in,
    images_of,
    now,
    surrogates_of,
    versions_here,
    wide_images,
)
from .results import Condition, Goal, goals_of
from .samples import BatchSize, Options
from .sequences import read_rates
from .session import Session
from .shifts import Perturbed, Shift, described, remarks, sequences, shifts
from .store import Store
from .transfer import sources
from .tuning import Tuned


@dataclass(frozen=True)
class Resolved:
    """An evaluation before its first image.

    Args:
        source: the data as they were asked for, with the model's own where nothing was said.
        hidden: stand-ins are left out.
        config: what `run.json` is to hold.
        tuned: the batch size, once it was measured in this process: a worker has a session for every shard.
    """

    classifier: Classifier
    others: Sequence[Classifier]
    twins: Sequence[Classifier]
    images: LabelledImages
    source: Any
    limit: int | None
    planned: Sequence[Job]
    shifted: Sequence[Shift]
    perturbed: Sequence[Perturbed]
    proofs: Sequence[Certified]
    doubt: bool
    doubted: Sequence[Doubt]
    settle: bool
    training: LabelledImages | None
    learn_from: LabelledImages | None
    hidden: bool
    options: Options
    config: dict[str, Any]
    tuned: list[Tuned] = field(default_factory=list)

    @property
    def models(self) -> Sequence[Classifier]:
        """All that take part."""
        return [self.classifier, *self.others, *self.twins]

    @contextmanager
    def ready(self) -> Iterator[None]:
        """The models on their device, their parameters without gradients, float32 exact."""
        with ExitStack() as during:
            during.enter_context(local.exact())
            if self.options.compile:
                during.enter_context(graphs_kept())
            for each in self.models:
                during.enter_context(frozen(each))
                during.enter_context(moved(each, self.options.device))
            yield

    def session(self, store: Store, progress: Progress, enough: Enough | None = None, only: Collection[str] | None = None) -> Session:
        """A session over all images, or a worker's over some of them."""
        preprocess, seed = self.classifier.preprocess, self.options.seed
        return Session(
            self.classifier,
            self.others,
            self.images,
            self.planned,
            store,
            self.options,
            progress,
            self.shifted,
            self.perturbed,
            wide_images(self.source, preprocess, self.limit, seed) if self.perturbed else None,
            twin=self.twins[0] if self.twins else None,
            doubt=self.doubt,
            doubts=self.doubted,
            settle=self.settle,
            certified=self.proofs,
            training=self.training,
            learn_from=self.learn_from,
            hidden=self.hidden,
            enough=enough or (lambda *_: False),
            only=only,
            tuned=self.tuned,
        )


def resolve(
    model: str | nn.Module,
    attacks: str | Attack | Means | Sequence[str | Attack | Means] | None,
    data: str | LabelledImages | Iterable[Any] | None,
    *,
    corruptions: str | Sequence[str],
    storage_jpeg: int | None,
    frost_dir: str | Path | None,
    baseline: str | None,
    trained_on: Sequence[str],
    certify: Sequence[str] | str,
    eps: float | str | Sequence[float | str] | None,
    norm: str | None,
    target: Target | None,
    goal: Goal | None,
    limit: int | None,
    device: str,
    batch_size: BatchSize,
    precision: Precision,
    prepare: bool,
    compile: bool,
    query_budget: int | None,
    patience: int | None,
    radii: Mapping[str, float] | str | Path | None,
    surrogates: Sequence[str | nn.Module],
    eot: int | None,
    votes: int,
    doubt: bool,
    settle: bool,
    twin: str | nn.Module | None,
    stand_ins: bool,
    training_data: str | LabelledImages | None,
    stated_accuracy: float | None,
    fit_data: str | LabelledImages | None,
    keep_outputs: bool,
    witnesses: int | Literal["all", "none"],
    on_bad_image: Literal["fail", "quarantine"],
    seed: int,
    shuffle_seed: int,
    command: str | None,
) -> Resolved:
    """See `evaluate`."""
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
    hidden = None if stand_ins else hidden_in(classifier, others)
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
    doubted = doubts(planned, aim, twins[0].name if twins else None, by_stand_ins=hidden is not None) if doubt else []
    where = local.pick_device(device)
    options = Options(
        seed=seed,
        shuffle_seed=shuffle_seed,
        device=where,
        batch_size=batch_size,
        first_pass=None if precision == "fp32" else precision,
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
        compile=compile,
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
        "precision": local.reduced_here(options.first_pass, where) or "fp32",  # survivors are counted in its stages
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
        "no_stand_ins": hidden,
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
            *([f"{shared} images to learn from are judged on as well: nothing was learnt from them"] if shared else []),
            *fitted_on_judged(classifier, images.ids),
            *remarks(about_corruptions),
            *([f"gradients of {hidden} were taken as they are, which flatters: leave --no-stand-ins out"] if hidden else []),
            *unheeded(classifier, [str(job.condition.attack) for job in planned]),
            *overlaps(
                list(dict.fromkeys([*trained_on, *classifier.trained_on])),
                sorted({*(str(shift.condition.corruption) for shift in shifted), *(each.kind for each in perturbed)}),
            ),
        ],
        "created": now(),
        "sessions": [{"started": now(), "device": device_used, "versions": versions, "shuffle_seed": shuffle_seed}],
    }
    return Resolved(
        classifier,
        others,
        twins,
        images,
        source,
        limit,
        planned,
        shifted,
        perturbed,
        proofs,
        doubt,
        doubted,
        settle,
        training,
        learn_from,
        hidden is not None,
        options,
        config,
    )
