"""Every error a user can cause, and the exit code it ends in.

RobustEvalError
├── UsageError               2  the command, a file or the data is wrong; nothing was evaluated
│   ├── UnknownName             a name that is not registered; the message offers the nearest ones
│   ├── BadSpec                 a spec string or a parameter that cannot be read
│   ├── ModelError              a model that cannot be loaded or used
│   ├── DataError               images or labels that cannot be read or used
│   └── RunMismatch             a run's folder that belongs to another configuration
├── InvalidEvaluation        4  the evaluation began and its numbers cannot be trusted
└── WitnessRefuted           1  `verify` found a witness that does not hold

Without an error, 1 also means that a gate failed, that `--strict` met a row that is not sound, or that `compare --fail-on-difference`
found a difference; 3, that a gate could not tell.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RobustEvalError(Exception):
    """Base of all errors whose message is meant for the user: one line that says what to do next."""

    exit_code = 2


class UsageError(RobustEvalError):
    """The command line, a file or the data is wrong; nothing was evaluated."""


class BadSpec(UsageError):
    """A spec string or a parameter that cannot be read."""


class ModelError(UsageError):
    """A model that cannot be loaded, or not be used as asked."""


class DataError(UsageError):
    """Images or labels that cannot be read or used."""


class RunMismatch(UsageError):
    """A run's folder that belongs to another configuration."""


class InvalidEvaluation(RobustEvalError):
    """The evaluation began, and its numbers cannot be trusted or could not be kept."""

    exit_code = 4


class WitnessRefuted(RobustEvalError):
    """A stored witness does not hold."""

    exit_code = 1


class UnknownName(UsageError):
    """A name that nothing is registered under."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        super().__init__(f"unknown {kind} {name!r}{did_you_mean(name, known)}{'; ' + hint if hint else ''}")


def first_line(error: BaseException) -> str:
    """What an error of others says, of which one line is enough; what kind it is where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`": did you mean 'pgd'?"` where something comes near, else a list of what there is (at most twelve)."""
    names = sorted(known)
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), by_lower, n=3, cutoff=0.5)
    if near:
        return f": did you mean {' or '.join(repr(by_lower[name]) for name in near)}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f" (there is: {shown or 'nothing'})"
