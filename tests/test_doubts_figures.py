"""Checks that compare figures: each finds what it is for, and nothing where that is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from handmade_runs import IMAGES, attack, doubt, first, left, made, row, simple, staged, verdict

from robustbench_lite.diagnostics import DIAGNOSTICS, Counter, Evidence, Finding, counters, findings
from robustbench_lite.results import NOTHING_TO_GAIN, NOWHERE, Condition, Verdict


def found(check: str, *rows: tuple[Condition, list[Verdict]], **more: Any) -> list[Finding]:
    return list(DIAGNOSTICS.build(check).findings(Evidence(made(*rows, **more))))


# --- one step, black boxes, random points ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "check"), [("fgsm", "one-step"), ("square:queries=1000", "black-box"), ("noise", "noise")])
def test_what_breaks_images_that_gradients_left_says_that_they_mislead(spec: str, check: str) -> None:
    pgd = simple("pgd", first(40))
    (finding,) = found(check, pgd, doubt(spec, first(3, 40), left(first(40))))
    assert finding.weight == "doubts"
    assert finding.conditions == ("pgd[linf,0.1]", "worst[linf,0.1]")
    assert (finding.figures["broken"], finding.figures["left"]) == (3, 60)
    assert set(finding.samples) == first(3, 40)
    assert "3 of the 60" in finding.seen


@pytest.mark.parametrize(("spec", "check"), [("fgsm", "one-step"), ("square:queries=1000", "black-box"), ("noise", "noise")])
def test_one_image_may_be_luck_and_so_may_two_in_a_hundred(spec: str, check: str) -> None:
    assert not found(check, simple("pgd", first(40)), doubt(spec, first(1, 40), left(first(40))))
    assert not found(check, simple("pgd", set()), doubt(spec, first(2), IMAGES))
    assert found(check, simple("pgd", set()), doubt(spec, first(3), IMAGES))


@pytest.mark.parametrize(("spec", "check"), [("fgsm", "one-step"), ("square", "black-box"), ("noise", "noise")])
def test_what_gradients_broke_as_well_says_nothing_against_them(spec: str, check: str) -> None:
    assert not found(check, simple("pgd", first(40)), simple(spec, first(20)))


@pytest.mark.parametrize(("spec", "check"), [("square", "black-box"), ("noise", "noise")])
def test_one_step_is_not_held_against_gradients(spec: str, check: str) -> None:
    assert not found(check, simple("fgsm", first(40)), simple(spec, first(20, 40)), simple("square", first(80)))


def test_an_attack_of_another_kind_that_finds_them_clears_the_gradients() -> None:
    square = simple("square", first(20, 40))
    assert found("black-box", simple("pgd", first(40)), square)
    assert not found("black-box", simple("pgd", first(40)), simple("apgd", first(60)), square)


def test_a_row_that_leaves_nothing_is_not_doubted() -> None:
    (finding,) = found("black-box", simple("pgd", first(40)), simple("square", set(IMAGES)))
    assert finding.conditions == ("pgd[linf,0.1]",)


def test_in_a_cascade_the_stage_tells() -> None:
    (finding,) = found("black-box", staged({"apgd-ce": first(40), "square": first(10, 40)}))
    assert (finding.figures["broken"], finding.figures["left"]) == (10, 60)
    assert "autoattack/square 10" in finding.seen
    assert not found("black-box", staged({"apgd-ce": first(40), "fab-t": first(10, 40)}))


def test_an_attack_that_breaks_no_more_than_random_points_does_not_work() -> None:
    (finding,) = found("noise", simple("square", first(5)), simple("noise", first(5, 20)))
    assert finding.conditions == ("square[linf,0.1]",)
    assert not found("noise", simple("square", first(6)), simple("noise", first(5, 20)))
    assert not found("noise", simple("square", set()), simple("noise", set()))


# --- a radius at which everything can be grey -------------------------------------------------------------------------------


def test_accuracy_where_all_images_can_be_grey_is_masked() -> None:
    (finding,) = found("large-eps", simple("pgd", first(40)), doubt("pgd", first(30, 40), left(first(40)), eps=0.5))
    assert finding.conditions == ("pgd[linf,0.1]", "worst[linf,0.1]")
    assert (finding.figures["standing"], finding.figures["images"]) == (30, 100)
    assert not found("large-eps", simple("pgd", first(40)), doubt("pgd", first(58, 40), left(first(40)), eps=0.5))


def test_a_target_need_not_be_grey() -> None:
    aimed = attack("pgd", 0.5, target=3)
    assert not found("large-eps", (aimed, row(aimed, set())))
    wide = attack("pgd", 0.5)
    assert found("large-eps", (wide, row(wide, set())))


# --- more room, more effort, more steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [("pgd", 0.2, 40), ("pgd:steps=100", 0.1, 100), ("pgd:restarts=5", 0.1, 200)])
def test_more_that_breaks_less_is_found(more: tuple[str, float, int]) -> None:
    spec, eps, steps = more
    less = simple("pgd", first(40))
    (finding,) = found("rising", less, simple(spec, first(20), eps, steps=steps))
    assert finding.conditions == (f"{spec}[linf,{eps:g}]",)
    assert (finding.figures["broken"], finding.figures["standing"]) == (20, 80)
    assert not found("rising", less, simple(spec, first(50), eps, steps=steps))


def test_another_attack_need_not_break_more() -> None:
    assert not found("rising", simple("pgd", first(40)), simple("pgd:loss=margin", first(20), 0.2), simple("apgd", first(10), 0.2))


def late(broken: set[str], fell_at: int, spec: str = "pgd", **more: Any) -> tuple[Condition, list[Verdict]]:
    condition = attack(spec, **more)
    spent = {True: {"steps": fell_at, "forwards": fell_at + 1, "backwards": fell_at}, False: {}}
    return condition, [verdict(condition, key, key in broken, **spent[key in broken]) for key in IMAGES]


def test_a_search_that_still_finds_something_at_its_end_has_not_converged() -> None:
    (finding,) = found("converged", late(first(10), fell_at=30))
    assert finding.conditions == ("pgd[linf,0.1]", "worst[linf,0.1]")
    assert finding.settle == (Counter("pgd:steps=200"),)
    assert (finding.figures["late"], finding.figures["reached"]) == (10, 100)
    assert not found("converged", late(first(10), fell_at=15))
    assert not found("converged", late(first(2), fell_at=30))


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_a_first_pass_in_reduced_precision_has_a_middle_of_its_own(precision: str) -> None:
    def twice(rough: int, fine: int) -> tuple[Condition, list[Verdict]]:
        """Ten images each fell after so many steps of the first pass and of the second; those that stand took both."""
        condition, spent = attack("pgd"), {"steps": 80, "forwards": 82, "backwards": 80}
        kept = {key: {"forwards": rough + 1, "backwards": rough, "precision": precision} for key in first(10)}
        kept |= {key: {"forwards": 42 + fine, "backwards": 40 + fine} for key in first(10, 10)}
        return condition, [verdict(condition, key, key in kept, **kept.get(key, spent)) for key in IMAGES]

    assert found("converged", twice(30, 5))[0].figures["late"] == 10
    assert found("converged", twice(5, 30))[0].figures["late"] == 10
    assert not found("converged", twice(15, 15))


def test_so_has_a_part_of_a_cascade() -> None:
    def cascade(fell_at: int) -> tuple[Condition, list[Verdict]]:
        """pgd with a first pass, 40 steps each, then square: ten images fell in pgd's first pass."""
        condition = replace(attack("autoattack"), doors={"pgd": "white box", "square": "scores"})
        spent = {True: {"pgd": (fell_at + 1, fell_at)}, False: {"pgd": (82, 80), "square": (1000, 0)}}
        how = {True: {"broken_by": "autoattack/pgd", "precision": "bf16"}, False: {}}
        return condition, [
            verdict(condition, key, key in first(10), stages=spent[key in first(10)], **how[key in first(10)]) for key in IMAGES
        ]

    assert found("converged", cascade(30))[0].figures["late"] == 10
    assert not found("converged", cascade(15))


