"""`report.xml`: every condition of a run as a test case of JUnit's XML, so that a CI server lists them."""

from __future__ import annotations

from pathlib import Path

from robustbench_lite.registry import file_format, report
from robustbench_lite.results import Result

from .files import write
from .junit import Case, Suite, junit_xml
from .table import Row, rows


@file_format("junit")
@report("junit")
def junit(result: Result) -> list[Path]:
    """Write `report.xml` into the run's folder: a refuted row is a failure, one with undecided images an error, a doubtful one is skipped.

    Whether an accuracy is good enough is for `robust-eval gate` to say.

    Raises:
        UsageError: the result has no folder.
        InvalidEvaluation: the file could not be written.
    """
    suite = Suite(f"{result.config['model']['name']} on {result.config['data']['name']}")
    return [write(result, "report.xml", junit_xml(suite, [_case(row) for row in rows(result)]))]


def _case(row: Row) -> Case:
    said = f"accuracy {row.percent}, 95 % interval {row.interval} %, {row.share} correct"
    if row.undecided:
        return Case(
            row.condition, "error", f"{row.undecided} of {row.n} images are undecided; {said}", "\n".join(row.reasons), seconds=row.seconds
        )
    if row.trust == "sound":
        return Case(row.condition, "passed", said, seconds=row.seconds)
    return Case(
        row.condition,
        "failure" if row.trust == "refuted" else "skipped",
        f"{row.trust}: {said}",
        "\n".join(row.reasons),
        seconds=row.seconds,
    )
