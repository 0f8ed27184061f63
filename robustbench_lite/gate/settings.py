"""What a gate is asked to do: the table `[gate]` of robust-eval.toml, or `[tool.robust-eval.gate]` of pyproject.toml.

`schema.json` beside this file is made from these models and is for editors:

    python -m robustbench_lite.gate.settings > robustbench_lite/gate/schema.json
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from ..errors import UsageError, did_you_mean
from ..results import Norm
from .rulings import OnInconclusive

FILE, SHARED_FILE = "robust-eval.toml", "pyproject.toml"
EXAMPLE = '[gate] / model = "digits_cnn" / attacks = ["pgd"] / rules = ["pgd.accuracy >= 0.45"]'


class Settings(BaseModel):
    """What is evaluated, and the rules that it is held to. Paths are relative to where the command runs."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, title="gate")

    model: Annotated[str, Field(description="Name, checkpoint, archive, file.py:build or package.module:build.")]
    weights: Annotated[str | None, Field(description="State dict to load: .safetensors, .pt or .pth.")] = None
    defense: Annotated[str | None, Field(description="What is put on the model, such as bit-depth:bits=3.")] = None
    num_classes: Annotated[int | None, Field(description="Classes of the model that the weights are for.", ge=1)] = None
    mean: Annotated[list[float] | None, Field(description="Normalisation per channel, in [0, 1] units.")] = None
    std: Annotated[list[float] | None, Field(description="Its standard deviations.")] = None
    size: Annotated[int | None, Field(description="Height and width of the model's input.", ge=1)] = None
    resize: Annotated[int | None, Field(description="Shorter side before the centre crop.", ge=1)] = None
    interpolation: Annotated[Literal["nearest", "bilinear", "bicubic", "lanczos"] | None, Field(description="Of the resize.")] = None

    data: Annotated[str | None, Field(description="digits, imagenet, imagefolder:PATH, npz:FILE, ... Default: the model's own.")] = None
    limit: Annotated[int | None, Field(description="A seeded, stratified subset of this many images.", ge=1)] = None

    attacks: Annotated[list[str], Field(description="Specs such as pgd:steps=100.")] = []
    eps: Annotated[
        float | str | list[float | str] | None,
        Field(description="One radius or several, in [0, 1] pixel units or as text such as 8/255. Default: the data's usual one."),
    ] = None
    norm: Annotated[Norm | None, Field(description="Default: each attack's first.")] = None
    corruptions: Annotated[list[str], Field(description="fog, fog:severity=1-3, imagenet-c, all, ...")] = []
    certify: Annotated[list[str], Field(description="Certificates such as crown, for rules such as worst.certified >= 0.3.")] = []
    doubt: Annotated[bool, Field(description="Try further attacks on the images that those asked for left.")] = False

    rules: Annotated[list[str], Field(description="Such as pgd.accuracy >= 0.45; docs/gate.md has the grammar.")] = []
    on_inconclusive: Annotated[
        OnInconclusive | None,
        Field(description="What a rule does that the images cannot decide. Default: fail, and warn for rules against a baseline."),
    ] = None
    alpha: Annotated[float, Field(description="One-sided level of every decision.", gt=0, lt=0.5)] = 0.05
    baseline: Annotated[str | None, Field(description="What `baseline write` wrote, or the folder of a run.")] = None
    margin: Annotated[float, Field(description="Loss of accuracy against the baseline that is allowed.", gt=0, lt=1)] = 0.02

    fast: Annotated[bool, Field(description="Stop attacking as soon as no remaining image can change a decision.")] = True
    sequential: Annotated[bool, Field(description="Also stop once a floor is missed at a level that allows for looking all the time.")] = (
        False
    )
    seed: Annotated[int, Field(description="Of every random draw.", ge=0)] = 0
    device: Annotated[str, Field(description="auto, cpu, cuda, cuda:N or mps.")] = "auto"
    out: Annotated[str | None, Field(description="Folder of the run. Default: one under robust-eval-runs.")] = None


