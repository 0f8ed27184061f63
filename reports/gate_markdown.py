"""`gate.md`: a gate for people who read it in their browser, such as in `$GITHUB_STEP_SUMMARY`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from robustbench_lite.gate.rulings import Judgement, Outcome, Ruling
from robustbench_lite.registry import report

from .escaping import markdown
from .files import write
from .gate_words import MEANINGS, figure, images, interval, level, subject, verdict

LIMIT = 1024 * 1024 - 64 * 1024
"""Bytes: GitHub drops a step's summary above 1 MiB, and what other commands of the step write counts as well."""
CUT = "\nThe rest did not fit: gate.json has it.\n"
SIGNS: dict[Outcome, str] = {"pass": "✅", "fail": "❌", "inconclusive": "⚠️", "invalid": "⛔"}


@report("gate-markdown")
def gate_markdown(judgement: Judgement) -> Path:
    """Write `gate.md` into the run's folder, under 1 MiB whatever it holds; returns its path.

    Raises:
        UsageError: the result has no folder.
        InvalidEvaluation: the file could not be written.
    """
    written, left, whole = [], LIMIT - len(CUT.encode()), True
    for line in _lines(judgement):
        left -= len(line.encode()) + 1
        if left < 0:
            whole = False
            break
        written.append(line)
    return write(judgement.result, "gate.md", "\n".join(written) + "\n" + ("" if whole else CUT))


def _lines(judgement: Judgement) -> Iterator[str]:
    """What matters most comes first, for the rest may be cut."""
    yield f"## Robustness gate: {SIGNS[judgement.outcome]} {judgement.outcome}"
    yield ""
    yield "| rule | outcome | estimate | interval | threshold | images |"
    yield "| :--- | :--- | ---: | :---: | ---: | ---: |"
    for ruling in judgement.rulings:
        yield f"| {' | '.join(_cells(ruling))} |"
    yield ""
    yield f"{markdown(subject(judgement))}: {MEANINGS[judgement.outcome]} (exit code {judgement.exit_code})."
    yield f"Each bound is one-sided at {level(judgement)}."
    yield ""
    for ruling in judgement.rulings:
        yield f"- {SIGNS[ruling.outcome]} **{markdown(ruling.rule)}**: {markdown(ruling.message)}"
    for note in judgement.notes:
        yield f"- {markdown(note)}"
    yield from _trust(judgement)


def _cells(ruling: Ruling) -> list[str]:
    row = f" ({markdown(ruling.condition)})" if ruling.condition else ""
    outcome = f"{SIGNS[ruling.outcome]} {verdict(ruling)}"
    return [markdown(ruling.rule) + row, outcome, figure(ruling.estimate), interval(ruling), figure(ruling.threshold), images(ruling)]


def _trust(judgement: Judgement) -> Iterator[str]:
    """How far each row that a rule is about can be believed."""
    trusts = judgement.result.trust
    about = [name for name in dict.fromkeys(ruling.condition for ruling in judgement.rulings) if name in trusts]
    if about:
        yield ""
        yield "### How far the rows can be believed"
        yield ""
    for name in about:
        reasons = "".join(f"; {markdown(reason)}" for reason in trusts[name].reasons)
        yield f"- **{markdown(name)}**: {trusts[name].level}{reasons}"
