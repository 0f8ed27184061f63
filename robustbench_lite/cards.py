"""Model cards: what a bundled model is, how it was made, and what was measured of it, image by image.

Only what was found is stored; shares, intervals and differences between two models are computed from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import stdev

from .errors import ModelError
from .registry import MODELS
from .results import eps_text
from .stats import paired_interval, wilson

SEED = 0
"""Of the subset that a figure is over: `load_data(card.data, limit=figure.n, seed=SEED)`; a smaller one is contained in a larger one."""


@dataclass(frozen=True)
class Figure:
    """What one question to a model, or the mean of several, found.

    Args:
        name: clean, pgd, autoattack, adaptive, the suite of corruptions, or a certificate.
        asked: the attacks' specs, of which the strongest counts for each image; or the corruptions', or the certificate's.
        norm, eps: of the attacks or the proofs; None without one.
        right: per image, in the order of the data, how many of the `answers` were right.
        answers: asked of each image: 1, or one per corruption and severity.
        proven: what is right is proven to be, whatever the attack: the share is a lower bound, while that under an attack is an upper one.
    """

    name: str
    asked: tuple[str, ...]
    norm: str | None
    eps: float | None
    right: tuple[int, ...]
    answers: int = 1
    proven: bool = False

    def __post_init__(self) -> None:
        if not self.right or not all(0 <= count <= self.answers for count in self.right) or not 0 <= (self.eps or 0) < 1e6:
            raise ValueError(
                f"{self.name} of {len(self.right)} images: counts are of 0 to {self.answers} answers, and eps {self.eps} is a size"
            )

    @property
    def condition(self) -> str:
        """`autoattack[linf,0.1]`, or the name alone."""
        return self.name if self.eps is None else f"{self.name}[{self.norm},{eps_text(self.eps)}]"

    @property
    def n(self) -> int:
        """Images."""
        return len(self.right)

    @property
    def accuracy(self) -> float:
        """Share of the answers that are right."""
        return sum(self.right) / (self.n * self.answers)

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, Wilson's, over images: several answers about one image go together, and count as one."""
        return wilson(self.accuracy * self.n, self.n)

    def at(self, positions: Sequence[int]) -> Figure:
        """The same figure over the images at these positions only."""
        return replace(self, right=tuple(self.right[position] for position in positions))


@dataclass(frozen=True)
class Difference:
    """How much larger one share is than another over the same images, with a 95 % interval; in [-1, 1]."""

    value: float
    low: float
    high: float

    @classmethod
    def between(cls, first: Figure, second: Figure) -> Difference:
        """First minus second: Newcombe's interval where one answer was asked of an image, else Student's over the images' own differences.

        A single image has no spread that Student's could be computed from: its interval says nothing, -1 to 1.

        Raises:
            ValueError: the two are not over the same images or not of the same number of answers.
        """
        if (first.n, first.answers) != (second.n, second.answers):
            raise ValueError(f"{first.condition} over {first.n} images does not pair with {second.condition} over {second.n}")
        pairs = list(zip(first.right, second.right, strict=True))
        value = first.accuracy - second.accuracy
        if first.answers == 1:
            return cls(value, *paired_interval(*(pairs.count(each) for each in ((1, 1), (1, 0), (0, 1), (0, 0)))))
        if first.n == 1:
            return cls(value, -1.0, 1.0)
        from scipy.special import stdtrit

        own = [(one - other) / first.answers for one, other in pairs]
        half = float(stdtrit(len(own) - 1, 0.975)) * stdev(own) / sqrt(len(own))
        return cls(value, max(value - half, -1.0), min(value + half, 1.0))


@dataclass(frozen=True)
class Card:
    """What is known of a bundled model.

    Args:
        name: of the model, and of its checkpoint.
        description: what it is, in a sentence.
        good_for, not_for: what to use it for, and what not to.
        data: spec of the data that the figures are over.
        architecture, defense: specs, as robust-train takes them.
        command: that made the checkpoint, every setting spelled out.
        seed: of the training.
        chosen: how the recipe was chosen, and by which images.
        trained_on: what was done to the training images, in the words of `overlap`.
        digest: SHA-256 of the checkpoint file.
        versions: of python and the packages that it was made and measured with.
        figures: what was measured.
        baseline: name of the model that differences are taken to; None where it is the baseline itself.
        around: name of the trained model that the defense is put around, whose checkpoint it is; None where it was trained itself.
    """

    name: str
    description: str
    good_for: str
    not_for: str
    data: str
    architecture: str
    defense: str
    command: str
    seed: int
    chosen: str
    trained_on: tuple[str, ...]
    digest: str
    versions: Mapping[str, str]
    figures: tuple[Figure, ...]
    baseline: str | None = None
    around: str | None = None

    def figure(self, condition: str) -> Figure | None:
        """The figure under a condition such as `autoattack[linf,0.1]`; None where it was not measured."""
        return next((figure for figure in self.figures if figure.condition == condition), None)

    def written(self) -> str:
        """As JSON, which `read` reads."""
        stored = asdict(self)
        for figure in stored["figures"]:
            figure["right"] = " ".join(map(str, figure["right"]))  # else every image had a line of its own
        return json.dumps(stored, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, file: Path) -> Card:
        """The card in a file.

        Raises:
            ModelError: it cannot be read.
        """
        from pydantic import TypeAdapter

        try:
            stored = json.loads(file.read_text("utf-8"))
            figures = [figure | {"right": figure["right"].split()} for figure in stored["figures"]]
            return TypeAdapter(cls).validate_python(stored | {"figures": figures})
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ModelError(f"the card {file} cannot be read ({error}): install the package again") from error

    def words(self) -> str:
        """The card for a person to read."""
        baseline = None if self.baseline is None else next((card for card in cards() if card.name == self.baseline), None)
        lines = [f"good for: {self.good_for}", f"not for: {self.not_for}", "", f"made by: {self.command}", f"recipe chosen: {self.chosen}"]
        lines += [f"trained on: {', '.join(self.trained_on) or 'images as they are'}", "", f"accuracy on {self.data}, 95 % intervals:"]
        for figure in self.figures:
            low, high = figure.interval
            said = "; proven, at least, whatever the attack" if figure.proven else _against(figure, baseline)
            lines.append(f"  {figure.condition:24} {figure.accuracy:7.2%} [{low:.2%}, {high:.2%}] of {figure.n}{said}")
            if figure.asked and not figure.proven:
                lines.append(f"  {'':24} {'strongest of ' if len(figure.asked) > 1 else ''}{', '.join(figure.asked)}")
        made_with = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return "\n".join([*lines, "", f"SHA-256 of the checkpoint: {self.digest}", f"made with: {made_with}"])


def _against(figure: Figure, baseline: Card | None) -> str:
    other = None if baseline is None else baseline.figure(figure.condition)
    if baseline is None or other is None or (other.n, other.answers) != (figure.n, figure.answers):
        return ""
    gained = Difference.between(figure, other)
    return f"; {100 * gained.value:+.1f} points [{100 * gained.low:+.1f}, {100 * gained.high:+.1f}] to {baseline.name}"


def cards() -> list[Card]:
    """The cards of all bundled models that have one, by name."""
    found = (getattr(MODELS.get(name), "card", None) for name in MODELS.names())
    return [card for card in found if card is not None]
