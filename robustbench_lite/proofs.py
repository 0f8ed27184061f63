"""Certificates in a run: one proof per certificate and image, and the bracket that they make with the attacks.

An attack's accuracy is an upper bound on the true one, a certificate's a lower bound: [certified, surviving]. A certificate holds for one
model, norm, size and confidence, and is put beside attacks of the same only.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from .ahead import stacked
from .certifying import Certificate
from .conditions import sizes_of
from .engines import local
from .errors import DataError, UsageError
from .registry import CERTIFICATES
from .results import Condition, Verdict, eps_text, reach
from .stats import wilson
from .streams import Streams
from .threat import ball

if TYPE_CHECKING:
    from .classifier import Classifier, Images
    from .conditions import Job
    from .labelled import LabelledImages
    from .samples import Samples
    from .store import Store

ROUNDED = 1e-6
"""Radii and distances are kept in single precision. A certificate proves the ball that attacks have, which is larger (`Ball.reach`)."""


@dataclass(frozen=True)
class Certified:
    """A certificate at one size, for one model.

    Args:
        condition: its place among the run's conditions, such as `crown[linf,0.1]`.
        certificate: what proves.
        same: names of the conditions of other sizes, where an image's radius is its own and not that of the size.
    """

    condition: Condition
    certificate: Certificate
    same: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProofVerdict:
    """One line of the results: what one certificate proved of one image.

    `proven`: every image of the ball is predicted as the label. `prediction` is the certified model's, -1 where it abstains. `radius` is
    what is proven, 0 for nothing; `margin` a lower bound on the label's logit less any other's, None where the method knows none.
    """

    condition: str
    sample_id: str
    label: int
    prediction: int
    proven: bool
    radius: float
    margin: float | None

    @property
    def id(self) -> str:
        return self.sample_id


PROOF_FIELDS = tuple(f.name for f in fields(ProofVerdict))


@dataclass(frozen=True)
class ProofRow:
    """What a certificate proved of all images: `accuracy = proven / n`, with its 95 % interval.

    `confidence` is that of every single proof, 1 for bounds. `of_model` says whether the proofs are of the model that is attacked, or of
    another one that is made of it. `curve` is [(radius, share of the images that are proven up to it)], over the radii that occur.
    """

    condition: str
    certificate: str
    norm: str
    eps: float
    n: int
    proven: int
    accuracy: float
    ci_low: float
    ci_high: float
    confidence: float
    of_model: bool
    curve: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bracket:
    """Of a row's n images, which are `safe`, that is proven, and how many survived the attacks; `unsettled` are the ids between."""

    safe: Set[str]
    surviving: int
    n: int
    unsettled: Sequence[str]
    confidence: float

    @property
    def proven(self) -> int:
        return len(self.safe)

    @property
    def certified(self) -> float:
        return self.proven / self.n


def certified(
    specs: Sequence[str],
    classifier: Classifier,
    images: LabelledImages,
    planned: Sequence[Job],
    norm: str | None,
    eps: Sequence[float | str] | float | str | None,
) -> list[Certified]:
    """Every certificate at every size of the run that it has a norm for.

    Args:
        planned: the attacks; where there are none, `norm` and `eps` say the sizes, or the certificate and the data.

    Raises:
        UnknownName, BadSpec: no such certificate or parameter.
        UsageError: the model cannot be certified, no size has a norm of the certificate, or one is asked for twice.
    """
    made: list[Certified] = []
    for spec in specs:
        certificate = CERTIFICATES.build(spec)
        name = CERTIFICATES.spec_of(certificate)
        sizes = [(str(job.condition.norm), float(job.condition.eps or 0)) for job in planned]
        fitting = [size for size in sizes or _sizes_alone(certificate, images, norm, eps) if size[0] in certificate.norms]
        if not fitting:
            has, asked = ", ".join(certificate.norms), ", ".join(dict.fromkeys([used for used, _ in sizes] or [str(norm)]))
            raise UsageError(f"{name} proves in {has}, and the run is in {asked}: add --norm {certificate.norms[0]}")
        certificate.fits(classifier)
        for used, size in dict.fromkeys(fitting):
            condition = Condition(
                f"{name}[{used},{eps_text(size)}]",
                "certified",
                norm=used,
                eps=size,
                certificate=name,
                confidence=certificate.confidence,
                proof_of=certificate.holds_for(classifier),
            )
            if any(each.condition.name == condition.name for each in made):
                raise UsageError(f"{condition.name} is asked for twice")
            radial = getattr(certificate, "radial", False)
            same = [each.condition.name for each in made if (each.condition.certificate, each.condition.norm) == (name, used)]
            made.append(Certified(condition, certificate, tuple(same) if radial else ()))
    return made


