"""The reports say what the table says, whole, escaped, and the same every time."""

from __future__ import annotations

import csv
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_run import EVIL, N, believed, example, in_terminal, page, picture, svgs, texts, tree, verdict, witness

from robustbench_lite.errors import InvalidEvaluation, UsageError
from robustbench_lite.registry import REPORTS
from robustbench_lite.results import TABLE_COLUMNS, VERDICT_FIELDS, Condition, Result, Verdict


def records(result: Result) -> list[Any]:
    """The rows of the table, as named tuples."""
    return list(result.table.itertuples())


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, str]:
    """A run and its page, for the tests that only read them."""
    result = example(tmp_path_factory.mktemp("usual"))
    return result, page(result)


# CSV


def test_table_csv_gives_the_same_numbers_back(tmp_path: Path) -> None:
    result = example(tmp_path)
    path, *_ = REPORTS.get("csv")(result)
    with path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert path == tmp_path / "table.csv"
    assert tuple(rows[0]) == TABLE_COLUMNS
    for row, expected in zip(rows, result.table.to_dict("records"), strict=True):
        for name, value in expected.items():
            missing = value is None or (isinstance(value, float) and math.isnan(value))
            assert row[name] == "" if missing else type(value)(row[name]) == value, name


def test_samples_csv_gives_the_same_verdicts_back(tmp_path: Path) -> None:
    result = example(tmp_path)
    result = replace(
        result,
        verdicts=[*result.verdicts, verdict(3, "fgsm[linf,2/255]", label=[0, 1, 1], distance=math.inf, reason='a "b",\nc', target=4)],
    )
    _, path, *_ = REPORTS.get("csv")(result)
    with path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    types: dict[str, Any] = dict.fromkeys(("target", "restart", "steps", "forwards", "backwards", "seed"), int)
    types |= {"distance": float, "confidence": float, "broken": {"true": True, "false": False}.__getitem__}
    types |= {"stages": json.loads, "approach": json.loads, "radius": float}
    types |= dict.fromkeys(("label", "clean_prediction", "prediction"), lambda text: [0, 1, 1] if text == "[0, 1, 1]" else int(text))
    fields: list[dict[str, Any]] = [
        {name: None if text == "" else types.get(name, str)(text) for name, text in row.items()} for row in rows
    ]
    assert tuple(rows[0]) == (*VERDICT_FIELDS, "nearest")
    assert [float(row.pop("nearest")) for row in fields] == [v.nearest for v in result.verdicts]
    assert [Verdict(**row) for row in fields] == list(result.verdicts)


def test_a_severity_stays_a_whole_number(tmp_path: Path) -> None:
    conditions = [Condition("clean", "clean"), Condition("fog[3]", "corruption", severity=3)]
    result = replace(example(tmp_path), conditions=conditions, verdicts=[verdict(0, "clean"), verdict(0, "fog[3]")])
    REPORTS.get("csv")(result)
    assert ",corruption,,,3,1,1," in (tmp_path / "table.csv").read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "table.csv").write_text("old")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InvalidEvaluation, match=r"cannot write .*table\.csv: No space left on device.*robust-eval report"):
        REPORTS.get("csv")(example(tmp_path))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("table.csv", "old")]


@pytest.mark.parametrize("name", ["csv", "html"])
def test_a_result_without_a_folder_is_told_so(name: str) -> None:
    with pytest.raises(UsageError, match="kept in memory"):
        REPORTS.get(name)(example(None))


def test_every_column_is_documented() -> None:
    documented = re.findall(
        r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", Path(__file__).parents[1].joinpath("docs/results.md").read_text(), re.M))
    )
    assert set(TABLE_COLUMNS) | set(VERDICT_FIELDS) | {"nearest"} <= set(documented)


# HTML


def test_the_page_fetches_nothing(usual: tuple[Result, str]) -> None:
    _, text = usual
    assert not re.findall(r"<(?:link|iframe|base|object|embed)\b|@import", text)
    for element in tree(text).iter():
        for name, value in element.attrib.items():
            if name.rpartition("}")[2] in ("src", "href", "srcset", "data", "poster"):
                assert value.startswith(("data:", "#")), (element.tag, name, value[:60])
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", text))


