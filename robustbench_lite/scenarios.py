"""What a scenario is: who attacks a clinical model, what they know and want, by what means, and what was published of it.

A scenario is a registered attack as well: `--attack finlayson-cxr` runs its attacker alone, `robust-eval scenario run finlayson-cxr` every
row with the clinical report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import isclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .clinical import Figures, OperatingPoint
from .errors import UnknownName
from .labelled import Task
from .oracle import WhiteBox
from .registry import ATTACKS, CORRUPTIONS, SUITES, Spec

if TYPE_CHECKING:
    from .plan import Attack
    from .results import Result

Knowledge = Literal["white box", "same architecture", "other architecture", "public backbone", "scores", "decisions", "nothing"]
"""What the attacker has: the model; a twin of it that was trained independently, of the same or another architecture; the public
pre-trained network that the model was made from; its answers as scores or as decisions; nothing (controls, clumsiness, accidents)."""

FROM_SURROGATES = ("same architecture", "other architecture", "public backbone")


@dataclass(frozen=True)
class Row:
    """One row of a scenario's table.

    Args:
        name: as the table says it, such as `PGD, white box`.
        knowledge: what the attacker has.
        means: spec of an attack (`pgd:steps=20`) or of a corruption (`medmnist-c-pneumonia:severity=3`), which nobody aims.
        norm, eps: of an attack; None: its own, and the scenario's usual one.
    """

    name: str
    knowledge: Knowledge
    means: str
    norm: str | None = None
    eps: float | None = None

    @property
    def accident(self) -> bool:
        """Whether the means is a corruption."""
        name = Spec.parse(self.means).name
        return name in (*CORRUPTIONS.names(), *CORRUPTIONS.aliases, *SUITES.names(), *SUITES.aliases)


@dataclass(frozen=True)
class PublishedRow:
    """Figures of a paper's table, as shares: accuracy, AUROC, mean confidence. `row` is the name of the row that they belong beside."""

    row: str
    accuracy: float
    auroc: float
    confidence: float


@dataclass(frozen=True)
class Published:
    """A paper's table: `source` is what a reader can find it by, `setting` says on what it was measured."""

    source: str
    setting: str
    rows: Sequence[PublishedRow]


class Scenario:
    """Subclasses are frozen dataclasses, registered as attacks, and say in class attributes:

    Attributes:
        title: a headline.
        domain: the images, such as `chest X-ray`.
        who, can, happens: in plain language, who attacks, what they can do, and what then happens to patients' results.
        goal: a target such as `upcoding`; None: any error.
        rows: what is measured.
        sensitivity: at which the operating point is set on clean images.
        published: what a paper found, to be shown beside.
        data: spec of the phantoms that it can be tried on.
        tasks: what labels it is for, where every scenario that fits is asked for.
    """

    access = WhiteBox
    cost = "of its attacks"
    norms: ClassVar[tuple[str, ...]] = ()
    usual_eps: ClassVar[Mapping[str, float]] = {}

    title: ClassVar[str]
    domain: ClassVar[str]
    who: ClassVar[str]
    can: ClassVar[str]
    happens: ClassVar[str]
    goal: ClassVar[str | None] = None
    rows: ClassVar[tuple[Row, ...]]
    sensitivity: ClassVar[float] = 0.9
    published: ClassVar[Published | None] = None
    data: ClassVar[str | None] = None
    tasks: ClassVar[tuple[Task, ...]] = ("binary",)

    def __init_subclass__(cls) -> None:
        alone = [row for row in cls.rows if row.knowledge not in (*FROM_SURROGATES, "nothing")]
        cls.norms = tuple(dict.fromkeys(row.norm or "linf" for row in alone))
        cls.usual_eps = {row.norm or "linf": row.eps for row in reversed(alone) if row.eps is not None}

    @property
    def target(self) -> str | None:
        """What the attacker wants, where the run does not say it."""
        return self.goal

    def parts(self, norm: str) -> Mapping[str, Attack]:
        """The attacks on the model itself in a norm, by the names of their rows; what differs in eps only, once."""
        made: dict[str, Any] = {}
        for row in self.rows:
            if row.knowledge not in (*FROM_SURROGATES, "nothing") and (row.norm or "linf") == norm:
                attack = ATTACKS.build(row.means)
                inner = attack.parts(norm) if hasattr(attack, "parts") else {"": attack}
                new = {f"{row.name}/{name}" if name else row.name: each for name, each in inner.items()}
                made |= {name: each for name, each in new.items() if each not in made.values()}
        return made


def scenario_names() -> list[str]:
    """The registered scenarios."""
    return [name for name in ATTACKS.names() if isclass(found := ATTACKS.get(name)) and issubclass(found, Scenario)]


def scenario_named(name: str) -> Scenario:
    """The registered scenario.

    Raises:
        UnknownName: there is none of this name.
    """
    known = scenario_names()
    if name not in known:
        raise UnknownName("scenario", name, known, "see `robust-eval scenario list`; a file of your own ends in .toml or .yaml")
    made: Scenario = ATTACKS.build(name)
    return made


@dataclass(frozen=True)
class Measured:
    """A row of a scenario's report.

    Args:
        row: what was to be done; of the first, the clean images, a row with `nothing` and no means.
        condition: of the run, None where the row was not run.
        figures: None where it was not run.
        missing: why it was not run, and what to give so that it is.
    """

    row: Row
    condition: str | None = None
    figures: Figures | None = None
    missing: str | None = None


@dataclass(frozen=True)
class ScenarioReport:
    """A scenario that was run, for reports and for Python.

    Args:
        rows: the clean images first.
        point: thresholds that were set on clean images and hold for every row; None where none could be set.
        models: who took part, as role -> name, such as `model`, `same architecture`.
        synthetic: the images are of nothing real.
        notes: what a reader must know.
    """

    name: str
    scenario: Scenario
    result: Result
    rows: Sequence[Measured]
    point: OperatingPoint | None
    models: Mapping[str, str]
    synthetic: bool
    notes: Sequence[str] = ()
