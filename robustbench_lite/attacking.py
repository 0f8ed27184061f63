"""The attacks of a session: one condition after the other, over the images that it has no verdict for yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .ahead import stacked
from .cascade import Course, Stage, through
from .conditions import LEAST_LIKELY, Job, clean_criterion, criterion, offered
from .engines import local
from .judge import Judge
from .plan import Attack, Finding, Plan, Subject, boundless
from .results import NOTHING_TO_GAIN, NOWHERE, Goal, Witness
from .samples import Answer, Options, Said, Samples
from .scheduler import run
from .store import Store
from .threat import Ball, sized
from .transfer import Source, Targets
from .ways import Ways

Progress = Callable[[str, int, int, int], None]
"""Called with a condition, how many images are decided, how many there are, and how many of them are broken."""

Enough = Callable[[str, Mapping[str, bool | None]], bool]
"""Told a condition and which images are broken under it so far; whether the others need not be attacked any more."""

FLAT = "every gradient was exactly zero"


@dataclass
class Batches:
    """How many images go through the model at a time; memory that runs out makes them fewer, as `about` and `notes` then say."""

    size: int
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def shrunk(self, size: int) -> None:
        self.size = self.about["batch_size"] = size
        self.notes.append(f"memory ran out: went on with batches of {size}")


@dataclass
class Attacking:
    """Attacks images and writes down what came of it.

    Args:
        ways: how the model is searched; `sources`: what images are made on instead, by name.
        judge: the last word on an image; `targets`: the models that are asked about transferred ones.
        enough: ends conditions early.
    """

    samples: Samples
    store: Store
    options: Options
    ways: Ways
    sources: Mapping[str, Source]
    judge: Judge
    targets: Targets
    batches: Batches
    notes: list[str]
    progress: Progress
    enough: Enough

    def attack(self, job: Job, answers: Mapping[str, Answer], later: Sequence[str] = ()) -> None:
        """Attack those of these images that the job's condition has no verdict for yet.

        Args:
            later: ids of images that have their turn later, for the progress.
        """
        name = job.condition.name
        if job.searched_as is not None:
            self._judge_again(job, job.searched_as)
        done = self.store.decided(name) | self.store.left_out(name)
        subjects, broken = self._subjects(job, [answers[key] for key in self.samples.order if key in answers and key not in done])
        decided = len(self.store.decided(name))
        total = decided + len(subjects) + len(set(later) - done)
        self.progress(name, decided, total, broken)
        started = time.monotonic()
        fate = dict(self.store.fates(name))
        for courses in self._courses(job, subjects) if not self.enough(name, fate) else ():
            if courses:
                findings = [course.finding for course in courses]
                said = self.samples.said([f.id for f in findings], torch.stack([f.logits.to(self.options.device) for f in findings]))
                if job.condition.source is not None and job.condition.kind == "attack":
                    self._transfer(job, findings, answers)  # first: an image with a verdict is not made again
                for course, what in zip(courses, said, strict=True):
                    self._record(job, course, answers[course.finding.id], what)
                decided, broken = decided + len(findings), broken + sum(f.broken is not False for f in findings)
                fate |= {f.id: f.broken for f in findings}
            now = time.monotonic()
            self.store.spend(name, now - started)
            self.store.commit(now=now - started > 0.5)  # a slow step must not leave verdicts open while the next one runs
            started = now
            if courses:
                self.progress(name, decided, total, broken)
                if self.enough(name, fate):
                    break
        self.store.commit(now=True)

    def _judge_again(self, job: Job, other: str) -> None:
        """Verdicts at another eps, from a search for the nearest that knew no eps."""
        known, done = self.store.result(), self.store.decided(job.condition.name)
        for v in known.of(other):
            if v.sample_id not in done:
                ball = self._ball(job, v.sample_id)
                broken = v.broken if v.broken_by == "clean" else bool(v.nearest <= ball.reach) or (None if v.cut_short else False)
                witness = known.witness(other, v.sample_id)
                kept = None if witness is None else self.store.keep(job.condition.name, v.sample_id, witness)
                radius = None if v.radius is None else float(ball.eps)
                self.store.add(replace(v, condition=job.condition.name, broken=broken, witness=kept, radius=radius))
        self.store.commit(now=True)

    def _ball(self, job: Job, sample_id: str) -> Ball:
        """Of one image, which may have a size of its own."""
        scale = self._scale(job, sample_id)
        return job.threat if scale is None else sized(job.threat, scale)

    def _scale(self, job: Job, sample_id: str) -> float | None:
        return self.options.radii[sample_id] if job.condition.scaled and self.options.radii is not None else None

    def remark(self, job: Job) -> None:
        """Note what a row and the matrix of a transfer attack lack; how far the row can be trusted, the diagnostics say."""
        name, source = job.condition.name, job.condition.source
        if passed_over := self.store.left_out(name, NOTHING_TO_GAIN):
            one_class = isinstance(job.target, int) or job.target == LEAST_LIKELY
            reason = "of the target's own class" if one_class else "that offer the attacker nothing"
            self.notes.append(f"{name}: {len(passed_over)} images {reason} are left out")
        outside = "sample_id NOT IN (SELECT sample_id FROM transferred t WHERE t.condition = verdicts.condition)"
        if source and (unmade := self.store.count(name, outside)):
            self.notes.append(
                f"{name}: of {unmade} images nothing could be made, because of answers that are no numbers; the matrix is without them"
            )

    def _subjects(self, job: Job, answers: list[Answer]) -> tuple[list[Subject], int]:
        """What is to be attacked, and how many images are broken so far; images that need no attack get their verdicts here.

        A transfer attack is made of every image, also of those that the target gets wrong by itself: its success is counted over all.
        Where the outputs are asked for, every attack is: an image that is wrong already can be made wrong more surely.
        """
        name, left_out = job.condition.name, set[str]()
        subjects: list[Subject] = []
        for answer in answers:
            if answer.trouble:
                self.store.add(self.samples.undecided(name, answer))
        usable = [answer for answer in answers if not answer.trouble]
        if not usable:
            return subjects, self.store.not_correct(name)
        logits = torch.cat([answer.logits for answer in usable if answer.logits is not None])
        labels = self.samples.labels([answer.id for answer in usable])
        rules = criterion(labels, job.target, logits)
        met = (rules.margin(logits) > 0).tolist()
        gains, aimed = (torch.ones(len(labels), dtype=torch.bool), None) if job.target is None else offered(labels, job.target, logits)
        for row, answer in enumerate(usable):
            if not gains[row]:
                left_out.add(answer.id)
            elif (met[row] or answer.wrong) and not self._everyone(job):  # a targeted run too: wrong without an attack is not robust
                target = None if aimed is None else int(aimed[row])
                self.store.add(self.samples.verdict(name, answer, answer.said, broken=True, broken_by="clean", target=target))
            else:
                subjects.append(
                    Subject(
                        answer.id,
                        partial(self.samples.load, answer.id),
                        rules.take(slice(row, row + 1)),
                        logits[row : row + 1],
                        scale=self._scale(job, answer.id),
                    )
                )
        self.store.leave_out(name, left_out, NOTHING_TO_GAIN)
        return subjects, self.store.not_correct(name)

    def _courses(self, job: Job, subjects: list[Subject]) -> Iterator[list[Course]]:
        """What came of each subject in all stages: the attacks of a cascade, each perhaps after a first pass in reduced precision."""
        options, source = self.options, self.sources.get(job.condition.source or "")
        found = source.ways if source else self.ways
        goal: Goal = "full" if source else job.condition.goal
        # the model is asked about one image that is made on a source, not about one for every precision
        searches = {part: found.of(attack, job.condition.eot or options.eot)[-1 if source else 0 :] for part, attack in job.parts.items()}
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
                options.patience if goal == "closest" else None,
                side_by_side=options.device.type != "cpu" and options.query_budget is None,
                random=found.random,
                transfer=source is not None,
            )
            for part, attack in job.parts.items()
            for search in searches[part]
        ]
        names = [part for part in job.parts for _ in searches[part]]
        known = self.store.survivors(job.condition.name) if goal == "first" else {}
        keep = partial(self.store.survived, job.condition.name) if goal == "first" else lambda _: None
        yield from through([Stage(name, plan) for name, plan in zip(names, plans, strict=True)], subjects, known, self._stage, keep)

    def _stage(self, stage: Stage, subjects: Sequence[Subject]) -> Iterator[list[Finding]]:
        attack = stage.plan.attack
        size = self.batches.size if getattr(attack, "batched", True) else 1
        if subjects:
            with hooks_of(attack)(stage.plan.search.model, subjects[0].image()[None].to(self.options.device)):
                yield from local.with_smaller_batches(
                    partial(run, stage.plan, expect=self.samples.expect), subjects, size, self.batches.shrunk
                )

    def _transfer(self, job: Job, findings: list[Finding], answers: Mapping[str, Answer]) -> None:
        """What every model says of the images, for the matrix of sources and targets."""
        findings = [finding for finding in findings if finding.margin != -torch.inf]  # else none was made
        ids = [finding.id for finding in findings]
        if not ids:
            return
        logits = torch.cat([answer.logits for answer in (answers[key] for key in ids) if answer.logits is not None])
        labels, source = self.samples.labels(ids), self.sources[str(job.condition.source)]
        rule, clean_rule = criterion(labels, job.target, logits), clean_criterion(labels, logits.shape[1])
        origin = stacked([self.samples.load(key) for key in ids], self.options.device)
        made = torch.stack([finding.image for finding in findings])
        self.store.add_transferred(self.targets.say(job.condition.name, source, ids, origin, made, rule, clean_rule))

    def _record(self, job: Job, course: Course, answer: Answer, said: Said) -> None:
        assert answer.logits is not None
        finding = course.finding
        name, witness, target = job.condition.name, None, finding.target
        if job.target is not None:
            aimed = offered(self.samples.labels([answer.id]), job.target, answer.logits)[1]
            target = None if aimed is None else int(aimed[0])
        broken_by = f"{job.condition.attack}/{course.broke}" if course.broke else job.condition.attack
        if answer.wrong and self._everyone(job):
            outputs = self._outputs(finding.logits)
            self.store.add(self.samples.verdict(name, answer, said, broken=True, broken_by="clean", target=target, outputs=outputs))
            return
        if finding.met and finding.id in self.samples.kept:
            clean = self.samples.load(finding.id) if finding.origin is None else finding.origin.cpu()
            witness = self.store.keep(name, finding.id, Witness(clean, finding.image.cpu()))
        self.store.add(
            self.samples.verdict(
                name,
                answer,
                said,
                broken=finding.broken,
                broken_by=broken_by if finding.met else None,
                target=target,
                restart=finding.restart,
                reason=finding.reason or self._silence(job, finding),
                distance=finding.distance,
                steps=finding.steps,
                forwards=finding.forwards,
                backwards=finding.backwards,
                precision=self.options.first_pass or "fp32" if finding.reduced else "fp32",
                witness=witness,
                stages=course.costs,
                gradient=finding.gradient,
                outputs=self._outputs(finding.logits),
                approach=[list(each) for each in finding.approach],
                radius=float(self._ball(job, finding.id).eps) if job.condition.scaled else None,
                unconfirmed=finding.unconfirmed,
            )
        )

    def _silence(self, job: Job, finding: Finding) -> str | None:
        """Why an attack may have found nothing, though something is there."""
        if finding.met:
            return None
        if finding.flat:
            return FLAT
        return NOWHERE if any(boundless(attack, job.condition.goal) for attack in job.parts.values()) else None

    def _everyone(self, job: Job) -> bool:
        """Whether images are attacked that the model gets wrong by itself: on a surrogate, and where its outputs are asked for."""
        return job.condition.source is not None or self.options.outputs

    def _outputs(self, logits: Tensor) -> list[float] | None:
        return logits.flatten().tolist() if self.options.outputs else None


def hooks_of(attack: Attack) -> Callable[..., AbstractContextManager[None]]:
    """The context that an attack wants around its search."""
    hooks: Callable[..., AbstractContextManager[None]] = getattr(attack, "hooks", lambda *_: nullcontext())
    return hooks