def test_a_longer_search_that_finds_nothing_settles_it() -> None:
    short, others = late(first(10), fell_at=30), left(first(10))
    assert not found("converged", short, doubt("pgd:steps=200", first(1, 10), others))
    assert found("converged", short, doubt("pgd:steps=200", first(9, 10), others))
    assert found("converged", short, doubt("pgd:steps=200", set(), others[:50])), "half of the images were not met"


def test_one_search_that_ended_is_enough_for_the_worst_case() -> None:
    (finding,) = found("converged", late(first(10), fell_at=30), late(first(10), fell_at=5, spec="apgd"))
    assert finding.conditions == ("pgd[linf,0.1]",)
    both = found("converged", late(first(10), fell_at=30), late(first(10), fell_at=80, spec="apgd"))
    assert [f.conditions for f in both] == [("pgd[linf,0.1]", "worst[linf,0.1]"), ("apgd[linf,0.1]", "worst[linf,0.1]")]


def test_of_a_cascade_the_attacks_on_gradients_are_one_search() -> None:
    (finding,) = found("converged", staged({"apgd-ce": first(40), "fab-t": first(10, 40)}))
    assert finding.figures == {"late": 10, "reached": 60}
    assert not found("converged", staged({"apgd-ce": first(40), "square": first(10, 40)}))