def test_names_are_escaped_wherever_they_come_from(tmp_path: Path) -> None:
    result = example(tmp_path)
    evil = Condition(EVIL, "attack", EVIL + "$x$", "linf", 6 / 255)
    extra = [verdict(i, EVIL, sample_id=f"{EVIL}{i:03d}", broken=i > 9, broken_by=EVIL, witness="ab" * 32) for i in range(N)]
    result = replace(
        result,
        conditions=[*result.conditions, evil],
        verdicts=[*result.verdicts, *extra, replace(extra[0], sample_id="x", broken=None, reason=EVIL)],
        witness=lambda condition, sample: witness(0, 2 / 255, 4),
    )
    text = page(result)
    assert text.count("<script") == 1  # the page's own
    assert texts(tree(text)).count(EVIL) > 8  # table, charts, gallery, provenance, reason: shown, as text
    assert EVIL + "$x$" in texts(tree(text))  # and not as a formula
    assert "<script" not in REPORTS.get("notebook")(result)


def test_ids_are_unique_and_point_somewhere(usual: tuple[Result, str]) -> None:
    _, text = usual
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(svgs(text)) == 2
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text)
    assert used
    assert {a or b for a, b in used} <= set(ids)


@pytest.mark.parametrize("survivors_in", ["fp32", "bf16"])
def test_the_numbers_of_the_page_are_those_of_the_table(tmp_path: Path, survivors_in: str) -> None:
    result = example(tmp_path, survivors_in=survivors_in)
    (shown,) = [table for table in tree(page(result)).iter("table") if table.get("id") == "table"]
    lines = [[texts(cell) for cell in line] for line in shown.iter("tr")]
    assert lines[0][6] == "broken of thoseright when clean"
    for line, row in zip(lines[1:], records(result), strict=True):
        marked = " search=bf16" if survivors_in == "bf16" and row.kind != "clean" else ""
        broken = "" if row.kind == "clean" else f"{100 * row.success_correct:.1f} %"
        assert line == [
            row.condition + marked, f"{row.correct}/{row.n}", f"{100 * row.accuracy:.1f} %", "sound",
            f"{100 * row.ci_low:.1f}–{100 * row.ci_high:.1f}", str(row.undecided), broken,
            f"{row.mean_forwards:.1f}", f"{row.mean_backwards:.1f}", "" if row.kind == "worst" else "1.5",
        ]  # fmt: skip


def test_the_summary_is_one_sentence_on_the_hardest_condition_and_the_width_is_said(usual: tuple[Result, str], tmp_path: Path) -> None:
    text = texts(tree(usual[1]))
    assert (
        "toy <model> is right on 90.0 % of 20 images as they are, and on 30.0 % under all attacks tried of size 4/255 in linf; "
        "nothing that was tried speaks against these figures." in text
    )
    widest = max(records(usual[0]), key=lambda row: row.ci_high - row.ci_low)
    assert (
        f"Only 20 images: the 95 % interval is up to {100 * (widest.ci_high - widest.ci_low):.0f} points wide ({widest.condition}:" in text
    )
    assert "Only" not in texts(tree(page(example(tmp_path, n=100)))).partition("Results")[0]


def test_undecided_is_shown_where_there_is_any_and_only_there(usual: tuple[Result, str], tmp_path: Path) -> None:
    result, text = usual[0], texts(tree(usual[1]))
    assert "Why they are undecided: NaN in the logits (8 verdicts)." in text
    assert "un-" in in_terminal(result)
    assert "undecided" in REPORTS.get("notebook")(result).partition("<tbody>")[0]
    none = example(tmp_path, undecided=0)
    assert "Why they are undecided" not in page(none)
    assert "un-" not in in_terminal(none)
    assert "undecided" not in REPORTS.get("notebook")(none).partition("<tbody>")[0]


def test_provenance_holds_all_of_the_configuration(tmp_path: Path) -> None:
    result = example(tmp_path)
    result = replace(
        result,
        config={
            **result.config,
            "synsets": [f"n{i}" for i in range(1000)],
            "sessions": [{"started": "now", "ended": None}],
            "notes": ["a note"],
        },
    )
    text = texts(tree(page(result)))
    assert "9f" * 32 in text
    assert "77" * 32 in text
    assert "versions.robustbench-lite0.1.0" in text
    assert "Accuracy under attack, robustbench-lite 0.1.0 toy" in text
    assert "robust-eval --model 'toy model' --attack pgd:steps=10" in text
    assert "1,000 values, in run.json" in text
    assert "sessions.1started now" in text
    assert text.count("a note") == 2  # under the results and here


