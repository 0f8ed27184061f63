"""JUnit XML, which every CI system shows: a suite of cases that passed, failed, were skipped or could not be decided."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from robustbench_lite.plain_text import printable


@dataclass(frozen=True)
class Case:
    """One case.

    Args:
        name: of the case.
        outcome: `error` is for a case that could not be run as it should have been.
        message: why it did not pass, one line.
        details: more lines below the message.
        file: that the case comes from, and `line`, from 1; empty and None where there is none.
        seconds: that it took.
    """

    name: str
    outcome: Literal["passed", "failure", "skipped", "error"]
    message: str = ""
    details: str = ""
    file: str = ""
    line: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Suite:
    """What the cases belong to.

    Args:
        name: of the suite.
        properties: shown beside the cases, in this order.
    """

    name: str
    properties: Mapping[str, str] = field(default_factory=dict)


def junit_xml(suite: Suite, cases: Sequence[Case]) -> str:
    """A document with one suite. Characters that XML 1.0 forbids are replaced."""
    found = Counter(case.outcome for case in cases)
    totals = {
        "tests": str(len(cases)),
        "failures": str(found["failure"]),
        "errors": str(found["error"]),
        "skipped": str(found["skipped"]),
        "time": f"{sum(case.seconds for case in cases):.3f}",
    }
    root = ElementTree.Element("testsuites", totals)
    element = ElementTree.SubElement(root, "testsuite", {"name": printable(suite.name)} | totals)
    if suite.properties:
        properties = ElementTree.SubElement(element, "properties")
        for name, value in suite.properties.items():
            ElementTree.SubElement(properties, "property", {"name": printable(name), "value": printable(value)})
    for case in cases:
        _add(element, suite, case)
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text.decode() + "\n"


def _add(suite_element: ElementTree.Element, suite: Suite, case: Case) -> None:
    place = ({"file": printable(case.file)} if case.file else {}) | ({"line": str(case.line)} if case.line else {})
    named = {"classname": printable(suite.name), "name": printable(case.name), "time": f"{case.seconds:.3f}"}
    element = ElementTree.SubElement(suite_element, "testcase", named | place)
    if case.outcome != "passed":
        reason = ElementTree.SubElement(element, case.outcome, {"message": printable(case.message)})
        if case.outcome != "skipped":
            reason.set("type", "robustness" if case.outcome == "failure" else "invalid")
        reason.text = printable(case.details) or None
    elif case.message:
        ElementTree.SubElement(element, "system-out").text = printable(case.message)
