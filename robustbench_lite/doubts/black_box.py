"""Attacks that do without the model's gradients broke what those that follow them had left: the gradients mislead."""

from collections import Counter as Tally
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from robustbench_lite.diagnostics import Counter, Evidence, Finding
from robustbench_lite.registry import Spec, diagnostic
from robustbench_lite.results import Condition
from robustbench_lite.telling import SEARCHES, base, climbers, doubted, left_by_gradients, searches, tells
from robustbench_lite.trust import SEARCH


@diagnostic("black-box")
@dataclass(frozen=True)
class BlackBox:
    """Images that every attack on gradients left, and that fell to scores, to a surrogate or to stand-ins for gradients.

    In a cascade these are what a later stage broke. A random search now and then breaks an image that a good attack on gradients has
    left; more than 2 % of those (and two or more) are too many for that.
    """

    def doubts(self, asked: Sequence[Condition]) -> Iterator[Counter]:
        if not any(_searches(c) for c in asked):
            yield from searches(str(asked[0].norm), SEARCH)

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        for norm, eps in evidence.balls:
            climbing = climbers(evidence, norm, eps)
            left = left_by_gradients(evidence, climbing)
            broken = _broken_blindly(evidence, climbing[0]) if climbing else {}
            broken = {key: by for key, by in broken.items() if key in left}
            if tells(len(broken), len(left)):
                by = ", ".join(f"{name} {count}" for name, count in Tally(broken.values()).most_common(3))
                yield Finding(
                    "black-box",
                    "doubts",
                    doubted(evidence, norm, eps),
                    f"attacks without gradients broke {len(broken)} of the {len(left)} images that those on gradients left ({by})",
                    "the model masks its gradients: what follows them says little, and a longer search may break more",
                    searches(norm),
                    {"broken": len(broken), "left": len(left)},
                    tuple(broken),
                )


def _searches(condition: Condition) -> bool:
    """Whether an attack has a random search in it that is long enough to be held against the others."""
    search = SEARCHES.get(str(condition.norm))
    queries = Spec.parse(str(condition.attack)).options.get("queries", SEARCH)
    return search in condition.doors or (base(condition) == search and int(queries) >= SEARCH)


def _broken_blindly(evidence: Evidence, condition: Condition) -> Mapping[str, str]:
    """What in the ball of a condition fell without gradients, and to what; random points are a question of their own."""
    found: dict[str, str] = {}
    for tried in evidence.tried(condition):
        if base(tried) != "noise":
            for key, verdict in evidence.broken(tried).items():
                if evidence.blind(tried, verdict):
                    source = f" from {tried.source}" if tried.source else ""
                    found.setdefault(key, f"{verdict.broken_by}{source}")
    return found
