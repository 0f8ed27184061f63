"""What `--format` writes: each format says what the table says, and what cannot be written is said before a run begins."""

from __future__ import annotations

import json
import math
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_run import EVIL, FGSM, PGD, believed, example, refuted, verdict

from robustbench_lite.console import formats_of
from robustbench_lite.errors import UnknownName, UsageError
from robustbench_lite.registry import FORMATS
from robustbench_lite.results import TABLE_COLUMNS, VERDICT_FIELDS


def test_every_format_names_the_files_that_it_wrote(tmp_path: Path) -> None:
    result = refuted(tmp_path)
    for name in ("html", "csv", "json", "markdown", "junit"):
        paths = FORMATS.get(name)(result)
        assert paths
        assert all(path.parent == tmp_path and path.stat().st_size for path in paths)
    assert [path.name for path in result.write(["md", "csv"])] == ["report.md", "table.csv"]


def test_json_holds_the_rows_the_trust_and_the_findings(tmp_path: Path) -> None:
    result = refuted(tmp_path)
    infinite = replace(result.findings[0], figures={"distance": math.inf})
    believed(result, [infinite, *result.findings[1:]])
    (path,) = FORMATS.get("json")(result)

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    found = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert found["schema"] == 1
    assert [tuple(row) for row in found["table"]] == [TABLE_COLUMNS] * 7
    assert [row["accuracy"] for row in found["table"]] == list(result.table.accuracy)
    assert found["trust"][FGSM] == {"level": "refuted", "at_most": 0.4, "reasons": list(result.trust[FGSM].reasons), "missing": []}
    assert found["findings"][0]["figures"] == {"distance": "inf"}
    assert found["doubts"][0]["broken"] == 1
    assert {row["label"] for row in found["per_class"]} == {0, 1, 2}
    assert found["config"] == json.loads(json.dumps(result.config))


def test_markdown_shows_names_as_they_are(tmp_path: Path) -> None:
    result = example(tmp_path)
    result = believed(replace(result, config={**result.config, "notes": [f"a | b {EVIL}"], "command": "robust-eval ```"}))
    text = FORMATS.get("md")(result)[0].read_text(encoding="utf-8")
    assert "<script" not in text
    assert "a \\| b" in text
    (table,) = [block for block in text.split("\n\n") if block.startswith("| condition")]
    assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1
    assert "````\nrobust-eval ```\n````" in text


def test_junit_fails_what_is_refuted_and_does_not_pass_what_is_doubtful(tmp_path: Path) -> None:
    result = refuted(tmp_path)
    result = believed(replace(result, verdicts=[*result.verdicts, verdict(0, "pgd[linf,2/255]", broken=None)]), result.findings)
    cases = {case.get("name"): case for case in ElementTree.parse(FORMATS.get("junit")(result)[0]).iter("testcase")}
    kinds = {name: [child.tag for child in case if child.tag != "system-out"] for name, case in cases.items()}
    assert (kinds["clean"], kinds[FGSM], kinds[PGD], kinds["pgd[linf,2/255]"]) == ([], ["failure"], ["skipped"], ["error"])
    assert "six have a witness" in "".join(cases[FGSM].itertext())


def test_parquet_gives_the_same_numbers_back(tmp_path: Path) -> None:
    from pyarrow import parquet

    result = refuted(tmp_path)
    result = believed(replace(result, verdicts=[*result.verdicts, verdict(3, "fgsm[linf,2/255]", label=[0, 1], distance=math.inf)]))
    table, samples = (parquet.read_table(path).to_pylist() for path in FORMATS.get("parquet")(result))
    assert [tuple(row) for row in table] == [TABLE_COLUMNS] * 7
    assert [row["at_most"] for row in table] == list(result.table.at_most)
    assert [tuple(row) for row in samples] == [(*VERDICT_FIELDS, "nearest")] * len(result.verdicts)
    for row, v in zip(samples, result.verdicts, strict=True):
        assert (row["broken"], row["distance"], row["forwards"], row["gradient"]) == (v.broken, v.distance, v.forwards, v.gradient)
        assert json.loads(row["label"]) == v.label
        assert (row["nearest"], row["radius"], json.loads(row["approach"])) == (v.nearest, v.radius, list(v.approach))


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"robustbench-lite\[parquet\]"):
        FORMATS.get("parquet")(example(tmp_path))
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match=r"--format parquet needs pyarrow: install robustbench-lite\[parquet\]"):
        formats_of("html,parquet")  # so that a run of hours does not end with it


def test_formats_are_read_and_wrong_ones_refused() -> None:
    assert formats_of("html, md,html") == ["html", "md"]
    with pytest.raises(UnknownName, match=r"unknown format 'jsn': did you mean 'json'"):
        formats_of("csv,jsn")
    with pytest.raises(UnknownName, match="unknown format 'terminal'"):
        formats_of("terminal")
    with pytest.raises(UsageError, match="--format is empty"):
        formats_of(" ,")


def test_the_command_line_writes_what_was_asked_for(inside: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words: list[Any] = ["--model", "digits_cnn", "--limit", "10", "--out", folder, "--format", "json,md"]
    done = inside(*words)
    assert done.code == 0, done.err
    assert f"report: {folder}/report.json, report.md" in done.out
    assert not (folder / "report.html").exists()
    again = inside("report", folder, "--format", "html,junit")
    assert f"report: {folder}/report.html, report.xml" in again.out
    refused = inside("--model", "digits_cnn", "--out", tmp_path / "none", "--format", "pdf")
    assert (refused.code, (tmp_path / "none").exists()) == (2, False)
    assert "unknown format 'pdf'" in refused.err
