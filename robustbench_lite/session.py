"""One session of a run: the clean pass, then every job over the images that are still to be decided."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .bpda import straight_through
from .cascade import Course, Stage, through
from .checks import first_answer, need_gradients
from .classifier import Classifier, Logits
from .conditions import Job, aimed_class, clean_criterion, criterion
from .diagnostics import Look, observed
from .doubting import Doubt, settling
from .engines import local
from .errors import InvalidEvaluation, UsageError
from .judge import Judge
from .labelled import LabelledImages
from .passes import Passes
from .plan import Attack, Finding, Plan, Subject
from .results import Goal, Witness
from .samples import Answer, Options, Said, Samples
from .scheduler import run
from .shifts import Perturbed, Sequenced, Shift, Shifted, in_turn, thumbnail
from .store import Store
from .streams import seeded
from .transfer import Ensemble, Source, Targets, sources
from .ways import DRAWS, ways

Progress = Callable[[str, int, int, int], None]
"""Called with a condition, how many images are decided, how many there are, and how many of them are broken."""

Enough = Callable[[str, Mapping[str, bool | None]], bool]
"""Told a condition and which images are broken under it so far; whether the others need not be attacked any more."""

FLAT = "every gradient was exactly zero"
LOOKED_AT = 64
"""Images whose clean answers the diagnostics may look at."""


@dataclass
class Session:
    """Brings the verdicts that a store lacks. `about` and `notes` are what the run's record is to say of it.

    Args:
        wide: the images before they are cropped, for sequences whose frames move into the picture what lies beside it.
        twin: a model whose adversarial images are tried in doubt.
        doubts: planned with what was asked for; `settle`: let findings plan more.
        training: what the model learnt from, for diagnostics.
        enough: ends conditions early.
    """

    classifier: Classifier
    surrogates: Sequence[Classifier]
    images: LabelledImages
    planned: Sequence[Job]
    store: Store
    options: Options
    progress: Progress
    shifts: Sequence[Shift] = ()
    perturbed: Sequence[Perturbed] = ()
    wide: LabelledImages | None = None
    twin: Classifier | None = None
    doubts: Sequence[Doubt] = ()
    settle: bool = False
    training: LabelledImages | None = None
    enough: Enough = lambda *_: False
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.samples = Samples(self.images, self.store, self.options)

    def run(self) -> None:
        shifted = [shift.condition.name for shift in self.shifts]
        conditions = [*(["clean"] if self.images.has_clean else []), *shifted, *(job.condition.name for job in self.planned)]
        complete = self.store.decided(conditions[0])
        for name in conditions[1:]:
            complete &= self.store.decided(name)
        todo = [key for key in self.samples.order if key not in complete]
        probe = self.samples.probe()
        with ExitStack() as during:
            replaced = [name for model in (self.classifier, *self._others) for name in during.enter_context(straight_through(model))]
            during.enter_context(seeded(self.options.seed, "first answer"))
            logits, random = self._first_answers(probe)
            self.samples.outputs = logits.shape[1]
            if replaced:
                self.notes.append(f"gradients pass {', '.join(replaced)} by the stand-in that it declares (BPDA)")
            self.judge = Judge(Passes(self.classifier), self.options.votes if random else 0, self.options.seed)
            self.samples.same_answers(self.classifier.name, self.judge, probe)
            answers: dict[str, Answer] = {}
            unseen = self.store.config.get("observed") is None or self.settle
            if todo or self.perturbed or self.doubts or unseen:
                self._prepare(probe, logits, random)
            if todo or self.perturbed:
                answers = self._clean(todo) if self.images.has_clean else {}
                self._shift(todo)
                for each in self.perturbed:
                    self._perturb(each)
                for job in self.planned:
                    self._attack(job, answers)
            if self.images.has_clean:
                self._doubt(self.doubts, answers)
                if unseen:
                    self.store.observe(observed(self._look(answers, random), doubt=bool(self.doubts)))
                if self.settle:
                    settled = settling(self.store.result(), self.planned[0].target if self.planned else None)
                    self.store.plan([each.job.condition for each in settled])
                    self._doubt(settled, answers)

    @property
    def _others(self) -> list[Classifier]:
        return [*self.surrogates, *([self.twin] if self.twin is not None else [])]

    def _first_answers(self, probe: Tensor) -> tuple[Logits, bool]:
        """The logits of the model on the first images, and whether it is random; the surrogates' say that they fit it."""
        labels = self.samples.labels(self.images.ids)
        logits, random = first_answer(self.classifier, probe, labels)
        for surrogate in self._others:
            others, wavers = first_answer(surrogate, probe, labels)
            if others.shape != logits.shape:
                counts = f"{others.shape[1]} classes and {self.classifier.name} {logits.shape[1]}"
                raise UsageError(f"the surrogate {surrogate.name} has {counts}: a surrogate must answer in the same classes")
            if wavers:
                raise UsageError(f"the surrogate {surrogate.name} answers the same images differently each time: use one that does not")
        return logits, random

    def _prepare(self, probe: Tensor, logits: Logits, random: bool) -> None:
        options, labels = self.options, self.samples.labels(self.images.ids)
        for job in self.planned:
            criterion(labels[: len(logits)], job.target, logits)  # refuses a target that the model does not have
        if labels.dim() == 2 and self.perturbed:
            raise UsageError(f"{self.perturbed[0].condition.name} counts how often the class changes, and these labels hold several")
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
            self.sources[name] = Source(name, [member.name for member in members], model, ready(model, random=False))
        if self.twin is not None:
            self.sources[self.twin.name] = Source(self.twin.name, [self.twin.name], self.twin, ready(self.twin, random=False))
        if self.surrogates:
            self.notes.append("made on surrogates: what an attacker does who lacks the model; one who has it (no --surrogate) breaks more")
        self.judge = replace(self.judge, passes=self.ways.plain)
        self.targets = Targets(
            {self.classifier.name: self.judge} | {s.name: Judge(Passes(s, self.ways.plain.micro)) for s in self.surrogates}
        )
        for job in (*self.planned, *(each.job for each in self.doubts)):  # what does not work on this model is refused before it starts
            for attack in job.parts.values():
                found = self.sources[job.condition.source].ways if job.condition.source else self.ways
                with hooks_of(attack)(found.plain.model, probe[:1]):
                    pass
        self.about |= {
            "batch_size": self.batch_size,
            "prepared": self.ways.prepared,
            "votes": self.judge.votes,
            "outputs": self.samples.outputs,
        }
        self.store.record_session(self.about, [])  # now: whoever verifies a run that was killed must know how it judged
        if random:
            self.notes.append(
                f"{self.classifier.name} is randomised: verdicts by {options.votes} votes an image (--votes), attacks on the mean of "
                f"{options.eot or DRAWS} answers (--eot); what an attack finds depends on the batch size here"
            )
        elif options.eot:
            self.notes.append(f"{self.classifier.name} always answers alike: --eot has nothing to average")

    def _shrunk(self, batch_size: int) -> None:
        self.batch_size = self.about["batch_size"] = batch_size
        self.notes.append(f"memory ran out: went on with batches of {batch_size}")

    # ------------------------------------------------------------------ without an attack

    def _clean(self, ids: list[str]) -> dict[str, Answer]:
        """Ask about every image as it is. What an earlier session asked is asked again, because attacks start from the answers."""
        done, answers, started = self.store.decided("clean"), {}, time.monotonic()
        before, wrong = len(done), self.store.not_correct("clean")
        for batch in local.with_smaller_batches(
            partial(self.samples.ask, self.judge), [Answer(key) for key in ids], self.batch_size, self._shrunk
        ):
            for answer in batch:
                if self.planned or answer.unusable:  # attacks start from the answers; without one nothing is kept, however many images
                    answers[answer.id] = answer
                if answer.id == self.samples.probed[0] and self.shifts:
                    self.store.show("clean", thumbnail(self.samples.load(answer.id)))
                if answer.id not in done and (answer.unusable is None or self.options.on_bad_image == "undecided"):
                    done.add(answer.id)
                    verdict = self.samples.clean_verdict(answer)
                    wrong += verdict.broken is not False
                    self.store.add(verdict)
            self.store.commit()
            self.progress("clean", len(done), len(self.images), wrong)
        if len(done) > before:
            self.store.spend("clean", time.monotonic() - started)
        self.store.commit(now=True)
        self._refuse({a.id: a.unusable for a in answers.values() if a.unusable})
        return answers

    def _refuse(self, bad: Mapping[str, str]) -> None:
        if bad and self.options.on_bad_image == "fail":
            first = [f"{key} ({reason})" for key, reason in bad.items()][:3]
            raise InvalidEvaluation(
                f"{len(bad)} of {len(self.images)} images cannot be used: {', '.join(first)}{', ...' if len(bad) > 3 else ''}; "
                "mend or remove them, or count them as not correct with --on-bad-image undecided"
            )

    def _shift(self, ids: Sequence[str]) -> None:
        """Ask about the images under every corruption."""
        bad: dict[str, str] = {}
        waiting = [Answer(key, said=self.store.said("clean", key) or (None, 0.0)) for key in ids] if self.shifts else []
        for title, together in in_turn(self.shifts):
            wrong = sum(self.store.not_correct(shift.condition.name) for shift in together)
            shifted = Shifted(together, self.samples, self.store, self.judge, wrong=wrong, bad=bad)
            done = len(self.images) - len(ids)
            for batch in local.with_smaller_batches(shifted.ask, waiting, self.batch_size, self._shrunk):
                done += len(batch)
                self.progress(title, done, len(self.images), shifted.wrong)
            self.store.commit(now=True)
        self._refuse(bad)

    def _perturb(self, each: Perturbed) -> None:
        """Ask about the frames of a perturbation."""
        name = each.condition.name
        known = self.store.sequenced(name)
        todo = [key for key in self.samples.order if key not in known]
        asked = Sequenced(self.wide or self.images, self.samples, self.judge)
        started = time.monotonic()
        for number, verdict in enumerate(asked.ask(todo, each), len(known) + 1):
            self.store.add_sequence(verdict)
            self.store.commit()
            self.progress(name, number, len(self.images), 0)
        self.store.spend(name, time.monotonic() - started)
        self.store.commit(now=True)
        self._refuse(asked.bad)
        if asked.bad:
            self.notes.append(f"{name} is without the {len(asked.bad)} images that cannot be read: {', '.join(asked.bad)}")

    # ------------------------------------------------------------------ under attack

    def _attack(self, job: Job, answers: dict[str, Answer]) -> None:
        """Attack the images that the job's condition has no verdict for yet."""
        name, done = job.condition.name, self.store.decided(job.condition.name)
        subjects, broken = self._subjects(job, [answers[key] for key in self.samples.order if key in answers and key not in done])
        decided, total = len(self.store.decided(name)), len(self.store.decided(name)) + len(subjects)
        self.progress(name, decided, total, broken)
        started = time.monotonic()
        fate = dict(self.store.fates(name))
        for courses in self._courses(job, subjects) if not self.enough(name, fate) else ():
            if courses:
                findings = [course.finding for course in courses]
                said = self.samples.said([f.id for f in findings], torch.stack([f.logits.to(self.options.device) for f in findings]))
                for course, what in zip(courses, said, strict=True):
                    self._record(job, course, answers[course.finding.id], what)
                if job.condition.source is not None and job.condition.kind == "attack":
                    self._transfer(job, findings, answers)
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
        self._remark(job)

    # ------------------------------------------------------------------ in doubt

    def _doubt(self, doubts: Sequence[Doubt], answers: dict[str, Answer]) -> None:
        """Try attacks on what others have left."""
        for each in doubts:
            done = self.store.decided(each.job.condition.name)
            left = [key for key in each.left(self.store.result()) if key not in done]
            if left:
                self._know(left, answers)
                self._attack(each.job, {key: answers[key] for key in left})

    def _know(self, ids: Sequence[str], answers: dict[str, Answer]) -> None:
        """Have the clean answers to these images, which an earlier session may have asked for."""
        unknown = [Answer(key) for key in ids if key not in answers]
        for batch in local.with_smaller_batches(partial(self.samples.ask, self.judge), unknown, self.batch_size, self._shrunk):
            answers |= {answer.id: answer for answer in batch}

    def _look(self, answers: dict[str, Answer], random: bool) -> Look:
        """What the diagnostics may ask the model."""
        first = self.samples.order[:LOOKED_AT]
        self._know(first, answers)
        ids = [key for key in first if answers[key].logits is not None]
        logits = torch.cat([answer.logits for answer in (answers[key] for key in ids) if answer.logits is not None])
        result, device = self.store.result(), self.options.device
        return Look(self.classifier, self.judge, self.images, result, device, random, ids, logits, self.training)

    def _remark(self, job: Job) -> None:
        """Note what a reader of the row must know to trust it."""
        name, source, budget = job.condition.name, job.condition.source, self.options.query_budget
        if flat := self.store.count(name, "broken = 0 AND reason = ?", FLAT):
            advice = "try loss=margin or another surrogate" if source else "add `square`"
            self.notes.append(f"{name}: {FLAT} for {flat} of the images that are not broken, which says nothing of them: {advice}")
        if budget and (ended := self.store.count(name, "broken = 0 AND forwards + backwards >= ?", budget)):
            self.notes.append(f"{name}: the query budget ended the search for {ended} of the images that are not broken")
        outside = "sample_id NOT IN (SELECT sample_id FROM transferred t WHERE t.condition = verdicts.condition)"
        if source and (unmade := self.store.count(name, outside)):
            self.notes.append(
                f"{name}: of {unmade} images nothing could be made, because of answers that are no numbers; the matrix is without them"
            )

    def _subjects(self, job: Job, answers: list[Answer]) -> tuple[list[Subject], int]:
        """What is to be attacked, and how many images are broken so far; images that need no attack get their verdicts here.

        A transfer attack is made of every image, also of those that the target gets wrong by itself: its success is counted over all.
        """
        name, left_out = job.condition.name, 0
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
        aimed = None if job.target is None else aimed_class(job.target, logits)
        for row, answer in enumerate(usable):
            if aimed is not None and bool(aimed[row] == labels[row]):
                left_out += 1
            elif (met[row] or answer.wrong) and job.condition.source is None:  # a targeted run too: wrong without an attack is not robust
                target = None if aimed is None else int(aimed[row])
                self.store.add(self.samples.verdict(name, answer, answer.said, broken=True, broken_by="clean", target=target))
            else:
                subjects.append(
                    Subject(answer.id, partial(self.samples.load, answer.id), rules.take(slice(row, row + 1)), logits[row : row + 1])
                )
        if left_out:
            self.notes.append(f"{name}: {left_out} images of the target's own class are left out")
        return subjects, self.store.not_correct(name)

    def _courses(self, job: Job, subjects: list[Subject]) -> Iterator[list[Course]]:
        """What came of each subject in all stages: the attacks of a cascade, each perhaps after a first pass in reduced precision."""
        options, source = self.options, self.sources.get(job.condition.source or "")
        found = source.ways if source else self.ways
        goal: Goal = "full" if source else job.condition.goal
        # the model is asked about one image that is made on a source, not about one for every precision
        searches = {part: found.of(attack, job.eot or options.eot)[-1 if source else 0 :] for part, attack in job.parts.items()}
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
            for search in searches[part]
        ]
        names = [part for part in job.parts for _ in searches[part]]
        known = self.store.survivors(job.condition.name) if goal == "first" else {}
        keep = partial(self.store.survived, job.condition.name) if goal == "first" else lambda _: None
        yield from through([Stage(name, plan) for name, plan in zip(names, plans, strict=True)], subjects, known, self._stage, keep)

    def _stage(self, stage: Stage, subjects: Sequence[Subject]) -> Iterator[list[Finding]]:
        attack = stage.plan.attack
        size = self.batch_size if getattr(attack, "batched", True) else 1
        if subjects:
            with hooks_of(attack)(stage.plan.search.model, subjects[0].image()[None].to(self.options.device)):
                yield from local.with_smaller_batches(partial(run, stage.plan), subjects, size, self._shrunk)

    def _transfer(self, job: Job, findings: list[Finding], answers: dict[str, Answer]) -> None:
        """What every model says of the images, for the matrix of sources and targets."""
        findings = [finding for finding in findings if finding.margin != -torch.inf]  # else none was made
        ids = [finding.id for finding in findings]
        if not ids:
            return
        logits = torch.cat([answer.logits for answer in (answers[key] for key in ids) if answer.logits is not None])
        labels, source = self.samples.labels(ids), self.sources[str(job.condition.source)]
        rule, clean_rule = criterion(labels, job.target, logits), clean_criterion(labels, logits.shape[1])
        origin = torch.stack([self.samples.load(key) for key in ids]).to(self.options.device)
        made = torch.stack([finding.image for finding in findings])
        self.store.add_transferred(self.targets.say(job.condition.name, source, ids, origin, made, rule, clean_rule))

    def _record(self, job: Job, course: Course, answer: Answer, said: Said) -> None:
        assert answer.logits is not None
        finding = course.finding
        name, witness, target = job.condition.name, None, finding.target
        if job.target is not None:
            target = int(aimed_class(job.target, answer.logits)[0])
        broken_by = f"{job.condition.attack}/{course.broke}" if course.broke else job.condition.attack
        if job.condition.source is not None and answer.wrong:
            self.store.add(self.samples.verdict(name, answer, answer.said, broken=True, broken_by="clean", target=target))
            return
        if finding.broken and finding.id in self.samples.kept:
            witness = self.store.keep(name, finding.id, Witness(self.samples.load(finding.id), finding.image.cpu()))
        self.store.add(
            self.samples.verdict(
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
                gradient=finding.gradient,
            )
        )


def hooks_of(attack: Attack) -> Callable[..., AbstractContextManager[None]]:
    """The context that an attack wants around its search."""
    hooks: Callable[..., AbstractContextManager[None]] = getattr(attack, "hooks", lambda *_: nullcontext())
    return hooks
