"""A row without some of its images, or whose search was cut short: what is missing may be broken."""

from collections.abc import Iterator
from dataclasses import dataclass

from robustbench_lite.diagnostics import Evidence, Finding
from robustbench_lite.registry import diagnostic
from robustbench_lite.results import Condition


@diagnostic("unfinished")
@dataclass(frozen=True)
class Unfinished:
    """Rows that lack verdicts, because a run was interrupted or stopped early, and searches that a query budget ended."""

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        budget = evidence.result.config.get("query_budget")
        for row in evidence.result.conditions:
            if row.kind in ("doubt", "sequence"):  # which have no verdict on every image
                continue
            if lacking := _lacking(evidence, row):
                yield Finding(
                    "unfinished",
                    "doubts",
                    (row.name,),
                    f"{row.name} has no verdict on {lacking} of the {evidence.result.config['data']['n']} images",
                    "the evaluation stopped early: the share among the others may be another",
                    figures={"lacking": lacking},
                )
            ended = [v.sample_id for v in evidence.verdicts(row) if v.broken is False and v.forwards + v.backwards >= (budget or 0)]
            if budget and row.kind == "attack" and ended:
                yield Finding(
                    "unfinished",
                    "doubts",
                    (row.name,),
                    f"the query budget of {budget:,} ended the search of {row.name} on {len(ended)} images that are not broken",
                    "the search did not come to its end: a longer one may break them",
                    figures={"ended": len(ended)},
                    samples=tuple(ended),
                )


def _lacking(evidence: Evidence, row: Condition) -> int:
    """How many images have yet to be tried, of those that the row is for."""
    left_out = len(evidence.result.left_out.get(row.name, ()))
    return int(evidence.result.config["data"]["n"]) - len(evidence.result.of(row.name)) - left_out
