"""What a gate writes: complete, valid where a schema or a reader says so, the same every time, and safe with hostile names."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
import unicodedata
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from junitparser import JUnitXml
from rich.console import Console

from robustbench_lite.diagnostics import Finding
from robustbench_lite.errors import UsageError
from robustbench_lite.gate.rulings import Judgement, Outcome, Ruling
from robustbench_lite.holding import OURS
from robustbench_lite.registry import REPORTS
from robustbench_lite.results import Condition, Result, Verdict
from robustbench_lite.worst import worst_case

HOSTILE = "a|b <script>alert(1)</script> & \"q\" 'r'\n## x `y` [z](http://a) ]]> \x00\x1b[31m\x9b\ud800\uffff %,: é"
FILES = ("gate-json", "gate-junit", "gate-sarif", "gate-markdown", "gate-badge")
FLOOR = Ruling(
    "pgd.accuracy >= 0.45", "pgd[linf,0.1]", "fail", "3 of 8 images withstand it: 0.375 (0.111–0.711), below 0.45", True, 8, 8, 0.375,
    0.1111, 0.7108, 0.45, None, {"p": 0.01, "b": 5.0, "c": 1.0}, 7,
)  # fmt: skip
REGRESSION = Ruling(
    "pgd.accuracy no_worse_than baseline by 0.02", "pgd[linf,0.1]", "inconclusive", "about 1,400 images would decide", False, 4, 8, -0.01,
    -0.05, 0.02, -0.02, 1400, {"p": 0.3}, 8,
)  # fmt: skip
BELIEF = Ruling("findings: none of [refuted]", "", "invalid", "the gradients are zero", False, line=9)
CLEAN = Ruling("clean.accuracy >= 0.5", "clean", "pass", "8 of 8 images: 1.0 (0.688–1.0)", True, 8, 8, 1.0, 0.6877, 1.0, 0.5, line=6)
EVERY = (CLEAN, FLOOR, REGRESSION, BELIEF)


def verdict(number: int, condition: str, broken: bool) -> Verdict:
    return Verdict(
        f"image {number}", None, condition, 0, 0, int(broken), None, broken, "pgd" if broken else None, 0, None, 0.1, 0.9, 10, 11, 10,
        "fp32", 0, None,
    )  # fmt: skip


def judged(
    folder: Path | None, *rulings: Ruling, model: str = "toy", settings: str = "robust-eval.toml", notes: tuple[str, ...] = ()
) -> Any:
    """A gate over eight images, of which pgd broke five, with one finding about that row."""
    conditions = [Condition("clean", "clean"), Condition("pgd[linf,0.1]", "attack", "pgd", "linf", 0.1, doors={"pgd": "white box"})]
    verdicts = [verdict(i, "clean", False) for i in range(8)] + [verdict(i, "pgd[linf,0.1]", i < 5) for i in range(8)]
    more, worst = worst_case(conditions, verdicts)
    config = {
        "model": {"name": model, "recipe": None, "digest": "9f" * 32},
        "data": {"name": "toys", "digest": "77" * 32, "n": 8, "limit": None},
        "versions": {"robustbench-lite": "0.1.0"}, "created": "2026-01-02T03:04:05+00:00", "command": "robust-eval gate", "seed": 0,
    }  # fmt: skip
    result = Result(config, conditions + more, verdicts + worst, {"pgd[linf,0.1]": 1.5}, lambda *_: None, folder)
    finding = Finding(
        "zero-gradients", "doubts", ("pgd[linf,0.1]",), "2 of 8", "weak", (), {"share": 0.25, "ratio": math.inf}, ("image 1",)
    )
    result.__dict__["findings"] = [finding]  # as computed: what the checks say is not what is tested here
    return Judgement(rulings or EVERY, result, settings, 0.05, notes)


def text(name: str, judgement: Judgement) -> str:
    """What a report writes, as one text."""
    made = REPORTS.get(name)(judgement)
    return "".join(path.read_text(encoding="utf-8") for path in (made if isinstance(made, list) else [made]))


def shown(judgement: Judgement, width: int = 80) -> str:
    written = io.StringIO()
    Console(width=width, file=written, color_system=None).print(REPORTS.get("gate-terminal")(judgement))
    return written.getvalue()


@pytest.mark.parametrize("name", FILES)
def test_the_same_judgement_gives_the_same_bytes_in_a_file_that_belongs_to_the_run(tmp_path: Path, name: str) -> None:
    first = text(name, judged(tmp_path))
    assert text(name, judged(tmp_path)) == first
    assert {path.name for path in tmp_path.iterdir()} <= set(OURS)
    with pytest.raises(UsageError, match="kept in memory"):
        REPORTS.get(name)(judged(None))


def test_json_holds_every_field_of_every_ruling_and_the_evidence(tmp_path: Path) -> None:
    said = json.loads(text("gate-json", judged(tmp_path, notes=("stopped early",))))
    assert (said["schema_version"], said["outcome"], said["exit_code"], said["alpha"]) == (1, "fail", 1, 0.05)
    assert said["rulings"] == [json.loads(json.dumps(asdict(ruling))) for ruling in EVERY]
    assert said["settings"] == "robust-eval.toml"
    assert said["notes"] == ["stopped early"]
    assert [row["condition"] for row in said["rows"]] == ["clean", "pgd[linf,0.1]", "worst[linf,0.1]"]
    row = said["rows"][1]
    assert (row["n"], row["correct"], row["accuracy"], row["severity"], row["trust"]) == (8, 3, 0.375, None, "doubtful")
    assert row["reasons"][0] == "2 of 8"
    assert len(row["missing"]) == 2
    assert said["findings"][0]["figures"] == {"share": 0.25, "ratio": "inf"}
    assert said["run"]["folder"] == str(tmp_path)
    assert (said["run"]["model"]["digest"], said["run"]["versions"]) == ("9f" * 32, {"robustbench-lite": "0.1.0"})


def test_junit_is_read_by_a_reader_as_it_was_meant(tmp_path: Path) -> None:
    text("gate-junit", judged(tmp_path))
    (suite,) = JUnitXml.fromfile(str(tmp_path / "gate-junit.xml"))
    assert (suite.name, suite.tests, suite.failures, suite.errors, suite.skipped) == ("toy on toys", 4, 1, 1, 1)
    cases = {case.name: case for case in suite}
    assert list(cases) == [ruling.rule for ruling in EVERY]
    assert not cases[CLEAN.rule].result
    (failure,) = cases[FLOOR.rule].result
    assert (failure.__class__.__name__, failure.message) == ("Failure", FLOOR.message)
    for figure in ("n: 8", "estimate: 0.3750", "interval: 0.1111–0.7108", "threshold: 0.4500", "p: 0.01", "b: 5", "c: 1", "blocks: yes"):
        assert figure in failure.text.splitlines()
    assert [case.result[0].__class__.__name__ for case in list(suite)[2:]] == ["Skipped", "Error"]
    assert "images that would probably decide it: 1400" in cases[REGRESSION.rule].result[0].text
    assert [case.time for case in suite] == [0, 1.5, 0, 0]  # of one row, on which two rules rest
    assert {p.name: p.value for p in suite.properties()}["model_digest"] == "9f" * 32


def test_sarif_has_what_did_not_pass_with_its_line_and_a_lasting_fingerprint(tmp_path: Path) -> None:
    (run,) = json.loads(text("gate-sarif", judged(tmp_path)))["runs"]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == [ruling.rule for ruling in EVERY]
    assert [(r["ruleId"], r["ruleIndex"], r["level"]) for r in run["results"]] == [
        (FLOOR.rule, 1, "error"),
        (REGRESSION.rule, 2, "note"),
        (BELIEF.rule, 3, "error"),
    ]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "robust-eval.toml"}, "region": {"startLine": 7}}
    assert run["invocations"][0]["exitCode"] == 1
    marks = [r["partialFingerprints"]["robustEvalCell/v1"] for r in run["results"]]
    assert len(set(marks)) == 3
    later = judged(tmp_path, *(replace(r, estimate=0.3, message="another", line=20) for r in EVERY))
    (again,) = json.loads(text("gate-sarif", later))["runs"]
    assert [r["partialFingerprints"]["robustEvalCell/v1"] for r in again["results"]] == marks


def test_sarif_says_warning_for_what_is_undecided_and_blocks_and_names_no_place_without_a_file(tmp_path: Path) -> None:
    judgement = judged(tmp_path, replace(REGRESSION, blocking=True), settings="")
    (run,) = json.loads(text("gate-sarif", judgement))["runs"]
    assert [(r["level"], "locations" in r) for r in run["results"]] == [("warning", False)]
    assert run["invocations"][0] == {"executionSuccessful": True, "exitCode": 3}


def test_sarif_tools_counts_the_same(tmp_path: Path) -> None:
    text("gate-sarif", judged(tmp_path, CLEAN, FLOOR, replace(REGRESSION, rule=HOSTILE, message=HOSTILE), BELIEF))
    done = subprocess.run(
        [sys.executable, "-m", "sarif", "summary", str(tmp_path / "gate.sarif")], capture_output=True, text=True, check=True
    )
    assert re.findall(r"^(\w+): (\d+)$", done.stdout, re.M) == [("error", "2"), ("warning", "0"), ("note", "1")]


@pytest.mark.parametrize("inside", [True, False])
def test_places_are_given_from_the_root_of_the_checkout(tmp_path: Path, inside: bool) -> None:
    folder = tmp_path / "part of it"
    folder.mkdir()
    if inside:
        (tmp_path / ".git").mkdir()
    settings = str(folder / "robust-eval.toml")
    (run,) = json.loads(text("gate-sarif", judged(tmp_path, FLOOR, settings=settings)))["runs"]
    uri = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == ("part%20of%20it/robust-eval.toml" if inside else settings.replace(" ", "%20"))
    (line,) = REPORTS.get("gate-annotations")(judged(tmp_path, FLOOR, settings=settings))
    assert f"file={'part of it/robust-eval.toml' if inside else settings}," in line


def test_markdown_has_the_table_first_and_reads_as_written(tmp_path: Path) -> None:
    lines = text("gate-markdown", judged(tmp_path, notes=("stopped *early*",))).splitlines()
    assert lines[0] == "## Robustness gate: ❌ fail"
    assert lines[2] == "| rule | outcome | estimate | interval | threshold | images |"
    assert lines[5] == ("| pgd.accuracy &gt;= 0.45 (pgd\\[linf,0.1\\]) | ❌ fail | 0.3750 | 0.1111–0.7108 | 0.4500 | 8 |")
    assert lines[6].endswith("| 4 of 8 |")
    assert "- stopped \\*early\\*" in lines
    assert any(line.startswith("- **pgd\\[linf,0.1\\]**: doubtful; 2 of 8; ") for line in lines)


def test_markdown_stays_under_a_mebibyte_and_says_that_it_was_cut(tmp_path: Path) -> None:
    whole = text("gate-markdown", judged(tmp_path, *[FLOOR] * 500))
    assert "did not fit" not in whole
    assert whole.count("| ❌ fail |") == 500
    cut = text("gate-markdown", judged(tmp_path, *[replace(FLOOR, message="é" * 500)] * 5000))
    assert 900_000 < len(cut.encode()) < 1024 * 1024
    assert cut.endswith("\n\nThe rest did not fit: gate.json has it.\n")
    endless = text("gate-markdown", judged(tmp_path, replace(FLOOR, rule="x" * 3_000_000)))
    assert endless.startswith("## Robustness gate: ❌ fail\n")
    assert len(endless) < 1000


def test_hostile_names_stay_text_everywhere(tmp_path: Path) -> None:
    rulings = [replace(ruling, rule=HOSTILE + ruling.outcome, message=HOSTILE) for ruling in EVERY]
    judgement = judged(tmp_path, *rulings, model=HOSTILE, settings=HOSTILE, notes=(HOSTILE,))
    for name in FILES:
        made = text(name, judgement)
        assert not [c for c in made if unicodedata.category(c) in ("Cc", "Cs", "Cn") and c != "\n"]
    safe = re.sub("[\x00\x1b\x9b\ud800\uffff]", "\ufffd", HOSTILE)
    (suite,) = ElementTree.parse(tmp_path / "gate-junit.xml").getroot()
    assert suite.get("name") == f"{safe} on toys"
    assert [case.get("name") for case in suite.findall("testcase")] == [safe + ruling.outcome for ruling in EVERY]
    assert json.loads((tmp_path / "gate.json").read_text())["rulings"][0]["message"] == HOSTILE
    lines = (tmp_path / "gate.md").read_text(encoding="utf-8").splitlines()
    cells = [re.split(r"(?<!\\)\|", line) for line in lines if line.startswith("| ")]
    assert {len(row) for row in cells} == {8}
    assert sum(line.startswith("#") for line in lines) == 2
    assert not [line for line in lines if re.search(r"<|(?<!\\)[`\[*](?!\*)(?<!\*\*)", line.replace("**", ""))]
    assert not {"\x1b", "\x9b", "\r"} & set(
        shown(judged(tmp_path, *(replace(r, rule=r.rule + "\r") for r in rulings), model=HOSTILE + "\r"))
    )


def test_annotations_are_ten_at_most_the_gravest_first(tmp_path: Path) -> None:
    few = REPORTS.get("gate-annotations")(judged(tmp_path, REGRESSION, CLEAN, BELIEF, FLOOR))
    assert few == [
        f"::error file=robust-eval.toml,line=7,title=pgd.accuracy >= 0.45::fail: {FLOOR.message}",
        "::error file=robust-eval.toml,line=9,title=findings%3A none of [refuted]::invalid: the gradients are zero",
        "::warning file=robust-eval.toml,line=8,title=pgd.accuracy no_worse_than baseline by 0.02"
        "::inconclusive: about 1,400 images would decide",
    ]
    ten = REPORTS.get("gate-annotations")(judged(tmp_path, *[FLOOR] * 10))
    assert (len(ten), ten[-1]) == (10, ten[0])
    many = REPORTS.get("gate-annotations")(judged(tmp_path, *[REGRESSION] * 9, *[FLOOR] * 3))
    assert len(many) == 10
    assert [line.startswith("::error") for line in many[:4]] == [True, True, True, False]
    assert many[-1].endswith("::3 more rules did not pass: see gate.md")


def test_an_annotation_is_one_line_and_ends_where_it_should(tmp_path: Path) -> None:
    ruling = replace(FLOOR, rule="a,b:c%\r\n::error::d", message="50 %\r\n::error::boo")
    (line,) = REPORTS.get("gate-annotations")(judged(tmp_path, ruling, settings="a,b.toml"))
    assert line == ("::error file=a%2Cb.toml,line=7,title=a%2Cb%3Ac%25%0D%0A%3A%3Aerror%3A%3Ad::fail: 50 %25%0D%0A::error::boo")
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("outcome", ["pass", "fail", "inconclusive", "invalid"])
def test_the_badge_says_the_outcome_and_needs_no_network(tmp_path: Path, outcome: Outcome) -> None:
    text("gate-badge", judged(tmp_path, replace(FLOOR, outcome=outcome)))
    said = json.loads((tmp_path / "badge.json").read_text())
    assert (said["schemaVersion"], said["label"], said["message"], said["isError"]) == (1, "robustness", outcome, outcome == "invalid")
    drawing = (tmp_path / "badge.svg").read_text()
    assert [word.text for word in ElementTree.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")] == ["robustness", outcome]
    assert f"#{said['color']}" in drawing
    assert re.findall(r"\w+://[^\"]*", drawing) == ["http://www.w3.org/2000/svg"]


def test_the_terminal_table_is_whole_at_80_columns(tmp_path: Path) -> None:
    said = shown(judged(tmp_path, *EVERY, notes=("stopped early",)))
    assert max(map(len, said.splitlines())) <= 80
    assert "…" not in said
    for words in ("0.1111–0.7108", "-0.0500–0.0200", "4 of 8", "inconclusive: pgd.accuracy no_worse_than", "note: stopped early"):
        assert words in said
    assert said.splitlines()[-1] == "gate: FAIL, a rule is broken (exit code 1; each bound one-sided at 95 %)"
    assert "inconclusive, which blocks: " in shown(judged(tmp_path, replace(REGRESSION, blocking=True)))
