"""Perturbation sequences: pictures that change a little from frame to frame, and how often a classifier changes its mind along them.

ImageNet-P and CIFAR-P (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261).
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from scipy.special import stdtrit
from torch import Tensor

from .corrupting import SMALLEST, exact, levels, luma
from .errors import BadSpec, DataError, InvalidEvaluation, UnknownName, UsageError
from .registry import PERTURBATIONS, Spec
from .stats import wilson
from .streams import Streams

Picture = Tensor
"""(C, H, W) in [0, 1]."""
Frames = Tensor
"""(T, C, H, W) in [0, 1], every value a whole number of 255ths."""

IMAGENET_P = (
    "gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "snow", "brightness", "translate", "rotate", "tilt", "scale",
)  # fmt: skip
CIFAR_P = tuple("spatter" if name == "snow" else name for name in IMAGENET_P)
"""As the published evaluation of CIFAR-P has it."""
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "shear")
SUITES = {"imagenet-p": IMAGENET_P, "cifar-p": CIFAR_P, "p-all": (*IMAGENET_P, *EXTRA)}

TOP = 5


class Perturbation(Protocol):
    """What is registered as a perturbation: a frozen dataclass that is called with one picture, whose frames are the batch.

    It has the parameters of ImageNet-P, for 224 pixels, and of CIFAR-P, for 32, and takes those whose size is nearer (`is_large`). One that
    moves what lies beyond the borders into the picture says `whole = True` and is given the picture before the crop. One that needs
    colours says `colour = True` and is given three equal channels of a grey picture.
    """

    against_first: ClassVar[bool]
    """Noise: frames are independent, compared with the clean first one, and noisier at a higher difficulty."""

    def __call__(self, picture: Picture, draw: Streams, difficulty: int) -> Tensor:
        """The frames of one picture.

        Args:
            picture: (C, H, W), whole 255ths, in float64 (float32 where the device has no other).
            draw: one row, keyed by the seed, the sample and the perturbation.
            difficulty: 1 to 3; without meaning for all but noise, where it is the frames that are compared that lie farther apart.

        Returns:
            (T, C, H, W) in [0, 1], which are then truncated to 8 bits as the published ones were; or finished uint8.
        """
        ...


def is_large(picture: Picture) -> bool:
    """Whether the shorter side is nearer, as a ratio, to the 224 pixels of ImageNet-P than to the 32 of CIFAR-P: from 85 pixels on."""
    return min(picture.shape[1:]) ** 2 >= 32 * 224


def frames(perturbation: Perturbation, picture: Picture, size: tuple[int, int] | None, draw: Streams, difficulty: int = 1) -> Frames:
    """The frames of a picture, at the size that a model takes.

    Args:
        picture: (C, H, W) in [0, 1], at least of that size; with a margin around it, borders come from the picture and are not black.
        size: height and width of the centre that is cut out; None takes all.

    Returns:
        (T, C, h, w) float32.

    Raises:
        DataError: the picture is too small, or has no colours where they are needed.
    """
    height, width = size or picture.shape[1:]
    if min(height, width) < SMALLEST:
        raise DataError(f"frames of {height}x{width} are too small, {SMALLEST} pixels are the least that a perturbation is defined for")
    if picture.shape[1] < height or picture.shape[2] < width:
        raise DataError(f"a picture of {picture.shape[1]}x{picture.shape[2]} has no centre of {height}x{width}: resize it first")
    channels = len(picture)
    x = exact(picture)
    whole = getattr(perturbation, "whole", False)
    if not whole:
        x = centre(x, height, width)
    through_colour = getattr(perturbation, "colour", False) and channels != 3
    if through_colour and channels != 1:
        raise DataError(f"{type(perturbation).__name__} needs colours, and this picture has {channels} channels")
    pixels = levels(perturbation(x.expand(3, -1, -1) if through_colour else x, draw, difficulty))
    if through_colour:
        pixels = luma(pixels)
    if whole:
        pixels = centre(pixels, height, width)
    return pixels.float() / 255


def centre(x: Tensor, height: int, width: int) -> Tensor:
    """The middle of (..., H, W), rounded as torchvision's CenterCrop rounds."""
    top, left = round((x.shape[-2] - height) / 2), round((x.shape[-1] - width) / 2)
    return x[..., top : top + height, left : left + width]


