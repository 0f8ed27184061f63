"""What each defense is worth: models side by side on the same images, as they are, under attack and corrupted."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from .attacking import Progress
from .bpda import unheeded
from .cards import SEED, Card, Difference, Figure, cards
from .console import default_folder
from .engines.opening import Workers
from .errors import UsageError
from .evaluation import evaluate
from .models import load_model
from .oracle import WhiteBox
from .plan import parts
from .registry import ATTACKS, DATA, Spec, number
from .results import Verdict, eps_text
from .store import read_run
from .workers import run_all

NORM = "linf"
EVERY = ("pgd", "autoattack")
"""Attacks that every model meets; those that its card calls adaptive come on top."""
SUITE = "cifar-c"
LIVE = 100
"""Images, unless all are asked for."""
FLATTERS = 0.1
"""An attack's figure is said to flatter where it lies by so much above the worst case: a few points are what any weaker attack leaves."""


@dataclass(frozen=True)
class Line:
    """One model on the board.

    Args:
        figures: as on a model card, of this run: clean, the attacks and the worst case at each radius, the corruptions.
        card: None of a model that is not bundled.
        flattering: sentences, one for every attack whose figure is far above the worst case.
        config: of the run.
        undecided: how many images some condition left undecided, such as by logits that are no numbers.
    """

    name: str
    figures: tuple[Figure, ...]
    card: Card | None
    flattering: tuple[str, ...]
    config: dict[str, Any]
    undecided: int = 0

    def figure(self, condition: str) -> Figure | None:
        return next((figure for figure in self.figures if figure.condition == condition), None)

    def stored(self, condition: str) -> Figure | None:
        """What the card says of a condition; None where it asked something else, or of other data."""
        if self.card is None or self.card.data != self.config["data"]["spec"]:
            return None
        mine, found = self.figure(condition), self.card.figure(condition)
        return found if mine is not None and found is not None and _asked(found.asked) == mine.asked else None