def test_where_images_do_not_leave_nobody_knows_when_they_fell() -> None:
    assert not found("converged", late(first(10), fell_at=40, goal="full"))


@pytest.mark.parametrize(
    ("passes", "distances", "ended"),
    [((5, 60), (0.2, 0.09), False), ((5, 60), (0.1, 0.095), True), ((5, 60), (0.1, 0.09), False), ((60,), (0.1,), False)],
)
def test_in_a_search_for_the_nearest_an_image_falls_where_that_comes_within_eps(passes: Any, distances: Any, ended: bool) -> None:
    condition = attack("pgd", goal="closest")
    approach = [list(pair) for pair in zip(passes, distances, strict=True)]
    verdicts = [verdict(condition, key, key in first(10), approach=approach if key in first(10) else []) for key in IMAGES]
    assert bool(found("converged", (condition, verdicts))) is not ended


def test_a_search_that_still_came_nearer_had_not_come_to_its_end() -> None:
    """Nothing fell at this eps; but accuracies at others are read off the distances."""
    condition = attack("pgd", goal="closest")

    def coming(count: int, last: float) -> list[Verdict]:
        near = first(count)
        return [verdict(condition, key, False, approach=[[10, 3.0], [60, last if key in near else 2.9]]) for key in IMAGES]

    (finding,) = found("converged", (condition, coming(3, 2.0)))
    assert (finding.weight, finding.conditions, set(finding.samples)) == ("doubts", (condition.name,), first(3))
    assert not found("converged", (condition, coming(3, 2.8)))
    assert not found("converged", (condition, coming(1, 2.0)))


def test_an_attack_that_may_go_anywhere_and_finds_nothing_has_failed() -> None:
    def failing(spec: str, failed: set[str]) -> tuple[Condition, list[Verdict]]:
        condition = attack(spec, goal="closest")
        return condition, [verdict(condition, key, False, reason=NOWHERE if key in failed else None) for key in IMAGES]

    assert not found("nothing-found", failing("pgd", set()))
    (finding,) = found("nothing-found", failing("pgd", first(3)), failing("apgd", set()))
    assert (finding.weight, finding.conditions, set(finding.samples)) == ("doubts", ("pgd[linf,0.1]",), first(3))
    both = found("nothing-found", failing("pgd", first(3)), failing("apgd", first(1)))
    assert [f.conditions[-1] for f in both] == ["worst[linf,0.1]"] * 2


# --- tangent planes, stand-ins ----------------------------------------------------------------------------------------------


def test_planes_that_lead_nowhere_while_others_win_are_found() -> None:
    (finding,) = found("local-linear", simple("pgd", first(60)), simple("fab", first(5)))
    assert (finding.figures["broken"], finding.figures["others"]) == (5, 60)
    assert not found("local-linear", simple("pgd", first(60)), simple("fab", first(30))), "weaker, and no sign of anything"
    assert not found("local-linear", simple("pgd", set()), simple("fab", set()))


def test_in_a_cascade_fab_is_held_to_what_came_after_it() -> None:
    (finding,) = found("local-linear", staged({"apgd-ce": first(40), "square": first(10, 40)}))
    assert finding.figures == {"met": 60, "broken": 0, "others": 10}
    assert not found("local-linear", staged({"apgd-ce": first(90), "fab-t": set()}))


def test_layers_that_offer_stand_ins_want_an_attack_that_takes_them() -> None:
    observed = {"observed": {"stand-ins": {"layers": ["WinnersTakeAll"]}}}
    (finding,) = found("stand-ins", simple("pgd", first(40)), config=observed)
    assert finding.settle == (Counter("bpda"),)
    for spec, doubted in (("bpda:steps=100", False), ("bpda+mi", False), ("mi", True)):  # mi has hooks too, but not these
        other = replace(attack("pgd", kind="doubt", doors={"": "stand-ins"}), attack=spec, name=f"{spec}[linf,0.1]")
        found_beside = found("stand-ins", simple("pgd", first(40)), (other, row(other, set(), left(first(40)))), config=observed)
        assert bool(found_beside) == doubted
    assert not found("stand-ins", simple("pgd", first(40)))