def _sizes_alone(
    certificate: Certificate, images: LabelledImages, norm: str | None, eps: Sequence[float | str] | float | str | None
) -> list[tuple[str, float]]:
    """(norm, eps) of a run without attacks."""
    used = norm or certificate.norms[0]
    if eps is None and used not in images.default_eps:
        raise UsageError(f"there is no usual eps for {used} on {images.name}: say with --eps how far a certificate is to reach")
    return [(used, size) for size in sizes_of(eps) or [images.default_eps[used]]]


def prove(
    each: Certified, classifier: Classifier, samples: Samples, store: Store, size: int, progress: Callable[[str, int, int, int], None]
) -> None:
    """Bring the proofs that a store lacks.

    Args:
        size: images at a time; halved where memory does not suffice.
        progress: told the condition, how many images are done, and how many there are.
    """
    name, started = each.condition.name, time.monotonic()
    for other in each.same:
        for verdict in store.proofs(other).values():
            reached = verdict.prediction == verdict.label and _holds((verdict.radius, None), float(each.condition.eps or 0))
            store.add_proof(replace(verdict, condition=name, proven=reached))
    known = store.proofs(name)
    done = len(known)
    todo = [Asked(key) for key in samples.order if key not in known]
    for found in local.with_smaller_batches(partial(_proved, each, classifier, samples, store), todo, size, lambda *_: None):
        for verdict in found:
            store.add_proof(verdict)
        done += len(found)
        store.commit()
        progress(name, done, len(samples.order), 0)  # nothing is broken by not being proven
    if todo:
        store.spend(name, time.monotonic() - started)
    store.commit(now=True)


@dataclass(frozen=True)
class Asked:
    """An image that something is to be proven of."""

    id: str


def _proved(
    each: Certified, classifier: Classifier, samples: Samples, store: Store, asked: Sequence[Asked], size: int
) -> Iterator[list[ProofVerdict]]:
    samples.expect((subject.id for subject in asked), size)
    for start in range(0, len(asked), size):
        ids, pictures = [], []
        for subject in asked[start : start + size]:
            try:
                picture = samples.load(subject.id)
            except DataError:  # the clean pass has said so, or ended the run
                yield [ProofVerdict(each.condition.name, subject.id, int(samples.labels([subject.id])[0]), -1, False, 0.0, None)]
                continue
            samples.same_image(subject.id, picture)
            ids.append(subject.id)
            pictures.append(picture)
        if ids:
            yield _batch(each, classifier, samples, ids, stacked(pictures, samples.options.device))


def _batch(each: Certified, classifier: Classifier, samples: Samples, ids: Sequence[str], pictures: Images) -> list[ProofVerdict]:
    c, labels = each.condition, samples.labels(ids)
    # keyed by the certificate and not by the size, which a radius of the image's own does not depend on
    draw = Streams(samples.options.seed, str(c.certificate), [(key, 0) for key in ids], None, samples.options.device)
    proof = each.certificate.prove(classifier, pictures, labels, ball(str(c.norm), float(c.eps or 0)), draw)
    columns = (labels.tolist(), proof.prediction.tolist(), proof.proven.tolist(), proof.radius.tolist(), proof.margin.tolist())
    return [
        ProofVerdict(c.name, key, label, prediction, proven, radius, margin if math.isfinite(margin) else None)
        for key, label, prediction, proven, radius, margin in zip(ids, *columns, strict=True)
    ]


def proof_rows(conditions: Iterable[Condition], proofs: Sequence[ProofVerdict], model: str) -> list[ProofRow]:
    """One row per certificate and size.

    Args:
        model: digest of the model that the run is about.
    """
    rows = []
    for c in conditions:
        found = [proof for proof in proofs if proof.condition == c.name]
        if found:
            proven, n = sum(proof.proven for proof in found), len(found)
            radii = [proof.radius if proof.prediction == proof.label else 0.0 for proof in found]
            rising = sorted(radii)
            curve = [(radius, (n - bisect_left(rising, radius)) / n) for radius in sorted({r for r in radii if r > 0})]
            low, high = wilson(proven, n)
            rows.append(
                ProofRow(c.name, str(c.certificate), str(c.norm), float(c.eps or 0), n, proven, proven / n, low, high,
                         float(c.confidence or 0), c.proof_of == model, curve)
            )  # fmt: skip
    return rows


