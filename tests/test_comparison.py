"""Two runs side by side: what is paired and what is refused, the arithmetic on runs made by hand, and the page."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy.stats import binomtest

from robustbench_lite.comparison import Comparison, Row, compare, compared
from robustbench_lite.errors import UsageError
from robustbench_lite.pairing import Run
from robustbench_lite.registry import REPORTS
from robustbench_lite.results import Condition, Result, Verdict
from robustbench_lite.stats import paired_interval
from robustbench_lite.worst import worst_case

N = 40
EVIL = "<script>alert('1 & 2')</script>\x0b"  # XML has no way to write the last
CLEAN = Condition("clean", "clean")
PGD = Condition("pgd[linf,0.1]", "attack", "pgd", "linf", 0.1, doors={"": "white box"})
FOG = Condition("fog[3]", "corruption", severity=3, corruption="fog")


def verdict(sample: str, condition: str, right: bool | None, label: Any = 0, **changed: Any) -> Verdict:
    fields: dict[str, Any] = {
        "sample_id": sample, "group": None, "condition": condition, "label": label, "clean_prediction": label,
        "prediction": 0 if right else 9, "target": None, "broken": None if right is None else not right,
        "broken_by": None if right else condition, "restart": 0,
        "reason": None, "distance": 0.1, "confidence": 0.9, "steps": 1, "forwards": 1, "backwards": 1, "precision": "fp32", "seed": 0,
        "witness": None, "gradient": 1.0,
    }  # fmt: skip
    return Verdict(**fields | changed)


def run(letter: str, right: dict[Condition, Sequence[bool | None]], *, first: int = 0, pictures: str = "", **changed: Any) -> Run:
    """A run over images `first`, `first` + 1, ...; `changed` replaces what its identity, its data or the config itself would say."""
    verdicts = [
        verdict(f"image {first + i}", condition.name, each, label=(first + i) % 2, distance=condition.eps or 0.0)
        for condition, some in right.items()
        for i, each in enumerate(some)
    ]
    worst, hardest = worst_case(list(right), verdicts)
    identity = {"goal": "first", "seed": 0, "precision": "fp32", "query_budget": None, "surrogates": [], "eot": None, "votes": 10}
    config: dict[str, Any] = {
        "identity": identity | {"storage_jpeg": None, "version": "0"},
        "model": {"name": f"model {letter}", "digest": letter},
        "data": {"name": "toys", "spec": "toys", "digest": f"d{first}", "n": len(verdicts), "class_names": None},
        "conditions": [asdict(condition) for condition in right],
        "sessions": [{"complete": True}],
        "notes": [], "created": "2026-01-01T00:00:00+00:00", "target": None, "goal": "first", "observed": {}, "stated_accuracy": None,
        "corruptions": {"published": None, "storage_jpeg": None, "frost": None, "scaled_from": None},
    }  # fmt: skip
    for key, value in changed.items():
        config[key] = {**config[key], **value} if isinstance(config.get(key), dict) else value
    result = Result(config, [*right, *worst], [*verdicts, *hardest], {}, lambda *_: None)
    return Run(letter, result, {v.sample_id: pictures + v.sample_id for v in verdicts} if pictures else {})


def some(right: int, n: int = N) -> list[bool | None]:
    """The first so many of n images are right."""
    return [i < right for i in range(n)]


def page_of(comparison: Comparison, folder: Path) -> str:
    """The page, in one line."""
    _, (file,) = REPORTS.get("comparison")(comparison, folder, ["html"])
    return " ".join(file.read_text().split())


def rows(comparison: Comparison) -> dict[str, Row]:
    (beside,) = comparison.others
    return {row.name: row for row in beside.rows}


# ------------------------------------------------------------------ the arithmetic


def test_difference_interval_p_and_flips_are_those_of_the_paired_images() -> None:
    reference = run("A", {CLEAN: some(40), PGD: [*[False] * 12, *[True] * 28]})
    other = run("B", {CLEAN: some(39), PGD: [*[True] * 10, *[False] * 5, *[True] * 25]})
    row = rows(compared([reference, other]))["pgd[linf,0.1]"]
    assert (row.all.both, row.all.only_reference, row.all.only_other, row.all.neither) == (25, 3, 10, 2)
    assert (row.all.reference.right, row.all.other.right, row.all.n) == (28, 35, 40)
    gap = row.all.difference
    assert gap.value == pytest.approx(7 / 40)
    assert (gap.low, gap.high) == paired_interval(25, 10, 3, 2)
    assert row.all.p == pytest.approx(binomtest(3, 13, 0.5).pvalue, abs=1e-12)
    assert [flip.sample_id for flip in row.flips if flip.direction == "lost"] == ["image 12", "image 13", "image 14"]
    assert [flip.sample_id for flip in row.flips if flip.direction == "gained"] == [f"image {i}" for i in range(10)]
    lost, gained = row.flips[0], row.flips[-1]
    assert (lost.prediction, lost.broken_by) == (9, "pgd[linf,0.1]"), "those of the run that is wrong"
    assert gained.broken_by == "pgd[linf,0.1]"
    assert {label: both.n for label, both in row.classes.items()} == {0: 20, 1: 20}
    assert sum(both.only_other for both in row.classes.values()) == 10


def test_p_is_adjusted_over_all_conditions_of_all_runs() -> None:
    reference = run("A", {CLEAN: some(40), PGD: some(20)})
    one = run("B", {CLEAN: some(34), PGD: some(21)})
    two = run("C", {CLEAN: some(40), PGD: some(20)})
    comparison = compared([reference, one, two])
    assert comparison.tests == 6, "clean, pgd and the worst case, twice"
    clean = comparison.others[0].rows[0]
    assert clean.all.p == pytest.approx(2 * 0.5**6)
    assert clean.adjusted == pytest.approx(6 * 2 * 0.5**6), "the smallest of six"
    assert not clean.sure
    assert rows(compared([reference, replace(one)]))["clean"].adjusted == pytest.approx(3 * 2 * 0.5**6)


def test_a_run_beside_itself_differs_nowhere() -> None:
    twice = [run(letter, {CLEAN: some(38), PGD: some(17)}, model={"name": "m", "digest": "m"}) for letter in "AB"]
    comparison = compared(twice)
    for row in rows(comparison).values():
        assert (row.all.difference.value, row.flips, row.all.p, row.adjusted, row.sure) == (0.0, [], 1.0, 1.0, False)
    assert "A and B are the same model." in comparison.others[0].remarks


def test_undecided_is_not_right_and_is_said() -> None:
    comparison = compared([run("A", {PGD: some(20)}), run("B", {PGD: [None] * 5 + [True] * 35})])
    row = rows(comparison)["pgd[linf,0.1]"]
    assert (row.all.only_reference, row.all.only_other) == (5, 20)
    assert "5 images are undecided in B and count as not right." in row.remarks


def test_what_another_attack_broke_does_not_count_as_right_in_a_refuted_row() -> None:
    weak = Condition("fgsm[linf,0.1]", "attack", "fgsm", "linf", 0.1, doors={"": "white box"})
    masked = run("A", {weak: some(38), PGD: some(3)})
    other = run("B", {weak: some(20), PGD: some(20)})
    row = rows(compared([masked, other]))["fgsm[linf,0.1]"]
    assert row.trust[0].level == "refuted"
    assert row.all.reference.right == 3, "and not 38, which would flatter it"
    assert any(remark.startswith("A is refuted: ") and "count as broken here" in remark for remark in row.remarks)


def test_the_trust_of_both_stands_beside_a_difference() -> None:
    said = rows(compared([run("A", {PGD: some(20)}), run("B", {PGD: some(25)})]))["worst[linf,0.1]"].remarks
    assert any(remark.startswith("A and B are doubtful: no attack without gradients was tried") for remark in said)


# ------------------------------------------------------------------ what is paired


def test_only_images_of_both_are_compared_and_that_is_said() -> None:
    comparison = compared([run("A", {CLEAN: some(30)}), run("B", {CLEAN: some(40)}, first=10)])
    assert rows(comparison)["clean"].all.n == 30
    assert rows(comparison)["clean"].all.reference.right == 20
    assert comparison.others[0].remarks[0] == ("30 images are in both runs, of 40 in A and 40 in B: figures here are over those alone.")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"first": 100}, "A and B share no image (40 of toys in A, 40 of toys in B): only runs on the same --data can be compared"),
        ({"first": 1}, "image 1 has the label 1 in A and 0 in B"),
        ({"pictures": "other ", "data": {"digest": "another"}}, "image 0 is another picture in A than in B"),
    ],
)
def test_other_data_are_refused_with_the_reason(changed: dict[str, Any], said: str) -> None:
    other = run("B", {CLEAN: some(40)}, **changed)
    if changed == {"first": 1}:  # the same ids, other labels
        shifted = [replace(v, label=(v.label + 1) % 2) for v in other.result.verdicts]
        other = replace(other, result=replace(other.result, verdicts=shifted))
    with pytest.raises(UsageError) as refused:
        compared([run("A", {CLEAN: some(40)}, pictures="this "), other])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_pixels_of_the_same_data_are_said_and_not_refused() -> None:
    comparison = compared([run("A", {CLEAN: some(40)}, pictures="224 "), run("B", {CLEAN: some(39)}, pictures="240 ")])
    assert any(remark.startswith("40 images came to the two models with other pixels") for remark in comparison.others[0].remarks)


def test_what_was_not_done_to_both_is_listed_and_not_compared() -> None:
    longer = Condition("pgd:steps=100[linf,0.1]", "attack", "pgd:steps=100", "linf", 0.1)
    larger = Condition("pgd[linf,0.2]", "attack", "pgd", "linf", 0.2)
    (beside,) = compared([run("A", {CLEAN: some(40), PGD: some(9), larger: some(2)}), run("B", {CLEAN: some(40), longer: some(9)})]).others
    assert [row.name for row in beside.rows] == ["clean"]
    assert list(beside.only_reference) == ["pgd[linf,0.1]", "pgd[linf,0.2]", "worst[linf,0.2]"]
    assert list(beside.only_other) == ["pgd:steps=100[linf,0.1]"]
    assert list(beside.unlike) == ["worst[linf,0.1]"], "the same name, but over other attacks"


@pytest.mark.parametrize(
    ("changed", "unlike"),
    [
        ({"identity": {"query_budget": 100}}, ["pgd[linf,0.1]", "worst[linf,0.1]"]),
        ({"corruptions": {"storage_jpeg": 85}}, ["fog[3]"]),
        ({"corruptions": {"frost": "pictures"}}, ["fog[3]"]),
    ],
)
def test_settings_that_change_what_was_done_make_another_condition(changed: dict[str, Any], unlike: list[str]) -> None:
    right = {CLEAN: some(40), FOG: some(30), PGD: some(9)}
    (beside,) = compared([run("A", right), run("B", right, **changed)]).others
    assert list(beside.unlike) == unlike
    assert not {row.name for row in beside.rows} & set(unlike)


@pytest.mark.parametrize(
    ("key", "value", "said"), [("seed", 7, "Another seed: 0 in A, 7 in B."), ("goal", "full", "Another goal: first in A")]
)
def test_other_settings_are_said(key: str, value: object, said: str) -> None:
    (beside,) = compared([run("A", {CLEAN: some(40)}), run("B", {CLEAN: some(40)}, identity={key: value})]).others
    assert any(remark.startswith(said) for remark in beside.remarks)


def test_a_worst_case_that_counts_more_attacks_says_so() -> None:
    smaller = Condition("pgd[linf,0.05]", "attack", "pgd", "linf", 0.05)
    found = rows(compared([run("A", {PGD: some(9), smaller: some(9)}), run("B", {PGD: some(9)})]))
    assert "Only A counts what was broken by pgd[linf,0.05]." in found["worst[linf,0.1]"].remarks
    assert not any(remark.startswith("Only") for remark in found["pgd[linf,0.1]"].remarks), "its own figure, which nothing refutes"
    weak = Condition("fgsm[linf,0.1]", "attack", "fgsm", "linf", 0.1, doors={"": "white box"})
    found = rows(compared([run("A", {weak: some(30), PGD: some(9)}), run("B", {weak: some(30)})]))
    assert "Only A counts what was broken by pgd[linf,0.1]." in found["fgsm[linf,0.1]"].remarks


def test_an_unfinished_run_is_compared_on_what_it_decided_and_named() -> None:
    reference, other = run("A", {CLEAN: some(40), PGD: some(20)}), run("B", {CLEAN: some(40), PGD: some(5, 25)}, sessions=[{}])
    (beside,) = compared([reference, other]).others
    assert any(remark.startswith("B is unfinished: ") for remark in beside.remarks)
    row = next(row for row in beside.rows if row.name == "pgd[linf,0.1]")
    assert (row.all.n, row.unpaired) == (25, 15)
    assert any(remark.startswith("15 images are decided in one of the two alone") for remark in row.remarks)


def test_runs_without_a_common_condition_are_refused() -> None:
    with pytest.raises(UsageError, match=r"share no condition \(clean in A; fog\[3\] in B\)"):
        compared([run("A", {CLEAN: some(40)}), run("B", {FOG: some(40)})])
    with pytest.raises(UsageError, match="a comparison takes 2 to 26 runs, got 1"):
        compare(["alone"])


# ------------------------------------------------------------------ reports


def test_the_sentence_is_of_the_hardest_ball_that_leaves_anything(tmp_path: Path) -> None:
    smaller, larger = (Condition(f"pgd[linf,{eps}]", "attack", "pgd", "linf", eps, doors={"": "white box"}) for eps in (0.05, 0.2))
    right = {smaller: some(30), PGD: some(9), larger: some(0)}
    text = page_of(compared([run("A", right), run("B", right | {PGD: some(20)})]), tmp_path)
    assert "Under worst[linf,0.1], B has 27.5 points more right than A" in text
    assert "Under worst[linf,0.05]" not in text
    assert "Under worst[linf,0.2]" not in text


def test_classes_of_a_refuted_row_are_bounds_too(tmp_path: Path) -> None:
    weak = Condition("fgsm[linf,0.1]", "attack", "fgsm", "linf", 0.1, doors={"": "white box"})
    comparison = compared([run("A", {weak: some(38), PGD: some(4)}), run("B", {weak: some(20), PGD: some(20)})])
    assert "<td>≤ 10.0</td><td>50.0</td>" in page_of(comparison, tmp_path)
    _, files = REPORTS.get("comparison")(comparison, tmp_path, ["csv"])
    lines = [row for row in csv.DictReader(io.StringIO(files[2].read_text())) if row["condition"] == weak.name]
    assert [(row["correct_reference"], row["trust_reference"]) for row in lines] == [("2", "refuted"), ("2", "refuted")]


@pytest.fixture
def hostile() -> Comparison:
    right = {Condition(f"{EVIL}[linf,0.1]", "attack", EVIL, "linf", 0.1): some(20), CLEAN: some(40), FOG: some(30)}
    names = {"class_names": [EVIL, "b"]}
    runs = [run(letter, right, model={"name": EVIL, "digest": letter}, data=names) for letter in "AB"]
    renamed = [replace(v, sample_id=EVIL + v.sample_id) for v in runs[1].result.verdicts]
    turned = [replace(v, broken=not v.broken) if v.sample_id.endswith(("7", "3")) else v for v in renamed]
    first = replace(runs[0].result, verdicts=[replace(v, sample_id=EVIL + v.sample_id) for v in runs[0].result.verdicts])
    return compared([Run("A", first), Run("B", replace(runs[1].result, verdicts=turned))])


def test_the_page_is_well_formed_escapes_names_and_asks_no_network(hostile: Comparison, tmp_path: Path) -> None:
    _, files = REPORTS.get("comparison")(hostile, tmp_path)
    text = files[0].read_text()
    ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert text.replace("http://www.w3.org/2000/svg", "").count("://") == 0
    assert "default-src 'none'; style-src 'unsafe-inline'; base-uri" in text  # nothing that slipped through could run or be fetched


def test_files_say_the_same_as_the_comparison(hostile: Comparison, tmp_path: Path) -> None:
    _, files = REPORTS.get("comparison")(hostile, tmp_path)
    assert [file.name for file in files] == ["comparison.html", "comparison.csv", "flips.csv", "classes.csv", "comparison.json"]
    found = rows(hostile)
    table = {row["condition"]: row for row in csv.DictReader(io.StringIO(files[1].read_text()))}
    assert table.keys() == found.keys()
    assert float(table["clean"]["p_holm"]) == found["clean"].adjusted
    flips = list(csv.DictReader(io.StringIO(files[2].read_text())))
    assert len(flips) == sum(len(row.flips) for row in found.values())
    document = json.loads(files[4].read_text())
    stored = {row["condition"]: row for row in document["compared"][0]["rows"]}
    assert stored["clean"]["lost_ids"] == [flip.sample_id for flip in found["clean"].flips if flip.direction == "lost"]
    assert document["p_adjusted_over"] == hostile.tests


@pytest.mark.parametrize("width", [80, 120])
def test_no_figure_is_cut_in_a_terminal(width: int, tmp_path: Path) -> None:
    comparison = compared([run("A", {CLEAN: some(40), PGD: some(0)}), run("B", {CLEAN: some(40), PGD: some(40)})])
    table, _ = REPORTS.get("comparison")(comparison, tmp_path, ["json"])
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "+100.0" in text
    assert "<.001" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert not (tmp_path / "comparison.html").exists(), "only json was asked for"
