"""Too few images for what a row claims."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from robustbench_lite.diagnostics import Evidence, Finding
from robustbench_lite.registry import diagnostic
from robustbench_lite.results import Verdict
from robustbench_lite.stats import wilson

WIDEST = 0.2
"""Width of a 95 % interval from which on a row says little: it takes 93 images at 50 %, and 16 where all or none stand."""


@diagnostic("few-images")
@dataclass(frozen=True)
class FewImages:
    """Rows whose accuracy is not known to within 20 points: Wilson's 95 % interval is wider."""

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        rows = [c.name for c in evidence.result.conditions if c.kind != "doubt"]
        counts = {name: verdicts for name in rows if (verdicts := evidence.result.of(name))}
        widths = {name: _width(verdicts) for name, verdicts in counts.items()}
        wide = tuple(name for name, width in widths.items() if width > WIDEST)
        if wide:
            fewest, widest = min(len(counts[name]) for name in wide), max(widths[name] for name in wide)
            yield Finding(
                "few-images",
                "doubts",
                wide,
                f"with {fewest} images, the 95 % interval is up to {100 * widest:.0f} points wide",
                "there are too few images for what the row claims: take more (--limit)",
                figures={"images": fewest, "width": widest},
            )


def _width(verdicts: Sequence[Verdict]) -> float:
    low, high = wilson(sum(v.broken is False for v in verdicts), len(verdicts))
    return high - low
