"""A search of the whole box that found nothing: it failed, for somewhere there are images of other classes."""

from collections.abc import Iterator
from dataclasses import dataclass

from robustbench_lite.diagnostics import Counter, Evidence, Finding
from robustbench_lite.registry import diagnostic
from robustbench_lite.results import NOWHERE
from robustbench_lite.telling import searches


@diagnostic("nothing-found")
@dataclass(frozen=True)
class NothingFound:
    """Images for which an attack that seeks the nearest broken one, at any distance, found none.

    The worst case is doubted where all attacks of its size have failed like this on the same image.
    """

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        for (norm, eps), asked in evidence.balls.items():
            failed = {row.name: {v.sample_id for v in evidence.verdicts(row) if v.reason == NOWHERE} for row in asked}
            worst = evidence.worst(norm, eps)
            everywhere = set.intersection(*failed.values()) & evidence.standing(worst) if worst else set()
            for row in (row for row in asked if failed[row.name]):
                count = len(failed[row.name])
                yield Finding(
                    "nothing-found",
                    "doubts",
                    (row.name, *([worst.name] if worst and everywhere else [])),
                    f"{row.name} found no broken image at any distance for {count} of its {len(evidence.verdicts(row))} images",
                    "it may look everywhere, so the search failed there, and these images say nothing about robustness",
                    (Counter("apgd-t"), *searches(norm)),
                    {"failed": count},
                    tuple(sorted(failed[row.name])),
                )
