"""What there is to name, in words: for `robust-eval list` and `robust-eval describe`."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from . import registry
from .errors import UnknownName
from .registry import Registry, Spec

REGISTRIES = {
    r.plural: r
    for r in (
        registry.ATTACKS,
        registry.CERTIFICATES,
        registry.GOALS,
        registry.CORRUPTIONS,
        registry.PERTURBATIONS,
        registry.SUITES,
        registry.DEFENSES,
        registry.ARCHITECTURES,
        registry.MODELS,
        registry.DATA,
        registry.REPORTS,
        registry.FORMATS,
        registry.DIAGNOSTICS,
    )
}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def listing(kind: str) -> str:
    """One line for everything of a kind."""
    if kind == "models":
        return _models()
    found = REGISTRIES[kind]
    names = found.names()
    if not names:
        return f"There are no {kind} yet."
    lines = _attacks(found, names) if kind == "attacks" else _columns([(name, summary(found.get(name))) for name in names])
    lines += [f"{name}: cannot be imported: {reason}" for name, reason in sorted(found.broken.items())]
    return "\n".join([*lines, "", f"robust-eval describe NAME says more about one of these {kind}."])


def _attacks(found: Registry, names: list[str]) -> list[str]:
    rows = [("name", "access", "norms", "cost for an image that survives", "paper")]
    for name in names:
        attack: Any = found.get(name)
        norms = attack.norms if isinstance(attack.norms, tuple) else ("its own",)
        rows.append(
            (
                name if name != "foolbox" else "foolbox:NAME",
                attack.access.name,
                " ".join(norms),
                getattr(attack, "cost", "-"),
                paper(attack),
            )
        )
    return _columns(rows)


def attack_table() -> str:
    """Every attack as a row of a Markdown table: what it does, whose it is, and what it asks for."""
    from .conditions import door

    lines = ["| attack | what it does | paper | norms | sees | goal | cost for an image that survives |", f"|{'---|' * 7}"]
    for name in registry.ATTACKS.names():
        attack: Any = registry.ATTACKS.get(name)
        authors, _, address = paper(attack).rpartition(", ")
        cells = [
            f"`{name}`" if name != "foolbox" else "`foolbox:NAME`",
            re.split(r"(?<!\.)\.(?: |$)", summary(attack))[0],
            f"[{authors}]({address})",
            " ".join(attack.norms) if isinstance(attack.norms, tuple) else "its own",
            door(attack),
            getattr(attack, "goal", None) or "first",
            getattr(attack, "cost", "-"),
        ]
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines)


def _models() -> str:
    from .models import names

    sections = []
    for source, found in names().items():
        sections.append(f"{source} ({len(found)}):\n  " + "\n  ".join(found))
    return "\n\n".join([*sections, "Also: file.py:build, package.module:build, and archives (.pt2, TorchScript)."])


def description(spec: str) -> str:
    """Everything about one name: what it is, its paper, its parameters with types and defaults.

    Raises:
        UnknownName: nothing of any kind has this name.
    """
    several = registry.split(spec)
    if len(several) > 1:
        registry.ATTACKS.build(spec)
        return "\n\n\n".join(map(description, several))
    parsed = Spec.parse(spec)
    found = {r.get(parsed.name): r for r in REGISTRIES.values() if parsed.name in (*r.names(), *r.aliases)}
    if not found:
        raise UnknownName("name", parsed.name, [name for r in REGISTRIES.values() for name in r.names()], "robust-eval list shows all")
    return "\n\n".join(_described(r, parsed, thing) for thing, r in found.items())


def _described(found: Registry, parsed: Spec, thing: Callable[..., Any]) -> str:
    lines = [f"{parsed.name} ({found.kind})", "", inspect.cleandoc(sys.modules[thing.__module__].__doc__ or "").splitlines()[0], ""]
    lines += [inspect.getdoc(thing) or "", ""]
    for label in ("access", "norms", "cost"):
        value = getattr(thing, label, None)
        if value is not None and not isinstance(value, property):
            lines.append(f"{label}: {getattr(value, 'name', None) or (' '.join(value) if isinstance(value, tuple) else value)}")
    settings = getattr(thing, "settings", None)
    if settings:
        rows = [("  image size", *(f"severity {severity}" for severity in range(1, 6)))]
        lines += ["", *_columns([*rows, *((f"  {size}", *map(str, five)) for size, five in settings.items())])]
    parameters = registry.parameters(thing)
    if parameters:
        lines += ["", "parameters:"]
        lines += _columns(
            [
                (f"  {p.name}", _type(p.annotation), "required" if p.default is p.empty else f"default {p.default}")
                for p in parameters.values()
            ]
        )
    if hasattr(thing, "card"):
        lines += [thing.card.words()]
    if parsed.first and hasattr(thing, "from_spec"):
        lines += ["", thing.from_spec(parsed).described()]
    return "\n".join(lines)


def _type(annotation: Any) -> str:
    """The annotation as one would say it: `int, at least 1`, `float or none`, `ce, dlr or margin`."""
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        bounds = [bound for extra in parts[1:] for bound in getattr(extra, "metadata", [])]
        said = [f"{word} {getattr(b, key)}" for b in bounds for key, word in BOUNDS.items() if hasattr(b, key)]
        return ", ".join([_type(parts[0]), *said])
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, parts[:-1])) + f" or {parts[-1]}"
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_type(part) for part in parts)
    return "none" if annotation is NoneType else getattr(annotation, "__name__", str(annotation))


def summary(thing: Callable[..., Any]) -> str:
    """First sentence of the docstring."""
    text = inspect.getdoc(thing) or inspect.cleandoc(sys.modules[thing.__module__].__doc__ or "")
    return text.split("\n\n")[0].replace("\n", " ")


def paper(thing: Callable[..., Any]) -> str:
    """Authors, venue and address, from the first line of the thing's file."""
    first = inspect.cleandoc(sys.modules[thing.__module__].__doc__ or "").splitlines()[:1]
    found = re.search(r"\(([^()]*https?://[^()\s]*)\)", first[0]) if first else None
    return found.group(1) if found else "-"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
