"""Reports of runs with corruptions, sequences and cue conflicts: what is where, and the same numbers everywhere."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corrupted_run import FOUR_MORE, corrupted
from PIL import Image
from report_run import in_terminal, page, texts, tree

from robustbench_lite.baselines import PUBLISHED, THE_15
from robustbench_lite.calibration import calibration_rows
from robustbench_lite.corruption_metrics import corruption_rows, corruptions
from robustbench_lite.registry import REPORTS
from robustbench_lite.results import Condition, Result
from robustbench_lite.shape_bias import CATEGORIES, cues

PROCEDURAL = tuple("frost(procedural)" if name == "frost" else name for name in THE_15)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, str]:
    result = corrupted(tmp_path_factory.mktemp("full"), attack=True)
    return result, page(result)


def cue_conflict(folder: Path | None) -> Result:
    result, names = corrupted(folder), list(CATEGORIES)
    clean = result.of("clean")[0]
    ids = [(a, b) for a in range(16) for b in range(16)]
    verdicts = [
        replace(
            clean, sample_id=f"{names[a]}/{names[a]}1-{names[b]}2.png", prediction=a if (a + b) % 4 == 0 else b, broken=(a + b) % 4 != 0
        )
        for a, b in ids
    ]
    config = {**result.config, "data": {"name": "cue-conflict", "n": len(verdicts)}}
    return replace(result, config=config, conditions=[Condition("clean", "clean")], verdicts=verdicts, shown={}, sequenced=())


# CSV


def test_the_files_give_the_rows_back(tmp_path: Path) -> None:
    result = corrupted(tmp_path)
    REPORTS.get("csv")(result)
    for name, rows in (
        ("corruptions.csv", corruption_rows(result)), ("calibration.csv", calibration_rows(result)), ("sequences.csv", result.sequences)
    ):  # fmt: skip
        found = read(tmp_path / name)
        assert len(found) == len(rows) > 0
        for line, row in zip(found, rows, strict=True):
            assert line == {key: "" if value is None else str(value) for key, value in vars(row).items()}
    assert len(read(tmp_path / "table.csv")) == 76
    assert not (tmp_path / "shape_bias.csv").exists()
    REPORTS.get("csv")(cue_conflict(tmp_path))
    whole, *others = read(tmp_path / "shape_bias.csv")
    assert (whole["category"], whole["n"], whole["shape_correct"], whole["texture_correct"]) == ("all", "240", "56", "184")
    assert [line["category"] for line in others] == list(CATEGORIES)


def test_new_columns_are_documented() -> None:
    text = Path(__file__).parents[1].joinpath("docs/results.md").read_text(encoding="utf-8")
    result = corrupted(None)
    for row in (corruption_rows(result)[0], calibration_rows(result)[0], result.sequences[0]):
        for name in vars(row):
            assert f"`{name}`" in text or re.fullmatch(r"accuracy_[2-4]", name), name


def test_undecided_cue_conflicts_are_counted_and_a_run_without_conflicts_has_no_shape_bias(tmp_path: Path) -> None:
    result = cue_conflict(tmp_path)
    undecided = replace(result, verdicts=[replace(v, broken=None, prediction=None) for v in result.verdicts])
    REPORTS.get("csv")(undecided)
    whole = read(tmp_path / "shape_bias.csv")[0]
    assert (whole["n"], whole["cue_accuracy"], whole["bias"]) == ("240", "0.0", "")
    without = replace(result, verdicts=[v for v in result.verdicts if len(set(cues(v.sample_id))) == 1])
    assert "Shape or texture" not in page(without)


# HTML


def test_the_heat_map_has_every_accuracy_with_its_interval(full: tuple[Result, str]) -> None:
    result, text = full
    (table,) = [t for t in tree(text).iter("table") if t.get("class") == "heat"]
    rows = {row.condition: row for row in result.table.itertuples()}
    _, *lines = table.iter("tr")
    assert [texts(next(line.iter("th"))) for line in lines] == list(THE_15)
    for name, line, expected in zip(THE_15, lines, corruption_rows(result), strict=True):
        *cells, mean = line.iter("td")
        for severity, cell in enumerate(cells, 1):
            row: Any = rows[f"{name}[{severity}]"]
            assert texts(cell) == f"{100 * row.accuracy:.1f}{100 * row.ci_low:.0f}–{100 * row.ci_high:.0f}"
            assert f"{100 * row.ci_low:.1f}–{100 * row.ci_high:.1f}" in cell.get("title", "")
            assert cell.get("style") == f"--error:{1 - row.accuracy:.3f}"
        assert texts(mean).startswith(f"{100 * (1 - expected.mean_error):.1f}")


def test_many_corruptions_leave_the_main_table_and_few_stay(full: tuple[Result, str], tmp_path: Path) -> None:
    def named(text: str) -> list[str]:
        return [texts(next(line.iter("th"))) for line in next(t for t in tree(text).iter("table") if t.get("id") == "table").iter("tr")][1:]

    assert named(full[1]) == ["clean", "pgd[linf,4/255]"]
    assert "The 75 conditions of corruptions are in the heat map below" in texts(tree(full[1]))
    assert "Accuracy under attack and corruption" in texts(tree(full[1]))
    few = page(corrupted(tmp_path, ("fog", "snow")))
    assert named(few) == ["clean", *(f"{name}[{s}]" for name in ("fog", "snow") for s in range(1, 6))]
    assert "Accuracy under corruption" in texts(tree(few))


def test_the_panel_has_the_published_models_where_that_is_sound(full: tuple[Result, str], tmp_path: Path) -> None:
    text = texts(tree(full[1]))
    assert "mCE beside published models" in text
    assert all(p.name in text for p in PUBLISHED)
    mce = next(figure for figure in corruptions(full[0]).figures if figure.name == "mCE")
    assert f"{mce.estimate.value:.1f}" in text
    for about, names, words in (
        ({}, PROCEDURAL, "frost is procedural"),
        ({"storage_jpeg": None}, THE_15, "not stored as JPEG 85"),
        ({}, THE_15[1:], "gaussian_noise was not run")
    ):  # fmt: skip
        other = texts(tree(page(corrupted(tmp_path, names, 8, about=about))))
        assert "mCE beside published models" not in other
        assert "ANT 3x3" not in other
        assert re.search(rf"Not beside published models: [^.]*{words}", other)


def test_the_sheet_has_one_picture_for_every_corruption_and_severity(full: tuple[Result, str]) -> None:
    (sheet,) = [d for d in tree(full[1]).iter("div") if d.get("class") == "sheet"]
    pictures = {image.get("alt"): image.get("src", "") for image in sheet.iter("img")}
    assert len(pictures) == 76
    assert pictures["fog, severity 3"].startswith("data:image/jpeg;base64,")


def test_with_large_pictures_the_page_stays_under_two_megabytes(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)).save(buffer, format="PNG")
    result = corrupted(tmp_path, (*THE_15, *FOUR_MORE), 8)
    text = page(replace(result, shown=dict.fromkeys(result.shown, buffer.getvalue())))
    assert len(text.encode()) < 2_000_000
    tree(text)


def test_the_page_is_whole_fetches_nothing_and_is_the_same_every_time(full: tuple[Result, str]) -> None:
    result, text = full
    assert page(result) == text
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert not re.findall(r"<(?:link|iframe)\b|@import", text)
    for element in tree(text).iter():
        for name, value in element.attrib.items():
            assert name.rpartition("}")[2] not in ("src", "href") or value.startswith(("data:", "#"))


def test_names_are_escaped(tmp_path: Path) -> None:
    text = page(corrupted(tmp_path, ("<b>&_evil",)))
    assert texts(tree(text)).count("<b>&_evil") > 5


def test_calibration_sequences_and_shapes_have_their_sections(full: tuple[Result, str], tmp_path: Path) -> None:
    def headings(text: str) -> list[str]:
        return [texts(h) for h in tree(text).iter("h2")]

    assert {"Corruptions", "One image under every corruption", "Perturbation sequences", "Calibration"} <= set(headings(full[1]))
    text = page(cue_conflict(tmp_path))
    assert "Shape or texture" in headings(text)
    assert "23.3 % go by shape" in texts(tree(text))
    assert "humans" in texts(tree(text))
    assert "Corruptions" not in headings(text)


# Terminal


def test_the_heat_table_is_whole_at_80_columns() -> None:
    result = corrupted(None, PROCEDURAL, attack=True)
    lines = in_terminal(result).splitlines()
    assert max(map(len, lines)) <= 80
    for row in corruption_rows(result):
        (line,) = [line for line in lines if line.startswith(row.corruption)]
        accuracies = [f"{100 * accuracy:.1f}" for accuracy in row.accuracies if accuracy is not None]
        assert line.split()[1:7] == [*accuracies, f"{100 * (1 - row.mean_error):.1f}"]
    text = "\n".join(lines)
    assert "mCE-14 " in text
    assert "mCE-15* " in text
    assert "fog[3]" not in text


def test_few_corruptions_are_ordinary_rows() -> None:
    text = in_terminal(corrupted(None, ("fog",)))
    assert "fog[3]" in text
    assert "accuracy under corruptions" not in text
    assert "There is no mCE" in text


def test_sequences_and_shapes_are_below() -> None:
    assert "sequence:tilt" in in_terminal(corrupted(None, ("fog",)))
    assert re.search(r"all +240 +56 +184 +23.3 %", in_terminal(cue_conflict(None)))


def test_without_corruptions_nothing_is_said_of_them() -> None:
    result = replace(corrupted(None, ()), sequenced=())
    assert "mean error" not in in_terminal(result)
