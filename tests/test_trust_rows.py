"""How far a row can be believed: what refutes it, what makes it doubtful, what a sound one must have had."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from handmade_runs import IMAGES, attack, doubt, first, left, made, row, simple, staged

from robustbench_lite.results import Condition, Result, Verdict
from robustbench_lite.trust import Trust

Row = tuple[Condition, list[Verdict]]
HALF = first(50)


def trust(name: str, *rows: Row, **more: Any) -> Trust:
    return made(*rows, **more).trust[name]


def pgd(broken: set[str] = HALF, spec: str = "pgd") -> Row:
    """A search that broke these images at its beginning."""
    condition = attack(spec)
    quick = row(condition, broken, sorted(broken), steps=3, forwards=4, backwards=3)
    return condition, sorted([*quick, *row(condition, set(), left(broken))], key=lambda v: IMAGES.index(v.sample_id))


SQUARE = doubt("square:queries=1000", set(), left(HALF))


def test_a_row_whose_images_stood_all_that_is_asked_for_is_sound() -> None:
    believed = trust("pgd[linf,0.1]", pgd(), SQUARE)
    assert (believed.level, believed.reasons, believed.missing, believed.at_most) == ("sound", (), (), 0.5)


def test_autoattack_alone_is_enough() -> None:
    believed = made(staged({"apgd-ce": HALF})).trust
    assert {name: each.level for name, each in believed.items()} == dict.fromkeys(
        ("clean", "autoattack[linf,0.1]", "worst[linf,0.1]"), "sound"
    )


@pytest.mark.parametrize(
    ("rows", "lacks"),
    [
        ([pgd()], "no attack without gradients"),
        ([pgd()], "random points"),
        ([simple("square", HALF)], "over several steps"),
        ([simple("fgsm", HALF), SQUARE], "over several steps"),
    ],
)
def test_what_was_not_tried_makes_a_row_doubtful(rows: list[Row], lacks: str) -> None:
    for name in (rows[0][0].name, "worst[linf,0.1]"):
        believed = trust(name, *rows)
        assert believed.level == "doubtful"
        assert any(lacks in sentence for sentence in believed.missing)


@pytest.mark.parametrize(
    ("goal", "steps", "enough"), [("first", 9, False), ("first", 10, True), ("full", 99, False), ("closest", 100, True)]
)
def test_gradients_must_be_followed_for_long_enough(goal: str, steps: int, enough: bool) -> None:
    condition = attack("pgd", goal=goal)
    quick = row(condition, HALF, sorted(HALF), steps=1, forwards=1, backwards=1)
    slow = row(condition, set(), left(HALF), steps=steps, forwards=steps + 1)
    found = trust("pgd[linf,0.1]", (condition, [*quick, *slow]), simple("square", HALF))
    assert found.level == ("sound" if enough else "doubtful")
    assert [f"for {steps} steps" in reason for reason in found.reasons] == ([] if enough else [True])


def test_a_short_search_on_scores_is_no_search() -> None:
    condition = attack("square:queries=1000", kind="doubt")
    short = condition, row(condition, set(), left(HALF), forwards=900)
    assert trust("pgd[linf,0.1]", pgd(), short).level == "doubtful"


@pytest.mark.parametrize(("eot", "queries"), [(None, 20_000), (5, 5_000)])
def test_answers_that_are_averaged_are_no_further_queries(eot: int | None, queries: int) -> None:
    config = {"observed": {"random-answers": {"random": True}}, "identity": {"eot": eot}}
    for forwards, lacks in ((queries - 1, True), (queries, False)):
        condition = attack("square:queries=1000", kind="doubt")
        searched = condition, row(condition, set(), left(HALF), forwards=forwards)
        assert bool(trust("pgd[linf,0.1]", pgd(), searched, config=config).missing) == lacks


def test_a_search_that_was_broken_off_is_one_for_the_images_that_it_met() -> None:
    believed = trust("pgd[linf,0.1]", pgd(), doubt("square:queries=1000", set(), left(HALF)[:-1]))
    assert believed.level == "doubtful"
    assert "no attack without gradients" in believed.missing[0]


def test_a_ball_of_its_own_needs_attacks_of_its_own() -> None:
    wide = attack("square", 0.2)
    assert trust("pgd[linf,0.1]", pgd(), (wide, row(wide, HALF))).level == "doubtful"


def test_one_witness_of_another_attack_refutes() -> None:
    believed = made(pgd(), doubt("square:queries=1000", first(1, 50), left(HALF))).trust
    assert (believed["pgd[linf,0.1]"].level, believed["pgd[linf,0.1]"].at_most) == ("refuted", 0.49)
    assert (believed["worst[linf,0.1]"].level, believed["worst[linf,0.1]"].at_most) == ("sound", 0.49), "one image may be luck"


def test_what_gradients_miss_throughout_leaves_the_worst_case_doubtful() -> None:
    believed = made(pgd(), doubt("square:queries=1000", first(10, 50), left(HALF))).trust
    assert believed["worst[linf,0.1]"].level == "doubtful"
    assert "square:queries=1000 10" in believed["worst[linf,0.1]"].reasons[0]


def test_a_witness_in_a_smaller_ball_refutes_and_one_in_a_larger_does_not() -> None:
    small, large = attack("square", 0.05), attack("square", 0.2)
    assert trust("pgd[linf,0.1]", pgd(), SQUARE, (small, row(small, first(60)))).level == "refuted"
    assert trust("pgd[linf,0.1]", pgd(), SQUARE, (large, row(large, first(60)))).level == "sound"


def test_another_norm_refutes_nothing() -> None:
    round_ball = attack("square", norm="l2")
    other = Condition(**{**vars(round_ball), "name": "square[l2,0.1]"})
    assert trust("pgd[linf,0.1]", pgd(), SQUARE, (other, row(other, first(60)))).level == "sound"


def test_where_no_image_is_left_nothing_is_to_be_doubted() -> None:
    believed = made(pgd(set(IMAGES))).trust
    assert (believed["pgd[linf,0.1]"].level, believed["pgd[linf,0.1]"].at_most) == ("sound", 0.0)


def test_an_undecided_image_is_not_right() -> None:
    condition, verdicts = pgd()
    unsure = [*verdicts[:-1], replace(verdicts[-1], broken=None)]
    result: Result = made((condition, unsure), SQUARE)
    assert result.trust["pgd[linf,0.1]"].at_most == 0.49


def test_every_row_of_the_table_says_how_far_it_goes() -> None:
    table = made(pgd(), doubt("square:queries=1000", first(10, 50), left(HALF)), config={"model": {"name": "m"}}).table
    assert table["trust"].tolist() == ["sound", "refuted", "doubtful"]
    assert table["reasons"].iloc[0] == ""
    assert "10 have a witness" in table["reasons"].iloc[1]


def test_a_finite_set_lacks_nothing_once_all_of_it_was_tried() -> None:
    whole, other = (replace(attack("noise", 1.0, norm="handling"), name=spec, attack=spec) for spec in ("clumsy", "somebodys"))
    assert not made((whole, row(whole, set()))).trust[whole.name].missing
    assert made((other, row(other, set()))).trust[other.name].missing
