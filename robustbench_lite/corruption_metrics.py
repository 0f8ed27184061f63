"""Figures on corruptions: errors with intervals, CE and mCE (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261).

E_{s,c} is the error under corruption c at severity s. An undecided image is wrong.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from .baselines import ALEXNET, CIFAR10, PNEUMONIA, THE_15, Baseline
from .stats import Z95, wilson

if TYPE_CHECKING:
    from .results import Result, Verdict

SEVERITIES = (1, 2, 3, 4, 5)
PROCEDURAL = "(procedural)"
MEDICAL = ("pneumonia/", "retina/", "derma/")
OTHER_IMAGES = {
    "imagenet-real": "predictions are held to ReaL labels, those of the published figures to one class an image",
    "imagenet-sketch": "the images are sketches, the published ones ImageNet's validation set",
    "imagenet-v2": "the images are ImageNet-V2, the published ones ImageNet's validation set",
}
"""Data with ImageNet's 1000 classes that ImageNet-C was not made from, and what is different."""
NO_PICTURES = "frost is procedural, without the pictures of the benchmark"
FEWEST = 5000
"""Images that published figures are over: RobustBench's take so many of the 50,000."""
STORED = 85
"""JPEG quality that the pictures of the published ImageNet-C were stored at."""


def corruption_error(baseline: Baseline, corruption: str, error: float) -> float | None:
    """CE_c, or MedMNIST-C's BE_c: the mean error over five severities / the baseline's; None where that is not known."""
    known = baseline.errors.get(corruption)
    return None if known is None else error / known


def relative_corruption_error(baseline: Baseline, corruption: str, error: float, clean: float) -> float | None:
    """Relative CE_c: what the corruption adds to the clean error / what it adds to the baseline's.

    None where that is not known, and where the corruption does the baseline no harm, so that there is nothing to divide by.
    """
    known = baseline.errors.get(corruption)
    return None if known is None or known <= baseline.clean else (error - clean) / (known - baseline.clean)


def mean_corruption_error(baseline: Baseline, errors: Mapping[str, float]) -> float:
    """mCE: the mean of CE_c over the corruptions that are given, as a share of 1.

    Raises:
        ValueError: there are none, or the baseline lacks one.
    """
    return _mean({name: corruption_error(baseline, name, error) for name, error in errors.items()}, baseline)


def relative_mean_corruption_error(baseline: Baseline, errors: Mapping[str, float], clean: float) -> float:
    """Relative mCE: the mean of relative CE_c.

    Raises:
        ValueError: there are none, or the baseline lacks one or is not harmed by it.
    """
    return _mean({name: relative_corruption_error(baseline, name, error, clean) for name, error in errors.items()}, baseline)


def _mean(values: Mapping[str, float | None], baseline: Baseline) -> float:
    known = [value for value in values.values() if value is not None]
    if not values or len(known) < len(values):
        lacking = ", ".join(name for name, value in values.items() if value is None) or "any corruption"
        raise ValueError(f"{baseline.name} has nothing to divide by for {lacking}")
    return statistics.fmean(known)


