"""One session of a run: the clean pass, then every job over the images that are still to be decided."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import Any, Literal

import torch
from torch import Tensor

from .checks import checked, first_answer, need_gradients, size_text
from .classifier import Classifier, Logits
from .conditions import Job, clean_criterion, criterion
from .criteria import Criterion, Targeted
from .engines import local
from .errors import DataError, InvalidEvaluation, RunMismatch
from .judge import Judge
from .labelled import LabelledImages
from .oracle import BAD_LOGITS, TROUBLE
from .passes import Passes
from .plan import Finding, Plan, Subject
from .prepare import prepare
from .results import Goal, Verdict, Witness
from .scheduler import run
from .store import Store
from .witnesses import image_digest

Progress = Callable[[str, int, int, int], None]
"""Called with a condition, how many images are decided, how many there are, and how many of them are broken."""


@dataclass(frozen=True)
class Options:
    """How a run is made; see `evaluate` for what they mean."""

    goal: Goal
    seed: int
    shuffle_seed: int
    device: torch.device
    batch_size: int | Literal["auto"]
    bf16: bool
    prepare: bool
    query_budget: int | None
    witnesses: int
    on_bad_image: Literal["fail", "undecided"]


Said = tuple[Any, float]
"""A prediction, which is a class or a list of 0/1, and the model's confidence in it."""


@dataclass(frozen=True)
class Answer:
    """The clean answer to one image: logits (1, K), and what they say.

    `unusable` says why the image could not be asked about, `trouble` why nothing can be said of it.
    """

    id: str
    logits: Logits | None = None
    unusable: str | None = None
    trouble: str | None = None
    said: Said = (None, 0.0)
    wrong: bool = False


def drawn(seed: int, what: str, sample_id: str) -> bytes:
    """A key to order images by, the same in every run."""
    return blake2b(f"{seed}/{what}/{sample_id}".encode(), digest_size=16).digest()


