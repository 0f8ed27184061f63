"""What pytest learns by itself once the package is installed: the marker `robustness`, and a summary of every `assert_robust`."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from . import testing

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

PROPERTY = "robustness"
"""Under which a report carries what was decided, from the workers of pytest-xdist as well, and into pytest's own JUnit XML."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", 'robustness: measures how robust a model is, which takes its time; -m "not robustness" leaves it out'
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Keep what `assert_robust` says with the test that called it, or whose fixture did."""
    token = testing.told.set(lambda said: item.user_properties.append((PROPERTY, said)))
    try:
        return (yield)
    finally:
        testing.told.reset(token)


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    reports = [each for found in terminalreporter.stats.values() for each in found if isinstance(each, pytest.TestReport)]
    # the last report of a test has what all of its phases said
    said = [(each.nodeid, line) for each in reports if each.when == "teardown" for name, line in each.user_properties if name == PROPERTY]
    if said:
        terminalreporter.section("robustness")
    for place, line in said:
        terminalreporter.line(f"{place}: {line}")
