"""Text that others chose (class names, paths, rules) in XML, Markdown and the lines that GitHub reads: none of it is taken for markup."""

from __future__ import annotations

import re

FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no way to write, escaped or not, and the other control characters, which terminals obey. Half a surrogate pair, as in an
undecodable path, cannot be written as UTF-8 either."""


def printable(text: str) -> str:
    """`text` with a replacement character for everything that is FORBIDDEN."""
    return FORBIDDEN.sub("\ufffd", text)


def one_line(text: str) -> str:
    """`text` without line ends, tabs and control characters, for a terminal or a list."""
    return " ".join(printable(text).split())


def markdown(text: str) -> str:
    """`text` as one line of GitHub's Markdown that reads as it was written, in a table as well."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def command_message(text: str) -> str:
    """`text` behind the `::` of a command to GitHub Actions, which ends at the line's end."""
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def command_property(text: str) -> str:
    """`text` as the value of a property of such a command, which ends at a comma or a colon too."""
    return command_message(text).replace(":", "%3A").replace(",", "%2C")