class File(BaseModel):
    """A settings file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, title="robust-eval.toml")

    gate: Settings


@dataclass(frozen=True)
class Asked:
    """Settings, and where they were written.

    Args:
        file: path of the settings file, empty where all came from the command line.
        lines: of the rules in that file, from 1; None for rules from the command line.
        source: the file, where it is what names the model.
    """

    settings: Settings
    file: str = ""
    lines: Sequence[int | None] = ()
    source: str = ""


def read_settings(file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Asked:
    """The gate's settings from a file, and what is given beside it, which goes first.

    Args:
        file: None looks for robust-eval.toml here, then for pyproject.toml with `[tool.robust-eval.gate]`.
        overrides: settings by name.

    Raises:
        UsageError: there is no file and no rule, or something in it cannot be read; with the line.
    """
    overrides = dict(overrides or {})
    found = Path(file) if file is not None else _found()
    if found is None and "rules" not in overrides:
        raise UsageError(
            f"no {FILE} here, and no [tool.robust-eval.gate] in a {SHARED_FILE}: write one with the lines {EXAMPLE}, or give --model, "
            "--attack and --rule"
        )
    text = "" if found is None else _text(found)
    prefix = () if found is None or found.name != SHARED_FILE else ("tool", "robust-eval")
    table = {} if found is None else _table(found, text, prefix)
    where = _Where("" if found is None else str(found), text, overrides)
    gate = table.get("gate", {})
    if isinstance(gate, dict):
        table = {**table, "gate": {**gate, **overrides}}
    try:
        settings = File.model_validate(table).gate
    except ValidationError as error:
        # a key that is not known is often the one that is missing
        raise UsageError(where.said(min(error.errors(), key=lambda each: each["type"] != "extra_forbidden"))) from None
    if not settings.rules:
        raise UsageError(
            f'{where.of("gate")} there are no rules, and a gate without rules decides nothing: rules = ["pgd.accuracy >= 0.45"]'
        )
    own = "rules" in overrides
    lines = [None] * len(settings.rules) if own else list(_lines(text, settings.rules))
    return Asked(settings, where.file, lines, "" if "model" in overrides else where.file)


def _found() -> Path | None:
    if Path(FILE).is_file():
        return Path(FILE)
    shared = Path(SHARED_FILE)
    if shared.is_file() and "robust-eval" in _parsed(shared, _text(shared)).get("tool", {}):
        return shared
    return None


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        raise UsageError(f"{file} cannot be read: it is not UTF-8 (at line {line}, column {column})") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror}): name the settings file with --config FILE") from None


def _parsed(file: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also for numbers of thousands of digits, and lists in lists in lists
        lines = text.split("\n")
        end = f"at line {len(lines)}, column {len(lines[-1]) + 1}"
        raise UsageError(f"{file} cannot be read: {str(error).replace('at end of document', end)}") from None


def _table(file: Path, text: str, prefix: Iterable[str]) -> dict[str, Any]:
    table: Any = _parsed(file, text)
    for key in prefix:
        table = table.get(key, {})
    return table if isinstance(table, dict) else {}


@dataclass(frozen=True)
class _Where:
    """Where in a file a setting stands, for complaints."""

    file: str
    text: str
    overrides: Mapping[str, Any]

    def of(self, key: str) -> str:
        """`robust-eval.toml, line 3:`, or the option that brought the setting."""
        if key in self.overrides or not self.file:
            return f"--{key.replace('_', '-')}:"
        line = line_of(self.text, key)
        return f"{self.file}:" if line is None else f"{self.file}, line {line}:"

    def said(self, error: ErrorDetails) -> str:
        """One sentence that says what is wrong, where, and what there is instead."""
        names = [str(part) for part in error["loc"]]
        key = names[1] if len(names) > 1 and names[0] == "gate" else names[0]
        inside, known = (".".join(names[:2]), Settings) if names[0] == "gate" and len(names) > 1 else (names[0], File)
        if error["type"] == "extra_forbidden" and key in ("allow_pickle", "allow_code"):
            return f"{self.of(key)} a file cannot allow itself to run code: give --{key.replace('_', '-')} on the command line"
        if error["type"] == "extra_forbidden":
            return f"{self.of(key)} there is no setting {inside!r}{did_you_mean(key, known.model_fields)}"
        if error["type"] == "missing":
            return f"{self.of('gate')} {inside} is missing: write the lines {EXAMPLE}"
        reason = error["msg"][:1].lower() + error["msg"][1:]
        said = self.of(key) if key in self.overrides else f"{self.of(key)} {key}:"
        return f"{said} {reason}, got {json.dumps(error['input'], default=str)[:60]}"


def line_of(text: str, key: str) -> int | None:
    """The line, from 1, that sets a key of the gate, or that opens the table itself; None where none does."""
    name, inside = re.escape(key), False
    for number, line in enumerate(text.split("\n"), 1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line)
        if header:
            inside = re.sub(r"[\s\"']", "", header[1]) in ("gate", "tool.robust-eval.gate")
            if re.search(rf"(^|\.)[\"']?{name}[\"']?$", header[1]):
                return number
        elif re.match(rf"\s*(gate\s*\.\s*)?[\"']?{name}[\"']?\s*[.=]", line) and (inside or key == "gate" or "gate" in line):
            return number
    return None


def _lines(text: str, rules: Sequence[str]) -> Iterable[int | None]:
    """The line of each rule: the first one from the last rule's on that has its text, else the one that opens the list."""
    lines, number = text.split("\n"), line_of(text, "rules")
    start = 0 if number is None else number - 1
    for rule in rules:
        at = next((i for i in range(start, len(lines)) if f'"{rule}"' in lines[i] or f"'{rule}'" in lines[i]), None)
        start = start if at is None else at
        yield number if at is None else at + 1


def schema() -> str:
    """The JSON schema of robust-eval.toml."""
    made = {"$schema": "http://json-schema.org/draft-07/schema#", **File.model_json_schema()}
    return json.dumps(made, indent=2) + "\n"


if __name__ == "__main__":
    print(schema(), end="")
