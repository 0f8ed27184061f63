"""Scenarios of the user's own: what a file may hold, and one clear line for every mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustbench_lite.errors import UsageError
from robustbench_lite.scenario_files import mistake_in, read_scenario, scenario_of
from robustbench_lite.scenarios import FROM_SURROGATES, PublishedRow, Row, scenario_named, scenario_names

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples" / "scenarios"
GOOD = """
title = "T"
domain = "D"
who = "W"
can = "C"
happens = "H"
goal = "missed-disease:positive=1"
sensitivity = 0.8
[[rows]]
name = "first"
knowledge = "white box"
means = "pgd:steps=3"
norm = "l2"
eps = "8/255"
[[rows]]
name = "second"
knowledge = "nothing"
means = "fog:severity=2"
[published]
source = "a paper"
setting = "others' images"
rows = [{row = "first", accuracy = 0.1, auroc = 0.2, confidence = 0.9}]
"""


@pytest.fixture
def complaint(tmp_path: Path) -> Callable[..., str]:
    """What is said of GOOD with one text put in another's place."""

    def read(old: str, new: str, name: str = "own.toml") -> str:
        assert old in GOOD
        path = tmp_path / name
        path.write_text(GOOD.replace(old, new, 1))
        with pytest.raises(UsageError) as error:
            read_scenario(path)
        said = str(error.value)
        assert "\n" not in said
        assert said.startswith(f"{path}")
        return said.removeprefix(f"{path}").lstrip(": ")

    return read


def test_a_file_says_all_that_a_registered_scenario_does(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(GOOD)
    name, read = scenario_of(tmp_path / "own.toml")
    assert name == "own"
    assert (read.title, read.domain, read.who, read.can, read.happens) == ("T", "D", "W", "C", "H")
    assert (read.goal, read.sensitivity, read.data, read.target) == ("missed-disease:positive=1", 0.8, None, "missed-disease:positive=1")
    assert read.rows == (Row("first", "white box", "pgd:steps=3", "l2", 8 / 255), Row("second", "nothing", "fog:severity=2"))
    assert read.norms == ("l2",)
    assert read.usual_eps == {"l2": 8 / 255}
    assert read.published is not None
    assert read.published.rows == [PublishedRow("first", 0.1, 0.2, 0.9)]


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_the_examples_are_right(path: Path) -> None:
    assert read_scenario(path).rows


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('who = "W"', 'whom = "W"', "the field 'who' is missing; unknown field 'whom': did you mean 'who'?"),
        ('norm = "l2"', 'nrom = "l2"', "unknown field 'rows[1].nrom': did you mean 'norm'"),
        ('"white box"', '"whitebox"', "rows[1].knowledge: unknown knowledge 'whitebox': did you mean 'white box'?"),
        ('"missed-disease:positive=1"', '"mised-disease"', "goal: unknown target 'mised-disease': did you mean 'missed-disease'?"),
        ('"missed-disease:positive=1"', '"missed-disease:positve=1"', "goal: missed-disease has no parameter 'positve'"),
        ('"pgd:steps=3"', '"pdg:steps=3"', "row 'first': unknown attack 'pdg': did you mean"),
        ('"pgd:steps=3"', '"pgd:steps=x"', "row 'first': pgd:steps=x: input should be a valid integer"),
        ('"fog:severity=2"', '"fog:severity=9"', "row 'second': severity must be 1..5, got 9"),
        ('"fog:severity=2"', '"fog:severity=2"\neps = 0.1', "row 'second': a corruption has no norm and no eps"),
        ('knowledge = "nothing"', 'knowledge = "scores"', "row 'second': fog:severity=2 is a corruption, which nobody aims"),
        ('"8/255"', '"much"', "rows[1].eps: 'much' is not a number (write 0.03 or 8/255)"),
        ('"8/255"', "-1", "rows[1].eps: input should be greater than 0"),
        ('"8/255"', "nan", "rows[1].eps: input should be"),
        ('norm = "l2"', 'norm = "l7"', "row 'first': pgd:steps=3 has no norm 'l7': it has linf, l2, l1, l0"),
        ('name = "second"', 'name = "first"', "two rows are called 'first'"),
        ("sensitivity = 0.8", "sensitivity = 80", "sensitivity: input should be less than 1"),
        ('row = "first"', 'row = "frist"', "published: no row is called 'frist': did you mean 'first'?"),
        ("accuracy = 0.1", "accuracy = 91", "published.rows[1].accuracy: input should be less than or equal to 1"),
        ('"white box"', '"scores"', "row 'first': pgd:steps=3 needs the model itself, and the attacker has only its scores"),
        ('knowledge = "white box"\nmeans = "pgd:steps=3"', 'knowledge = "decisions"\nmeans = "square"', "has only its decisions"),
        ('title = "T"', 'title = "T', "is no TOML: Illegal character"),
    ],
)  # fmt: skip
def test_every_mistake_is_one_clear_line(complaint: Callable[..., str], old: str, new: str, said: str) -> None:
    assert said in complaint(old, new)


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("title: T\ndomain: D\nwho: W\ncan: C\nhappens: H\nrows: []\n")
    with pytest.raises(UsageError, match=r"rows: list should have at least 1 item"):
        read_scenario(path)
    path.write_text("")
    with pytest.raises(UsageError, match="it holds no fields"):
        read_scenario(path)


def test_a_mistake_of_yaml_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "own.yml"
    path.write_text("title: T\nrows: [a\ndomain: D\n")
    with pytest.raises(UsageError, match=r"is no YAML: .* \(at line 3, column"):
        read_scenario(path)


@pytest.mark.parametrize(("name", "content", "said"), [("no.toml", None, "cannot be read"), ("s.json", b"{}", "is no scenario file"),
                                                       ("b.toml", b"\xff\xfe", "is no text in UTF-8")])  # fmt: skip
def test_what_is_no_file_of_ours(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=said):
        read_scenario(tmp_path / name)


def test_a_name_that_is_none() -> None:
    with pytest.raises(UsageError, match="unknown scenario 'finlayson-crx': did you mean 'finlayson-cxr'"):
        scenario_of("finlayson-crx")
    with pytest.raises(UsageError, match="unknown scenario 'pgd'"):
        scenario_of("pgd")


@pytest.mark.parametrize("name", scenario_names())
def test_every_row_of_every_registered_scenario_can_be_made(name: str) -> None:
    scenario: Any = scenario_named(name)
    assert [mistake_in(row) for row in scenario.rows] == [None] * len(scenario.rows)
    assert all(row.accident or row.eps is not None for row in scenario.rows)
    for norm in scenario.norms:
        assert scenario.parts(norm)
    rows = [row.name for row in scenario.rows]
    assert len(rows) == len(set(rows))
    assert all(each.row in rows for each in (scenario.published.rows if scenario.published else ()))
    assert all(len(text.split(".")) >= 2 for text in (scenario.who, scenario.can, scenario.happens))


def test_every_kind_of_knowledge_and_means_is_in_some_scenario() -> None:
    rows = [row for name in scenario_names() for row in scenario_named(name).rows]
    assert {row.knowledge for row in rows} == {"white box", *FROM_SURROGATES, "scores", "decisions", "nothing"}
    assert {row.means.partition(":")[0] for row in rows} >= {"pgd", "patch", "own-patch", "natural-patch", "clumsy", "square"}
    assert any(row.accident for row in rows)
    assert {scenario_named(name).goal for name in scenario_names()} >= {None, "missed-disease", "upcoding", "trial-eligibility"}