@pytest.mark.parametrize("sizes", [(4 / 255,), (1 / 255, 2 / 255, 4 / 255)])
def test_the_same_result_writes_the_same_bytes(tmp_path: Path, sizes: tuple[float, ...]) -> None:
    import matplotlib

    first = page(example(tmp_path, sizes))
    with matplotlib.rc_context({"svg.fonttype": "path", "axes.linewidth": 7, "font.size": 30}):  # a user's own settings
        before = dict(matplotlib.rcParams)
        assert page(example(tmp_path, sizes)) == first
        assert dict(matplotlib.rcParams) == before
    assert len(svgs(first)) == 2


def test_the_curve_goes_through_the_accuracies_of_the_table(tmp_path: Path) -> None:
    result = example(tmp_path, (1 / 255, 2 / 255, 4 / 255))
    chart = ElementTree.fromstring(svgs(page(result))[0])
    svg = "{http://www.w3.org/2000/svg}"
    heights: dict[str, float] = {}
    for tick in (g for g in chart.iter(f"{svg}g") if re.fullmatch(r"curve0-ytick_\d+", g.get("id", ""))):
        (use,) = tick.iter(f"{svg}use")
        heights["".join(tick.itertext()).strip()] = float(use.get("y", ""))
    scale = (heights["0"] - heights["100"]) / 100
    marks = [
        [(heights["0"] - float(use.get("y", ""))) / scale for use in line.iter(f"{svg}use")]
        for line in chart.iter(f"{svg}g")
        if re.fullmatch(r"curve0-line2d_\d+", line.get("id", ""))
    ]
    table = result.table.set_index("condition").accuracy
    for short in ("fgsm", "pgd", "worst"):
        expected = [100 * table["clean"], *(100 * table[f"{short}[linf,{k}/255]"] for k in (1, 2, 4))]
        assert any(len(found) == 4 and np.allclose(found, expected, atol=0.01) for found in marks), short


def test_without_attacks_there_is_no_chart_and_no_gallery(tmp_path: Path) -> None:
    result = example(tmp_path)
    text = page(replace(result, conditions=result.conditions[:1], verdicts=result.of("clean")))
    assert "<svg" not in text
    assert "<img" not in text
    assert "under all attacks" not in text
    tree(text)


def test_an_attack_of_size_zero_is_in_the_table_and_has_no_curve(tmp_path: Path) -> None:
    text = page(example(tmp_path, (0.0,)))
    assert "pgd[linf,0/255]" in texts(tree(text))
    assert "Accuracy against eps" not in text


# The gallery


def test_the_pictures_are_the_witness_and_the_difference_is_amplified_as_stated(usual: tuple[Result, str]) -> None:
    result, text = usual
    figures = [figure for figure in tree(text).iter("figure") if figure.get("class") == "witness"]
    assert len(figures) == 12
    for figure in figures:
        caption = re.fullmatch(r"(\S+) · image image,(\d+) · label: (.*)", texts(next(figure.iter("figcaption"))))
        assert caption is not None
        condition, number = caption[1], int(caption[2])
        eps = {c.name: c.eps for c in result.conditions}[condition]
        assert eps is not None
        clean, difference, adversarial = (picture(image.get("src", "")).astype(float) for image in figure.iter("img"))
        expected = witness(number, eps, 8)
        assert np.abs(clean / 255 - expected.clean.numpy().transpose(1, 2, 0)).max() <= 0.501 / 255
        assert np.abs(adversarial / 255 - expected.adversarial.numpy().transpose(1, 2, 0)).max() <= 0.501 / 255
        stated = re.search(r"difference× (\d+)", texts(figure))
        assert stated is not None
        assert int(stated[1]) == round(0.5 / eps)
        change = (expected.adversarial - expected.clean).numpy().transpose(1, 2, 0)
        assert np.abs(difference / 255 - np.clip(0.5 + int(stated[1]) * change, 0, 1)).max() <= 0.501 / 255


def test_the_gallery_gives_both_predictions_by_name_with_their_confidences(usual: tuple[Result, str]) -> None:
    result, text = usual
    verdicts = {(v.condition, v.sample_id): v for v in result.verdicts}
    names = result.config["data"]["class_names"]
    for figure in (f for f in tree(text).iter("figure") if f.get("class") == "witness"):
        condition, sample = re.findall(r"(\S+) · image (\S+) ·", texts(figure))[0]
        found = verdicts[condition, sample]
        clean = verdicts["clean", sample]
        before, _, after = (texts(column) for column in next(d for d in figure.iter("div") if d.get("class") == "pictures"))
        assert before == f"{names[found.clean_prediction]}{100 * clean.confidence:.1f} %"
        assert after == f"{names[found.prediction]}{100 * found.confidence:.1f} %"


