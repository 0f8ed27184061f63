"""One session of a run: the clean pass, then every job over the images that are still to be decided."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import Any, Literal

import torch
from torch import Tensor

from .bpda import straight_through
from .cascade import Course, Stage, through
from .checks import checked, first_answer, need_gradients, size_text
from .classifier import Classifier, Logits
from .conditions import Job, aimed_class, clean_criterion, criterion
from .criteria import Criterion
from .engines import local
from .errors import DataError, InvalidEvaluation, RunMismatch, UsageError
from .judge import Judge
from .labelled import LabelledImages
from .oracle import BAD_LOGITS, TROUBLE
from .passes import Passes
from .plan import Finding, Plan, Subject
from .results import Goal, Verdict, Witness
from .scheduler import run
from .store import Store
from .streams import seeded
from .transfer import Ensemble, Source, Targets, sources
from .ways import DRAWS, ways
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
    eot: int | None
    votes: int


FLAT = "every gradient was exactly zero"
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
    surrogates: Sequence[Classifier]
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
        with straight_through(self.classifier) as replaced, seeded(self.options.seed, "first answer"):
            logits, random = self._first_answers(probe)
            self.outputs = logits.shape[1]
            if replaced:
                self.notes.append(f"gradients pass {', '.join(replaced)} by the stand-in that it declares (BPDA)")
            self.judge = Judge(Passes(self.classifier), self.options.votes if random else 0, self.options.seed)
            for key, image in zip(self.probed, probe, strict=True):
                self._same_image(key, image)
            self._same_answers(probe)
            if todo:
                self._prepare(probe, logits, random)
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

    def _first_answers(self, probe: Tensor) -> tuple[Logits, bool]:
        """The logits of the model on the first images, and whether it is random; the surrogates' say that they fit it."""
        labels = self._all_labels()
        logits, random = first_answer(self.classifier, probe, labels)
        for surrogate in self.surrogates:
            others, wavers = first_answer(surrogate, probe, labels)
            if others.shape != logits.shape:
                counts = f"{others.shape[1]} classes and {self.classifier.name} {logits.shape[1]}"
                raise UsageError(f"the surrogate {surrogate.name} has {counts}: a surrogate must answer in the same classes")
            if wavers:
                raise UsageError(f"the surrogate {surrogate.name} answers the same images differently each time: use one that does not")
        return logits, random

    def _prepare(self, probe: Tensor, logits: Logits, random: bool) -> None:
        options, labels = self.options, self._all_labels()
        for job in self.planned:
            criterion(labels[: len(logits)], job.target, logits)  # refuses a target that the model does not have
        if labels.dim() == 1 and self.images.classes not in (None, max(2, logits.shape[1])):
            counts = f"{self.classifier.name} has {logits.shape[1]} classes and {self.images.name} {self.images.classes}"
            self.notes.append(f"{counts}: do their labels mean the same?")
        asked = [(str(job.condition.attack), job.parts.values()) for job in self.planned]
        for searched in self.surrogates or [self.classifier]:
            need_gradients(searched, probe, asked)
        size = options.batch_size
        self.batch_size = local.pick_batch_size(probe[0].numel(), options.device) if size == "auto" else size
        ready = partial(ways, probe=probe, speed_up=options.prepare, bf16=options.bf16)
        self.ways = ready(self.classifier, random=random)
        self.sources = {}
        for name, members in sources(self.surrogates).items():
            model = members[0] if len(members) == 1 else Ensemble(members)
            self.sources[name] = Source(name, model, ready(model, random=False))
        self.judge = replace(self.judge, passes=self.ways.plain)
        self.targets = Targets(
            {self.classifier.name: self.judge} | {s.name: Judge(Passes(s, self.ways.plain.micro)) for s in self.surrogates}
        )
        self.about |= {"batch_size": self.batch_size, "prepared": self.ways.prepared, "votes": self.judge.votes}
        if random:
            self.notes.append(
                f"{self.classifier.name} is randomised: verdicts by {options.votes} votes an image (--votes), attacks on the mean of "
                f"{options.eot or DRAWS} answers (--eot); what an attack finds depends on the batch size here"
            )
        elif options.eot:
            self.notes.append(f"{self.classifier.name} always answers alike: --eot has nothing to average")

    def _all_labels(self) -> Tensor:
        return torch.tensor(self.images.labels, device=self.options.device)

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
                rule = self._clean_rule(loaded)
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
        started, flat = time.monotonic(), 0
        for courses in self._courses(job, subjects):
            if courses:
                findings = [course.finding for course in courses]
                said = self._said([f.id for f in findings], torch.stack([f.logits.to(self.options.device) for f in findings]))
                for course, what in zip(courses, said, strict=True):
                    self._record(job, course, answers[course.finding.id], what)
                if job.condition.source is not None:
                    self._transfer(job, findings, answers)
                decided, broken = decided + len(findings), broken + sum(f.broken is not False for f in findings)
                flat += sum(f.flat and f.broken is False for f in findings)
            now = time.monotonic()
            self.store.spend(name, now - started)
            self.store.commit(now=now - started > 0.5)  # a slow step must not leave verdicts open while the next one runs
            started = now
            if courses:
                self.progress(name, decided, total, broken)
        self.store.commit(now=True)
        if flat:
            self.notes.append(f"{name}: {FLAT} for {flat} of the images that are not broken, which says nothing of them: add `square`")

    def _subjects(self, job: Job, answers: list[Answer]) -> tuple[list[Subject], int]:
        """What is to be attacked, and how many images are broken so far; images that need no attack get their verdicts here.

        A transfer attack is made of every image, also of those that the target gets wrong by itself: its success is counted over all.
        """
        name, left_out = job.condition.name, 0
        subjects: list[Subject] = []
        for answer in answers:
            if answer.trouble:
                self.store.add(self._undecided(name, answer))
        usable = [answer for answer in answers if not answer.trouble]
        if not usable:
            return subjects, self.store.not_correct(name)
        logits = torch.cat([answer.logits for answer in usable if answer.logits is not None])
        labels = self._labels([answer.id for answer in usable])
        rules = criterion(labels, job.target, logits)
        met = (rules.margin(logits) > 0).tolist()
        aimed = None if job.target is None else aimed_class(job.target, logits)
        for row, answer in enumerate(usable):
            if aimed is not None and bool(aimed[row] == labels[row]):
                left_out += 1
            elif (met[row] or answer.wrong) and job.condition.source is None:  # a targeted run too: wrong without an attack is not robust
                target = None if aimed is None else int(aimed[row])
                self.store.add(self._verdict(name, answer, answer.said, broken=True, broken_by="clean", target=target))
            else:
                subjects.append(Subject(answer.id, partial(self._load, answer.id), rules.take(slice(row, row + 1)), logits[row : row + 1]))
        if left_out:
            self.notes.append(f"{name}: {left_out} images of the target's own class are left out")
        return subjects, self.store.not_correct(name)

    def _courses(self, job: Job, subjects: list[Subject]) -> Iterator[list[Course]]:
        """What came of each subject in all stages: the attacks of a cascade, each perhaps after a first pass in reduced precision."""
        options, source = self.options, self.sources.get(job.condition.source or "")
        found = source.ways if source else self.ways
        goal: Goal = "full" if source else options.goal
        plans = [
            Plan(
                attack,
                job.threat.to(options.device),
                f"{job.condition.name}/{part}" if part else job.condition.name,
                search,
                self.judge,
                goal,
                options.seed,
                options.query_budget,
                side_by_side=options.device.type != "cpu" and options.query_budget is None,
                random=found.random,
                transfer=source is not None,
            )
            for part, attack in job.parts.items()
            for search in found.of(attack, options.eot)
        ]
        names = [part for part, attack in job.parts.items() for _ in found.of(attack, options.eot)]
        known = self.store.survivors(job.condition.name) if goal == "first" else {}
        keep = partial(self.store.survived, job.condition.name) if goal == "first" else lambda _: None
        yield from through([Stage(name, plan) for name, plan in zip(names, plans, strict=True)], subjects, known, self._stage, keep)

    def _stage(self, stage: Stage, subjects: Sequence[Subject]) -> Iterator[list[Finding]]:
        attack = stage.plan.attack
        size = self.batch_size if getattr(attack, "batched", True) else 1
        hooks: Callable[..., AbstractContextManager[None]] = getattr(attack, "hooks", lambda *_: nullcontext())
        if subjects:
            with hooks(stage.plan.search.model, subjects[0].image()[None].to(self.options.device)):
                yield from local.with_smaller_batches(partial(run, stage.plan), subjects, size, self._shrunk)

    def _transfer(self, job: Job, findings: list[Finding], answers: dict[str, Answer]) -> None:
        """What every model says of the images, for the matrix of sources and targets."""
        ids = [finding.id for finding in findings]
        logits = torch.cat([answer.logits for answer in (answers[key] for key in ids) if answer.logits is not None])
        rule = criterion(self._labels(ids), job.target, logits)
        origin = torch.stack([self._load(key) for key in ids]).to(self.options.device)
        made = torch.stack([finding.image for finding in findings])
        self.store.add_transferred(self.targets.say(job.condition.name, str(job.condition.source), ids, origin, made, rule))

    def _record(self, job: Job, course: Course, answer: Answer, said: Said) -> None:
        assert answer.logits is not None
        finding = course.finding
        name, witness, target = job.condition.name, None, finding.target
        if job.target is not None:
            target = int(aimed_class(job.target, answer.logits)[0])
        broken_by = f"{job.condition.attack}/{course.broke}" if course.broke else job.condition.attack
        if job.condition.source is not None and answer.wrong:
            self.store.add(self._verdict(name, answer, answer.said, broken=True, broken_by="clean", target=target))
            return
        if finding.broken and finding.id in self.keep:
            witness = self.store.keep(name, finding.id, Witness(self._load(finding.id), finding.image.cpu()))
        self.store.add(
            self._verdict(
                name,
                answer,
                said,
                broken=finding.broken,
                broken_by=broken_by if finding.broken else None,
                target=target,
                restart=finding.restart,
                reason=finding.reason or (FLAT if finding.flat and not finding.broken else None),
                distance=finding.distance,
                steps=finding.steps,
                forwards=finding.forwards,
                backwards=finding.backwards,
                precision="bf16" if finding.reduced else "fp32",
                witness=witness,
                stages=course.costs,
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
        said = self._said(self.probed, self.judge.logits(probe, self._clean_rule(self.probed), self.probed)) if known else []
        for row, was in known.items():
            if was[0] != said[row][0] or abs(was[1] - said[row][1]) > 1e-3:
                raise RunMismatch(
                    f"{self.classifier.name} says {said[row]} of {self.probed[row]}, and said {was} when this run began: "
                    "choose another --out, or --fresh to start over"
                )

    def _said(self, ids: Iterable[str], logits: Logits) -> list[Said]:
        """What logits (B, K) say of the images with these ids."""
        rule = clean_criterion(self._labels(ids), logits.shape[1])
        return list(zip(rule.predict(logits).tolist(), rule.confidence(logits).tolist(), strict=True))

    def _clean_rule(self, ids: Iterable[str]) -> Criterion:
        return clean_criterion(self._labels(ids), self.outputs)

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