@dataclass(frozen=True)
class Known:
    """What is proven of the model that a run is about: by norm and image, the largest radius and the certificate that proves it; and by
    norm the images that something was to be proven `about`."""

    by_norm: dict[str, dict[str, tuple[float, Condition]]]
    about: dict[str, list[str]]

    @classmethod
    def of(cls, conditions: Iterable[Condition], proofs: Iterable[ProofVerdict], model: str) -> Known:
        """
        Args:
            model: digest of the run's model; proofs of another one are left aside.
        """
        about = {c.name: c for c in conditions if c.kind == "certified" and c.proof_of == model}
        asked: dict[str, dict[str, None]] = {}
        found: dict[str, dict[str, tuple[float, Condition]]] = {}
        for proof in proofs:
            c = about.get(proof.condition)
            if c is not None:
                asked.setdefault(str(c.norm), {})[proof.sample_id] = None
            if c is not None and proof.prediction == proof.label and proof.radius > 0:
                of_norm = found.setdefault(str(c.norm), {})
                if proof.radius > of_norm.get(proof.sample_id, (0.0,))[0]:
                    of_norm[proof.sample_id] = proof.radius, c
        return cls(found, {norm: list(ids) for norm, ids in asked.items()})

    def asked(self, condition: Condition) -> list[str]:
        """The images of which something was to be proven in a condition's norm."""
        return self.about.get(str(condition.norm), [])

    def safe(self, condition: Condition) -> set[str]:
        """The images that are proven up to a condition's size."""
        proven, eps = self.by_norm.get(str(condition.norm), {}), float(condition.eps or 0)
        return {key for key, found in proven.items() if _holds(found, eps)}

    def bracket(self, condition: Condition, verdicts: Sequence[Verdict]) -> Bracket | None:
        """The bracket of a row of attacks; None where nothing in its norm was to be proven of its model."""
        if not self.asked(condition) or condition.kind not in ("attack", "worst") or not verdicts:
            return None
        proven = self.by_norm.get(str(condition.norm), {})
        decided = [v for v in verdicts if v.broken is not None]  # where the model answers with no number, nothing is safe
        safe = {v.sample_id for v in decided if _holds(proven.get(v.sample_id), v.radius or float(condition.eps or 0))}
        surviving = [v.sample_id for v in verdicts if v.broken is False]
        confidence = min((proven[key][1].confidence or 0.0 for key in safe), default=1.0)
        unsettled = [v.sample_id for v in verdicts if v.broken is not True and v.sample_id not in safe]
        return Bracket(safe, len(surviving), len(verdicts), unsettled, confidence)

    def contradicted(self, conditions: Iterable[Condition], verdicts: Iterable[Verdict]) -> str | None:
        """A proof and a witness that cannot both be right, in words."""
        about = {c.name: c for c in conditions if c.kind in ("clean", "attack", "doubt", "worst")}
        for v in verdicts:
            c = about.get(v.condition)
            norms = [] if c is None else [str(c.norm)] if c.norm else list(self.by_norm)  # a clean image lies in every ball
            found = next((self.by_norm[norm][v.sample_id] for norm in norms if v.sample_id in self.by_norm.get(norm, {})), None)
            if c is None or found is None or v.prediction == v.label:
                continue
            # the ball that was proven goes as far as attacks may; and what a row counts as broken was in its ball
            if v.nearest <= reach(found[0]) * (1 + ROUNDED) or (v.broken and _holds(found, v.radius or float(c.eps or 0))):
                radius, c = found
                return (
                    f"{c.name} proves that {v.sample_id} is {v.label} up to {radius:g}, and {v.condition} found at {v.nearest:g} an image "
                    f"that is {v.prediction}: the certificate or the verdict is wrong, and no figure of this run can be believed"
                )
        return None


def _holds(found: tuple[float, Any] | None, size: float) -> bool:
    return found is not None and found[0] >= size * (1 - ROUNDED)
