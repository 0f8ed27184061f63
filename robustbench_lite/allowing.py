"""Whether Python code that a spec names, as `my_model.py:build`, may run: asked before it is imported.

Who calls `load_model` from Python runs code of their own, and is not asked. A command says once which code it runs, where a person can read
it, and elsewhere runs none without --allow-code. Code that a file names (a run, settings) was perhaps chosen by somebody else: nobody
runs it without having allowed it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from .errors import UsageError
from .plain_text import say


@dataclass(frozen=True)
class Rules:
    """What may run.

    Args:
        allowed: everything, or nothing that needs to be asked for.
        command: a command runs, which has to say what it runs.
        source: the file that names the code, where it is not the user.
        said: code that was spoken of already.
    """

    allowed: bool = False
    command: bool = False
    source: str = ""
    said: set[str] = field(default_factory=set)


_RULES: ContextVar[Rules] = ContextVar("rules", default=Rules())  # noqa: B039  # `said` is only added to where a command has its own


@contextmanager
def of_command(allowed: bool) -> Iterator[None]:
    """While a command runs, with or without --allow-code."""
    before = _RULES.set(Rules(allowed, command=True))
    try:
        yield
    finally:
        _RULES.reset(before)


@contextmanager
def named_in(source: object, allowed: bool = False) -> Iterator[None]:
    """While models are loaded that a file names, unless it is "". allowed: by the caller, whoever wrote the file."""
    rules = _RULES.get()
    before = _RULES.set(replace(rules, allowed=rules.allowed or allowed, source=str(source)))
    try:
        yield
    finally:
        _RULES.reset(before)


def ask(spec: str) -> None:
    """Ask before the code that a spec names is imported.

    Raises:
        UsageError: it may not run.
    """
    rules = _RULES.get()
    if rules.allowed:
        return
    if rules.source:
        raise UsageError(f"{rules.source} names the Python code {spec}, which can do anything: read it, then add --allow-code to run it")
    if rules.command and not sys.stderr.isatty():
        raise UsageError(f"{spec} is Python code, which can do anything: add --allow-code to run it where nobody watches")
    if rules.command and spec not in rules.said:
        rules.said.add(spec)
        say(f"note: running the Python code of {spec} (--allow-code says that this is meant)", sys.stderr)
