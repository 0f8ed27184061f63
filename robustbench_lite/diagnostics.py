"""Can this number be believed? What a check is, what it finds, and what would settle it.

A check is a frozen dataclass, registered in a file of `doubts/` (or through an entry point in the group `robustbench_lite.diagnostics`).
It has as many of these methods as it needs:

    doubts(asked) -> Counters            attacks to try with `--doubt`, besides those that were asked for in one ball
    observe(look) -> mapping             what it must ask of the model itself; stored with the run, under the check's name
    findings(evidence) -> Findings       what it makes of the verdicts, of what it observed, and of what the doubts broke

Findings are computed from what a run stored and from nothing else, so that a report made later says the same. `dear = True` marks a check
whose `observe` is for `--doubt` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .registry import DIAGNOSTICS
from .results import Condition, Result, Verdict, eps_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .judge import Judge
    from .labelled import LabelledImages
    from .proofs import Bracket

Weight = Literal["refutes", "doubts", "notes"]
"""What a finding does to the rows that it is about: their figure is too high, it may be too high, or a reader should know."""


@dataclass(frozen=True)
class Counter:
    """An attack that would tell.

    Args:
        attack: spec.
        eps: of the ball; None: that of the rows in question.
        eot: answers of a randomised model that it averages; None: as the run does.
    """

    attack: str
    eps: float | None = None
    eot: int | None = None

    @property
    def words(self) -> str:
        """`square`, `pgd --eps 0.5`, `pgd --eot 100`"""
        more = [*([f"--eps {eps_text(self.eps)}"] if self.eps is not None else []), *([f"--eot {self.eot}"] if self.eot else [])]
        return " ".join([self.attack, *more])


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        check: its name.
        weight: what it does to the rows that it is about.
        conditions: names of those rows.
        seen: what was seen, with figures; a sentence.
        means: what that means for the rows; a sentence.
        settle: attacks that would settle it.
        figures: the numbers in `seen`, for machines.
        samples: ids of the images in question, where there are some.
    """

    check: str
    weight: Weight
    conditions: tuple[str, ...]
    seen: str
    means: str
    settle: tuple[Counter, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Look:
    """What a check may ask of the model, once the attacks are done.

    Args:
        model: as it was given, frozen, on the run's device. Modules that declare a stand-in for their gradients have it.
        judge: the last word on an image, in float32.
        images: the data; `data.ids` are in the data set's order.
        result: what the run knows by now.
        device: where images go.
        random: the model answers differently each time.
        logits: (N, K) clean answers to the first images, and `ids` (N) whose they are; at most 64.
        training: the images that the model learnt from, where they are known.
    """

    model: nn.Module
    judge: Judge
    images: LabelledImages
    result: Result
    device: Any
    random: bool
    ids: Sequence[str]
    logits: Tensor
    training: LabelledImages | None = None

    def batch(self, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) on the device, and their labels."""
        import torch

        from .labelled import label_tensor

        place = self._places
        x = torch.stack([self.images.pictures[place[key]] for key in ids]).float().to(self.device)
        return x, label_tensor(self.images.labels[place[key]] for key in ids).to(self.device)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {key: place for place, key in enumerate(self.images.ids)}


@dataclass(frozen=True)
class Evidence:
    """A run's verdicts, as checks ask about them."""

    result: Result

    def observed(self, check: str) -> Mapping[str, Any]:
        """What a check observed; empty where it did not look, or had nothing to say."""
        found: Mapping[str, Any] = (self.result.config.get("observed") or {}).get(check) or {}
        return found

    @property
    def hidden(self) -> str | None:
        """The layers whose stand-ins attacks had to do without; None where they had them."""
        layers: str | None = self.result.config.get("identity", {}).get("no_stand_ins")
        return layers

    @cached_property
    def brackets(self) -> Mapping[str, Bracket]:
        """What is proven of the rows, by condition."""
        return self.result.brackets

    @cached_property
    def attacks(self) -> Sequence[Condition]:
        """The attacks that were asked for."""
        return [c for c in self.result.conditions if c.kind == "attack"]

    @cached_property
    def doubts(self) -> Sequence[Condition]:
        """The attacks that were tried to doubt or settle what those found; each met only the images that they had left."""
        return [c for c in self.result.conditions if c.kind == "doubt"]

    @cached_property
    def balls(self) -> Mapping[tuple[str, float], Sequence[Condition]]:
        """The attacks that were asked for, by norm and eps, the smaller eps first."""
        found: dict[tuple[str, float], list[Condition]] = {}
        for c in sorted(self.attacks, key=lambda c: c.eps or 0):
            found.setdefault((str(c.norm), float(c.eps or 0)), []).append(c)
        return found

    def tried(self, condition: Condition) -> Sequence[Condition]:
        """All that was tried in the ball of a condition, itself included, doubts last."""
        return [c for c in [*self.attacks, *self.doubts] if (c.norm, c.eps) == (condition.norm, condition.eps)]

    def worst(self, norm: str, eps: float) -> Condition | None:
        """The worst-case row of a ball."""
        return next((c for c in self.result.conditions if c.kind == "worst" and (c.norm, c.eps) == (norm, eps)), None)

    def rows(self, norm: str, eps: float) -> tuple[str, ...]:
        """Names of the rows of a ball that were asked for, the worst case among them."""
        worst = self.worst(norm, eps)
        return (*(c.name for c in self.balls.get((norm, eps), ())), *([worst.name] if worst else []))

    def verdicts(self, condition: Condition) -> Sequence[Verdict]:
        """Without the images that were wrong before anything was done to them."""
        return [v for v in self.result.of(condition.name) if v.broken_by != "clean"]

    def standing(self, condition: Condition) -> Set[str]:
        """Ids of the images that a condition counts as right."""
        return {v.sample_id for v in self.result.of(condition.name) if v.broken is False}

    def missed(self, norm: str, eps: float) -> Set[str]:
        """Ids of the images of a ball that every attack asked for left, and that have a witness all the same."""
        worst = self.worst(norm, eps)
        left = [self.standing(c) for c in self.balls.get((norm, eps), ())]
        return set(self.broken(worst)).intersection(*left) if worst and left else set()

    def broken(self, condition: Condition) -> Mapping[str, Verdict]:
        """The images that were right when clean and that a condition broke."""
        return {v.sample_id: v for v in self.verdicts(condition) if v.broken}

    def doors(self, condition: Condition) -> Sequence[str]:
        """What the parts of an attack were let see: `labels`, `scores`, `white box`, `stand-ins`, `surrogate` or `whole model`."""
        return list(condition.doors.values())

    def follows_gradients(self, condition: Condition) -> bool:
        """Whether a part of an attack climbs the model's own gradients."""
        return "white box" in self.doors(condition)

    def is_black_box(self, condition: Condition) -> bool:
        """Whether every part of an attack does without the model's own gradients."""
        return all(door in ("labels", "scores", "surrogate") for door in self.doors(condition))

    def answers(self, condition: Condition) -> int:
        """How many answers of a randomised model an attack averaged, each of which counts as a forward pass; 1 where it is not random."""
        from .ways import DRAWS

        if not self.observed("random-answers"):
            return 1
        return int(condition.eot or self.result.config["identity"].get("eot") or DRAWS)

    def part(self, condition: Condition, verdict: Verdict) -> str:
        """The part of an attack that broke an image, as `doors` names it."""
        return str(verdict.broken_by).removeprefix(f"{condition.attack}/") if len(condition.doors) > 1 else next(iter(condition.doors), "")

    def blind(self, condition: Condition, verdict: Verdict) -> bool:
        """Whether what broke an image did without the model's own gradients."""
        return condition.doors.get(self.part(condition, verdict), "white box") in ("labels", "scores", "surrogate", "stand-ins")


class Check(Protocol):
    """The least that every check has; what else it may have is said at the top of this file."""

    def findings(self, evidence: Evidence) -> Iterable[Finding]: ...


def checks() -> Iterator[tuple[str, Any]]:
    """Every registered check, by name."""
    for name in DIAGNOSTICS.names():
        yield name, DIAGNOSTICS.build(name)


def findings(result: Result) -> list[Finding]:
    """What all checks find in a run: what refutes first, notes last."""
    evidence, order = Evidence(result), ("refutes", "doubts", "notes")
    found = [finding for _, check in checks() for finding in check.findings(evidence)]
    return sorted(found, key=lambda finding: order.index(finding.weight))


def counters(asked: Sequence[Condition]) -> list[Counter]:
    """What `--doubt` tries besides the attacks asked for in one ball; each once."""
    return list(dict.fromkeys(counter for _, check in checks() if hasattr(check, "doubts") for counter in check.doubts(asked)))


def observed(look: Look, *, doubt: bool) -> dict[str, Any]:
    """What the checks see for themselves, by name: dear ones only where `doubt`."""
    seen = {
        name: check.observe(look) for name, check in checks() if hasattr(check, "observe") and (doubt or not getattr(check, "dear", False))
    }
    return {name: dict(what) for name, what in seen.items() if what}
