"""A figure over many runs: real ones in folders, some of them broken, copied so that time passes between them."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sqlite3
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from robustbench_lite import evaluate
from robustbench_lite.errors import UnknownName, UsageError
from robustbench_lite.history import History, read_history
from robustbench_lite.registry import REPORTS
from robustbench_lite.stats import paired_interval

EVIL = "<b>evil & co</b>"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models on the same 40 images, one of them on 20, and there under a weak attack beside a strong one."""
    folder = tmp_path_factory.mktemp("runs")
    for name, model, limit in (("standard", "digits_standard", 40), ("robust", "digits_pgd_at", 40), ("few", "digits_pgd_at", 20)):
        evaluate(model, "pgd:steps=5", "digits", eps=0.15, limit=limit, witnesses="none", out=folder / name)
    weak = ["fgsm", "pgd:steps=5"]
    evaluate("digits_pgd_at", weak, "digits", eps=0.15, limit=20, witnesses="none", out=folder / "weak")
    return folder


@pytest.fixture
def runs(two: Path, tmp_path: Path) -> Callable[..., Path]:
    """A folder of copies, made in a year each: `runs(standard=2024, robust=2025)`; a second name for one goes on behind two underscores."""

    def made(**years: int) -> Path:
        for name, year in years.items():
            place = tmp_path / "runs" / name
            shutil.copytree(two / name.partition("__")[0], place)
            rewritten(place, created=f"{year}-03-01T12:00:00+00:00")
        return tmp_path / "runs"

    return made


def rewritten(run: Path, **changed: object) -> None:
    config = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(config | changed))


def points(found: History) -> dict[str, list[tuple[str, int]]]:
    return {line.condition.name: [(point.run.name, point.created.year) for point in line.points] for line in found.lines}


def test_runs_stand_in_the_order_of_time_and_each_beside_the_one_before(runs: Callable[..., Path]) -> None:
    found = read_history(runs(robust=2025, standard=2024, standard__again=2026))
    assert points(found)["clean"] == [("standard", 2024), ("robust", 2025), ("standard__again", 2026)]
    (line,) = [line for line in found.lines if line.condition.kind == "attack"]
    first, second, third = line.points
    assert first.change is None
    gained = sum(second.right[key] and not right for key, right in first.right.items())
    lost = sum(right and not second.right[key] for key, right in first.right.items())
    both = sum(right and second.right[key] for key, right in first.right.items())
    assert gained > lost
    assert second.change is not None
    assert second.change.value == pytest.approx((gained - lost) / 40)
    assert (second.change.low, second.change.high) == paired_interval(both, gained, lost, 40 - both - gained - lost)
    assert third.change is not None
    assert third.change.value == -second.change.value
    assert third.right == first.right


def test_only_runs_on_the_same_images_share_a_line(runs: Callable[..., Path]) -> None:
    found = read_history(runs(standard=2024, robust=2025, few=2026, few__again=2027))
    assert len(found.lines) == 6, "clean, pgd and worst, on 40 images and on 20"
    assert {len({point.n for point in line.points}) for line in found.lines} == {1}
    assert read_history(runs(robust__again=2028), condition="clean").alone == 0


@pytest.mark.parametrize(("asked", "names"), [("clean", 1), ("worst", 1), ("pgd", 1), ("pgd:steps=5[linf,0.15]", 1), (None, 3)])
def test_a_condition_is_chosen_by_its_name_its_beginning_or_its_kind(runs: Callable[..., Path], asked: str | None, names: int) -> None:
    assert len(read_history(runs(standard=2024, robust=2025), condition=asked).lines) == names


def test_other_metrics_have_neither_interval_nor_change(runs: Callable[..., Path]) -> None:
    folder = runs(standard=2024, robust=2025)
    (line,) = read_history(folder, metric="mean_forwards", condition="pgd").lines
    assert all(point.value > 1 and point.interval is None and point.change is None for point in line.points)
    with pytest.raises(UsageError, match="have a figure for median_distance"):
        read_history(folder, metric="median_distance")


