"""What it did to the verdicts that attacks searched on a faster form of the model, in words, from what is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .results import REDUCED, Result


def remarks(result: Result) -> Iterator[str]:
    """Of the rows under attack: witnesses that did not hold on the model as given, and what was broken in reduced precision."""
    rough = REDUCED.get(result.config.get("precision", ""))
    for row in result.conditions:
        verdicts = [v for v in result.of(row.name) if v.unconfirmed is not None]
        if lost := sum(v.unconfirmed or 0 for v in verdicts):
            images = sum(bool(v.unconfirmed) for v in verdicts)
            yield (
                f"{row.name}: {lost} witnesses of {images} images, found {_how(result.config, rough)}, did not hold on the model as given "
                "and do not count"
            )
        broken = [v.precision in REDUCED for v in verdicts if v.broken and v.broken_by != "clean"]
        if rough and broken:
            yield f"{row.name}: broken images: {sum(broken)} in {rough}, {len(broken) - sum(broken)} in float32 after that"


def _how(config: Mapping[str, Any], rough: str | None) -> str:
    """`in bfloat16 on the folded and compiled model`"""
    all_prepared = [session["prepared"] for session in config["sessions"] if session.get("prepared")]
    words = [[word for word, key in (("folded", "folded_layers"), ("compiled", "compiled")) if each.get(key)] for each in all_prepared]
    made = words[0] if words and all(each == words[0] for each in words) else []  # else which session searched it is not known
    return f"{f'in {rough} ' if rough else ''}on the {' and '.join(made) or 'prepared'} model"
