"""Rules as text: what is read, and what is refused in which words."""

from __future__ import annotations

import pytest
from judged_run import condition

from robustbench_lite.errors import BadSpec, UsageError
from robustbench_lite.gate.rules import Bound, NoneOf, NoWorse, Rule, parse, row_of

ROWS = [
    "clean",
    "fog[3]",
    "fog[5]",
    "pgd[linf,0.1]",
    "pgd:steps=100[linf,0.1]",
    "square[linf,0.1]",
    "square[linf,0.2]",
    "fgsm:steps=2[l2,1]",
]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("pgd.accuracy >= 0.45", Bound("pgd.accuracy >= 0.45", 7, "pgd", "accuracy", ">=", 0.45)),
        ("  pgd[linf,8/255].accuracy>.4 ", Bound("pgd[linf,8/255].accuracy>.4", 7, "pgd[linf,8/255]", "accuracy", ">", 0.4)),
        ("fog[3].accuracy < 1", Bound("fog[3].accuracy < 1", 7, "fog[3]", "accuracy", "<", 1.0)),
        ("pgd:step=.1[l2,1].accuracy >= 0", Bound("pgd:step=.1[l2,1].accuracy >= 0", 7, "pgd:step=.1[l2,1]", "accuracy", ">=", 0)),
        ("corruptions.mce <= 1.2", Bound("corruptions.mce <= 1.2", 7, "corruptions", "mce", "<=", 1.2)),
        ("calibration.nll <= 200", Bound("calibration.nll <= 200", 7, "calibration", "nll", "<=", 200)),
        ("calibration.brier <= 1.5", Bound("calibration.brier <= 1.5", 7, "calibration", "brier", "<=", 1.5)),
        ("fab.accuracy no_worse_than baseline by 0.05", NoWorse("fab.accuracy no_worse_than baseline by 0.05", 7, "fab", 0.05)),
        ("worst.accuracy no_worse_than baseline", NoWorse("worst.accuracy no_worse_than baseline", 7, "worst", 0.02)),
        ("findings: none of [refuted,  witnessed]", NoneOf("findings: none of [refuted, witnessed]", 7, ("refuted", "witnessed"))),
    ],
)  # fmt: skip
def test_rules_are_read(text: str, rule: Rule) -> None:
    assert parse(text, 7) == rule


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pgd.accuracy >= 45", "45 is no share: 45 % is 0.45"),
        ("pgd.accuracy >= 45%", "45% is no share: 45 % is 0.45"),
        ("pgd.accuracy no_worse_than baseline by 2", "2 is no share: 2 % is 0.02"),
        ("corruptions.mce <= 80", "80 is no share: 80 % is 0.8"),
        ("calibration.rms <= 10", "10 is no share: 10 % is 0.1"),
        ("pgd.accuracy >= 450", r"must be a number in \[0, 1\], got 450"),
        ("pgd.accuracy >= -0.1", r"must be a number in \[0, 1\], got -0.1"),
        ("pgd.accuracy >= nan", r"must be a number in \[0, 1\], got nan"),
        ("calibration.nll <= inf", "must be a number of 0 or more, got inf"),
        ("pgd.accuracy >= a half", "'a half' is not a number"),
        ("pgd.accuracy == 0.4", "cannot be read: write one of"),
        ("pgd.acuracy >= 0.4", "pgd has no figure 'acuracy': did you mean 'accuracy'"),
        ("pgd.ece <= 0.4", r"calibration.METRIC is of the clean images"),
        ("calibration.rns <= 0.4", "calibration has no figure 'rns': did you mean 'rms'"),
        ("corruptions.accuracy >= 0.4", "write corruptions.mean_error"),
        ("pgd >= 0.4", "'pgd' names no figure"),
        ("calibration.rms no_worse_than baseline by 0.1", "only accuracy can be compared"),
        ("pgd.accuracy no_worse_than baseline by 0", "no number of images shows that nothing at all was lost"),
        ("pgd.accuracy no_worse_than basline by 0.1", "cannot be read"),
        ("findings: none of [refutd]", "there is no finding 'refutd': did you mean 'refuted'"),
        ("findings: none of []", "the list is empty"),
        ("", "cannot be read"),
    ],
)
def test_what_is_no_rule_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadSpec, match=words):
        parse(text)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ("clean", "clean"), ("fog[3]", "fog[3]"), ("pgd", "pgd[linf,0.1]"), ("pgd[linf, 0.1]", "pgd[linf,0.1]"),
        ("pgd:steps=100", "pgd:steps=100[linf,0.1]"), ("fgsm", "fgsm:steps=2[l2,1]"), ("square[linf,0.2]", "square[linf,0.2]"),
    ],
)  # fmt: skip
def test_a_row_is_found_by_the_shortest_name_that_is_clear(row: str, name: str) -> None:
    assert row_of(parse(f"{row}.accuracy >= 0.5"), map(condition, ROWS)).name == name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("square", r"square fits several rows: write one of square\[linf,0.1\], square\[linf,0.2\]"),
        ("fog", r"fits several rows: write one of fog\[3\], fog\[5\]"),
        ("sqare", "no such condition 'sqare': did you mean 'square'"),
        ("pgd[linf,0.3]", r"no such condition .* The gate evaluates clean, fog\[3\]"),
    ],
)
def test_a_row_that_is_not_there_or_not_clear_is_refused(row: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        row_of(parse(f"{row}.accuracy >= 0.5"), map(condition, ROWS))  # type: ignore[arg-type]
