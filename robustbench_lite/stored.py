"""What a run's folder must hold to be read: the form of `run.json`, and the types of what is in the database.

The files may have been damaged, or changed by hand; a reader is to be told so once, and not by whatever stumbles over it first.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import (
    Annotated,
    Any,
    Required,  # pydantic takes those of typing from Python 3.12 on
    get_args,
    get_type_hints,
)

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from .errors import RunMismatch, UsageError
from .results import Condition, Norm

Text = dict[str, Any]


Count = Annotated[int, Field(ge=0, le=2**53)]
Some = Annotated[int, Field(ge=1, le=2**53)]
Errors = dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]
"""What another model's are divided by."""


class Recipe(TypedDict, total=False):
    """What `load_model` was called with, and is called with again by `verify`: nothing else may be in it."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]  # pydantic's way to say so

    spec: Required[str]
    weights: str | None
    num_classes: int | None
    mean: list[float] | None
    std: list[float] | None
    resize: int | None
    size: int | None
    interpolation: str | None
    defense: str | None


class Model(TypedDict, total=False):
    name: Required[str]
    digest: Required[str]
    recipe: Required[Recipe | None]


class Data(TypedDict, total=False):
    name: Required[str]
    digest: Required[str]
    n: Required[Some]
    spec: str | None
    readout: bool
    source: str
    classes: int | None
    task: str | None
    synthetic: bool
    disease: list[int] | None
    class_names: list[str] | None


class SessionRecord(TypedDict, total=False):
    shuffle_seed: int
    votes: Count
    outputs: Some
    complete: bool
    prepared: Text | None
    unreadable: dict[str, int]


class Coarse(TypedDict):
    values: Count
    n: Some


class Asked(TypedDict):
    asked: Some
    lost: Count


class Operations(TypedDict):
    steps: dict[str, Count]
    whole: dict[str, Count]
    declared: list[str]


class Outputs(TypedDict):
    softmaxed: bool
    saturated: Count
    n: Some


class Seen(TypedDict):
    ids: list[str]
    n: Some
    training: Count
    unread: Count


class Layers(TypedDict):
    layers: list[str]


class Stated(TypedDict):
    accuracy: Annotated[float, Field(ge=0, le=1)]
    data: str
    same: bool


# what the checks saw, by their names; those of others may have seen anything
Observed = TypedDict(
    "Observed",
    {
        "coarse-scores": Coarse,
        "eight-bit": dict[str, Asked],
        "operations": Operations,
        "outputs": Outputs,
        "random-answers": dict[str, bool],
        "seen-in-training": Seen,
        "stand-ins": Layers,
        "stated-accuracy": Stated,
    },
    total=False,
)


class Compared(TypedDict):
    name: str
    clean: Annotated[float, Field(ge=0, le=1)]
    errors: Errors


class Corruptions(TypedDict, total=False):
    published: str | None
    storage_jpeg: int | None
    frost: str | None
    scaled_from: int | None
    size: list[int]
    baseline: Compared | None


class Rates(TypedDict):
    flip_probability: Errors
    t5d: Errors


def _possible(condition: Condition) -> Condition:
    if not 0 <= (condition.severity or 0) <= 2**31 or not 0 <= (condition.eps or 0) <= 2**31:
        raise ValueError(f"severity {condition.severity}, eps {condition.eps}")
    if condition.kind in ("attack", "doubt", "worst") and None in (condition.attack, condition.norm, condition.eps):
        raise ValueError("an attack without its spec, norm or eps")
    if condition.norm not in (None, *get_args(Norm)):
        raise ValueError(f"norm {str(condition.norm)[:40]!r}")
    return condition


class Record(TypedDict, total=False):
    """`run.json`, as far as it is read again."""

    identity: Required[Text]
    command: str | None
    model: Required[Model]
    data: Required[Data]
    stated_accuracy: float | None
    radii: dict[str, float] | None
    corruptions: Corruptions | None
    sequence_rates: Rates | None
    conditions: Required[list[Annotated[Condition, AfterValidator(_possible)]]]
    goal: str
    precision: str
    target: int | str | None
    seed: Required[int]
    query_budget: int | None
    surrogates: list[str]
    device: str
    versions: dict[str, str]
    notes: Required[list[str]]
    created: Required[str]
    sessions: Required[Annotated[list[SessionRecord], Field(min_length=1)]]
    observed: Observed | None


def read_config(folder: Path) -> dict[str, Any]:
    """What `run.json` holds.

    Raises:
        UsageError: the folder is not a run.
        RunMismatch: it is one whose record is damaged.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{folder} is not a run: it has no run.json") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{folder}/run.json cannot be read ({error}): start the run again with --fresh") from error
    if not isinstance(config, dict) or "identity" not in config:
        raise UsageError(f"{folder} is not a run: its run.json was written by something else")
    _refuse_newer(config, folder)
    check_record(config, folder)
    return config