def test_the_gallery_is_spread_over_conditions_and_images(tmp_path: Path) -> None:
    captions = re.findall(r"<figcaption><code>(.*?)</code> · image (\S+) ·", page(example(tmp_path, (4 / 255, 8 / 255), n=60)))
    counts = [[c for c, _ in captions].count(name) for name in dict.fromkeys(c for c, _ in captions)]
    assert counts == [3, 3, 3, 3]  # two attacks at two sizes; never the worst case, which repeats them
    assert len({sample for _, sample in captions}) == 12


def test_a_gallery_of_twelve_large_witnesses_stays_under_two_megabytes(tmp_path: Path) -> None:
    text = page(example(tmp_path, pixels=224))  # noise, which no PNG can compress
    assert text.count("<img") == 36
    assert len(text.encode()) < 2_000_000
    assert 'class="coarse"' not in text


def test_few_large_witnesses_are_shown_at_224(tmp_path: Path) -> None:
    result = example(tmp_path)
    (kept,) = [v for v in result.verdicts if v.condition == "pgd[linf,4/255]" and v.sample_id == "image,005"]
    result = replace(
        result,
        verdicts=[kept if v is kept else replace(v, witness=None) for v in result.verdicts],
        witness=lambda *_: witness(5, 0.1, 448, 1),
    )
    sources = re.findall(r'src="([^"]*)"', page(result))
    assert [picture(source).shape for source in sources] == [(224, 224)] * 3


# Terminal and notebook


def test_at_80_columns_names_and_numbers_are_whole(tmp_path: Path) -> None:
    result = example(tmp_path)
    lines = in_terminal(result).splitlines()
    for row in records(result):
        interval = f"{100 * row.ci_low:.1f}–{100 * row.ci_high:.1f}"
        (line,) = [line for line in lines if line.startswith(row.condition)]
        assert line[len(row.condition) :].split()[:4] == [f"{row.correct}/{row.n}", f"{100 * row.accuracy:.1f}", "%", interval]
    assert max(map(len, lines)) <= 80


def test_at_80_columns_a_long_name_wraps_and_no_number_is_cut(tmp_path: Path) -> None:
    result = example(tmp_path)
    long = "foolbox:LinfBasicIterativeAttack[linf,8/255]"
    result = replace(
        result,
        conditions=[*result.conditions, Condition(long, "attack", "foolbox:LinfBasicIterativeAttack", "linf", 8 / 255)],
        verdicts=[*result.verdicts, *(verdict(i, long, forwards=123456, backwards=123456) for i in range(10000))],
        seconds={**result.seconds, long: 123456.0},
    )
    lines = in_terminal(believed(result)).splitlines()
    assert max(map(len, lines)) <= 80
    (place,) = [number for number, line in enumerate(lines) if line.startswith("foolbox:")]
    assert lines[place].split()[1:] == ["10000/10000", "100.0", "%", "99.9–100.0", "123,456", "123,456", "123,456"]
    assert "".join(line.split()[0] for line in lines[place : place + 3]) == long


def test_a_first_pass_in_bf16_is_marked(tmp_path: Path) -> None:
    lines = in_terminal(example(tmp_path, survivors_in="bf16", undecided=0)).splitlines()
    assert len([line for line in lines if re.match(r"(fgsm|pgd)\[linf,\d/255\] bf16 ", line)]) == 4
    assert any(line.startswith("bf16: search=bf16") for line in lines)
    assert "(search=bf16)" in REPORTS.get("notebook")(example(tmp_path, survivors_in="bf16", undecided=0))
    assert "bf16" not in in_terminal(example(tmp_path))


def test_all_and_none_are_not_rounded_to(tmp_path: Path) -> None:
    almost = [verdict(i, "clean", broken=i == 0, broken_by="clean" if i == 0 else None) for i in range(4000)]
    text = in_terminal(replace(example(tmp_path), conditions=[Condition("clean", "clean")], verdicts=almost))
    assert "99.9 %" in text
    assert "3999/4000" in text


def test_the_notebook_shows_the_table(tmp_path: Path) -> None:
    result = example(tmp_path)
    shown = tree(f"<div>{result._repr_html_()}</div>")
    lines = [[texts(cell) for cell in line] for line in shown.iter("tr")]
    for line, row in zip(lines[1:], records(result), strict=True):
        accuracy, interval = f"{100 * row.accuracy:.1f} %", f"{100 * row.ci_low:.1f}–{100 * row.ci_high:.1f} %"
        assert line == [row.condition, f"{row.correct}/{row.n}", accuracy, interval, str(row.undecided), "sound"]
    assert "toy <model> on toys" in texts(shown)