def named(spec: str) -> list[tuple[str, int, Perturbation]]:
    """What `imagenet-p`, `cifar-p`, `p-all` or a single `p:translate` asks for: (name in conditions, difficulty, perturbation) each.

    A difficulty other than 1 is written `imagenet-p:difficulty=2`, `p:translate:difficulty=2` or, as in conditions, `p:translate@2`.

    Raises:
        UnknownName, BadSpec: no such perturbation, suite or parameter.
        UsageError: a difficulty that is not in 1..3.
    """
    parsed = Spec.parse(spec)
    first, _, at = (parsed.first or "").partition("@")
    if set(parsed.options) - {"difficulty"} or (at and parsed.options):
        raise BadSpec(f"{spec}: sequences take difficulty=1, 2 or 3 and nothing else")
    if parsed.name == "p":
        if first not in (*PERTURBATIONS.names(), *PERTURBATIONS.aliases):
            raise UnknownName("perturbation", first, PERTURBATIONS.names(), "see `robust-eval list perturbations`")
        names: Sequence[str] = [PERTURBATIONS.aliases.get(first, first)]
    elif parsed.name in SUITES and not parsed.first:
        names = SUITES[parsed.name]
    else:
        raise UnknownName("set of sequences", spec, SUITES, "a single one is written p:translate")
    text = at or parsed.options.get("difficulty", "1")
    if re.fullmatch("[123]", text) is None:
        raise UsageError(f"difficulty must be 1..3, got {text}")
    difficulty = int(text)
    ending = f"@{difficulty}" if difficulty > 1 else ""
    return [(f"p:{name}{ending}", difficulty, PERTURBATIONS.build(name)) for name in names]


@dataclass(frozen=True)
class SequenceVerdict:
    """One line of the results: what a model says of the frames of one image.

    Of `pairs` compared frames, `flips` have another prediction than the one they are compared with; `t5d` is their mean top-5 distance,
    None with fewer than five classes. `predictions` has one class per frame.
    """

    condition: str
    sample_id: str
    flips: int
    pairs: int
    t5d: float | None
    predictions: list[int]


def facts(logits: Tensor, against_first: bool, apart: int) -> tuple[int, int, float | None, list[int]]:
    """What a sequence's logits say: `flips, pairs, t5d, predictions` of a SequenceVerdict.

    The top-5 distance of two rankings is the sum, over the five best classes of the first, of |min(i - 1, 5) - min(sigma(i) - 1, 5)|,
    where sigma(i) is the rank in the second of the class at rank i in the first. Equal logits are ranked by class. With exactly five
    classes none can leave the top five, and the distance is that of their order.

    Args:
        logits: (T, K).
        against_first: compare every frame with the first, and not with the one `apart` frames before.

    Raises:
        InvalidEvaluation: there are NaN logits, or no pairs.
    """
    apart = 1 if against_first else apart
    if not logits.isfinite().all():
        raise InvalidEvaluation("the model's logits are NaN or infinite on frames of a perturbation sequence, of which nothing can be said")
    if len(logits) <= apart:
        raise InvalidEvaluation(f"a sequence of {len(logits)} frames has no two that are {apart} apart")
    order = logits.argsort(stable=True, dim=1, descending=True)
    before = order[:1].expand(len(order) - 1, -1) if against_first else order[:-apart]
    after = order[apart:]
    flips = int((before[:, 0] != after[:, 0]).sum())
    moved = after.argsort(1).gather(1, before[:, :TOP])  # the new rank, from 0, of each of the old top five
    distance = (torch.arange(moved.shape[1], device=moved.device) - moved.clamp(max=TOP)).abs().sum(1)
    t5d = distance.double().mean().item() if logits.shape[1] >= TOP else None
    return flips, len(after), t5d, order[:, 0].tolist()


@dataclass(frozen=True)
class SequenceRow:
    """One row of the table: the mean over n images of the share of pairs that flip, and of the top-5 distance.

    The interval (95 %) is over images: frames of one image are not independent, so that an interval over pairs would be too narrow.
    """

    condition: str
    n: int
    flip_probability: float
    ci_low: float
    ci_high: float
    t5d: float | None

    @property
    def name(self) -> str:
        """Without the `p:`, as in a file of rates: `translate`, `gaussian_noise@2`."""
        return self.condition.removeprefix("p:")


def sequence_rows(verdicts: Sequence[SequenceVerdict]) -> list[SequenceRow]:
    """One row per condition."""
    conditions: dict[str, list[SequenceVerdict]] = {}
    for v in verdicts:
        conditions.setdefault(v.condition, []).append(v)
    rows = []
    for condition, group in conditions.items():
        rates = [v.flips / v.pairs for v in group]
        distances = [v.t5d for v in group if v.t5d is not None]
        low, high = _interval(rates)
        rows.append(
            SequenceRow(condition, len(group), statistics.fmean(rates), low, high, statistics.fmean(distances) if distances else None)
        )
    return rows


