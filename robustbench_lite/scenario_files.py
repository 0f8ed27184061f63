"""Scenarios of the user's own: a TOML or YAML file with the fields of a registered one, read and checked before anything is run."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .corrupting import members
from .errors import RobustEvalError, UsageError, did_you_mean
from .goals import goal_of
from .oracle import Labels, Scores, WhiteBox, WholeModel
from .plan import parts
from .registry import ATTACKS, number
from .scenarios import Knowledge, Published, PublishedRow, Row, Scenario, scenario_named

SUFFIXES = (".toml", ".yaml", ".yml")


def _eps(value: Any) -> Any:
    return number(value) if isinstance(value, str) else value


def _goal(text: str) -> str:
    try:
        goal_of(text)
    except RobustEvalError as error:
        raise ValueError(str(error)) from None
    return text


def _knowledge(value: Any) -> Any:
    known = get_args(Knowledge)
    if value not in known:
        raise ValueError(f"unknown knowledge {value!r}{did_you_mean(str(value), known)}")
    return value


Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]


class Strict(BaseModel):
    """Nothing beside the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RowFields(Strict):
    """A row of the file; the fields are those of `Row`."""

    name: Text
    knowledge: Annotated[Knowledge, BeforeValidator(_knowledge)]
    means: Text
    norm: str | None = None
    eps: Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, BeforeValidator(_eps)] = None

    @property
    def row(self) -> Row:
        return Row(self.name, self.knowledge, self.means, self.norm, self.eps)


class PublishedRowFields(Strict):
    row: Text
    accuracy: Share
    auroc: Share
    confidence: Share


class PublishedFields(Strict):
    source: Text
    setting: Text
    rows: Annotated[list[PublishedRowFields], Field(min_length=1)]


class ScenarioFields(Strict):
    """The file; the fields are those of `Scenario`."""

    title: Text
    domain: Text
    who: Text
    can: Text
    happens: Text
    goal: Annotated[str, AfterValidator(_goal)] | None = None
    sensitivity: Annotated[float, Field(gt=0, lt=1)] = 0.9
    data: str | None = None
    rows: Annotated[list[RowFields], Field(min_length=1)]
    published: PublishedFields | None = None


def scenario_of(asked: Scenario | str | Path) -> tuple[str, Scenario]:
    """A scenario and its name, from itself, its name or its file.

    Raises:
        UsageError: there is none, or the file has mistakes.
    """
    if isinstance(asked, Scenario):
        return ATTACKS.spec_of(asked), asked
    if Path(asked).suffix in SUFFIXES:
        return Path(asked).stem, read_scenario(asked)
    return str(asked), scenario_named(str(asked))


def read_scenario(path: str | Path) -> Scenario:
    """The scenario that a file describes.

    Raises:
        UsageError: there is no such file, it is no TOML or YAML, or a field is missing, unknown or wrong; every mistake is named.
    """
    path = Path(path)
    try:
        fields = ScenarioFields.model_validate(_table(path))
    except ValidationError as error:
        raise UsageError(f"{path}: {'; '.join(_told(each) for each in error.errors())}") from None
    rows = tuple(each.row for each in fields.rows)
    wrong = [f"row {row.name!r}: {mistake}" for row in rows if (mistake := mistake_in(row))]
    names = [row.name for row in rows]
    wrong += [f"two rows are called {name!r}" for name in dict.fromkeys(names) if names.count(name) > 1]
    published = fields.published and Published(
        fields.published.source, fields.published.setting, [PublishedRow(**dict(each)) for each in fields.published.rows]
    )
    if published is not None:
        wrong += [
            f"published: no row is called {each.row!r}{did_you_mean(each.row, names)}" for each in published.rows if each.row not in names
        ]
    if wrong:
        raise UsageError(f"{path}: {'; '.join(wrong)}")
    told = {name: getattr(fields, name) for name in ("title", "domain", "who", "can", "happens", "goal", "sensitivity", "data")}
    made: Scenario = type("OwnScenario", (Scenario,), {**told, "rows": rows, "published": published, "__doc__": fields.title})()
    return made


def mistake_in(row: Row) -> str | None:
    """Why a row cannot be as it is written, in words: no such means or norm, or means that need more than the attacker has."""
    try:
        if row.accident:
            members(row.means)
            if row.knowledge != "nothing":
                return f"{row.means} is a corruption, which nobody aims: knowledge is 'nothing' there"
            return "a corruption has no norm and no eps: leave them out" if row.norm or row.eps else None
        attack = ATTACKS.build(row.means)
    except RobustEvalError as error:
        return str(error)
    if row.norm is not None and row.norm not in attack.norms:
        return f"{row.means} has no norm {row.norm!r}: it has {', '.join(attack.norms)}"
    doors = [part.access for part in parts(attack, row.norm or attack.norms[0]).values()]
    widest = {"scores": Scores, "decisions": Labels}.get(row.knowledge, WhiteBox)
    if any(not issubclass(widest, door) and not issubclass(door, WholeModel) for door in doors):
        return f"{row.means} needs the model itself, and the attacker has only its {row.knowledge}"
    return None


def _table(path: Path) -> Any:
    """What the file holds, not yet looked at."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} is no scenario file: its name ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text in UTF-8") from None
    if path.suffix == ".toml":
        try:
            return tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # also for numbers of thousands of digits, and lists in lists in lists
            raise UsageError(f"{path} is no TOML: {error}") from None
    import yaml  # type: ignore[import-untyped]  # it has none

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also for dates that there are not
        mark = getattr(error, "problem_mark", None)
        at = f" (at line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        raise UsageError(f"{path} is no YAML: {getattr(error, 'problem', None) or error}{at}") from None


def _told(error: Any) -> str:
    """A mistake that pydantic found, as `rows[2].eps: ...`; rows are counted from 1."""
    place = ""
    for step in error["loc"]:
        place += f"[{step + 1}]" if isinstance(step, int) else f"{'.' if place else ''}{step}"
    if error["type"] == "extra_forbidden":
        places: dict[Any, type[Strict]] = {"rows": RowFields, "published": PublishedFields}
        within = places.get(error["loc"][0], ScenarioFields) if len(error["loc"]) > 1 else ScenarioFields
        return f"unknown field {place!r}{did_you_mean(str(error['loc'][-1]), within.model_fields)}"
    if error["type"] == "missing":
        return f"the field {place!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return (
        f"{place}: {message[:1].lower()}{message[1:]}" if place else "it holds no fields: write title, domain, who, can, happens and rows"
    )
