"""An evaluation cut into shards: fixed slices of its order, each brought to its end by whichever worker takes it.

A verdict does not depend on who brings it: draws are keyed by image, and every worker prepares the model on the same first images. What is
about all images stays with the driver: what attacks learn, what the diagnostics look at, what findings plan.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from .allowing import named_in
from .classifier import Classifier
from .doubting import Doubt
from .engines.engine import Engine, Job, Send
from .errors import InvalidEvaluation, RunMismatch, UsageError
from .models import load_model
from .quarantine import without
from .relay import Parcel, Relay, Rows, known, receive
from .resolving import Resolved, resolve
from .spreading import Spread, halves

if TYPE_CHECKING:
    from .session import Session

MOST, LEAST, TURNS = 256, 16, 4
"""Images of a shard at most and at least, and in between so many that every worker has this many turns."""

NAMED = 3
"""Deaths of workers that are told of one by one."""


@dataclass(frozen=True)
class Named:
    """A model that every worker loads by itself, as `load_model` was called."""

    recipe: Mapping[str, Any]
    allow_pickle: bool


@dataclass(frozen=True)
class Shard:
    """Some of a run's images. `packed` is what all shards have in common."""

    number: int
    ids: tuple[str, ...]
    session: Session
    packed: bytes
    doubts: Sequence[Doubt] | None

    @property
    def name(self) -> str:
        images = f"images {self.ids[0]} to {self.ids[-1]}" if len(self.ids) > 1 else f"image {self.ids[0]}"
        return f"shard {self.number} ({images})"

    @property
    def size(self) -> int:
        return len(self.ids)

    def job(self, deaths: int) -> Job:
        """A worker that died may have lacked memory: the next one halves the batch."""
        return partial(work, self.packed, self.ids, known(self.session.store, self.ids), self.doubts, deaths, self.name)

    def parts(self) -> Sequence[Shard]:
        return [replace(self, ids=tuple(half)) for half in halves(self.ids)]


@dataclass(frozen=True)
class Sharding:
    """Has workers do what needs no other image.

    Args:
        asked: what `evaluate` was called with.
        resolved: the same, resolved here.
        size: images of a shard. None: by their number.
        hang_after: seconds without a step after which a run is given up. None: never.
    """

    engine: Engine
    asked: Mapping[str, Any]
    resolved: Resolved
    size: int | None = None
    hang_after: float | None = None

    def __call__(self, session: Session, ids: Sequence[str], doubts: Sequence[Doubt] | None = None) -> None:
        """Bring the verdicts that these images lack; of these doubts, or of everything that was planned."""
        store, packed = session.store, self._packed()
        each = self.size or max(LEAST, min(MOST, -(-len(ids) // (TURNS * max(1, self.engine.size)))))
        slices = [tuple(ids[start : start + each]) for start in range(0, len(ids), each)]
        done, broken = map(Counter, store.tally())

        def heard(shard: Shard, parcel: Parcel) -> None:
            new = receive(store, parcel)
            done.update(name for name, _ in new)
            broken.update(name for name, fate in new if fate != 0)
            for name in dict(new):
                session.progress(name, done[name], len(session.samples.order), broken[name])
            session.notes.extend(note for note in parcel.notes if note not in session.notes)
            session.unread.record(parcel.unreadable)

        spread = Spread(self.engine, heard, self.hang_after, deadly=_withhold)
        try:
            spread.run(Shard(number, part, session, packed, doubts) for number, part in enumerate(slices, 1))
        finally:
            lost = spread.lost
            session.notes.extend(lost if len(lost) <= NAMED else [*lost[:NAMED], f"{len(lost) - NAMED} more workers died"])
            store.commit(now=True)

    def _packed(self) -> bytes:
        """What a worker resolves again: models that have a name by their names, data that were read here as they are.

        Raises:
            UsageError: something cannot be sent to another process.
        """
        asked, source, config = self.asked, self.resolved.source, self.resolved.config
        sent = {
            **asked,
            "model": _named(asked["model"]),
            "twin": _named(asked["twin"]),
            "surrogates": [_named(each) for each in asked["surrogates"]],
            "data": source if isinstance(source, str) else self.resolved.images,
            "radii": self.resolved.options.radii,
        }
        try:
            return pickle.dumps((sent, config["identity"] | {"data": config["data"]["digest"]}, os.getcwd()))
        except Exception as error:  # whatever the user's own class raises
            raise UsageError(f"the model or the data cannot be sent to workers ({error}): name them, or leave --workers out") from error


def _withhold(shard: Shard, reason: str) -> None:
    """Have the driver take an image that killed every worker, alone at last, for one that cannot be read.

    Raises:
        InvalidEvaluation: the run is to have all images.
    """
    session, (key,) = shard.session, shard.ids
    said = f"kills its worker: {reason}"
    if session.options.on_bad_image == "fail":
        raise InvalidEvaluation(
            f"{shard.name} {said}, perhaps for lack of memory: mend or remove the image, use a smaller --batch-size, or count it as not "
            "correct with --on-bad-image quarantine; the same command goes on where it stopped"
        )
    at = {session.samples.position[key]: said}
    session.images = session.samples.images = without(session.images, at)
    session.wide = None if session.wide is None else without(session.wide, at)


def _named(model: Any) -> Any:
    return Named(model.recipe, model.allow_pickle) if isinstance(model, Classifier) and model.recipe is not None else model


def _loaded(model: Any) -> Any:
    return load_model(**model.recipe, allow_pickle=model.allow_pickle) if isinstance(model, Named) else model


@lru_cache(maxsize=1)
def _resolved(packed: bytes) -> Resolved:
    """What the driver resolved, once per worker.

    Raises:
        UsageError: a class of the model or the data is not known here.
        RunMismatch: the model or the data are others here.
    """
    try:
        sent, identity, cwd = pickle.loads(packed)
    except (AttributeError, ImportError) as error:  # such as of a class of the driver's own script
        raise UsageError(
            f"a worker on {socket.gethostname()} does not know a class of the model or the data ({error}): put it into a module that every "
            "worker can import, or name the model as file.py:build, or leave --workers out"
        ) from error
    if os.path.isdir(cwd):
        os.chdir(cwd)  # where relative paths of the data are from
    with named_in("", allowed=True):  # the driver has asked, and run the same code
        models = {name: _loaded(sent[name]) for name in ("model", "twin")}
        found = resolve(**sent | models | {"surrogates": [_loaded(each) for each in sent["surrogates"]]})
    differ = [key for key in identity if identity[key] != found.config["identity"].get(key)]
    if differ:
        raise RunMismatch(
            f"a worker on {socket.gethostname()} has another {' and '.join(differ)} than the driver: "
            "give every machine the same packages, weights and images, and for another --precision than fp32 processors that have it"
        )
    return found


def work(packed: bytes, ids: Sequence[str], rows: Rows, doubts: Sequence[Doubt] | None, deaths: int, name: str, send: Send) -> None:
    """What a worker does with a shard, which is called `name`; how large its batches are, its own device says."""
    send(Parcel())  # it is there, before it loads anything
    found = _resolved(packed)
    found = replace(found, options=replace(found.options, halved=deaths))
    if doubts is not None:
        found = replace(found, doubted=doubts)
    store = Relay({**found.config, "conditions": list(found.config["conditions"])}, rows, send)
    with store, found.ready():
        session = found.session(store, store.tick, only=frozenset(ids))
        try:
            session.run()
        except InvalidEvaluation as error:  # it is about these images
            raise InvalidEvaluation(f"{name}: {error}") from error
        finally:
            store.post(session.notes, session.about.get("unreadable"))
