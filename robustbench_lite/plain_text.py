"""Text that others chose (class names, paths, messages of their code) on one line that a terminal, a log and a CI server take for text."""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2029\u202f-\u2065\u206a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no way to write, escaped or not, the other control characters, which terminals obey, and those that turn text around,
which then reads as what it is not. Half a surrogate pair, as in an undecodable path, cannot be written as UTF-8 either."""


def printable(text: str) -> str:
    """`text` with a replacement character for everything that is FORBIDDEN."""
    return FORBIDDEN.sub("\ufffd", text)


def one_line(text: str) -> str:
    """`text` without line ends, tabs and control characters, for a terminal or a list."""
    return " ".join(printable(text).split())


def without_commands(text: str) -> str:
    """`text` that GitHub Actions, where it runs us, takes for no command to itself, however its lines are broken."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return text
    return text.replace("::", ":\u200b:").replace("##[", "##\u200b[")


def say(text: str, stream: TextIO | None = None) -> None:
    """Print one line."""
    print(without_commands(one_line(text)), file=stream or sys.stdout, flush=stream is sys.stderr)