@dataclass
class Session:
    """Brings the verdicts that a store lacks. `about` and `notes` are what the run's record is to say of it."""

    classifier: Classifier
    images: LabelledImages
    planned: Sequence[Job]
    store: Store
    options: Options
    progress: Progress
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        ids, options = self.images.ids, self.options
        self.position = {key: i for i, key in enumerate(ids)}
        self.order = sorted(ids, key=lambda key: drawn(options.shuffle_seed, "order", key))
        self.shape: torch.Size | None = None  # of every image, once the first few were seen
        self.keep = set(sorted(ids, key=lambda key: drawn(options.seed, "witness", key))[: options.witnesses])

    def run(self) -> None:
        conditions = ["clean", *(job.condition.name for job in self.planned)]
        complete = set.intersection(*(self.store.decided(name) for name in conditions))
        todo = [key for key in self.order if key not in complete]
        probe = self._probe(self.order)
        self.judge = Judge(Passes(self.classifier))
        for key, image in zip(self.probed, probe, strict=True):
            self._same_image(key, image)
        self._same_answers(probe)
        if todo:
            self._prepare(probe)
            answers = self._clean(todo)
            for job in self.planned:
                self._attack(job, answers)

    def _probe(self, ids: list[str]) -> Tensor:
        """(B, C, H, W) the first few images that can be read."""
        found: list[Tensor] = []
        self.probed: list[str] = []
        for key in ids:
            try:
                found.append(self._load(key))
                self.probed.append(key)
            except DataError:
                if key == ids[-1] and not found:
                    raise
            if len(found) == 4:
                break
        self.shape = found[0].shape
        shapes = sorted({size_text(image) for image in found})
        if len(shapes) > 1:
            raise DataError(f"the images differ in size ({', '.join(shapes)}): bring them to one with --size")
        return torch.stack(found).to(self.options.device)

    def _prepare(self, probe: Tensor) -> None:
        options = self.options
        labels = torch.tensor(self.images.labels, device=options.device)
        logits = first_answer(self.classifier, probe, labels)
        for job in self.planned:
            criterion(labels[: len(logits)], job.target, logits)  # refuses a target that the model does not have
        if labels.dim() == 1 and self.images.classes not in (None, logits.shape[1]):
            counts = f"{self.classifier.name} has {logits.shape[1]} classes and {self.images.name} {self.images.classes}"
            self.notes.append(f"{counts}: do their labels mean the same?")
        need_gradients(self.classifier, probe, [(str(job.condition.attack), job.attack) for job in self.planned])
        size = options.batch_size
        self.batch_size = local.pick_batch_size(probe[0].numel(), options.device) if size == "auto" else size
        search = Passes(self.classifier)
        if options.prepare:
            preparation = prepare(self.classifier, probe, cut=options.device.type == "cpu")
            search = preparation.passes
            self.judge = Judge(Passes(self.classifier, search.micro))
            self.about["prepared"] = preparation.described()
        self.searches = [search]
        if options.bf16:
            self.searches.insert(0, replace(search, reduced=torch.bfloat16, prepared=True))
        self.about["batch_size"] = self.batch_size

    def _load(self, sample_id: str) -> Tensor:
        image = checked(self.images[self.position[sample_id]][0], sample_id)
        if self.shape is not None and image.shape != self.shape:
            raise DataError(f"image {sample_id} is {size_text(image)} and others are not: bring them to one size with --size")
        return image

    def _labels(self, ids: Iterable[str]) -> Tensor:
        """(B,) or (B, K)."""
        return torch.tensor([self.images.labels[self.position[key]] for key in ids], device=self.options.device)

    def _shrunk(self, batch_size: int) -> None:
        self.batch_size = self.about["batch_size"] = batch_size
        self.notes.append(f"memory ran out: went on with batches of {batch_size}")

    # ------------------------------------------------------------------ without an attack

    def _clean(self, ids: list[str]) -> dict[str, Answer]:
        """Ask about every image as it is. What an earlier session asked is asked again, because attacks start from the answers."""
        done, answers, started = self.store.decided("clean"), {}, time.monotonic()
        before, wrong = len(done), self.store.not_correct("clean")
        for batch in local.with_smaller_batches(self._ask, [Answer(key) for key in ids], self.batch_size, self._shrunk):
            for answer in batch:
                answers[answer.id] = answer
                if answer.id not in done and (answer.unusable is None or self.options.on_bad_image == "undecided"):
                    done.add(answer.id)
                    verdict = self._clean_verdict(answer)
                    wrong += verdict.broken is not False
                    self.store.add(verdict)
            self.store.commit()
            self.progress("clean", len(done), len(self.images), wrong)
        if len(done) > before:
            self.store.spend("clean", time.monotonic() - started)
        self.store.commit(now=True)
        bad = [f"{a.id} ({a.unusable})" for a in answers.values() if a.unusable]
        if bad and self.options.on_bad_image == "fail":
            raise InvalidEvaluation(
                f"{len(bad)} of {len(self.images)} images cannot be used: {', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}; "
                "mend or remove them, or count them as not correct with --on-bad-image undecided"
            )
        return answers

    def _ask(self, waiting: list[Answer], batch_size: int) -> Iterator[list[Answer]]:
        for start in range(0, len(waiting), batch_size):
            loaded, answers = {}, []
            for key in (answer.id for answer in waiting[start : start + batch_size]):
                try:
                    loaded[key] = self._load(key)
                except DataError as error:
                    answers.append(Answer(key, unusable=str(error), trouble=str(error)))
            if loaded:
                rule = clean_criterion(self._labels(loaded))
                logits = self.judge.logits(torch.stack(list(loaded.values())).to(self.options.device), rule, list(loaded))
                wrong, finite = (rule.margin(logits) > 0).tolist(), logits.isfinite().all(1).tolist()
                for row, ((key, image), said) in enumerate(zip(loaded.items(), self._said(loaded, logits), strict=True)):
                    self._same_image(key, image)
                    trouble = None if finite[row] else TROUBLE[BAD_LOGITS]
                    answers.append(Answer(key, logits[row : row + 1], None, trouble, said, wrong[row]))
            yield answers

    def _clean_verdict(self, answer: Answer) -> Verdict:
        if answer.trouble:
            return self._undecided("clean", answer)
        return self._verdict("clean", answer, answer.said, broken=answer.wrong, broken_by="clean" if answer.wrong else None, forwards=1)

    # ------------------------------------------------------------------ under attack

    def _attack(self, job: Job, answers: dict[str, Answer]) -> None:
        """Attack the images that the job's condition has no verdict for yet."""
        name, done = job.condition.name, self.store.decided(job.condition.name)
        subjects, broken = self._subjects(job, [answers[key] for key in self.order if key in answers and key not in done])
        decided, total = len(self.store.decided(name)), len(self.store.decided(name)) + len(subjects)
        self.progress(name, decided, total, broken)
        started = time.monotonic()
        for findings in self._findings(job, subjects):
            if findings:
                said = self._said([f.id for f in findings], torch.stack([f.logits for f in findings]))
                for finding, what in zip(findings, said, strict=True):
                    self._record(job, finding, answers[finding.id], what)
                decided, broken = decided + len(findings), broken + sum(f.broken is not False for f in findings)
            now = time.monotonic()
            self.store.spend(name, now - started)
            self.store.commit(now=now - started > 0.5)  # a slow step must not leave verdicts open while the next one runs
            started = now
            if findings:
                self.progress(name, decided, total, broken)
        self.store.commit(now=True)

    def _subjects(self, job: Job, answers: list[Answer]) -> tuple[list[Subject], int]:
        """What is to be attacked, and how many images are broken so far; images that need no attack get their verdicts here."""
        name, left_out = job.condition.name, 0
        subjects: list[Subject] = []
        for answer in answers:
            if answer.trouble:
                self.store.add(self._undecided(name, answer))
        usable = [answer for answer in answers if not answer.trouble]
        if not usable:
            return subjects, self.store.not_correct(name)
        logits = torch.cat([answer.logits for answer in usable if answer.logits is not None])
        rules = criterion(self._labels([answer.id for answer in usable]), job.target, logits)
        met = (rules.margin(logits) > 0).tolist()
        for row, answer in enumerate(usable):
            rule = rules.take(slice(row, row + 1))
            if isinstance(rule, Targeted) and bool(rule.target == rule.labels):
                left_out += 1
            elif met[row] or answer.wrong:  # also of a targeted run: what is wrong without an attack is not robust
                self.store.add(self._verdict(name, answer, answer.said, broken=True, broken_by="clean", target=_target(rule)))
            else:
                subjects.append(Subject(answer.id, partial(self._load, answer.id), rule, logits[row : row + 1]))
        if left_out:
            self.notes.append(f"{name}: {left_out} images of the target's own class are left out")
        return subjects, self.store.not_correct(name)

    def _findings(self, job: Job, subjects: list[Subject]) -> Iterator[list[Finding]]:
        """What came of each subject. What a first pass in reduced precision does not break is attacked again in float32."""
        by_id = {subject.id: subject for subject in subjects}
        earlier: dict[str, Finding] = {}
        for search in self.searches:
            plan = Plan(
                job.attack,
                job.threat.to(self.options.device),
                job.condition.name,
                search,
                self.judge,
                self.options.goal,
                self.options.seed,
                self.options.query_budget,
                side_by_side=self.options.device.type != "cpu" and self.options.query_budget is None,
            )
            size = self.batch_size if getattr(job.attack, "batched", True) else 1
            survivors = []
            for findings in local.with_smaller_batches(partial(run, plan), subjects, size, self._shrunk):
                findings = [f.after(earlier[f.id]) if f.id in earlier else f for f in findings]
                if search is not self.searches[-1]:
                    survivors += [f for f in findings if not f.broken]
                    findings = [f for f in findings if f.broken]
                yield findings
            earlier = {f.id: f for f in survivors}
            subjects = [replace(by_id[f.id], spent=f.forwards + f.backwards) for f in survivors]

    def _record(self, job: Job, finding: Finding, answer: Answer, said: Said) -> None:
        assert answer.logits is not None
        name, witness, target = job.condition.name, None, finding.target
        if job.target is not None:
            target = _target(criterion(self._labels([finding.id]), job.target, answer.logits))
        if finding.broken and finding.id in self.keep:
            witness = self.store.keep(name, finding.id, Witness(self._load(finding.id), finding.image.cpu()))
        self.store.add(
            self._verdict(
                name,
                answer,
                said,
                broken=finding.broken,
                broken_by=job.condition.attack if finding.broken else None,
                target=target,
                restart=finding.restart,
                reason=finding.reason,
                distance=finding.distance,
                steps=finding.steps,
                forwards=finding.forwards,
                backwards=finding.backwards,
                precision="bf16" if finding.reduced else "fp32",
                witness=witness,
            )
        )

    # ------------------------------------------------------------------ verdicts

    def _same_image(self, key: str, image: Tensor) -> None:
        """Record what the image was, or check that it is still that."""
        before, now = self.store.sample(key), image_digest(image)
        if before is None:
            self.store.add_sample(self.position[key], key, now)
        elif before != now:
            raise RunMismatch(f"image {key} is not the one that this run began with: choose another --out, or --fresh to start over")

    def _same_answers(self, probe: Tensor) -> None:
        """Refuse to go on with a model that answers otherwise than when the run began: its code may have changed, which no digest sees."""
        known = {row: before for row, key in enumerate(self.probed) if (before := self.store.clean_said(key)) is not None}
        said = self._said(self.probed, self.judge.passes.logits(probe)) if known else []
        for row, was in known.items():
            if was[0] != said[row][0] or abs(was[1] - said[row][1]) > 1e-3:
                raise RunMismatch(
                    f"{self.classifier.name} says {said[row]} of {self.probed[row]}, and said {was} when this run began: "
                    "choose another --out, or --fresh to start over"
                )

    def _said(self, ids: Iterable[str], logits: Logits) -> list[Said]:
        """What logits (B, K) say of the images with these ids."""
        rule = clean_criterion(self._labels(ids))
        return list(zip(rule.predict(logits).tolist(), rule.confidence(logits).tolist(), strict=True))

    def _undecided(self, condition: str, answer: Answer) -> Verdict:
        return self._verdict(condition, answer, (None, 0.0), broken=None, reason=answer.trouble)

    def _verdict(self, condition: str, answer: Answer, said: Said, **known: Any) -> Verdict:
        """said: of the image that the verdict is about."""
        i = self.position[answer.id]
        blank = {"target": None, "broken_by": None, "reason": None, "precision": "fp32", "witness": None, "distance": 0.0}
        counts = {"restart": 0, "steps": 0, "forwards": 0, "backwards": 0}
        return Verdict(
            sample_id=answer.id,
            group=None if self.images.groups is None else self.images.groups[i],
            condition=condition,
            label=self.images.labels[i],
            clean_prediction=None if answer.trouble else answer.said[0],
            prediction=said[0],
            confidence=said[1],
            seed=self.options.seed,
            **(blank | counts | known),
        )


def _target(rule: Criterion) -> int | None:
    return int(rule.target) if isinstance(rule, Targeted) else None