def test_other_figures_of_a_refuted_row_are_bounds_too(runs: Callable[..., Path], tmp_path: Path) -> None:
    folder = runs(weak=2024, weak__again=2025)
    for metric, condition, said in (("success_correct", "fgsm", "≥ "), ("accuracy", "fgsm", "≤ "), ("success_correct", "pgd", "")):
        found = read_history(folder, metric=metric, condition=condition)
        (line,) = found.lines
        assert {point.trust == "refuted" for point in line.points} == {bool(said)}
        _, files = REPORTS.get("history")(found, tmp_path / "out", ["html"])
        assert f"<td>{said}{100 * line.points[0].value:.1f}<" in files[0].read_text()


def test_no_change_is_told_where_one_run_was_attacked_more(runs: Callable[..., Path], tmp_path: Path) -> None:
    folder = runs(robust=2024, robust__doubted=2025)
    config = json.loads((folder / "robust__doubted" / "run.json").read_text())
    (pgd,) = [c for c in config["conditions"] if c["kind"] == "attack"]
    doubt = pgd | {"name": "square[linf,0.15]", "attack": "square", "kind": "doubt"}
    rewritten(folder / "robust__doubted", conditions=[*config["conditions"], doubt])
    found = read_history(folder)
    changes = {line.condition.kind: line.points[1].change for line in found.lines}
    assert changes["worst"] is None
    assert changes["clean"] is not None
    assert changes["attack"] is not None, "its own figure, which nothing refutes"
    _, files = REPORTS.get("history")(found, tmp_path / "out", ["html"])
    assert files[0].read_text().count("other attacks were tried") == 1


def test_what_is_no_finished_run_is_named_and_skipped(runs: Callable[..., Path]) -> None:
    folder = runs(standard=2024, robust=2025, robust__unfinished=2026, robust__damaged=2026, robust__dateless=2026, robust__emptied=2026)
    rewritten(folder / "robust__unfinished", sessions=[{}])
    rewritten(folder / "robust__dateless", created="some day")
    (folder / "robust__damaged" / "results.sqlite").write_bytes(b"no database" * 1000)
    emptied = sqlite3.connect(folder / "robust__emptied" / "results.sqlite")
    emptied.execute("DROP TABLE verdicts")
    emptied.commit()
    emptied.close()
    for name, text in (("foreign", '{"scripts": {}}'), ("half", '{"identity": {}}'), ("torn", '{"identity": ')):
        (folder / name).mkdir()
        (folder / name / "run.json").write_text(text)
    found = read_history(folder)
    assert points(found)["clean"] == [("standard", 2024), ("robust", 2025)]
    skipped = {place.name: reason for place, reason in found.skipped}
    expected = {"robust__unfinished", "robust__damaged", "robust__dateless", "robust__emptied", "foreign", "half", "torn"}
    assert skipped.keys() == expected
    assert skipped["robust__unfinished"] == "unfinished"
    assert "is damaged" in skipped["robust__damaged"]


def test_nothing_to_draw_is_an_error_in_one_line(runs: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no finished run below"):
        read_history(tmp_path / "empty")
    with pytest.raises(UsageError, match="is no folder"):
        read_history(tmp_path / "missing")
    folder = runs(standard=2024, few=2025)
    with pytest.raises(UsageError, match=r"no two of the 2 runs below .* on the same images"):
        read_history(folder)
    with pytest.raises(UnknownName, match=r"unknown condition 'pgdd'.*did you mean 'pgd"):
        read_history(folder, condition="pgdd")


def test_the_page_is_well_formed_and_the_csv_has_every_point(runs: Callable[..., Path], tmp_path: Path) -> None:
    folder = runs(standard=2024, robust=2025)
    config = json.loads((folder / "robust" / "run.json").read_text())
    rewritten(folder / "robust", model={**config["model"], "name": EVIL})
    (folder / EVIL.replace("/", "")).mkdir()
    (folder / EVIL.replace("/", "") / "run.json").write_text("{}")
    found = read_history(folder)
    table, files = REPORTS.get("history")(found, tmp_path / "out")
    text = files[0].read_text()
    ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))
    assert "<b>evil" not in text
    assert "&lt;b&gt;evil &amp; co&lt;/b&gt;" in text
    lines = list(csv.DictReader(io.StringIO(files[1].read_text())))
    assert len(lines) == sum(len(line.points) for line in found.lines)
    assert [line["run"] for line in lines[:2]] == ["standard", "robust"]
    assert (lines[0]["change"], float(lines[1]["change"])) == ("", found.lines[0].points[1].change.value)  # type: ignore[union-attr]
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= 80
    assert "2024-03-01" in shown
    assert "skipped" in shown