def balanced_error(labels: Iterable[Any], wrong: Iterable[bool]) -> float:
    """1 - balanced accuracy: the mean over the classes that occur of the share that is wrong."""
    by_class: dict[Any, list[bool]] = {}
    for label, missed in zip(labels, wrong, strict=True):
        by_class.setdefault(label, []).append(missed)
    return statistics.fmean(statistics.fmean(missed) for missed in by_class.values())


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; None where it has none."""

    value: float
    low: float | None = None
    high: float | None = None


def weighted_error(cells: Sequence[Mapping[str, bool]], weights: Sequence[float]) -> Estimate:
    """sum_k w_k * error_k over conditions k that share their images, with a 95 % interval over images.

    The same image stands in every condition, and its errors go together, so n images under 75 conditions are fewer than 75 n
    independent ones. How many they are is estimated from the variance v of the images' own weighted errors: p (1 - p) / v,
    the effective sample size of a cluster sample, at most what independence would give, made smaller by (normal quantile / Student's)^2
    because v is itself an estimate from n images (Korn and Graubard, Survey Methodology 1998), and at least n; Wilson's interval is
    taken at that size. Unlike a bootstrap or a normal interval it does not shrink to a point where every image is right.

    Args:
        cells: whether each image is wrong, by its id, one mapping per condition.
        weights: positive, one per condition.
    """
    weight = np.asarray(weights, float) / sum(weights)
    share = float(sum(w * statistics.fmean(cell.values()) for w, cell in zip(weight, cells, strict=True)))
    paired = [key for key in cells[0] if all(key in cell for cell in cells)]
    least = min(map(len, cells))
    size = float(least)
    if len(paired) > 1:
        own = sum(w * np.fromiter((cell[key] for key in paired), float, len(paired)) for w, cell in zip(weight, cells, strict=True))
        spread = float(np.var(own, ddof=1)) / least
        sure = (Z95 / float(stdtrit(len(paired) - 1, 0.975))) ** 2
        most = least / float((weight**2).sum())
        size = max(sure * min(share * (1 - share) / spread, most), least) if spread > 0 else size
    share = min(share, 1.0)  # a sum of weights may exceed 1 by a rounding error
    low, high = wilson(share * size, size)
    return Estimate(share * sum(weights), low * sum(weights), high * sum(weights))


@dataclass(frozen=True)
class CorruptionRow:
    """One corruption over its severities: shares of 1, None where a severity was not run.

    `mean_error` is the mean over the severities that were run, `ci_low` and `ci_high` its 95 % interval. `balanced_error` is the same mean
    of 1 - balanced accuracy, None where a label is not one class. `ce` and `relative_ce` divide by `baseline` (for MedMNIST-C they are BE
    and rBE, of balanced errors) and exist only where five severities were run and the baseline has the corruption; `caveat` says in what
    the images differ from those that the baseline was measured on.
    """

    corruption: str
    n: int
    accuracy_1: float | None
    accuracy_2: float | None
    accuracy_3: float | None
    accuracy_4: float | None
    accuracy_5: float | None
    mean_error: float
    ci_low: float
    ci_high: float
    balanced_error: float | None
    ce: float | None
    relative_ce: float | None
    baseline: str | None
    caveat: str | None

    @property
    def accuracies(self) -> tuple[float | None, ...]:
        """At severities 1 to 5."""
        return self.accuracy_1, self.accuracy_2, self.accuracy_3, self.accuracy_4, self.accuracy_5


@dataclass(frozen=True)
class Figure:
    """One number about all corruptions of a run, in per cent, and what exactly it is."""

    name: str
    estimate: Estimate
    meaning: str


@dataclass(frozen=True)
class Corruptions:
    """What a run says of corruptions: a row for each, the figures over all, and how they compare.

    `comparable` is True where the mCE may stand beside published ones; where it may not, `reason` is one sentence that says why.
    """

    rows: Sequence[CorruptionRow]
    figures: Sequence[Figure]
    comparable: bool
    reason: str | None


def plain(corruption: str) -> str:
    """The name in tables of baselines: `frost` for `frost(procedural)`, `gaussian_noise` for `pneumonia/gaussian_noise`."""
    return corruption.removesuffix(PROCEDURAL).rpartition("/")[2]


def corruption_rows(result: Result) -> list[CorruptionRow]:
    """One row per corruption, in the order in which they were run; none for a run without."""
    return list(corruptions(result).rows)


def corruptions(result: Result) -> Corruptions:
    """Everything that a run says of corruptions."""
    found: dict[str, dict[int, list[Verdict]]] = {}
    for c in result.conditions:
        if c.kind == "corruption" and c.corruption is not None and c.severity is not None:
            found.setdefault(c.corruption, {})[c.severity] = result.of(c.name)
    if not found:
        return Corruptions((), (), False, None)
    clean = result.of("clean")  # published sets come without
    medical = _about(result).get("published") == "medmnist-c" or all(name.startswith(MEDICAL) for name in found)
    baseline = _baseline(result, medical)
    differences = _differences(result, found)
    rows = [_row(name, severities, clean, baseline, medical, differences) for name, severities in found.items()]
    reason = _no_mce(result, found) or (f"This mCE is not the published one: {'; '.join(differences)}." if differences else None)
    if reason is None and baseline != ALEXNET and baseline is not None:
        reason = f"There is no mCE: it divides by AlexNet's errors, and here they are divided by those of {baseline.name}."
    return Corruptions(rows, _figures(result, rows, found, baseline, medical, clean), reason is None, reason)


def _row(
    name: str,
    severities: Mapping[int, list[Verdict]],
    clean: list[Verdict],
    baseline: Baseline | None,
    medical: bool,
    differences: Sequence[str],
) -> CorruptionRow:
    errors = weighted_error([_wrong(verdicts) for verdicts in severities.values()], [1 / len(severities)] * len(severities))
    one, two, three, four, five = (_accuracy(severities.get(s, ())) for s in SEVERITIES)
    balanced = [_balanced(verdicts) for verdicts in severities.values()]
    balanced_mean = None if None in balanced else statistics.fmean(b for b in balanced if b is not None)
    error, before = (balanced_mean, _balanced(clean)) if medical else (errors.value, _error(clean))
    ce = relative = None
    if baseline is not None and tuple(sorted(severities)) == SEVERITIES and error is not None:
        ce = corruption_error(baseline, plain(name), error)
        relative = None if before is None else relative_corruption_error(baseline, plain(name), error, before)
    return CorruptionRow(
        name,
        min(map(len, severities.values())),
        one,
        two,
        three,
        four,
        five,
        errors.value,
        errors.low or 0.0,
        1.0 if errors.high is None else errors.high,
        balanced_mean,
        ce,
        relative,
        None if baseline is None or ce is None else baseline.name,
        None if ce is None else "; ".join(d for d in differences if d != NO_PICTURES or name.endswith(PROCEDURAL)) or None,
    )


def _wrong(verdicts: Iterable[Verdict]) -> dict[str, bool]:
    return {v.sample_id: v.broken is not False for v in verdicts}


def _error(verdicts: Sequence[Verdict]) -> float | None:
    return statistics.fmean(v.broken is not False for v in verdicts) if verdicts else None


def _accuracy(verdicts: Sequence[Verdict]) -> float | None:
    error = _error(verdicts)
    return None if error is None else 1 - error


def _balanced(verdicts: Sequence[Verdict]) -> float | None:
    if not verdicts or not all(isinstance(v.label, int) for v in verdicts):
        return None
    return balanced_error((v.label for v in verdicts), (v.broken is not False for v in verdicts))


def _about(result: Result) -> Mapping[str, Any]:
    about: Mapping[str, Any] = result.config.get("corruptions") or {}
    return about


def _is_imagenet(result: Result) -> bool:
    return _about(result).get("published") == "imagenet-c" or result.config["data"].get("classes") == 1000


def _baseline(result: Result, medical: bool) -> Baseline | None:
    """The user's own; else the one that the published figures of this benchmark are divided by; None where there is none."""
    given = _about(result).get("baseline")
    if given is not None:
        return Baseline(given["name"], given["clean"], given["errors"])
    if _is_imagenet(result):
        return ALEXNET
    return PNEUMONIA if medical and "pneumonia" in str(result.config["data"]["name"]).lower() else None


def _differences(result: Result, found: Iterable[str]) -> list[str]:
    """In what the images differ from those of the published ImageNet-C; nothing where they are those."""
    about = _about(result)
    if not _is_imagenet(result):
        return []
    differences = [OTHER_IMAGES[name]] if (name := result.config["data"]["name"]) in OTHER_IMAGES else []
    if (images := result.config["data"]["n"]) < FEWEST:
        differences.append(f"it is over {images:,} images, published ones are over {FEWEST:,} or 50,000")
    if f"frost{PROCEDURAL}" in found:
        differences.append(NO_PICTURES)
    if about.get("published") != "imagenet-c" and about.get("storage_jpeg") != STORED:
        differences.append(f"the corrupted images were not stored as JPEG {STORED}, as the published ones are (--storage-jpeg {STORED})")
    size = about.get("size") or [224, 224]
    if list(size) != [224, 224]:
        differences.append(f"the images are {size[0]} x {size[1]} pixels, the published ones 224 x 224")
    return differences


def _no_mce(result: Result, found: Mapping[str, Mapping[int, Any]]) -> str | None:
    """Why there is no mCE at all, in one sentence."""
    if not _is_imagenet(result):
        return "There is no mCE: it divides by AlexNet's errors on ImageNet, and these are other images."
    severities = {plain(name): tuple(sorted(at)) for name, at in found.items()}
    missing = [name for name in THE_15 if name not in severities]
    if missing:
        what = ", ".join(missing) if len(missing) < 4 else f"{len(missing)} of them"
        return f"There is no mCE: it is over all 15 corruptions of ImageNet-C, and {what} {'was' if len(missing) == 1 else 'were'} not run."
    if any(severities[name] != SEVERITIES for name in THE_15):
        return "There is no mCE: it is over all five severities, and not all were run."
    return None


def _figures(
    result: Result,
    rows: Sequence[CorruptionRow],
    found: Mapping[str, Mapping[int, list[Verdict]]],
    baseline: Baseline | None,
    medical: bool,
    clean: list[Verdict],
) -> list[Figure]:
    wrong = {name: [_wrong(verdicts) for verdicts in at.values()] for name, at in found.items()}
    figures = [_mean_error(wrong)]
    own = _about(result).get("baseline") is not None
    if own and baseline is not None and all(row.ce is not None for row in rows):
        # not `mCE`, which divides by AlexNet's
        over = f", mean over {len(rows)} corruption{'s' if len(rows) > 1 else ''}"
        meaning = f"errors / those of {baseline.name}{over}"
        figures.append(Figure("BE" if medical else "mean CE", _percent(_mean_of([row.ce for row in rows])), meaning))
        if all(row.relative_ce is not None for row in rows):
            name = "rBE" if medical else "mean relative CE"
            meaning = f"what is added to the clean error / what {baseline.name} adds{over}"
            figures.append(Figure(name, _percent(_mean_of([row.relative_ce for row in rows])), meaning))
        return figures
    if _no_mce(result, found) is None:
        figures += _mce(wrong, _error(clean), _differences(result, found))
    if _about(result).get("published") == "cifar-c" and result.config["data"].get("classes") == 10 and _whole(found):
        figures.append(
            _normalised(wrong, CIFAR10, THE_15, "normalised error", f"errors / those of {CIFAR10.name}, mean over 15 corruptions")
        )
    return figures


def _whole(found: Mapping[str, Mapping[int, Any]]) -> bool:
    at = {plain(name): tuple(sorted(severities)) for name, severities in found.items()}
    return all(at.get(name) == SEVERITIES for name in THE_15)


def _mean_error(wrong: Mapping[str, Sequence[Mapping[str, bool]]]) -> Figure:
    """Over all sets alike; for CIFAR-10-C this is the published measure."""
    cells = [cell for each in wrong.values() for cell in each]
    weights = [1 / len(wrong) / len(each) for each in wrong.values() for _ in each]
    noun = "corruption" if len(wrong) == 1 else "corruptions"
    return Figure(
        "mean error", _percent(weighted_error(cells, weights)), f"unnormalised, over {len(wrong)} {noun}, {len(cells)} sets of images"
    )


def _mce(wrong: Mapping[str, Sequence[Mapping[str, bool]]], clean: float | None, differences: Sequence[str]) -> list[Figure]:
    procedural = f"frost{PROCEDURAL}" in wrong
    others = [difference for difference in differences if difference != NO_PICTURES]
    star, caveat = ("*", f"; {'; '.join(others)}") if others else ("", "")
    figures = []
    if procedural:
        without = [name for name in THE_15 if name != "frost"]
        meaning = f"errors / AlexNet's, mean over 14 corruptions, without frost{caveat}"
        figures.append(_normalised(wrong, ALEXNET, without, f"mCE-14{star}", meaning))
        star, caveat = "*", "; " + "; ".join(differences)
    name = "mCE-15*" if procedural else f"mCE{star}"
    figures.append(_normalised(wrong, ALEXNET, THE_15, name, f"errors / AlexNet's, mean over the 15 corruptions{caveat}"))
    if clean is None:
        return figures
    errors = {plain(key): statistics.fmean(statistics.fmean(cell.values()) for cell in cells) for key, cells in wrong.items()}
    relative = relative_mean_corruption_error(ALEXNET, {key: errors[key] for key in THE_15}, clean)
    figures.append(
        Figure(f"relative {name}", _percent(Estimate(relative)), f"what is added to the clean error / what AlexNet adds{caveat}")
    )
    return figures


def _normalised(
    wrong: Mapping[str, Sequence[Mapping[str, bool]]], baseline: Baseline, over: Sequence[str], name: str, meaning: str
) -> Figure:
    chosen = [(plain(key), cell) for key, cells in wrong.items() if plain(key) in over for cell in cells]
    weights = [1 / (len(over) * len(SEVERITIES) * baseline.errors[key]) for key, _ in chosen]
    return Figure(name, _percent(weighted_error([cell for _, cell in chosen], weights)), meaning)


def _percent(estimate: Estimate) -> Estimate:
    low, high = (None if bound is None else 100 * bound for bound in (estimate.low, estimate.high))
    return Estimate(100 * estimate.value, low, high)


def _mean_of(values: Iterable[float | None]) -> Estimate:
    return Estimate(statistics.fmean(value for value in values if value is not None))
