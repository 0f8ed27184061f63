"""The figure is too high: an image that a row counts as right was broken by something else."""

from collections import Counter as Tally
from collections.abc import Iterator
from dataclasses import dataclass

from robustbench_lite.diagnostics import Evidence, Finding
from robustbench_lite.registry import diagnostic
from robustbench_lite.results import Condition, reach


@diagnostic("witnessed")
@dataclass(frozen=True)
class Witnessed:
    """Images that an attack left and that have a witness of another attack, in the same ball or a smaller one."""

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        for (norm, eps), asked in evidence.balls.items():
            others = [c for c in [*evidence.attacks, *evidence.doubts] if c.norm == norm]
            for row in asked:
                standing, found = evidence.standing(row), _found(evidence, row, eps, others)
                broken = {key: by for key, by in found.items() if key in standing}
                if broken:
                    yield _finding(row, len(standing), broken)


def _found(evidence: Evidence, row: Condition, eps: float, others: list[Condition]) -> dict[str, str]:
    """Which images others broke within eps, and by what."""
    found: dict[str, str] = {}
    own = {v.sample_id: v.radius or eps for v in evidence.verdicts(row)}
    for other in others:
        if other.name != row.name:
            near = {v.sample_id: v for v in evidence.verdicts(other) if v.sample_id in own and v.nearest <= reach(own[v.sample_id])}
            for key, verdict in ({**near, **evidence.broken(other)} if (other.eps or 0) <= eps else near).items():
                found.setdefault(key, f"{verdict.broken_by}" + (f" at eps {other.eps:g}" if other.eps != row.eps else ""))
    return found


def _finding(row: Condition, standing: int, broken: dict[str, str]) -> Finding:
    by = ", ".join(f"{name} {count}" for name, count in Tally(broken.values()).most_common(3))
    return Finding(
        "witnessed",
        "refutes",
        (row.name,),
        f"of the {standing} images that {row.name} counts as right, {len(broken)} have a witness ({by})",
        "the figure is too high by these images, and the attack is weaker than what broke them",
        figures={"standing": standing, "broken": len(broken)},
        samples=tuple(broken),
    )
