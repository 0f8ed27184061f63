"""Check a finished run's witnesses again: one plain forward each, on the model as given, in no batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .allowing import named_in
from .checks import frozen
from .classifier import Classifier
from .conditions import clean_criterion, criterion
from .data import load_data
from .errors import RunMismatch, UsageError
from .judge import Judge
from .models import load_model
from .passes import Passes
from .results import WITHIN, Condition, Result, Verdict
from .store import read_image_digests, read_run
from .threat import BALLS
from .witnesses import image_digest


@dataclass(frozen=True)
class Checked:
    """What came of checking a run: how many witnesses hold, one line for each that does not, and how many were not kept."""

    holding: int
    failures: list[str]
    not_kept: int


def verify(
    run: str | Path,
    model: nn.Module | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    allow_pickle: bool = False,
    allow_code: bool = False,
) -> Checked:
    """Re-check every witness of a run.

    A witness holds when its file is unchanged, its clean image is the one that the run saw, its adversarial image is in [0, 1], as far
    from it as the verdict says and, of a broken image, within eps, and the model, asked about it alone, gives the broken prediction that
    the verdict states. Of an image without a witness a run claims nothing that could be checked.

    Args:
        run: the run's folder.
        model: the model, where the run was started from Python with a model that has no name. Else the one that run.json names is
            loaded.
        allow_pickle: as for `load_model`.
        allow_code: run the Python code that run.json may name as the model.

    Raises:
        UsageError: not a run, one that kept no witnesses, or a model that cannot be had by name or is code.
        RunMismatch: the model is not the one that was evaluated.
    """
    result = read_run(run)
    recipe = result.config["model"]["recipe"]
    if model is None and recipe is None:
        raise UsageError(f"{run} was made from Python with a model that has no name: call robustbench_lite.verify(run, model)")
    with named_in(Path(run) / "run.json", allow_code):
        given = load_model(**recipe, allow_pickle=allow_pickle) if model is None else model
    classifier = given if isinstance(given, Classifier) else Classifier(given)
    if result.config["data"].get("readout"):  # the classes are those of the data, which bring the way to them
        readout = load_data(result.config["data"]["spec"], preprocess=classifier.preprocess).readout
        classifier = readout.applied(classifier) if readout is not None else classifier
    if classifier.digest != result.config["model"]["digest"]:
        raise RunMismatch(f"this {classifier.name} is not the model that {run} evaluated: its weights or its preprocessing differ")
    conditions = {c.name: c for c in result.conditions if c.kind in ("attack", "doubt")}
    claimed = [v for v in result.verdicts if v.condition in conditions and (v.broken or v.approach) and v.broken_by != "clean"]
    kept = [v for v in claimed if v.witness]
    if claimed and not kept:
        raise UsageError(f"{run} kept no witness of its {len(claimed)} broken images: run it again with --witnesses")
    clean = read_image_digests(Path(run))
    failures = []
    radii = result.config.get("radii") or {}
    known = next((session for session in result.config["sessions"] if {"votes", "outputs"} <= session.keys()), {"votes": 0, "outputs": 2})
    judge = Judge(Passes(classifier), known["votes"], result.config["seed"])
    with frozen(classifier), torch.no_grad():
        for number, verdict in enumerate(kept, 1):
            seen, own = clean.get(verdict.sample_id), radii.get(verdict.sample_id)
            fault = _fault(result, conditions[verdict.condition], verdict, judge, known["outputs"], seen, own)
            if fault:
                failures.append(f"{verdict.condition}, {verdict.sample_id}: {fault}")
            if progress is not None:
                progress(number, len(kept))
    return Checked(len(kept) - len(failures), failures, len(claimed) - len(kept))


def _misstated(condition: Condition, verdict: Verdict, distance: float, own: float | None) -> str | None:
    """What a verdict says wrongly of its witness.

    Args:
        distance: how far the witness lies.
        own: the image's own eps, where the condition's is in multiples of it.
    """
    size = None if own is None or not condition.scaled else own * float(condition.eps or 0)
    if size is not None and not math.isclose(verdict.radius or 0, size, rel_tol=1e-6):
        return f"its ball is said to be of {verdict.radius}, and is of {size:g}"
    if abs(distance - verdict.distance) > WITHIN * distance + 1e-6:
        return f"its image lies at {distance:g}, and is said to lie at {verdict.distance:g}"
    eps = verdict.radius or float(condition.eps or 0)
    if verdict.broken is not True and distance <= eps:
        return f"its image lies inside the ball of {eps:g}, and the verdict does not count it as broken"
    passes, distances = [0, *(step[0] for step in verdict.approach)], [step[1] for step in verdict.approach]
    if distances and not math.isclose(distances[-1], verdict.distance, rel_tol=WITHIN):
        return f"its search is said to have ended at {distances[-1]:g}, and its image to lie at {verdict.distance:g}"
    if sorted(passes) != passes or sorted(distances, reverse=True) != distances or passes[-1] > verdict.forwards + verdict.backwards:
        return "the passes of its approach do not rise, or its distances do not fall, or there are more than were spent"
    return None


def _fault(
    result: Result, condition: Condition, verdict: Verdict, judge: Judge, outputs: int, clean: str | None, own: float | None
) -> str | None:
    """Why the witness does not hold, None where it does."""
    try:
        witness = result.witness(condition.name, verdict.sample_id)
    except ValueError as error:
        return str(error)
    assert witness is not None
    if witness.clean.shape != witness.adversarial.shape or witness.adversarial.dtype != torch.float32:
        return "its two images are not of one shape and in float32"
    if image_digest(witness.clean) != clean:
        return "its clean image is not the one that was evaluated"
    # in double precision, so that the check's own rounding does not decide
    x, origin = witness.adversarial[None].double(), witness.clean[None].double()
    # in the ball, or as near as it is said to be; the distances are in single precision
    eps = verdict.radius or float(condition.eps or 0)
    ball = BALLS[str(condition.norm)](torch.tensor(eps if verdict.broken else max(eps, verdict.distance)))
    if not ball.contains(x, origin).all():
        return f"its image lies outside the {condition.norm} ball of {float(ball.eps):g}, or outside [0, 1]"
    labels = torch.tensor([verdict.label])
    # a class of its own for every image (least-likely) is in the verdict, a goal in the condition
    aimed = verdict.target if verdict.target is not None and condition.target is not None else condition.target
    rule = criterion(labels, aimed, torch.zeros(1, outputs))
    logits = judge.logits(witness.adversarial[None], rule, [verdict.sample_id])
    clean_rule = clean_criterion(labels, outputs)
    if not logits.isfinite().all() or not rule.margin(logits)[0] > 0:
        return f"the model says {clean_rule.predict(logits)[0].tolist()}, which is not broken"
    if clean_rule.predict(logits)[0].tolist() != verdict.prediction:
        return f"the model says {clean_rule.predict(logits)[0].tolist()}, the verdict {verdict.prediction}"
    return _misstated(condition, verdict, float(ball.distance(x, origin)), own)
