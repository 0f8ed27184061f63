"""The gallery: some of a run's witnesses as pictures, clean / difference x N / adversarial."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from math import isqrt
from typing import TYPE_CHECKING, Any

from robustbench_lite.results import Result, Verdict, Witness

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST = 12
LONGEST_SIDE = 224
PIXELS = MOST * 112**2  # shared by all witnesses: three PNGs of so many pixels stay under 2 MB even where nothing compresses
COARSE = 100  # a picture with shorter sides is shown enlarged, its pixels as squares


@dataclass(frozen=True)
class Exhibit:
    """One witness as the page shows it; the three pictures are PNG data URIs, the confidences shares of 1."""

    condition: str
    sample_id: str
    label: str
    clean_prediction: str
    clean_confidence: float | None
    prediction: str
    confidence: float
    factor: int
    coarse: bool
    clean: str
    difference: str
    adversarial: str


def exhibits(result: Result) -> list[Exhibit]:
    """At most twelve witnesses, the same ones every time, spread over the conditions and then over the images."""
    names = result.config["data"].get("class_names")
    clean = {v.sample_id: v for v in result.verdicts if v.condition in {c.name for c in result.conditions if c.kind == "clean"}}
    places = {c.name: place for place, c in enumerate(result.conditions)}
    chosen = sorted(_choose(result), key=lambda pair: places[pair[0].condition])
    pixels = PIXELS // 2 if result.shown else PIXELS  # the sheet of corruptions needs the other half
    side = min(LONGEST_SIDE, isqrt(pixels // max(len(chosen), 1)))
    return [exhibit(v, witness, clean.get(v.sample_id), names, side) for v, witness in chosen]


def class_name(prediction: Any, names: Any) -> str:
    """The name of a class where the data set has names, else what the verdict holds."""
    if isinstance(names, list | tuple) and isinstance(prediction, int) and 0 <= prediction < len(names):
        return str(names[prediction])
    return str(prediction)


def difference(witness: Witness) -> tuple[int, NDArray[np.float32]]:
    """(N, (C, H, W)): mid-grey plus N times the change, so that the greatest changes, the last hundredth left out, are black or white."""
    import numpy as np

    delta = witness.adversarial.numpy() - witness.clean.numpy()
    sizes = np.abs(delta[delta != 0])
    factor = max(1, round(0.5 / float(np.quantile(sizes, 0.99)))) if sizes.size else 1
    return factor, np.clip(0.5 + factor * delta, 0, 1)


def png(image: NDArray[np.float32], side: int) -> str:
    """A (C, H, W) picture in [0, 1] as a data URI, no side longer than `side`; of more than three channels the first three are shown."""
    import numpy as np
    from PIL import Image

    levels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(levels[0] if len(levels) < 3 else np.ascontiguousarray(levels[:3].transpose(1, 2, 0)))
    longest = max(picture.size)
    if longest > side:
        width, height = (max(1, round(length * side / longest)) for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _choose(result: Result) -> Iterator[tuple[Verdict, Witness]]:
    """One witness of each condition in turn, of the image that was shown least often so far."""
    waiting = {
        c.name: sorted((v for v in result.of(c.name) if v.broken and v.broken_by != "clean" and v.witness), key=shuffled)
        for c in result.conditions
        if c.kind not in ("clean", "worst")  # the one has nothing to show, the other repeats what an attack found
    }
    shown: Counter[str] = Counter()
    while sum(shown.values()) < MOST and any(waiting.values()):
        for verdicts in waiting.values():
            while verdicts and sum(shown.values()) < MOST:
                verdict = min(verdicts, key=lambda v: shown[v.sample_id])
                verdicts.remove(verdict)
                try:
                    witness = result.witness(verdict.condition, verdict.sample_id)
                except ValueError:  # its file is missing or changed: `verify` names it, and the page shows others
                    continue
                if witness is not None:
                    shown[verdict.sample_id] += 1
                    yield verdict, witness
                    break


def shuffled(verdict: Verdict) -> bytes:
    """What to sort verdicts by, so that the first of them are of every class."""
    # data sets are often sorted by class; a hash of the id mixes them, the same way in every run
    return blake2b(verdict.sample_id.encode(), digest_size=8).digest()


def exhibit(verdict: Verdict, witness: Witness, clean: Verdict | None, names: Any, side: int) -> Exhibit:
    """A witness as a page shows it, no side of a picture longer than `side` pixels."""
    factor, changes = difference(witness)
    return Exhibit(
        condition=verdict.condition,
        sample_id=verdict.sample_id,
        label=class_name(verdict.label, names),
        clean_prediction=class_name(verdict.clean_prediction, names),
        clean_confidence=None if clean is None else clean.confidence,
        prediction=class_name(verdict.prediction, names),
        confidence=verdict.confidence,
        factor=factor,
        coarse=max(witness.clean.shape[1:]) < COARSE,
        clean=png(witness.clean.numpy(), side),
        difference=png(changes, side),
        adversarial=png(witness.adversarial.numpy(), side),
    )