def _refuse_newer(config: Mapping[str, Any], folder: Path) -> None:
    """
    Raises:
        RunMismatch: a later version wrote the record, which may mean something else by it.
    """
    identity = config["identity"]
    wrote, here = str(identity.get("version", "")) if isinstance(identity, dict) else "", version("robustbench-lite")
    if [int(n) for n in re.findall(r"\d{1,9}", wrote)] > [int(n) for n in re.findall(r"\d{1,9}", here)]:
        raise RunMismatch(f"{folder} was written by robustbench-lite {wrote}, and this is {here}: update it, or choose another --out")


def check_record(config: Any, folder: Path) -> None:
    """
    Raises:
        RunMismatch: it is not what a run records.
    """
    try:
        text = json.dumps(config, ensure_ascii=False).encode(errors="replace")  # strict of JSON takes an object for a condition
        _form(Record).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise damaged(f"{folder}/run.json", f"{place}: {first['msg']}") from None
    unknown = {key for condition in config["conditions"] for key in condition} - {field.name for field in fields(Condition)}
    if unknown:
        raise damaged(f"{folder}/run.json", f"conditions: nobody knows {min(unknown)[:40]!r}")


def damaged(what: str, why: str) -> RunMismatch:
    return RunMismatch(f"{what} is damaged or was changed ({why}): start over with --fresh")


@cache
def _form(form: Any) -> TypeAdapter[Any]:
    return TypeAdapter(form)


CLASSES = int | list[float]  # or one 0/1 for each finding
FORMS: dict[str, Any] = {
    "label": CLASSES,
    "clean_prediction": CLASSES | None,
    "prediction": CLASSES | None,
    "stages": dict[str, Annotated[list[int], Field(min_length=2, max_length=2)]],
    "outputs": list[float] | None,
    "approach": list[Annotated[list[float], Field(min_length=2, max_length=2)]],
    "predictions": list[int],
}
"""Of what the database keeps as JSON."""

TYPES: dict[Any, tuple[type, ...]] = {str: (str,), int: (int,), bool: (int,), float: (float, int, NoneType)}  # SQLite keeps NaN as NULL


@cache
def _columns(record: type) -> tuple[tuple[str, frozenset[type]], ...]:
    """The fields of a record, and the types that SQLite may give for each."""
    hints = get_type_hints(record)
    found = {}
    for name in (field.name for field in fields(record)):
        hint = hints[name]
        parts = (str,) if name in FORMS and hint not in TYPES else get_args(hint) or (hint,)
        found[name] = [kind for part in parts for kind in TYPES.get(part, (part,))]
    return tuple((name, frozenset(kinds)) for name, kinds in found.items())


def check_row(record: type, row: Sequence[Any]) -> None:
    """
    Raises:
        RunMismatch: a value of a row has a type that the field of the record has not.
    """
    check_columns(record, [(value,) for value in row])


def check_columns(record: type, columns: Sequence[Sequence[Any]]) -> None:
    """
    Raises:
        RunMismatch: a value of a column has a type that the field of the record has not.
    """
    for values, (name, kinds) in zip(columns, _columns(record), strict=True):
        if set(map(type, values)) - kinds:
            wrong = next(value for value in values if type(value) not in kinds)
            raise damaged("results.sqlite", f"{name} is {str(wrong)[:40]!r}")


def rows_of(database: sqlite3.Connection, table: str, **columns: type) -> Iterator[tuple[Any, ...]]:
    """The rows of a small table.

    Args:
        columns: their names, and the type that each must have.

    Raises:
        RunMismatch: a value has another.
    """
    for row in database.execute(f"SELECT {', '.join(columns)} FROM {table}"):
        for value, (name, kind) in zip(row, columns.items(), strict=True):
            if type(value) not in TYPES.get(kind, (kind,)):
                raise damaged("results.sqlite", f"{name} is {str(value)[:40]!r}")
        yield row


def from_json(name: str, text: str) -> Any:
    """A value that the database keeps as JSON.

    Raises:
        RunMismatch: it is none of this field.
    """
    try:
        value = json.loads(text)
        _form(FORMS[name]).validate_python(value, strict=True)
        return value
    except (ValueError, RecursionError):
        raise damaged("results.sqlite", f"{name} is {text[:40]!r}") from None