def _interval(rates: Sequence[float]) -> tuple[float, float]:
    n, mean = len(rates), statistics.fmean(rates)
    deviation = statistics.stdev(rates) if n > 1 else 0.0
    if deviation == 0:
        # equal rates, most often no flip at all, tell nothing of their spread, which in [0, 1] is at most that of a proportion
        return wilson(round(mean * n), n)
    half = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
    return max(0.0, mean - half), min(1.0, mean + half)


@dataclass(frozen=True)
class Rates:
    """AlexNet's flip probability and top-5 distance per perturbation, by which a model's are divided."""

    flip_probability: Mapping[str, float]
    t5d: Mapping[str, float]


def read_rates(path: str | Path) -> Rates:
    """Rates from a JSON file: `{"flip_probability": {"translate": 0.11, ...}, "t5d": {"translate": 1.2, ...}}`, either of the two or both;
    what else it holds is for others.

    They are not part of this package because no published file has them; measure them, or take the paper's.

    Raises:
        DataError: no such file, or another form.
    """
    where = f"the AlexNet rates {path}"
    try:
        read = json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"{where}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{where} cannot be read as JSON: {error}") from None
    form = 'write {"flip_probability": {"translate": 0.11, ...}, "t5d": {"translate": 1.2, ...}}'
    if not isinstance(read, dict) or not set(read) & {"flip_probability", "t5d"}:
        raise DataError(f"{where}: {form}")
    for kind, most in (("flip_probability", 1.0), ("t5d", math.inf)):
        table = read.setdefault(kind, {})
        if not isinstance(table, dict):
            raise DataError(f"{where}: {form}")
        for name, rate in table.items():
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= most:
                raise DataError(f"{where}: {kind} of {name} must be above 0{' and at most 1' if most == 1 else ''}, got {rate!r}")
    return Rates(read["flip_probability"], read["t5d"])


def mean_flip_rate(rows: Sequence[SequenceRow], alexnet: Mapping[str, float] | None = None) -> float:
    """mFR: the mean over rows of the flip probability divided by AlexNet's; without AlexNet's, the mean flip probability itself.

    Args:
        rows: those of a benchmark's ten (IMAGENET_P, CIFAR_P).
        alexnet: by `SequenceRow.name`.

    Raises:
        UsageError: no rows, or a rate is missing.
    """
    return _mean({row.name: row.flip_probability for row in rows}, alexnet)


def mean_t5d(rows: Sequence[SequenceRow], alexnet: Mapping[str, float] | None = None) -> float | None:
    """mT5D: as the mean flip rate, of the top-5 distance; None with fewer than five classes."""
    distances = {row.name: row.t5d for row in rows if row.t5d is not None}
    return _mean(distances, alexnet) if len(distances) == len(rows) else None


def sequence_figures(rows: Sequence[SequenceRow], rates: Rates | None) -> list[str]:
    """What may be said of the ten of a benchmark together, one sentence a figure; nothing where some are missing."""
    found: list[str] = []
    for title, ten in (("ImageNet-P", IMAGENET_P), ("CIFAR-P", CIFAR_P)):
        for ending in ("", "@2", "@3"):
            chosen = [row for name in ten for row in rows if row.name == name + ending]
            if len(chosen) < len(ten):
                continue
            over = f"over the ten of {title}{f', difficulty {ending[1:]}' if ending else ''}"
            found.append(f"mean flip probability {100 * mean_flip_rate(chosen):.2f} %, {over}")
            if (t5d := mean_t5d(chosen)) is not None:
                found.append(f"mean T5D {t5d:.3f}, {over}")
            if rates is not None and (missing := [row.name for row in chosen if row.name not in rates.flip_probability]):
                found.append(f"no mFR {over}: the baseline has no flip probability for {', '.join(missing)}")
            elif rates is not None:
                found.append(
                    f"mFR {100 * mean_flip_rate(chosen, rates.flip_probability):.1f} %: flip probabilities / those of the baseline, {over}"
                )
            known = rates is not None and all(row.name in rates.t5d for row in chosen)
            if known and rates is not None and (relative := mean_t5d(chosen, rates.t5d)) is not None:
                found.append(f"mT5D {100 * relative:.1f} %: top-5 distances / those of the baseline, {over}")
    return found


def _mean(figures: Mapping[str, float], alexnet: Mapping[str, float] | None) -> float:
    if not figures:
        raise UsageError("there are no perturbation sequences to take a mean over")
    missing = [name for name in figures if alexnet is not None and name not in alexnet]
    if missing:
        raise UsageError(f"the AlexNet rates have no figure for {', '.join(missing)}: add it to the file")
    return statistics.fmean(figure / alexnet[name] if alexnet is not None else figure for name, figure in figures.items())
