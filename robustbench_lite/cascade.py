"""Attacks in turn: every stage sees the images that the ones before it left, and what each stage cost and did is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .plan import Finding, Plan, Subject

Cost = tuple[int, int]
"""Forwards and backwards."""


@dataclass(frozen=True)
class Stage:
    """One attack of a cascade, on one preparation of the model. `name` is empty where the condition is one attack."""

    name: str
    plan: Plan


@dataclass(frozen=True)
class Course:
    """What came of an image in the first `done` stages.

    `finding` is the best of them with the cost of all; `broke` the stage that it comes from where it is broken, `costs` those of the
    named stages.
    """

    finding: Finding
    costs: Mapping[str, Cost] = field(default_factory=dict)
    broke: str = ""
    done: int = 1

    def then(self, stage: Stage, found: Finding) -> Course:
        """One stage on."""
        # of a first pass in reduced precision that broke nothing only the cost counts: its images are attacked again in float32
        if found.reduced and not found.met:
            best = self.finding.after(found)
        elif self.finding.reduced and not self.finding.met:
            best = found.after(self.finding)
        else:
            best = self.finding.merged(found, stage.plan.goal)
        broke = stage.name if best.broken and best.image is found.image else self.broke
        return Course(best, _added(self.costs, stage.name, found), broke, self.done + 1)


def _added(costs: Mapping[str, Cost], name: str, found: Finding) -> Mapping[str, Cost]:
    if not name:
        return costs
    forwards, backwards = costs.get(name, (0, 0))
    return {**costs, name: (forwards + found.forwards, backwards + found.backwards)}


def through(
    stages: Sequence[Stage],
    subjects: Sequence[Subject],
    known: Mapping[str, Course],
    attack: Callable[[Stage, Sequence[Subject]], Iterable[list[Finding]]],
    survived: Callable[[Course], None],
) -> Iterator[list[Course]]:
    """Bring the subjects through the stages; after every step, those that have come to their end (often none).

    Under the goal `first` an image leaves at its first witness; under the others it sees every stage and the best is kept.

    Args:
        known: how far images came in an earlier session, by id.
        attack: runs one stage.
        survived: told how an image stands that goes on to the next stage.
    """
    courses = dict(known)
    for number, stage in enumerate(stages):
        last, budget = number == len(stages) - 1, stage.plan.budget
        waiting = []
        for subject in subjects:
            course = courses.get(subject.id)
            if course is None:
                waiting += [subject] if number == 0 else []
            elif course.done == number:
                spent = course.finding.forwards + course.finding.backwards
                if budget is None or spent < budget:
                    waiting.append(replace(subject, spent=spent))
                else:
                    courses[subject.id] = replace(course, done=number + 1)
                    if last:
                        yield [courses.pop(subject.id)]
        for findings in attack(stage, waiting):
            ended = []
            for found in findings:
                before = courses.pop(found.id, None)
                course = before.then(stage, found) if before else _opened(stage, found)
                if last or (course.finding.broken and stage.plan.goal == "first"):
                    ended.append(course)
                else:
                    courses[found.id] = course
                    survived(course)
            yield ended


def _opened(stage: Stage, found: Finding) -> Course:
    return Course(found, _added({}, stage.name, found), stage.name if found.broken else "")
