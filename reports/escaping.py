"""Text that others chose (class names, paths, rules) in Markdown, CSV and the lines that GitHub reads: none of it is taken for more."""

from __future__ import annotations

import re
from typing import Any

from robustbench_lite.plain_text import one_line, printable

FORMULA = re.compile(r"\s*[=+\-@\t\r＝＋－＠]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]inf")


def markdown(text: str) -> str:
    """`text` as one line of GitHub's Markdown that reads as it was written, in a table as well."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def command_message(text: str) -> str:
    """`text` behind the `::` of a command to GitHub Actions, which ends at the line's end."""
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def command_property(text: str) -> str:
    """`text` as the value of a property of such a command, which ends at a comma or a colon too."""
    return command_message(text).replace(":", "%3A").replace(",", "%2C")


def cell(value: Any) -> Any:
    """A cell of a CSV file: text that a spreadsheet would take for a formula stands behind an apostrophe; numbers stay as they are."""
    if not isinstance(value, str) or not FORMULA.match(value) or NUMBER.fullmatch(value):
        return value
    return f"'{value}"
