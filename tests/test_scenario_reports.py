"""A scenario's page, its terminal table, CSV and JSON: every figure is there, qualified where it must be, and nothing that must not be."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from handmade_scenario import EVIL, FOG, PAPER, TWIN, WEAK, WHITE, ByHand, N, by_hand, run, verdict
from report_run import believed, picture, svgs, texts, tree
from rich.console import Console

from robustbench_lite.clinical import Figure
from robustbench_lite.diagnostics import Finding
from robustbench_lite.holding import OURS
from robustbench_lite.registry import REPORTS
from robustbench_lite.results import Result
from robustbench_lite.scenarios import Published, PublishedRow, ScenarioReport

SVG = "{http://www.w3.org/2000/svg}"
SHARES = ("accuracy", "confidence", "sensitivity", "specificity", "balanced_accuracy", "ece", "success")
LABELS = {
    "accuracy": "accuracy, %", "auroc": "AUROC", "confidence": "mean confidence, %", "sensitivity": "sensitivity, %",
    "specificity": "specificity, %", "balanced_accuracy": "balanced accuracy, %", "ece": "calibration error, %",
    "success": "attack success, %",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("scenario")
    REPORTS.get("scenario")(by_hand(made), made)
    return made


def written(report: ScenarioReport, folder: Path) -> ElementTree.Element:
    return tree(REPORTS.get("scenario")(report, folder)[1].read_text(encoding="utf-8"))


def page_of(folder: Path) -> ElementTree.Element:
    return tree(folder.joinpath("scenario.html").read_text(encoding="utf-8"))


def rows_of(page: ElementTree.Element) -> dict[str, dict[str, str]]:
    """The table: of every row, by its name, the cells by their labels, and what stands under its name as `row`."""
    table = next(e for e in page.iter("table") if "figures" in e.get("class", ""))
    found = {}
    for line in next(table.iter("tbody")).iter("tr"):
        head = next(line.iter("th"))
        found[(head.text or "").strip()] = {e.get("data-label", "missing"): texts(e) for e in line.iter("td")} | {"row": texts(head)}
    return found


def in_terminal(report: ScenarioReport, folder: Path, width: int = 100) -> str:
    text = io.StringIO()
    Console(width=width, file=text, color_system=None).print(REPORTS.get("scenario")(report, folder)[0])
    return text.getvalue()


def worded(key: str, value: float) -> str:
    return f"{100 * value:.1f}" if key in SHARES else f"{value:.3f}"


def changed(report: ScenarioReport, number: int, **figures: Any) -> ScenarioReport:
    rows = list(report.rows)
    rows[number] = replace(rows[number], figures=replace(rows[number].figures, **figures))
    return replace(report, rows=rows)


# ------------------------------------------------------------------ the figures


def test_every_figure_of_every_row_is_on_the_page_with_its_interval(folder: Path) -> None:
    shown = rows_of(page_of(folder))
    assert len(shown) == 6
    for measured in by_hand().rows:
        if measured.figures is None or measured.condition == WEAK:
            continue
        for key, label in LABELS.items():
            figure: Figure | None = getattr(measured.figures, key)
            if figure is None or figure.value is None:
                assert shown[measured.row.name][label].startswith("–")
                continue
            cell = shown[measured.row.name][label]
            assert cell.startswith(worded(key, figure.value)), (measured.row.name, label, cell)
            assert f"{worded(key, figure.low or 0)}–{worded(key, figure.high or 0)}" in cell


def test_differences_to_clean_and_the_number_needed_to_attack_stand_by(folder: Path) -> None:
    shown = rows_of(page_of(folder))
    assert "−44.8 (−48.8, −39.8)" in shown["PGD, twin"]["accuracy, %"]
    assert "−0.526 (−0.543, −0.503)" in shown["PGD, twin"]["AUROC"]
    assert "of 38 images one in 2.1 ? 1.0–∞" in shown["PGD, twin"]["attack success, %"]
    assert "(" not in shown["clean"]["accuracy, %"]


def test_an_undefined_figure_is_a_dash_with_its_reason(folder: Path) -> None:
    page = page_of(folder)
    number = re.fullmatch(r"–(\d+)", rows_of(page)["fog"]["AUROC"])
    assert number is not None
    listed = [texts(e) for e in next(page.iter("ol")).iter("li")]
    assert listed[int(number[1]) - 1] == "AUROC is undefined: all 40 images are of one class"
    assert "none of this class was right" in texts(page)


def test_a_row_that_was_not_run_says_what_to_give(folder: Path, tmp_path: Path) -> None:
    said = "not run: give a model of another architecture with --surrogate"
    assert rows_of(page_of(folder))["patch, other architecture"]["missing"] == said
    assert "not run: patch, other architecture: give a model of another architecture" in in_terminal(by_hand(), tmp_path)


def test_none_and_all_are_kept_for_none_and_all(tmp_path: Path) -> None:
    report = changed(by_hand(), 0, accuracy=Figure(0.9999, 0.0001, 1.0), auroc=Figure(0.99999, 0.00001, 1.0))
    clean = rows_of(written(report, tmp_path))["clean"]
    assert clean["accuracy, %"] == "99.9 0.1–100.0"
    assert clean["AUROC"] == "0.999 0.001–1.000"


# ------------------------------------------------------------------ trust


def test_a_refuted_row_is_nowhere_shown_unqualified(folder: Path, tmp_path: Path) -> None:
    shown = rows_of(page_of(folder))["one step, white box"]
    assert "refuted" in shown["row"]
    assert "leave ≤ 0.0 % of the attacked images" in shown["row"]
    assert shown["accuracy, %"].startswith("≤ 75.4")
    for key in ("AUROC", "sensitivity, %", "specificity, %", "balanced accuracy, %"):
        assert shown[key].startswith("≤ "), key
    assert "≤ −0.352" in shown["AUROC"]
    assert shown["attack success, %"].startswith("≥ 21.3")
    assert "one in ≤ 4.7" in shown["attack success, %"]
    for text in (texts(page_of(folder)), in_terminal(by_hand(), tmp_path)):
        assert text.count("75.4") == text.count("≤ 75.4") + text.count("at most 75.4")


def test_who_knows_less_keeps_the_own_figure_beside_what_others_leave(tmp_path: Path) -> None:
    result = run(None)
    known = tuple(v.sample_id for v in result.of(TWIN) if not v.broken)
    refuting = Finding("witnessed", "refutes", (TWIN,), "20 have a witness", "too high", figures={}, samples=known)
    report = replace(by_hand(), result=believed(result, [refuting]))
    shown = rows_of(written(report, tmp_path))["PGD, twin"]
    assert shown["accuracy, %"].startswith("≤ 50.2 48.1–53.6")
    assert "leave ≤ 0.0 %" in shown["row"]


def test_a_doubtful_row_has_its_mark_and_its_reason(folder: Path, tmp_path: Path) -> None:
    page = page_of(folder)
    shown = rows_of(page)
    assert "doubtful" in shown["PGD, twin"]["row"]
    assert shown["PGD, twin"]["accuracy, %"].startswith("50.2 ?")
    assert "PGD, twin: no attack without gradients was tried" in texts(page)
    assert "50.2 ?" in in_terminal(by_hand(), tmp_path)
    assert "?" not in shown["PGD, white box"]["accuracy, %"]


def test_the_summary_says_at_most_where_the_hardest_row_is_refuted(tmp_path: Path) -> None:
    report = by_hand()
    weak_only = replace(report, rows=[report.rows[0], report.rows[3]])
    assert "and on at most 75.4 % under one step, white box. At least 21.3 % of the 38 images" in texts(written(weak_only, tmp_path))
    assert "0.0 % under PGD, white box. 100.0 % of the 38 images that were right were turned" in texts(written(report, tmp_path))
    twin_only = texts(written(replace(report, rows=[report.rows[0], report.rows[2]]), tmp_path))
    assert "is right on 95.0 % of 40 images as they are, and on 50.2 % under PGD, twin; that may be too high" in twin_only
    assert "no attack was run" in texts(written(replace(report, rows=report.rows[:1]), tmp_path))


# ------------------------------------------------------------------ what is said, and what never is


def test_synthetic_images_are_called_so_and_others_are_not(tmp_path: Path) -> None:
    made, real = by_hand(), by_hand(synthetic=False)
    page = texts(written(made, tmp_path))
    assert page.count("SYNTHETIC PHANTOMS: not patients' images") == 1
    assert "40 synthetic images of 20 made-up patients" in page
    assert "20 patients" not in page.replace("intervals rest on 20 patients only", "")
    assert "SYNTHETIC PHANTOMS" in in_terminal(made, tmp_path)
    assert json.loads((tmp_path / "clinical.json").read_text())["synthetic"] is True
    body = texts(next(written(real, tmp_path).iter("body")))
    assert not re.search("synthetic|made-up|phantom", body, re.IGNORECASE)
    assert "40 images of 20 patients" in body
    assert "SYNTHETIC" not in in_terminal(real, tmp_path)
    index = texts(tree(REPORTS.get("scenarios-index")([made, real], tmp_path).read_text()))
    assert index.count("SYNTHETIC PHANTOMS") == 1


def test_who_attacks_and_with_which_models_is_told_in_words(folder: Path) -> None:
    text = texts(page_of(folder))
    scenario = ByHand()
    for said in (scenario.title, scenario.domain, scenario.who, scenario.can, scenario.happens):
        assert said in text
    assert "model: net" in text
    assert "same architecture: twin & co" in text
    assert "has a twin of the model, trained independently" in text
    assert "A research tool, not a medical device. Nothing on this page may guide the care of a patient. No data left this machine." in text
    assert "0.371 (<script>alert('pneumonia & co')</script>)" in text
    assert "robust-eval scenario run by-hand --data 'my scans'" in text
    assert "bootstrap over patients" in text
    assert "intervals rest on 20 patients only" in text


def test_a_goal_is_explained_and_an_error_is_any_wrong_answer(folder: Path, tmp_path: Path) -> None:
    assert "Any wrong answer." in texts(page_of(folder))
    report = by_hand()
    aimed = [replace(c, target="missed-disease") if c.kind == "attack" else c for c in report.result.conditions]
    result = believed(replace(report.result, conditions=aimed))
    text = texts(written(replace(report, result=result), tmp_path))
    assert "A positive image is to be called negative. (goal missed-disease; a change in another direction is no success.)" in text
    assert "images that were right and offer the attacker something were turned" in text


def test_published_figures_stand_apart(folder: Path, tmp_path: Path) -> None:
    page = page_of(folder)
    block = next(e for e in page.iter("div") if e.get("class") == "published")
    for said in ("published, on other data", PAPER, "8,383 radiographs", "15.1", "0.014", "92.6"):
        assert said in texts(block)
    assert not any("15.1" in cell for row in rows_of(page).values() for cell in row.values())
    terminal = in_terminal(by_hand(), tmp_path)
    assert re.search(r"published, on other data +15\.1 +0\.014 +92\.6", terminal)


def test_what_others_named_is_text_and_nothing_is_fetched(tmp_path: Path) -> None:
    class Linked(ByHand):
        published = Published(
            "Finlayson, https://doi.org/10.1126/science.aaw4399", "other <b>data</b>", (PublishedRow("x", 0.0001, 0.0038, 0.7853),)
        )

    page = written(replace(by_hand(), scenario=Linked()), tmp_path)
    assert EVIL in texts(page)
    block = next(e for e in page.iter("div") if e.get("class") == "published")
    assert [texts(e) for e in block.iter("td")] == ["0.01", "0.0038", "78.53"]  # as it was published, and not rounded as what was measured
    assert not list(page.iter("script"))
    text = (tmp_path / "scenario.html").read_text()
    outside = [url for url in re.findall(r'(?:src|href|action|poster)\s*=\s*"([^"]*)"', text) if not url.startswith("data:")]
    assert outside == ["https://doi.org/10.1126/science.aaw4399"]
    assert not re.findall(r"url\(|@import", text)
    policy = next(e.get("content", "") for e in page.iter("meta") if e.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_no_file_names_an_image_or_a_patient(folder: Path) -> None:
    """Files are often named after patients."""
    for name in ("scenario.html", "clinical.csv", "clinical.json"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "JANE" not in text
        assert not re.search(r"patient \d", text)


def test_pictures_show_clean_difference_and_attacked_with_what_the_model_said(folder: Path) -> None:
    figures = [e for e in page_of(folder).iter("figure") if e.get("class") == "witness"]
    assert len(figures) == 9  # three each of three attacks
    for figure in figures:
        clean, difference, attacked = (picture(e.get("src", "")).astype(int) for e in figure.iter("img"))
        assert abs(attacked - clean).max() in (2, 3)
        assert set(difference[attacked > clean].tolist()) == {255}
        assert all(e.get("alt") for e in figure.iter("img"))
        said = texts(figure)
        assert "difference× 50" in said
        assert said.count("93.0 %") == 2
        assert EVIL in said
        assert "healthy" in said


# ------------------------------------------------------------------ ROC


def paths(svg: str) -> dict[str, list[tuple[float, float]]]:
    """The corners of every curve as shares, by its name."""
    found = {}
    for group in ElementTree.fromstring(svg).iter(SVG + "g"):
        name, path = group[0].text, group[1].get("d", "")
        corners = [tuple(map(float, each.split())) for each in path.removeprefix("M").split(" L")]
        found[str(name)] = [(round((x - 48) / 300, 2), round((312 - y) / 300, 2)) for x, y in corners]
    return found


def test_the_curve_of_every_row_of_two_classes(folder: Path) -> None:
    (svg,) = svgs((folder / "scenario.html").read_text())
    drawn = paths(svg)
    # by day and by night the clean images are in the colour of the text, and nothing else is
    assert [e[1].get("stroke") == "currentColor" for e in ElementTree.fromstring(svg).iter(SVG + "g")] == [True, *[False] * 4]
    assert list(drawn) == [
        "clean, AUROC 0.963", "PGD, white box, AUROC 0.000", "PGD, twin, AUROC 0.437 ?",
        "one step, white box, AUROC ≤ 0.611", "fog, AUROC –",
    ]  # fmt: skip
    assert drawn["clean, AUROC 0.963"] == [(0, 0), (0, 1), (1, 1)]
    assert drawn["PGD, white box, AUROC 0.000"] == [(0, 0), (1, 0), (1, 1)]
    assert drawn["one step, white box, AUROC ≤ 0.611"] == [(0, 0), (0, 0.75), (0.25, 0.75), (0.25, 1), (1, 1)]


def test_a_long_name_in_the_legend_is_shortened_and_what_its_sign_says_is_not(tmp_path: Path) -> None:
    report = by_hand()
    refuted = report.rows[3]
    named = replace(refuted, row=replace(refuted.row, name="one step, white box, by somebody of whom there is much to be told"))
    written(replace(report, rows=[*report.rows[:3], named]), tmp_path)
    (svg,) = svgs((tmp_path / "scenario.html").read_text())
    (entry,) = [each.text for each in ElementTree.fromstring(svg).iter(SVG + "text") if "one step" in str(each.text)]
    assert str(entry).startswith("one step, white box")
    assert str(entry).endswith("…, AUROC ≤ 0.611")


def of_classes(labels: Sequence[Any], outputs: Sequence[Sequence[float]], attacked: Sequence[Sequence[float]], **data: Any) -> Result:
    result = run(None, data={"name": "toys", "n": len(labels)} | data)
    made = {"clean": outputs, WHITE: attacked}
    verdicts = [
        verdict(number, name, label, label, False, said)
        for name, some in made.items()
        for number, (label, said) in enumerate(zip(labels, some, strict=True))
    ]
    conditions = [c for c in result.conditions if c.name in made]
    return believed(replace(result, conditions=conditions, verdicts=verdicts))


def only_white(result: Result, n: int) -> ScenarioReport:
    report = changed(changed(by_hand(), 0, n=n), 1, n=n)
    return replace(report, result=result, rows=report.rows[:2])


def test_several_classes_have_a_chart_each(tmp_path: Path) -> None:
    outputs = [[3.0, 0, 0], [0, 3.0, 0], [0, 0, 3.0]]
    result = of_classes([0, 1, 2], outputs, [outputs[1], outputs[0], [0, 1.0, 3.0]], class_names=["a", "b", "c"], task="multi-class")
    page = written(only_white(result, 3), tmp_path)
    assert [texts(e) for e in page.iter("figcaption")][:3] == ["a", "b", "c"]
    drawn = [paths(svg) for svg in svgs((tmp_path / "scenario.html").read_text())]
    assert [list(each) for each in drawn] == [["clean", "PGD, white box"]] * 3
    assert drawn[0]["PGD, white box"] == [(0, 0), (0.5, 0), (0.5, 1), (1, 1)]
    assert drawn[2]["PGD, white box"] == [(0, 0), (0, 1), (1, 1)]


def test_findings_have_a_chart_each_and_are_named_in_pictures(tmp_path: Path) -> None:
    labels = [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    outputs = [[2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]]
    result = of_classes(labels, outputs, [[-2.0, 2.0], *outputs[1:]], class_names=["mass", "fluid"], task="multi-label")
    fallen = [
        replace(v, broken=True, broken_by="pgd", witness="ab" * 32, prediction=[0.0, 1.0]) if v.condition == WHITE else v
        for v in result.verdicts
    ]
    page = written(only_white(believed(replace(result, verdicts=fallen)), 3), tmp_path)
    captions = [texts(e) for e in page.iter("figcaption")]
    assert captions[:2] == ["mass", "fluid"]
    assert {"label: mass · synthetic", "label: fluid · synthetic", "label: no finding · synthetic"} == set(captions[2:])
    drawn = [paths(svg) for svg in svgs((tmp_path / "scenario.html").read_text())]
    assert drawn[0]["clean"] == [(0, 0), (0, 1), (1, 1)]
    assert drawn[0]["PGD, white box"] == [(0, 0), (1, 1)]


def test_undecided_images_have_no_place_on_a_curve_and_one_class_has_none(tmp_path: Path) -> None:
    outputs = [[1.0, -1.0], [-1.0, 1.0]] * 2
    result = of_classes([0, 1, 0, 1], outputs, [[0.0, 9.0], [0.0, 1.0]] * 2, task="binary")
    lost = [
        replace(v, broken=None, outputs=None) if v.condition == WHITE and v.sample_id.endswith(("0", "2")) else v for v in result.verdicts
    ]
    written(only_white(believed(replace(result, verdicts=lost)), 4), tmp_path)
    (svg,) = svgs((tmp_path / "scenario.html").read_text())
    assert list(paths(svg)) == ["clean, AUROC 0.963"]

    def drawn(*undecided: str) -> dict[str, list[tuple[float, float]]]:
        lost = [
            replace(v, broken=None, outputs=None) if v.condition == WHITE and v.sample_id.endswith(undecided) else v
            for v in result.verdicts
        ]
        written(only_white(believed(replace(result, verdicts=lost)), 4), tmp_path)
        (svg,) = svgs((tmp_path / "scenario.html").read_text())
        return paths(svg)

    assert list(drawn("0", "2")) == ["clean, AUROC 0.963"]
    assert drawn("0")["PGD, white box, AUROC 0.000"] == [(0, 0), (1, 0), (1, 1)]


# ------------------------------------------------------------------ files and terminal


def test_the_csv_holds_every_figure_exactly(folder: Path) -> None:
    lines = list(csv.DictReader(io.StringIO((folder / "clinical.csv").read_text())))
    measured = {(line["row"], line["figure"], line["class"]): line for line in lines if line["kind"] == "measured"}
    for row in by_hand().rows:
        if row.figures is None:
            continue
        for key in (*LABELS, "needed"):
            figure = getattr(row.figures, key)
            if figure is not None:
                line = measured[row.row.name, key, ""]
                assert line["value"] == ("" if figure.value is None else repr(figure.value))
                assert [line["low"], line["high"]] == ["" if each is None else repr(each) for each in (figure.low, figure.high)]
                assert line["reason"] == (figure.reason or "")
                assert line["n"] == str(38 if key in ("success", "needed") else N)
                assert line["patients"] == str(N // 2)
    assert measured["PGD, twin", "change_of_accuracy", ""]["value"] == repr(0.502 - 0.95)
    assert measured["one step, white box", "accuracy", ""]["trust"] == "refuted"
    assert measured["PGD, twin", "success", EVIL]["reason"] == "none of this class was right"
    assert {line["synthetic"] for line in measured.values()} == {"True"}
    (missing,) = [line for line in lines if line["kind"] == "missing"]
    assert (missing["row"], missing["reason"]) == ("patch, other architecture", "give a model of another architecture with --surrogate")
    published = [line for line in lines if line["kind"] == "published"]
    assert [(line["figure"], line["value"]) for line in published] == [("accuracy", "0.151"), ("auroc", "0.014"), ("confidence", "0.926")]
    assert {(line["source"], line["synthetic"], line["trust"]) for line in published} == {(PAPER, "", "")}


def test_the_json_holds_the_whole_report(folder: Path) -> None:
    content = json.loads((folder / "clinical.json").read_text())
    report = by_hand()
    assert content["scenario"]["title"] == report.scenario.title
    assert content["models"] == dict(report.models)
    assert content["operating_point"]["thresholds"] == [0.371]
    assert content["rows"][2]["figures"]["auroc"]["value"] == 0.437
    assert content["rows"][2]["figures"]["needed"]["high"] == "inf"
    assert content["rows"][3]["trust"] == {"level": "refuted", "at_most": 0.0, "reasons": ["30 of its images have a witness"]}
    assert content["rows"][4]["condition"] == FOG
    assert content["rows"][5]["figures"] is None
    assert content["rows"][5]["missing"] == "give a model of another architecture with --surrogate"
    assert content["published"]["rows"][0] == {"row": "PGD, twin", "accuracy": 0.151, "auroc": 0.014, "confidence": 0.926}
    assert "not a medical device" in content["disclaimer"]


def test_the_terminal_is_whole_at_a_hundred_columns(tmp_path: Path) -> None:
    text = in_terminal(by_hand(), tmp_path)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 100
    for said in (
        "95.0",
        "92.9–98.4",
        "0.437 ?",
        "0.416–0.471",
        "≥ 21.3",
        "46.8 ?",
        "not a medical device",
        "≤ and ≥, refuted",
        "20 patients only",
    ):
        assert said in text, said
    assert re.search(r"PGD, twin \(same architecture\) +50\.2 \?", text)


def test_the_index_links_to_every_page(tmp_path: Path) -> None:
    reports = []
    for name in ("one", "two & three"):
        folder = tmp_path / "runs" / name
        reports.append(replace(by_hand(folder), name=name))
        REPORTS.get("scenario")(reports[-1], folder)
    path = REPORTS.get("scenarios-index")(reports, tmp_path / "runs")
    page = tree(path.read_text())
    links = [e.get("href", "") for e in page.iter("a")]
    assert links == ["one/scenario.html", "two%20%26%20three/scenario.html"]
    assert "PGD, white box" in texts(page)


def test_a_run_folder_may_hold_these_files() -> None:
    assert {"scenario.html", "clinical.csv", "clinical.json"} <= set(OURS)


def test_a_screen_reader_finds_its_way(folder: Path) -> None:
    page = page_of(folder)
    levels = [int(e.tag[1]) for e in page.iter() if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert [len(list(page.iter(tag))) for tag in ("header", "main")] == [1, 1]
    for table in page.iter("table"):
        assert texts(next(table.iter("caption")))
        assert all(th.get("scope") in ("col", "row") for th in table.iter("th"))
    assert all(e.get("aria-label") for e in page.iter() if e.get("role") == "img")
