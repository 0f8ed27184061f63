"""JSON that any reader takes: the same bytes for the same values, ASCII only, and `inf` and `nan` as text, since it has no such numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any


def json_text(value: Any) -> str:
    """`value` as indented JSON.

    Raises:
        TypeError: something in it is no mapping, list, text, number, bool or None.
    """
    return json.dumps(_plain(value), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value