def test_gradients_kept_from_their_stand_ins_are_doubted_until_these_were_tried_on_all_that_is_left() -> None:
    hidden = {"identity": {"no_stand_ins": "Rounding"}}
    asked, stood = simple("pgd", first(40)), sorted(left(first(40)))
    adaptive = replace(attack("pgd", kind="doubt", doors={"": "stand-ins"}), attack="bpda", name="bpda[linf,0.1]")
    rows = [("pgd[linf,0.1]", "worst[linf,0.1]"), ("pgd[linf,0.1]", "worst[linf,0.1]"), ("pgd[linf,0.1]",)]
    for more, expected in zip(
        ((), ((adaptive, row(adaptive, set(), stood[:-1])),), ((adaptive, row(adaptive, set(), stood)),)), rows, strict=True
    ):
        (finding,) = found("stand-ins", asked, *more, config=hidden)
        assert (finding.weight, finding.conditions, finding.settle) == ("doubts", expected, (Counter("bpda"),))
        assert finding.seen == "gradients of Rounding were taken as they are: leave --no-stand-ins out"
    assert not found("stand-ins", simple("noise", first(40)), config=hidden)


# --- too few, not all -------------------------------------------------------------------------------------------------------


def test_few_images_carry_no_claim() -> None:
    condition = attack("pgd")
    (finding,) = found("few-images", (condition, row(condition, first(20), IMAGES[:40])))
    assert finding.conditions == ("pgd[linf,0.1]", "worst[linf,0.1]")
    assert finding.seen == "with 40 images, the 95 % interval is up to 30 points wide"
    assert not found("few-images", (condition, row(condition, first(20), IMAGES[:20]))), "none of 20 stand: 0 % to 16 %"
    assert not found("few-images", (condition, row(condition, first(50))))


def test_a_row_without_some_images_is_unfinished() -> None:
    condition = attack("pgd")
    part, worst = found("unfinished", (condition, row(condition, set(), IMAGES[:90])))
    assert (part.conditions, worst.conditions) == (("pgd[linf,0.1]",), ("worst[linf,0.1]",))
    assert part.figures == {"lacking": 10}
    assert not found("unfinished", (condition, row(condition, set())))


def test_images_that_a_row_is_not_for_are_not_missing() -> None:
    condition = attack("pgd", target=1)
    partial = made((condition, row(condition, set(), IMAGES[:60])))
    left_out = {name: dict.fromkeys(IMAGES[60:], NOTHING_TO_GAIN) for name in ("pgd[linf,0.1]", "worst[linf,0.1,target=1]")}
    assert not [f for f in findings(replace(partial, left_out=left_out)) if f.check == "unfinished"]
    assert [f for f in findings(partial) if f.check == "unfinished"]


def test_a_budget_that_ends_a_search_is_told() -> None:
    (finding,) = found("unfinished", simple("pgd", first(40)), config={"query_budget": 81})
    assert finding.figures == {"ended": 60}
    assert not found("unfinished", simple("pgd", first(40)), config={"query_budget": 82})


# --- what is tried in doubt -------------------------------------------------------------------------------------------------


def test_doubts_try_what_was_not_asked_for() -> None:
    tried = {counter.words for counter in counters([attack("pgd")])}
    assert {"fgsm", "noise", "square:queries=1000", "pgd --eps 0.5"} <= tried
    asked = {counter.words for counter in counters([attack("autoattack"), attack("fgsm"), attack("noise")])}
    assert not {"fgsm", "noise", "square:queries=1000"} & asked


def test_a_short_square_does_not_spare_the_model_a_long_one() -> None:
    for queries, spared in (("", True), (":queries=1000", True), (":queries=999", False)):
        tried = {counter.words for counter in counters([attack("pgd"), attack(f"square{queries}")])}
        assert ("square:queries=1000" not in tried) == spared


@pytest.mark.parametrize("more", [{"norm": "l2"}, {"target": 3}, {"doors": {"": "scores"}}])
def test_no_grey_is_tried_where_it_says_nothing(more: dict[str, Any]) -> None:
    assert Counter("pgd", eps=0.5) not in counters([attack("pgd", **more)])


def test_a_run_without_attacks_has_no_doubts() -> None:
    result = made()
    assert [f for name in DIAGNOSTICS.names() for f in DIAGNOSTICS.build(name).findings(Evidence(result)) if f.weight != "notes"] == []
