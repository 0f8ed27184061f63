"""A figure that is known to be too high is shown by no report as if it were not; the reasons are, everywhere."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from report_run import EVIL, FGSM, KNOWN, PGD, WORST, believed, example, in_terminal, page, refuted, texts, tree

from robustbench_lite.diagnostics import Finding
from robustbench_lite.registry import REPORTS
from robustbench_lite.results import Result


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, str]:
    result = refuted(tmp_path_factory.mktemp("refuted"))
    return result, page(result)


def test_the_example_is_what_it_says() -> None:
    rows = refuted(None).table.set_index("condition")
    assert (rows.loc[FGSM, "correct"], rows.loc[FGSM, "accuracy"], rows.loc[FGSM, "at_most"]) == (14, 0.7, 0.4)
    assert rows.loc[[FGSM, PGD, WORST], "trust"].tolist() == ["refuted", "doubtful", "doubtful"]


@pytest.mark.parametrize("way", ["terminal", "notebook", "html", "markdown", "junit"])
def test_a_refuted_accuracy_is_shown_nowhere_and_its_bound_is(told: tuple[Result, str], way: str) -> None:
    result, html = told
    if way == "html":
        text = texts(tree(html))
    elif way == "terminal":
        text = in_terminal(result)
    elif way == "notebook":
        text = texts(tree(f"<div>{result._repr_html_()}</div>"))
    else:
        text = REPORTS.get(way)(result)[0].read_text(encoding="utf-8")
    assert "70.0" not in text  # the accuracy
    assert "48.1" not in text  # the lower end of its interval
    assert re.search(r"≤ 40\.0 %", text)
    assert "(14/20)" in text
    assert re.search(r"40\.0 % \?", text)  # pgd
    assert "90.0 %" in text  # clean, which is sound
    assert "90.0 % ?" not in text
    assert "six have a witness" in text.lower()


def test_signs_are_explained_only_where_there_are_any(told: tuple[Result, str]) -> None:
    for text in (told[1], in_terminal(told[0]), told[0]._repr_html_()):
        assert "≤ refuted:" in text
        assert "? doubtful:" in text
    for text in (texts(tree(page(example(told[0].folder))).find("body/main") or tree("<p/>")), in_terminal(example(None))):
        assert "90.0 %" in text
        assert "refuted" not in text
        assert "doubtful" not in text


def test_the_summary_says_how_far_it_can_be_believed(told: tuple[Result, str]) -> None:
    (lead,) = [texts(p) for p in tree(told[1]).iter("p") if p.get("class") == "lead"]
    assert "on 40.0 % under all attacks tried of size 4/255 in linf; that may be too high" in lead
    alone = Finding("witnessed", "refutes", (WORST,), "s", "m", samples=("image,019",))
    text = texts(tree(page(believed(example(told[0].folder, undecided=0), [alone]))))
    assert "on at most 35.0 % under all attacks tried" in text
    assert "other witnesses refute" in text
    refuted(told[0].folder)


def test_the_panel_has_the_findings_what_was_tried_and_what_is_missing(told: tuple[Result, str]) -> None:
    document = tree(told[1])
    first, second, third = document.iter("article")
    assert [a.get("class") for a in (first, second, third)] == ["finding refutes", "finding doubts", "finding notes"]
    assert "Six have a witness. The figure is too high." in texts(first)
    assert all(name in texts(first) for name in (FGSM, *KNOWN))
    assert f"Gradients vanish {EVIL}. The search was blind." in texts(second)
    assert "--attack bpda --eot 100, or --settle" in texts(second)
    (table,) = [t for t in document.iter("table") if texts(next(t.iter("caption"))) == "Attacks tried in doubt"]
    assert [[texts(cell) for cell in line] for line in table.iter("tr")][1][:3] == ["square[linf,4/255]", "8", "1"]
    assert f"no attack without gradients was tried: add square ({WORST})" in texts(document)


def test_findings_that_mean_the_same_are_told_together(tmp_path: Path) -> None:
    many = [Finding("few-images", "doubts", (name,), f"{name} is wide", "take more images") for name in (FGSM, PGD, WORST)]
    (article,) = tree(page(believed(example(tmp_path), many))).iter("article")
    assert [texts(item) for item in article.iter("li")] == [f"{name} is wide" for name in (FGSM, PGD, WORST)]
    assert texts(article).count("Take more images.") == 1


def test_the_terminal_has_80_columns_and_the_first_reason(told: tuple[Result, str]) -> None:
    lines = in_terminal(told[0]).splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert f"{FGSM} refuted six have a witness (and 1 more)" in text
    assert f"{WORST} doubtful no attack without gradients was tried: add square" in text
    assert re.search(r"square\[linf,4/255\] +8 +1 +500", text)
    assert "trust: every row is sound" in in_terminal(example(None))


def test_refuted_points_are_ringed_at_their_bound(told: tuple[Result, str]) -> None:
    assert "ringed: refuted, at most this" in told[1]
    assert f">{FGSM}, refuted: at least this<" in told[1]  # of the share that it broke
    assert f">{PGD}, refuted" not in told[1]
    assert not re.search("ringed|at least this", page(example(told[0].folder)))
    refuted(told[0].folder)


def test_per_class_takes_away_what_is_known_to_be_broken(told: tuple[Result, str]) -> None:
    REPORTS.get("csv")(told[0])
    assert told[0].folder is not None
    with told[0].folder.joinpath("per_class.csv").open(newline="", encoding="utf-8") as handle:
        rows = {(row["condition"], row["label"]): row for row in csv.DictReader(handle)}
    for condition, left in ((FGSM, 8), (PGD, 8), ("clean", 18)):
        assert sum(round(float(rows[condition, str(k)]["at_most"]) * int(rows[condition, str(k)]["n"])) for k in range(3)) == left
    assert sum(int(rows[FGSM, str(k)]["correct"]) for k in range(3)) == 14
    assert rows[FGSM, "1"]["class_name"] == "cat"
    assert "square[linf,4/255]" not in {condition for condition, _ in rows}
    (table,) = [t for t in tree(page(refuted(told[0].folder, (4 / 255,)))).iter("table") if "classes" in (t.get("class") or "")]
    lines = [[texts(cell) for cell in line] for line in table.iter("tr")][1:]
    hardest = [float(line[-1].strip("≤ ?%")) for line in lines]
    assert hardest == sorted(hardest)
    assert all("≤" in line[3] and "≤" not in line[4] for line in lines)  # fgsm, pgd


def test_findings_and_doubts_have_files(told: tuple[Result, str]) -> None:
    REPORTS.get("csv")(told[0])
    assert told[0].folder is not None
    with told[0].folder.joinpath("findings.csv").open(newline="", encoding="utf-8") as handle:
        first, second, third = csv.DictReader(handle)
    assert (first["check"], first["weight"], json.loads(first["conditions"])) == ("witnessed", "refutes", [FGSM])
    assert (json.loads(first["samples"]), json.loads(first["figures"])) == (list(KNOWN), {"broken": 6})
    assert (json.loads(second["settle"]), third["conditions"]) == (["bpda --eot 100"], "[]")
    with told[0].folder.joinpath("doubts.csv").open(newline="", encoding="utf-8") as handle:
        (doubt,) = csv.DictReader(handle)
    assert (doubt["met"], doubt["broken"], doubt["mean_forwards"]) == ("8", "1", "500.0")
    REPORTS.get("csv")(example(told[0].folder))  # a report without findings leaves no file that says otherwise
    assert not told[0].folder.joinpath("findings.csv").exists()
