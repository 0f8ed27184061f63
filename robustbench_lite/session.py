"""One session of a run: the clean pass, then every job over the images that are still to be decided."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .attacking import Attacking, Batches, Enough, Progress, hooks_of
from .bpda import as_they_are, straight_through
from .checks import first_answers, has_gradients, need_gradients
from .classifier import Classifier, Logits
from .conditions import Job, criterion, need_something_to_gain
from .diagnostics import Look, observed
from .doubting import Doubt, settling
from .engines import local
from .errors import DataError, UsageError
from .fitting import Lesson, halves, learns, taught
from .judge import Judge
from .labelled import LabelledImages
from .lacking import unasked, undecided, undoubted
from .passes import Passes
from .proofs import Certified, prove
from .quarantine import Unread, quarantine
from .results import LEARNT_FROM, REDUCED
from .samples import Answer, Options, Samples
from .shifts import Perturbed, Sequenced, Shift, Shifted, in_turn, thumbnail
from .store import Store
from .streams import seeded
from .transfer import Ensemble, Source, Targets, sources
from .tuning import Tuned, pass_of, tuned
from .ways import DRAWS, ways

LOOKED_AT = 64
"""Images whose clean answers the diagnostics may look at."""

TURN = 4096
"""Images that are attacked before the next ones are begun, where there are more: what is kept of each must not add up."""


@dataclass
class Session:
    """Brings the verdicts that a store lacks. `about` and `notes` are what the run's record is to say of it.

    Args:
        wide: the images before they are cropped, for sequences whose frames move into the picture what lies beside it.
        twin: a model whose adversarial images are tried in doubt.
        doubt: look at what is dear too, and try `doubts`; `settle`: let findings plan more of them.
        certified: certificates, which prove before anything is attacked.
        training: what the model learnt from, for diagnostics.
        learn_from: what attacks that learn do so from; None: half of the images.
        hidden: attacks follow the model's gradients without the stand-ins that its layers declare.
        enough: ends conditions early.
        only: ids of the images that a worker is to bring to their end; what is about all images is then left to the driver.
        tuned: the batch size that an earlier session of this process measured; empty for none.
        spread: has workers do that, given the session, ids, and doubts or None for all that was planned.
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
    doubt: bool = False
    doubts: Sequence[Doubt] = ()
    settle: bool = False
    certified: Sequence[Certified] = ()
    training: LabelledImages | None = None
    learn_from: LabelledImages | None = None
    hidden: bool = False
    enough: Enough = lambda *_: False
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    only: Collection[str] | None = None
    tuned: list[Tuned] = field(default_factory=list)
    spread: Callable[[Session, Sequence[str], Sequence[Doubt] | None], None] | None = None

    def __post_init__(self) -> None:
        self.samples = Samples(self.images, self.store, self.options, self.only)
        self.from_others: dict[str, Source] = {}
        self.unread = Unread(self.samples, self.about)

    def run(self) -> None:
        todo = self._todo()
        probe = self.samples.probe()
        with ExitStack() as during:
            during.enter_context(self.samples.decoding())
            if self.hidden:
                during.enter_context(as_they_are(self.classifier))
            helped = self._others if self.hidden else [self.classifier, *self._others]
            replaced = [name for model in helped for name in during.enter_context(straight_through(model))]
            during.enter_context(seeded(self.options.seed, "first answer"))
            labels = self.samples.labels(self.images.ids)
            logits, random = local.on_fewer(lambda few: first_answers(self.classifier, self._others, few, labels), probe)
            probe = probe[: len(logits)]
            self.samples.outputs = logits.shape[1]
            if replaced:
                self.notes.append(f"gradients pass {', '.join(replaced)} by the stand-in that it declares (BPDA)")
            self.judge = Judge(Passes(self.classifier), self.options.votes if random else 0, self.options.seed)
            self.samples.same_answers(self.classifier.name, self.judge, probe)
            answers: dict[str, Answer] = {}
            unseen = self.only is None and self.store.config.get("observed") is None
            unproven = any(len(self.store.proofs(each.condition.name)) < len(self.samples.order) for each in self.certified)
            if todo or self.perturbed or self.doubts or self.settle or unseen or unproven:
                self._prepare(probe, logits, random)
            lacking = self._lacking(todo) if self.spread is not None else []
            if self.spread is not None and lacking:
                self.spread(self, lacking, None)
                todo = self._todo()
            if todo or self.perturbed or unproven or lacking:
                answers = self._clean(todo) if self.images.has_clean else {}
                self._shift(todo)
                for sequence in self.perturbed:
                    self._perturb(sequence)
                for each in self.certified:
                    prove(each, self.classifier, self.samples, self.store, self.batches.size, self.progress)
                    self._agreed()
                for part, later in self._turns(todo, answers) if self.planned else ():
                    for job in self.planned:
                        if self.only is None or not (learns(job) or job.searched_as):
                            self._attack(job, part, answers, later)
                            self._agreed()
                if self.only is None:
                    for job in self.planned:
                        self.attacking.remark(job)
            if self.images.has_clean:
                self._doubt(self.doubts, answers)
                self._agreed()
                if unseen:
                    look = self._look(answers, random)
                    self.store.observe(observed(look, doubt=self.doubt) if look.ids else {})
                if self.settle and self.only is None:
                    target = self.planned[0].target if self.planned else None
                    further = settling(self.store.result(), target)
                    if self.spread is not None and (lacking := undoubted(self.store, self.samples.order, further)):
                        self.store.plan([each.job.condition for each in further])
                        self.spread(self, lacking, further)
                    self._doubt(further, answers)
                    self._agreed()

    def _todo(self) -> list[str]:
        """Ids of the images that lack a verdict, in the order in which they are taken."""
        shifted = [shift.condition.name for shift in self.shifts]
        conditions = [*(["clean"] if self.images.has_clean else []), *shifted, *(job.condition.name for job in self.planned)]
        return undecided(self.store, self.samples.order, conditions)

    def _lacking(self, todo: Sequence[str]) -> list[str]:
        """Ids of the images that lack anything that a worker can bring."""
        store, order = self.store, self.samples.order
        lacking = {*todo, *undoubted(store, order, self.doubts), *unasked(store, order, self.perturbed, self.certified)}
        return [key for key in order if key in lacking]

    @property
    def _others(self) -> list[Classifier]:
        return [*self.surrogates, *([self.twin] if self.twin is not None else [])]

    def _prepare(self, probe: Tensor, logits: Logits, random: bool) -> None:
        options, labels = self.options, self.samples.labels(self.images.ids)
        for job in self.planned:
            criterion(labels[: len(logits)], job.target, logits)  # refuses a target that the model does not have
            taught_by = halves(self.images, options.seed)[1] if learns(job) and self.learn_from is None else set()
            need_something_to_gain(job, self.samples.labels(key for key in self.images.ids if key not in taught_by), logits)
        if self.certified and labels.dim() == 2:
            raise UsageError("a certificate is of one class among several: leave --certify out for several labels an image")
        if labels.dim() == 2 and self.perturbed:
            raise UsageError(f"{self.perturbed[0].condition.name} counts how often the class changes, and these labels hold several")
        if labels.dim() == 1 and self.images.classes not in (None, max(2, logits.shape[1])):
            counts = f"{self.classifier.name} has {logits.shape[1]} classes and {self.images.name} {self.images.classes}"
            self.notes.append(f"{counts}: do their labels mean the same?")
        for searched, transfer in [(self.classifier, False), *((each, True) for each in self.surrogates)]:
            asked = [(str(job.condition.attack), job.parts.values()) for job in self.planned if bool(job.condition.source) is transfer]
            need_gradients(searched, probe, asked)
        first_pass = local.reduced_here(options.first_pass, options.device)
        if options.first_pass != first_pass and self.spread is None:
            self.notes.append(f"this processor does not compute in {REDUCED[str(options.first_pass)]}: searched in float32")
        fast = partial(ways, speed_up=options.prepare, first_pass=first_pass, compile=options.compile, say=self.notes.append)
        ready = partial(fast, probe=probe)
        self.ways = ready(self.classifier, random=random)
        from_others = self.from_others
        for name, members in sources(self.surrogates).items():
            model = members[0] if len(members) == 1 else Ensemble(members)
            from_others[name] = Source(name, [member.name for member in members], model, ready(model, random=False))
        if self.twin is not None:
            from_others[self.twin.name] = Source(self.twin.name, [self.twin.name], self.twin, ready(self.twin, random=False))
        self.batches = Batches(max(1, self._batch_size(probe, random) >> options.halved), self.about, self.notes)
        if self.planned and all(job.condition.source for job in self.planned):
            self.notes.append("made on surrogates: what an attacker does who lacks the model; one who has it (no --surrogate) breaks more")
        self.judge = replace(self.judge, passes=self.ways.plain)
        targets = Targets({self.classifier.name: self.judge} | {s.name: Judge(Passes(s, self.ways.plain.micro)) for s in self.surrogates})
        self.attacking = Attacking(
            self.samples,
            self.store,
            options,
            self.ways,
            from_others,
            self.judge,
            targets,
            self.batches,
            self.notes,
            self.progress,
            self.enough,
        )
        self.doubts = [each for each in self.doubts if each.job.condition.source or has_gradients(self.classifier, probe, each.job.parts)]
        for job in self.planned:  # what does not work on this model is to be refused before anything is evaluated
            for attack in job.parts.values():
                found = from_others[job.condition.source].ways if job.condition.source else self.ways
                with hooks_of(attack)(found.plain.model, probe[:1]):
                    pass
        # each worker chooses for its own device
        self.about |= {"batch_size": self.batches.size if self.spread is None else options.batch_size, "prepared": self.ways.prepared}
        self.about |= {"votes": self.judge.votes, "outputs": self.samples.outputs}
        self.store.record_session(self.about, [])  # now: whoever verifies a run that was killed must know how it judged
        if random:
            self.notes.append(
                f"{self.classifier.name} is randomised: verdicts by {options.votes} votes an image (--votes), attacks on the mean of "
                f"{options.eot or DRAWS} answers (--eot); what an attack finds depends on the batch size here, "
                "and with --workers on the shards"
            )
        elif options.eot:
            self.notes.append(f"{self.classifier.name} always answers alike: --eot has nothing to average")

    def _batch_size(self, probe: Tensor, random: bool) -> int:
        """What was asked for. Whoever does the work measures what is to be tuned, which with workers is none of the driver's."""
        size, guess = self.options.batch_size, local.pick_batch_size(probe[0].numel(), self.options.device)
        if size == "tune" and random:
            name = self.classifier.name
            raise UsageError(f"{name} is randomised, and what attacks find hangs on the batch size then: give --batch-size a number")
        if size != "tune" or self.spread is not None:
            return size if isinstance(size, int) else guess
        if not self.tuned:
            source = self.planned[-1].condition.source if self.planned else None
            search = (self.from_others[source].ways if source else self.ways).fast[-1]
            once = pass_of(search, self.planned, self.store.commit)
            self.tuned.append(tuned(once, probe, guess=guess, images=len(self.samples.order)))
        self.about["tuned"] = self.tuned[0].speeds
        self.notes.append(self.tuned[0].in_words())
        return self.tuned[0].size

    # ------------------------------------------------------------------ without an attack

    def _clean(self, ids: list[str]) -> dict[str, Answer]:
        """Ask about every image as it is. What an earlier session asked is asked again, because attacks start from the answers."""
        done, answers, started = self.store.decided("clean"), {}, time.monotonic()
        before, wrong = len(done), self.store.not_correct("clean")
        for batch in local.with_smaller_batches(
            partial(self.samples.ask, self.judge), [Answer(key) for key in ids], self.batches.size, self.batches.shrunk
        ):
            for answer in batch:
                if answer.unusable or (self.planned and len(ids) <= TURN):  # attacks start from the answers
                    answers[answer.id] = answer
                if answer.id == self.samples.probed[0] and self.shifts:
                    self.store.show("clean", thumbnail(self.samples.load(answer.id)))
                if answer.id not in done and (answer.unusable is None or self.options.on_bad_image == "quarantine"):
                    done.add(answer.id)
                    verdict = self.samples.clean_verdict(answer)
                    wrong += verdict.broken is not False
                    self.store.add(verdict)
            self.store.commit()
            self.progress("clean", len(done), len(self.images), wrong)
        if len(done) > before:
            self.store.spend("clean", time.monotonic() - started)
        self.store.commit(now=True)
        self.unread.among(answers.values())
        return answers

    def _shift(self, ids: Sequence[str]) -> None:
        """Ask about the images under every corruption."""
        bad: dict[str, str] = {}
        waiting = [Answer(key, said=self.store.said("clean", key) or (None, 0.0)) for key in ids] if self.shifts else []
        for title, together in in_turn(self.shifts):
            wrong = sum(self.store.not_correct(shift.condition.name) for shift in together)
            shifted = Shifted(together, self.samples, self.store, self.judge, wrong=wrong, bad=bad)
            done = len(self.images) - len(ids)
            for batch in local.with_smaller_batches(shifted.ask, waiting, self.batches.size, self.batches.shrunk):
                done += len(batch)
                self.progress(title, done, len(self.images), shifted.wrong)
            self.store.commit(now=True)
        self.unread.refuse(bad)

    def _agreed(self) -> None:
        """Refuse to go on where a proof and a witness contradict each other."""
        if self.certified:
            _ = self.store.result().known

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
        self.unread.refuse(asked.bad)
        if asked.bad:
            self.notes.append(f"{name} is without the {len(asked.bad)} images that cannot be read: {', '.join(asked.bad)}")

    # ------------------------------------------------------------------ under attack

    def _turns(self, ids: Sequence[str], answers: dict[str, Answer]) -> Iterator[tuple[dict[str, Answer], Sequence[str]]]:
        """The clean answers to so many of these images at a time that memory holds them, and the ids of those that come later."""
        for start in range(0, len(ids), TURN):
            part = ids[start : start + TURN]
            if len(ids) > TURN:
                answers.clear()
            self._know(part, answers)
            yield {key: answers[key] for key in part}, ids[start + TURN :]

    def _attack(self, job: Job, part: dict[str, Answer], answers: dict[str, Answer], later: Sequence[str]) -> None:
        """Attack these images; what of them went or broke meanwhile counts from then on like what could not be read before."""
        while True:
            try:
                return self._search(job, part, later)
            except DataError:
                again: dict[str, Answer] = {}
                self._know(list(part), again)  # ends the run where it is to have all images
                if not any(each.unusable and not part[key].unusable for key, each in again.items()):
                    raise
                part.update(again)
                answers.update(again)

    def _search(self, job: Job, answers: dict[str, Answer], later: Sequence[str]) -> None:
        """Attack the images; where the attack has to learn first and there are no images for it, half of them are for that."""
        if not learns(job):
            self.attacking.attack(job, answers, later)
            return
        name = job.condition.name
        images, used = (self.learn_from, set()) if self.learn_from is not None else halves(self.images, self.options.seed)
        if used:
            # what cannot be read teaches nothing: it is undecided in this row too, as it was in a session before
            used -= self.unread.ids | {key for key, _ in self.store.fates(name)}
            images = images.take([row for row, key in enumerate(images.ids) if key in used])
        found = self.from_others[job.condition.source].ways if job.condition.source else self.ways
        lesson = partial(
            Lesson, found.plain, images, job.threat, job.target, self.options.device, self.options.seed, batch_size=self.batches.size
        )
        ready = taught(job, lesson, self.store)  # first: an image that cannot be read any more teaches nothing, and is not left out
        self.store.leave_out(name, used, LEARNT_FROM)
        self.store.commit(now=True)  # with what was learnt: whoever goes on is not to judge by what taught
        note = f"{name} learnt from {len(used)} of the images, which are left out of its row and of the worst case"
        if used and note not in self.notes:
            self.notes.append(note)
        self.attacking.attack(ready, answers, later)

    # ------------------------------------------------------------------ in doubt

    def _doubt(self, doubts: Sequence[Doubt], answers: dict[str, Answer]) -> None:
        """Try attacks on what others have left."""
        self.store.plan([each.job.condition for each in doubts])
        for each in doubts:
            done = self.store.decided(each.job.condition.name)
            left = [key for key in each.left(self.store.result()) if key not in done]
            for part, later in self._turns(left, answers):
                self._attack(each.job, part, answers, later)
            if left and self.only is None:
                self.attacking.remark(each.job)

    def _know(self, ids: Sequence[str], answers: dict[str, Answer]) -> None:
        """Have the clean answers to these images, which an earlier session may have asked for."""
        unknown = [Answer(key) for key in ids if key not in answers]
        for batch in local.with_smaller_batches(partial(self.samples.ask, self.judge), unknown, self.batches.size, self.batches.shrunk):
            answers |= {answer.id: answer for answer in batch}
            self.unread.among(batch)

    def _look(self, answers: dict[str, Answer], random: bool) -> Look:
        """What the diagnostics may ask the model."""
        result, device = self.store.result(), self.options.device
        known = {v.sample_id for v in result.of("clean") if v.broken is not None}  # the others may have no answer
        known -= {each.sample_id for each in quarantine(result)}
        ids = [key for key in self.samples.order if key in known][:LOOKED_AT]
        self._know(ids, answers)
        said = {key: logits for key in ids if (logits := answers[key].logits) is not None}
        logits = torch.cat([*said.values()]) if said else torch.empty(0, self.samples.outputs)
        passes = self.judge.passes
        judge = replace(self.judge, passes=replace(passes, micro=min(passes.micro or LOOKED_AT, self.batches.size)))
        return Look(self.classifier, judge, self.images, result, device, random, list(said), logits, self.training)
