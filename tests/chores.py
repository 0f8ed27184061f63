"""Tasks for processes of their own, in a module that these can import."""

from __future__ import annotations

import os
from dataclasses import dataclass

from robustbench_lite.attacking import Progress
from robustbench_lite.errors import UsageError


@dataclass(frozen=True)
class Chore:
    """One step of progress, then an end, an error or a death; it dies by the exit code 9."""

    name: str
    fate: str = "ends"

    def run(self, progress: Progress) -> None:
        progress(self.name, 1, 2, 0)
        if self.fate == "dies":
            os._exit(9)
        if self.fate == "refuses":
            raise UsageError("it cannot be used")
