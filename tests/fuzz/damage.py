"""What the fuzzers share: edits that spoil a valid sample, and what must hold whatever comes of it.

A failing example is printed as the edits that made it, which are short and can be pasted into a call.
"""

from __future__ import annotations

import copy
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from robustbench_lite.errors import RobustEvalError

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
"""How long each fuzzer runs; 0: a hundred examples, the same every time."""

LONGEST = 5.0
"""Seconds of the processor that an example may take, so that a busy machine fails none. Who waits for ever meets pytest's own limit."""

MEMORY = 2 * 2**30
"""Bytes that the process may grow by."""


class TooLong(BaseException):
    """No Exception, so that nobody takes it for an error of the file."""


def fuzz(strategy: st.SearchStrategy[Any], check: Callable[[Any], object], examples: int = 100) -> None:
    """Call `check` on examples: it may raise errors that are meant for the user, with a message, and nothing else."""
    tried, end = 0, time.monotonic() + SECONDS

    def example(value: Any) -> None:
        nonlocal tried
        tried += 1
        with allowed():
            try:
                check(value)
            except TooLong:  # which Hypothesis tells no example of
                print(f"{value!r} took too long")
                raise
            except RobustEvalError as error:
                if not str(error).strip():
                    raise AssertionError("an error without a word") from error

    kept = {"database": None, "deadline": None, "print_blob": False, "suppress_health_check": list(HealthCheck)}
    kept |= {"derandomize": not SECONDS, "max_examples": examples, "phases": [Phase.generate, Phase.shrink]}
    while True:
        test = settings(**kept)(given(strategy)(example))
        (seed(random.SystemRandom().getrandbits(64))(test) if SECONDS else test)()
        if time.monotonic() >= end or examples == 1:
            break
    print(f"{tried} examples")


@contextmanager
def allowed() -> Iterator[None]:
    """So much time and memory, and no more."""

    def late(*_: object) -> None:
        raise TooLong(f"an example took more than {LONGEST:g} s")

    before, old = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)


needs_limits = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory of a process is told by Linux only")

# --- flat content: bytes and text ---------------------------------------------------------------------------------------------

WORDS = (
    "", "\0", "\n", ",", ":", "=", "(", ")", "[", "]", "{", "}", '"', "'", "+", "-", "/", "#", "%", "0", "-1", "1e999", "nan", "inf",
    "9" * 30, "9" * 5000, "1/0", "é", "\u2028", "\ufeff", "none", "null", "true", "'''", "[" * 5000, "{a: " * 2000, "(" * 3000, "&a [*a]",
    "!!python/x", "2001-99-99", "<script>", "=1+1", "../..", "~x/", "%s", "a" * 3000,
)  # fmt: skip
BYTES = (*(word.encode() for word in WORDS[:24]), b"\xff", b"\x80", b"\xff" * 8, b"\x00" * 16, b"\x7f" * 4, b"PK\x03\x04", b"\x93NUMPY")


def edits(words: Sequence[Any]) -> st.SearchStrategy[list[tuple[str, int, int, Any]]]:
    """What is done to a sample, where, over how many places, and with which word."""
    kinds = st.sampled_from(("put", "replace", "drop", "repeat", "cut"))
    return st.lists(st.tuples(kinds, st.integers(0, 2**16), st.integers(1, 24), st.sampled_from(words)), max_size=4)


def spoilt(sample: Any, made: Sequence[tuple[str, int, int, Any]]) -> Any:
    """A sample, bytes or text, after edits."""
    for kind, place, length, word in made:
        at = place % (len(sample) + 1)
        end = at if kind == "put" else at + length
        middle = {"drop": sample[:0], "repeat": sample[at:end] * 8, "cut": sample[:0]}.get(kind, word)
        sample = sample[:at] + middle + (sample[:0] if kind == "cut" else sample[end:])
    return sample


TEXT_EDITS, BYTE_EDITS = edits(WORDS), edits(BYTES)

# --- trees: what JSON holds ---------------------------------------------------------------------------------------------------

GONE = "gone"
STRANGE = st.sampled_from(
    (GONE, None, True, False, 0, -1, 1, 3, 2**40, 2**80, 0.5, 1e308, float("nan"), float("inf"), "", "x", "\0", "é\u2028", "x" * 2000,
     "9" * 40, [], {}, [[]], [None], ["x"], [0], [-1, 2**70], {"x": "y"}, {"": []}, [[[[[[[[]]]]]]]])
)  # fmt: skip
TREE_EDITS = st.lists(st.tuples(st.integers(0, 2**12), STRANGE), max_size=3)


def replaced(tree: Any, made: Sequence[tuple[int, Any]]) -> Any:
    """A copy of a tree of dicts and lists in which some values are others, or gone."""
    tree = copy.deepcopy(tree)
    for number, value in made:
        places = list(_places(tree))
        if places:
            parent, key = places[number % len(places)]
            if value == GONE:
                del parent[key]
            else:
                parent[key] = copy.deepcopy(value)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(tree[key])
