"""`report.md`: the summary, the table and what speaks against it, for a pull request or a page of a wiki."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from robustbench_lite.registry import file_format, report
from robustbench_lite.results import Result

from .believing import WEIGHTS, command_of, doubted, finding_rows, lacking, summary
from .corruption import tabled
from .escaping import markdown as escaped
from .files import write
from .proven import ANOTHER, unsettled
from .reading import readings
from .table import bracket_legend, distance_legend, legend, percent, rows


@file_format("markdown", "md")
@report("markdown", "md")
def markdown(result: Result) -> list[Path]:
    """Write `report.md` into the run's folder.

    Raises:
        UsageError: the result has no folder.
        InvalidEvaluation: the file could not be written.
    """
    return [write(result, "report.md", "\n".join(_lines(result)) + "\n")]


def _lines(result: Result) -> Iterator[str]:
    model, data = result.config["model"]["name"], result.config["data"]["name"]
    every = rows(result)
    shown = tabled(every) or every
    yield f"# {escaped(model)} on {escaped(data)}"
    yield ""
    yield escaped(summary(model, every))
    yield ""
    nearest = any(row.median for row in shown)
    cells = [
        [
            row.condition,
            row.share,
            row.percent,
            f"{row.interval} %",
            *([row.median] if nearest else []),
            row.trust,
            "".join(row.reasons[:1]),
        ]
        for row in shown
    ]
    median = ["median distance"] if nearest else []
    yield from _table(["condition", "correct", "accuracy", "95 % interval", *median, "trust", "why"], cells)
    yield ""
    said = [*legend(shown), *bracket_legend(shown), *distance_legend(shown), *(result.config.get("notes") or [])]
    yield from (f"- {escaped(line)}" for line in said)
    if len(shown) < len(every):
        yield f"- {len(every) - len(shown)} conditions of corruptions are in `table.csv`."
    yield from _proofs(result)
    for told in readings(result, every):
        yield from ("", f"## {told.title}", "")
        yield from _table([told.first, *told.headings], [[line.name, *line.cells] for line in told.lines])
        yield from ("", escaped(told.note))
    yield from _trust(result)
    if command := command_of(result):
        fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", command)), 0)
        yield from ("", "To get the numbers again:", "", fence, command, fence)


def _proofs(result: Result) -> Iterator[str]:
    """What the certificates proved, and which images are neither proven nor broken."""
    if result.proof_rows:
        yield from ("", "## Certificates", "")
        lines = [
            [
                row.condition,
                f"{row.proven}/{row.n}",
                f"{percent(row.accuracy)} %",
                f"{row.confidence:g}",
                "this model" if row.of_model else "another",
            ]
            for row in result.proof_rows
        ]
        yield from _table(["certificate", "proven", "certified accuracy", "confidence", "of"], lines)
        others = [] if all(row.of_model for row in result.proof_rows) else [ANOTHER]
        yield from ("", *(f"- {escaped(line)}" for line in [*unsettled(result), *others]))


def _trust(result: Result) -> Iterator[str]:
    """The findings, what was tried in doubt, and what was not tried."""
    found, tried, missing = finding_rows(result), doubted(result), lacking(result)
    if found or tried or missing:
        yield from ("", "## Can these numbers be believed?", "")
    for finding in found:
        about = f" ({escaped(', '.join(finding.conditions))})" if finding.conditions else ""
        settle = f" To settle it: {escaped(', '.join(finding.settle))}." if finding.settle else ""
        said = escaped(f"{finding.seen}; {finding.means}.")
        yield f"- **{WEIGHTS[finding.weight]}**, {escaped(finding.check)}{about}: {said}{settle}"
    for row in tried:
        yield f"- **tried in doubt**, {escaped(row.condition)}: broke {row.broken} of the {row.met} images that were left"
    for what, conditions in missing.items():
        yield f"- **missing** under {escaped(', '.join(conditions))}: {escaped(what)}"


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    for line in lines:
        yield f"| {' | '.join(escaped(cell) for cell in line)} |"
