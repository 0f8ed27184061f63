"""Writing a report into a run's folder: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from robustbench_lite import private
from robustbench_lite.errors import InvalidEvaluation, UsageError
from robustbench_lite.results import Result


def write(result: Result, name: str, content: str | bytes) -> Path:
    """Put `content` (text as UTF-8) into the file `name` of the run's folder, through a temporary file that replaces it.

    Raises:
        UsageError: the result was kept in memory and has no folder.
        InvalidEvaluation: the file could not be written; one that was there before is untouched.
    """
    if result.folder is None:
        raise UsageError(f"this result is kept in memory and has no folder for {name}: evaluate into a folder to get files")
    path = result.folder / name
    unfinished = path.with_name(f".{name}.{os.getpid()}.part")
    try:
        private.write(unfinished, content.encode() if isinstance(content, str) else content)
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise InvalidEvaluation(
            f"cannot write {path}: {error.strerror}; the verdicts are kept, so mend that and run `robust-eval report {result.folder}`"
        ) from error
    return path