@dataclass(frozen=True)
class Board:
    """All models, the one of highest worst-case accuracy at the first radius first.

    Args:
        conditions: such as `autoattack[linf,0.1]`, in the order in which they are shown.
        baseline: name of the undefended model that the others are compared with; None where none takes part.
        full: on all images.
        command: that does this again.
    """

    data: str
    lines: tuple[Line, ...]
    conditions: tuple[str, ...]
    baseline: str | None
    full: bool
    command: str
    folder: Path

    @property
    def n(self) -> int:
        """Images."""
        return self.lines[0].figures[0].n

    @property
    def flattering(self) -> tuple[str, ...]:
        return tuple(sentence for line in self.lines for sentence in line.flattering)

    @property
    def proven(self) -> tuple[str, ...]:
        """What cards say is proven of a model, the lower bounds beside the upper ones of attacks."""
        return tuple(
            f"{line.name}: at least {sum(figure.right)} of the {figure.n} images of its card stay right at {figure.norm} "
            f"{eps_text(figure.eps or 0)}, whatever the attack: {figure.name} proves it ({100 * figure.accuracy:.1f} %, 95 % interval "
            f"{100 * figure.interval[0]:.1f} to {100 * figure.interval[1]:.1f})"
            for line in self.lines
            if line.card is not None and line.card.data == line.config["data"]["spec"]
            for figure in line.card.figures
            if figure.proven
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the runs say besides, each once, with the models that it is of unless it is of all."""
        said: dict[str, list[str]] = {}
        for line in self.lines:
            for note in line.config["notes"]:
                said.setdefault(note, []).append(line.name)
            if line.undecided:
                said.setdefault(f"{line.undecided} images are undecided, and count as not right", []).append(line.name)
            if not any(figure.name == "adaptive" for figure in line.figures):
                said.setdefault(f"no adaptive attack is known: the worst case is over {' and '.join(EVERY)} only", []).append(line.name)
        return tuple(note if len(of) == len(self.lines) else f"{', '.join(of)}: {note}" for note, of in said.items())

    def difference(self, line: Line, condition: str) -> Difference | None:
        """To the baseline, over the same images; None of the baseline itself, and where one of the two was not asked."""
        base = next((other for other in self.lines if other.name == self.baseline), None)
        if base is None or base is line:
            return None
        one, other = line.figure(condition), base.figure(condition)
        return None if one is None or other is None else Difference.between(one, other)


@dataclass(frozen=True)
class Task:
    """One model to be measured."""

    name: str
    spec: str
    card: Card | None
    adaptive: tuple[str, ...]
    data: str
    eps: tuple[float, ...] | None
    limit: int | None
    folder: Path
    fresh: bool
    workers: Workers | None = None

    def run(self, progress: Progress) -> None:
        """Evaluate into the folder, or go on there."""
        evaluate(
            self.spec,
            list(dict.fromkeys([*EVERY, *self.adaptive])),
            self.data,
            corruptions=[SUITE],
            eps=self.eps,
            norm=NORM,
            limit=self.limit,
            seed=SEED,
            witnesses="none",
            out=self.folder,
            fresh=self.fresh,
            workers=self.workers,
            progress=lambda condition, done, total, broken: progress(f"{self.name}, {condition}", done, total, broken),
        )


def compare(
    data: str = "digits",
    models: Sequence[str] = (),
    *,
    eps: Sequence[float | str] | None = None,
    limit: int | None = None,
    full: bool = False,
    workers: Workers | int | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress = lambda *_: None,
) -> Board:
    """Measure the bundled models of a data set, and others, on the same images. What an earlier call measured is kept.

    Args:
        data: spec; a bundled model takes part where its card is about data of this name.
        models: specs of further models.
        eps: radii in linf. None: those of the cards, or else the data's usual one.
        limit: a seeded, stratified subset of this many images. None: 100.
        full: all images.
        workers: processes, each of which measures a model, or `Workers`; those of a Ray cluster measure one model after the other
            together. None: one process per core.
        out: folder of the runs, one in it per model. None: one under robust-eval-runs that belongs to the request.
        fresh: throw away what earlier calls measured.

    Raises:
        UsageError: there is no model for these data, or one that cannot be used.
        InvalidEvaluation: a run broke off.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the limit must be 1 or more, got {limit}")
    workers = workers if isinstance(workers, Workers) else Workers(count=workers)
    if full and limit is not None:
        raise UsageError("--full takes all images: leave --limit out")
    images = None if full else limit or LIVE
    known = [card for card in cards() if Spec.parse(card.data).name == Spec.parse(data).name]
    radii = _radii(eps, known)
    folder = Path(out) if out is not None else default_folder([data, images, radii], f"leaderboard-{Spec.parse(data).name}")
    tasks = [
        Task(name, spec, card, adaptive, data, radii, images, folder / f"{Path(name).name}-{key}", fresh)
        for name, spec, card, adaptive, key in _taking_part(data, models, known)
    ]
    with ExitStack() as during:
        if workers.engine == "ray":
            during.enter_context(closing(workers.open()))  # for all models: what is opened while it is there is the same Ray
            tasks, workers = [replace(task, workers=workers) for task in tasks], Workers(count=1)
        run_all(tasks, replace(workers, count=min(workers.count or os.cpu_count() or 1, len(tasks))), progress)
    lines = sorted((_line(task) for task in tasks), key=_rank, reverse=True)
    longest = max(lines, key=lambda line: len(line.figures))
    undefended = next((line.name for line in lines if line.card is not None and line.card.defense == "none"), None)
    conditions = tuple(figure.condition for figure in longest.figures)
    words = ["robust-eval", "leaderboard", "--data", data, *(word for spec in models for word in ("--model", spec))]
    words += [word for radius in radii or () for word in ("--eps", eps_text(radius))] + (["--full"] if full else ["--limit", str(images)])
    words += [] if out is None else ["--out", str(out)]
    return Board(data, tuple(lines), conditions, undefended, full, shlex.join(words), folder)


def _radii(eps: Sequence[float | str] | None, known: Sequence[Card]) -> tuple[float, ...] | None:
    try:
        given = None if eps is None else tuple(number(str(each)) for each in eps)
    except ValueError as error:
        raise UsageError(f"eps: {error}") from None
    return given or tuple(sorted({f.eps for card in known for f in card.figures if f.eps is not None and f.norm == NORM})) or None


def _taking_part(data: str, models: Sequence[str], known: Sequence[Card]) -> Iterator[tuple[str, str, Card | None, tuple[str, ...], str]]:
    """Name, spec, card, adaptive attacks and what a run's folder hangs on, of every model; each is loaded, so that errors come first.

    Raises:
        UsageError: no model at all, or two of one name.
    """
    if not known and not models:
        DATA.get(Spec.parse(data).name)
        there = ", ".join(sorted({card.data for card in cards()})) or "no data"
        raise UsageError(f"no bundled model is for {data} (there are some for {there}): name models of your own with --model")
    taken: set[str] = set()
    bundled = {card.name: card for card in cards()}
    here = [card.name for card in known]
    for spec in [*here, *(spec for spec in models if spec not in here)]:
        model, card = load_model(spec), bundled.get(spec)  # the attacks that a card names are adaptive on other data too
        if model.name in taken:
            raise UsageError(f"two of the models are called {model.name}: rename the file of one")
        taken.add(model.name)
        adaptive = _asked(spec for f in card.figures if f.name == "adaptive" for spec in f.asked) if card else ()
        if not adaptive and unheeded(model, EVERY):
            adaptive = _asked(["bpda"])
        yield model.name, spec, card, adaptive, sha256(f"{model.digest} {adaptive}".encode()).hexdigest()[:8]


def _asked(specs: Iterable[str]) -> tuple[str, ...]:
    """Attacks' specs as a run writes them; a suite of corruptions as it is."""
    return tuple(dict.fromkeys(spec if spec == SUITE else ATTACKS.spec_of(ATTACKS.build(spec)) for spec in specs))


def _line(task: Task) -> Line:
    result = read_run(task.folder)
    figures = [_figure("clean", (), result.of("clean"))]
    flattering: list[str] = []
    for eps in dict.fromkeys(c.eps for c in result.conditions if c.kind == "attack" and c.eps is not None):
        (worst,) = (c for c in result.conditions if c.kind == "worst" and c.eps == eps)
        by_spec = {str(c.attack): result.of(c.name) for c in result.conditions if c.kind == "attack" and c.eps == eps}
        met = [_figure(spec, (spec,), by_spec[spec], eps) for spec in EVERY]
        if task.adaptive:
            met.append(_strongest("adaptive", [_figure("", (spec,), by_spec[spec], eps) for spec in task.adaptive]))
        figures += [*met, _figure("worst", tuple(by_spec), result.of(worst.name), eps)]
        flattering += [said for figure in met if (said := _flatters(task.name, figure, figures[-1], result.of(worst.name)))]
    corrupted = [_figure(SUITE, (SUITE,), result.of(c.name)) for c in result.conditions if c.kind == "corruption"]
    right = tuple(map(sum, zip(*(figure.right for figure in corrupted), strict=True)))
    figures.append(Figure(SUITE, (SUITE,), None, None, right, len(corrupted)))
    undecided = {v.sample_id for v in result.verdicts if v.broken is None}
    return Line(task.name, tuple(figures), task.card, tuple(flattering), dict(result.config), len(undecided))


def _figure(name: str, asked: tuple[str, ...], verdicts: Sequence[Verdict], eps: float | None = None) -> Figure:
    """What is undecided is not right."""
    return Figure(name, asked, None if eps is None else NORM, eps, tuple(int(v.broken is False) for v in verdicts))


def _strongest(name: str, figures: Sequence[Figure]) -> Figure:
    """Of several attacks the one that breaks it counts, image by image."""
    asked = tuple(spec for figure in figures for spec in figure.asked)
    return replace(figures[0], name=name, asked=asked, right=tuple(map(min, zip(*(f.right for f in figures), strict=True))))


def _rank(line: Line) -> tuple[float, ...]:
    """By worst cases, the first radius first, then by clean accuracy."""
    return (*(figure.accuracy for figure in line.figures if figure.name == "worst"), line.figures[0].accuracy)


def _flatters(model: str, figure: Figure, worst: Figure, verdicts: Sequence[Verdict]) -> str | None:
    """A sentence where far more images stand this attack than stand all of them; the interval of the difference lies above zero.

    Args:
        verdicts: of the worst case, which know what broke an image.
    """
    gap = Difference.between(figure, worst)
    if gap.value < FLATTERS or gap.low <= 0:
        return None
    lost = [v for v, stood in zip(verdicts, figure.right, strict=True) if stood and v.broken]
    breakers = Counter(str(v.broken_by).rpartition("/")[2] for v in lost)
    eps = eps_text(figure.eps or 0)
    said = (
        f"{figure.name} flatters {model} at {NORM} {eps}: {sum(figure.right)} of {figure.n} images stand it, {sum(worst.right)} stand "
        f"every attack, {100 * gap.value:.0f} points fewer (95 % interval {100 * gap.low:.0f} to {100 * gap.high:.0f})."
    )
    if breakers:  # the others are undecided
        said += f" What broke them: {', '.join(f'{name} {count}' for name, count in breakers.most_common())}."
    blind = sum(not _follows_gradients(str(v.broken_by)) for v in lost)
    if 2 * blind > len(lost):
        said += " Most of these were found without the model's own gradients, so that the gradients mislead."
    return said


@cache
def _follows_gradients(broken_by: str) -> bool:
    """Whether an attack, `pgd` or `autoattack/square`, climbs the model's own gradients: not scores alone, nor those of a stand-in."""
    spec, _, stage = broken_by.partition("/")
    part: Any = parts(ATTACKS.build(spec), NORM)[stage]
    return issubclass(part.access, WhiteBox) and not hasattr(part, "hooks")
