"""Names for what can be plugged in, and the spec strings that configure it.

An attack, a corruption, a defense, a model, a data set or a report is a frozen dataclass or a function, registered under a name
by a decorator:

    @attack("pgd")
    @dataclass(frozen=True)
    class PGD: ...

A spec string names one and sets its parameters: `pgd`, `pgd:steps=100,restarts=5,loss=dlr`, `npz:/data/test.npz`. Several that are
made to work together are written with a plus: `sgm:gamma=0.5+mi+di`. A value that is a spec itself stands in parentheses:
`pgd-at:attack=(apgd:steps=5,loss=dlr)`. A package of somebody else's adds its own through an entry point
in the group `robustbench_lite.attacks` (`.models`, `.data`, ...).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.metadata import entry_points
from math import isfinite
from typing import Any, TypeVar, get_type_hints

from .errors import BadSpec, RobustEvalError, UnknownName, did_you_mean

C = TypeVar("C", bound=Callable[..., Any])

OUTSIDE = r"(?![^()]*\))"  # of parentheses


@dataclass(frozen=True)
class Spec:
    """`name:first,key=value,...` taken apart; the values are still text."""

    name: str
    first: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Spec:
        name, _, rest = text.strip().partition(":")
        if not name:
            raise BadSpec(f"empty name in the spec {text!r}: write NAME or NAME:key=value,key=value")
        first, options = None, {}
        for number, part in enumerate(re.split(rf"[,:](?=\w+=){OUTSIDE}", rest) if rest else ()):
            if re.match(r"\w+=", part):
                key, _, value = part.partition("=")
                if key in options:
                    raise BadSpec(f"{key!r} is given twice in the spec {text!r}")
                options[key] = value[1:-1] if value.startswith("(") and value.endswith(")") else value
            elif number == 0:
                first = part
        return cls(name, first, options)


def split(spec: str) -> list[str]:
    """The parts of a spec between its pluses."""
    return re.split(rf"\+(?=[A-Za-z]){OUTSIDE}", spec)


@dataclass
class Registry:
    """All things of one kind: filled by its decorator, by the packages named here and by entry points."""

    kind: str
    packages: tuple[str, ...]
    group: str
    combines: bool = False  # whether a plus in a spec means several things together
    found: dict[str, Callable[..., Any]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)  # entry points that could not be imported, with the reason
    loaded: bool = False

    def register(self, name: str, thing: C) -> C:
        taken = self.found.get(name)
        if taken is not None and taken is not thing and _origin(taken) != _origin(thing):
            raise ValueError(f"{self.kind} {name!r} is registered twice: {_origin(taken)} and {_origin(thing)}")
        self.found[name] = thing
        return thing

    def names(self) -> list[str]:
        self._load()
        return sorted(self.found)

    def get(self, name: str) -> Callable[..., Any]:
        self._load()
        name = self.aliases.get(name, name)
        if name in self.broken and name not in self.found:
            raise BadSpec(f"the {self.kind} {name!r} could not be imported: {self.broken[name]}")
        if name not in self.found:
            raise UnknownName(self.kind, name, self.found, f"see `robust-eval list {self.plural}`")
        return self.found[name]

    @property
    def plural(self) -> str:
        return self.kind if self.kind in ("data",) else self.kind + "s"

    def build(self, spec: str) -> Any:
        """The thing that `spec` describes, its parameters read as the types that it declares.

        Raises:
            UnknownName: nothing is registered under the name.
            BadSpec: a parameter that it does not have, a value of the wrong type, or things that do not work together.
        """
        several = split(spec) if self.combines else [spec]
        if len(several) > 1:
            made = [self.build(part) for part in several]
            combined = next((thing.combined for thing in made if hasattr(thing, "combined")), None)
            if combined is None:
                raise BadSpec(f"{several[0]} cannot be combined with {several[1]}")
            return combined(made)
        parsed = Spec.parse(spec)
        target = self.get(parsed.name)
        if hasattr(target, "from_spec"):
            return target.from_spec(parsed)
        known = parameters(target)
        given = dict(parsed.options)
        if parsed.first is not None:
            if not known:
                raise BadSpec(f"{parsed.name} takes no parameters, got {parsed.first!r}")
            if next(iter(known)) in given:
                raise BadSpec(f"{next(iter(known))!r} is given twice in the spec {spec!r}")
            given[next(iter(known))] = parsed.first
        values = {}
        for key, text in given.items():
            if key not in known:
                raise BadSpec(f"{parsed.name} has no parameter {key!r}{did_you_mean(key, known)}")
            values[key] = _read(known[key].annotation, text, f"{parsed.name}:{key}")
        missing = [p.name for p in known.values() if p.default is inspect.Parameter.empty and p.name not in values]
        if missing:
            raise BadSpec(f"{parsed.name} needs {', '.join(missing)}: write {parsed.name}:{missing[0]}=...")
        try:
            return target(**values)
        except ValueError as error:
            raise BadSpec(f"{parsed.name}: {error}") from error

    def spec_of(self, thing: Any) -> str:
        """The shortest spec string that builds `thing` again."""
        if hasattr(thing, "spec"):
            return str(thing.spec)
        name = next((name for name, target in self.found.items() if target is type(thing)), type(thing).__name__)
        changed = [
            f"{f.name}={_written(getattr(thing, f.name))}"
            for f in (fields(thing) if is_dataclass(thing) else ())
            if f.init and getattr(thing, f.name) != f.default
        ]
        return name + (":" + ",".join(changed) if changed else "")

    def _load(self) -> None:
        if self.loaded:
            return
        self.loaded = True  # first, because the modules imported below may ask for names themselves
        for name in self.packages:
            for module in _modules(name):
                importlib.import_module(module)
        for entry in entry_points(group=self.group):
            try:
                thing = entry.load()
                if callable(thing) and not inspect.ismodule(thing):
                    self.register(entry.name, thing)
            except Exception as error:  # a foreign package may fail in any way, or take a name; ours must go on and say so
                self.broken[entry.name] = f"{type(error).__name__}: {error} (entry point {entry.value})"


def _written(value: object) -> str:
    """In parentheses where it is a spec itself."""
    return f"({value})" if isinstance(value, str) and re.search("[,:+]", value) else str(value)


def _modules(package: str) -> Iterator[str]:
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise RobustEvalError(
            "robustbench_lite is imported from a source checkout that is not installed: run `pip install -e .` there"
        ) from error
    if not hasattr(module, "__path__"):
        yield package
        return
    for entry in pkgutil.iter_modules(module.__path__):
        yield f"{package}.{entry.name}"


def _origin(thing: Callable[..., Any]) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a dataclass or a function, with their annotations resolved."""
    hints = get_type_hints(target if not inspect.isclass(target) else target.__init__, include_extras=True)
    if inspect.isclass(target):
        hints |= get_type_hints(target, include_extras=True)
    return {
        name: p.replace(annotation=hints.get(name, str))
        for name, p in inspect.signature(target).parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def number(text: str) -> float:
    """`8/255`, `0.03` or `1e-3` as a float.

    Raises:
        ValueError: it is none of these, or not finite.
    """
    top, slash, bottom = text.partition("/")
    try:
        value = float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is not a number (write 0.03 or 8/255)") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"{text!r} is not a finite number")
    return value


def _read(annotation: Any, text: str, where: str) -> Any:
    from pydantic import TypeAdapter, ValidationError

    value: Any = text
    if re.fullmatch(r"[\d.eE+-]+/[\d.eE+-]+", text) and annotation is not str:
        try:
            value = number(text)
        except ValueError as error:
            raise BadSpec(f"{where}: {error}") from None
    if text.lower() == "none":
        value = None if "None" in str(annotation) else text
    try:
        read = TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"][:1].lower() + error.errors()[0]["msg"][1:]
        raise BadSpec(f"{where}={text}: {reason}") from None
    if isinstance(read, float) and not isfinite(read):
        raise BadSpec(f"{where}={text}: input should be a finite number")
    return read


ATTACKS = Registry("attack", ("robustbench_lite.attacks",), "robustbench_lite.attacks", combines=True)
CERTIFICATES = Registry("certificate", ("robustbench_lite.certificates",), "robustbench_lite.certificates")
CORRUPTIONS = Registry("corruption", ("robustbench_lite.corruptions",), "robustbench_lite.corruptions")
SUITES = Registry("suite", ("robustbench_lite.corruptions",), "robustbench_lite.suites")
PERTURBATIONS = Registry("perturbation", ("robustbench_lite.corruptions",), "robustbench_lite.perturbations")
DEFENSES = Registry("defense", ("robustbench_lite.defenses",), "robustbench_lite.defenses")
ARCHITECTURES = Registry("architecture", ("robustbench_lite.defenses",), "robustbench_lite.architectures")
MODELS = Registry("model", ("robustbench_lite.models", "robustbench_lite.defenses"), "robustbench_lite.models")
DATA = Registry(
    "data",
    tuple(f"robustbench_lite.{name}" for name in ("data", "published", "corrupted_sets", "corrupted_arrays", "phantoms", "medmnist")),
    "robustbench_lite.data",
)
GOALS = Registry("goal", ("robustbench_lite.goals",), "robustbench_lite.goals")
REPORTS = Registry("report", ("robustbench_lite.reports",), "robustbench_lite.reports")
FORMATS = Registry("format", ("robustbench_lite.reports",), "robustbench_lite.formats")
DIAGNOSTICS = Registry("diagnostic", ("robustbench_lite.doubts",), "robustbench_lite.diagnostics")


def _decorator(registry: Registry) -> Callable[..., Callable[[C], C]]:
    def named(name: str, *aliases: str) -> Callable[[C], C]:
        registry.aliases.update(dict.fromkeys(aliases, name))
        return lambda thing: registry.register(name, thing)

    named.__doc__ = f"Register a {registry.kind} under a name, and under others that it is known by."
    return named


attack = _decorator(ATTACKS)
certificate = _decorator(CERTIFICATES)
corruption = _decorator(CORRUPTIONS)
suite = _decorator(SUITES)
perturbation = _decorator(PERTURBATIONS)
defense = _decorator(DEFENSES)
architecture = _decorator(ARCHITECTURES)
model = _decorator(MODELS)
data = _decorator(DATA)
goal = _decorator(GOALS)
report = _decorator(REPORTS)
file_format = _decorator(FORMATS)
diagnostic = _decorator(DIAGNOSTICS)


def needs(package: str, *, extra: str) -> Callable[[C], C]:
    """Say of what is registered that it needs an optional package, so that a user is told before the work and not after it."""

    def marked(thing: C) -> C:
        setattr(thing, "needs", (package, extra))  # noqa: B010  # a callable has no such attribute for a type checker
        return thing

    return marked
