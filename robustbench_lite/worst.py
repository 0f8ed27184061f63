"""The worst case: what is known of every image when all attacks of a norm are taken together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from .results import Condition, Goal, Verdict, reach, size_text


def worst_case(conditions: Sequence[Condition], verdicts: Iterable[Verdict]) -> tuple[list[Condition], list[Verdict]]:
    """Per norm and eps, a `worst[norm,eps]` condition: an image is broken when any attack of that size broke it, or when one of another
    size in that norm found a broken image that is as near; doubts count as attacks. Its nearest is that of all.

    An image that no attack broke and some attack left undecided is undecided. In an unfinished run, images that some attack has yet to
    try are left out: they must not look better than they will be.
    """
    attacks = {c.name: c for c in conditions if c.kind == "attack"}
    searched = {c.name: c for c in conditions if c.kind in ("attack", "doubt")}
    aim = next((f",target={c.target}" for c in attacks.values() if c.target is not None), "")  # one for the whole run
    balls = dict.fromkeys((c.norm, c.eps, c.scaled) for c in attacks.values())
    tries: dict[str | None, dict[str, list[Verdict]]] = {}
    for v in verdicts:
        if v.condition in searched:
            tries.setdefault(searched[v.condition].norm, {}).setdefault(v.sample_id, []).append(v)
    worst_conditions, worst_verdicts = [], []
    for norm, eps, scaled in balls:
        asked = {c.name for c in attacks.values() if (c.norm, c.eps) == (norm, eps)}
        of_size = {c.name for c in searched.values() if (c.norm, c.eps) == (norm, eps)}
        goal: Goal = "closest" if any(attacks[name].goal == "closest" for name in asked) else "first"
        worst = Condition(f"worst[{norm},{size_text(eps or 0, scaled)}{aim}]", "worst", norm=norm, eps=eps, goal=goal, scaled=scaled)
        found = []
        for known in tries.get(norm, {}).values():
            rows = [v for v in known if v.condition in of_size]
            if sum(v.condition in asked for v in rows) == len(asked):
                found.append(_worst_of(rows, known, float(eps or 0), worst))
        if found:
            worst_conditions.append(worst)
            worst_verdicts += found
    return worst_conditions, worst_verdicts


def _worst_of(rows: Sequence[Verdict], known: Sequence[Verdict], eps: float, condition: Condition) -> Verdict:
    """What is known of one image at one size.

    Args:
        rows: of the attacks of that size. known: of all sizes in the norm.
    """
    within = reach(rows[0].radius or eps)
    broken = next((v for v in rows if v.broken), None) or next((replace(v, broken=True) for v in known if v.nearest <= within), None)
    first = broken or next((v for v in rows if v.broken is None), rows[0])
    if condition.goal == "closest":
        first = replace(first, reason=next((v.reason for v in rows if v.cut_short), first.reason))
        nearest = min(known, key=lambda v: v.nearest)
        if nearest.nearest < first.nearest:
            shown = ("distance", "prediction", "confidence", "approach", "broken_by", "restart", "precision", "witness")
            first = replace(first, **{name: getattr(nearest, name) for name in shown}, broken=nearest.nearest <= within or first.broken)
    return replace(
        first,
        condition=condition.name,
        forwards=sum(v.forwards for v in rows),
        backwards=sum(v.backwards for v in rows),
        steps=sum(v.steps for v in rows),
        stages={},
        unconfirmed=None,
    )
