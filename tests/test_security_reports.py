"""Names that come from data, in everything that is written and printed: none of them becomes markup, a formula or a command."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import handmade_scenario
import pytest
import report_run
import torch
from torch import nn

from robustbench_lite import Classifier, evaluate
from robustbench_lite.cards import Figure
from robustbench_lite.comparison import compare
from robustbench_lite.console import complain, show
from robustbench_lite.history import read_history
from robustbench_lite.labelled import LabelledImages
from robustbench_lite.leaderboard import Board, Line
from robustbench_lite.plain_text import say
from robustbench_lite.registry import REPORTS
from robustbench_lite.results import Result

cell = import_module("robustbench_lite.reports.escaping").cell
MARKUP = (
    """"'><script>alert(1)</script></script></style></title></textarea><img src=x onerror=alert(1)>]]>"""
    "--><svg/onload=alert(1)>{{7*'x'}}&lt;b&gt;|`[a](b)"
)
FORMULA = "=HYPERLINK(1)"
TERMINAL = "\x1b[2J\x1b]0;mine\x07\x9b31m\u202e\u2066\r\x08\n::error::mine ##[add-mask]mine"
PLAIN = "harmless"


class Skeleton(HTMLParser):
    """The elements of a page with the names of their attributes, and what its scripts and links hold; no text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, ...]] = []
        self.running: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))
        self.running += [str(value) for name, value in attrs if name in ("href", "src", "style") or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is not None:
            self.running.append(data)


def run(name: str, folder: Path, seed: int = 0) -> Result:
    """A real run whose data, images, classes, groups and model are all called `name`."""
    torch.manual_seed(seed)
    images = torch.rand(24, 3, 16, 16)
    data = LabelledImages(
        images,
        [i % 3 for i in range(24)],
        ids=[f"{name}{i}" for i in range(24)],
        name=name,
        groups=[f"{name}{i // 2}" for i in range(24)],
        classes=3,
        source=name,
        class_names=[name, f"{name}1", f"{name}2"],
    )
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)).eval(), name=f"{name}{seed}", classes=3)
    return evaluate(model, ["fgsm", "pgd:steps=3"], data, corruptions=["fog:severity=1"], eps=0.03, out=folder, command=name)


def written(name: str, folder: Path) -> Iterator[Path]:
    """Every report that there is, of what `name` is in."""
    results = [run(name, folder / "runs" / str(seed), seed) for seed in (0, 1)]
    for result in results:
        yield from result.write(["html", "csv", "markdown"])
        yield from (file for file in result.folder.glob("*.csv"))  # type: ignore[union-attr]  # it has one
    yield from REPORTS.get("comparison")(compare([str(result.folder) for result in results]), folder / "compared")[1]
    yield from REPORTS.get("history")(read_history(folder / "runs"), folder / "history", ["html", "csv"])[1]
    report = handmade_scenario.by_hand(folder / "runs" / "0")
    report = replace(report, name=name, notes=(name,), models={name: name})
    REPORTS.get("scenario")(report, folder / "scenario")
    REPORTS.get("scenarios-index")([report], folder / "scenario")
    yield from (folder / "scenario").iterdir()
    clean = Figure("clean", (), None, None, (1, 0))
    attacked = [Figure(each, (name,), "linf", 0.1, (1, 0)) for each in ("pgd", "worst")]
    line = Line(name, (clean, *attacked), None, (name,), dict(results[0].config))
    board = Board(name, (line,), tuple(f.condition for f in line.figures), None, False, name, folder)
    yield REPORTS.get("leaderboard")(board)[1]
    yield folder / "leaderboard.csv"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """All files by their path, where everything has one name."""
    made: dict[str, dict[str, str]] = {}

    def called(name: str) -> dict[str, str]:
        if name not in made:
            folder = tmp_path_factory.mktemp("reports")
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(handmade_scenario, "EVIL", name)
                patched.setattr(handmade_scenario, "PAPER", name)
                made[name] = {str(file.relative_to(folder)): file.read_bytes().decode() for file in written(name, folder)}
        return made[name]

    return called


PAGES = ["runs/0/report.html", "compared/comparison.html", "history/history.html", "leaderboard.html"]
PAGES += ["scenario/scenario.html", "scenario/index.html"]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_same_elements_whatever_things_are_called(reports: Callable[[str], dict[str, str]], page: str) -> None:
    hostile, harmless = (Skeleton(reports(name)[page]) for name in (MARKUP, PLAIN))
    assert PLAIN in reports(PLAIN)[page]
    assert hostile.elements == harmless.elements
    assert not any("alert(1)" in each for each in hostile.running)


@pytest.mark.parametrize("around", ['<p title="{}">a</p>', "<p>{}</p>", "<style>{}</style>", "<script>let a = '{}'</script>"])
def test_a_skeleton_sees_what_is_not_escaped(around: str) -> None:
    """So that the test above can fail."""
    assert Skeleton(around.format(MARKUP)).elements != Skeleton(around.format(PLAIN)).elements


def test_findings_and_notes_of_a_page_are_escaped(tmp_path: Path) -> None:
    pages = []
    for place, name in enumerate((MARKUP, PLAIN)):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(report_run, "EVIL", name)
            result = report_run.refuted(tmp_path / str(place))
            (tmp_path / str(place)).mkdir()
            changed = [replace(v, reason=v.reason and name, group=name) for v in result.verdicts]
            result = replace(result, verdicts=changed, config={**result.config, "notes": [name], "device": name})
            pages.append(Skeleton(report_run.page(report_run.believed(result))).elements)
    assert pages[0] == pages[1]


def test_no_cell_is_a_formula(reports: Callable[[str], dict[str, str]]) -> None:
    files = {path: text for path, text in reports(FORMULA).items() if path.endswith(".csv")}
    assert len(files) > 8
    number, met = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?|-?inf"), 0
    for path, text in files.items():
        for cells in csv.reader(text.splitlines(keepends=True)):
            met += sum(each.startswith(f"'{FORMULA}") for each in cells)
            assert not [each for each in cells if re.match(r"\s*[=+\-@\t\r]", each) and not number.fullmatch(each)], path
    assert met > 50


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", " =1", "＝1", "\n=1", "-", "--1"])
def test_a_formula_is_text(text: str) -> None:
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["-1", "+0.5", "-1e-9", "-inf", "", "image-1", "a=b", "'a", -1, -0.5, None, True])
def test_a_number_or_a_name_stays_as_it_is(value: object) -> None:
    assert cell(value) == value


def test_numbers_stay_numbers(reports: Callable[[str], dict[str, str]]) -> None:
    lines = list(csv.DictReader(reports(FORMULA)["compared/comparison.csv"].splitlines()))
    assert any(float(line["difference_low"]) < 0 for line in lines)


def test_markdown_has_no_markup_of_a_name(reports: Callable[[str], dict[str, str]]) -> None:
    hostile, harmless = (reports(name)["runs/0/report.md"].partition("To get the numbers")[0] for name in (MARKUP, PLAIN))
    assert "alert(1)" in hostile
    assert not re.search("[<>]", hostile)
    cells = [[len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines()] for text in (hostile, harmless)]
    assert cells[0] == cells[1]


def test_a_terminal_is_told_nothing_but_text(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    results = [run(TERMINAL, tmp_path / str(seed), seed) for seed in (0, 1)]
    capsys.readouterr()
    show(REPORTS.get("terminal")(results[0]))
    show(REPORTS.get("comparison")(compare([str(result.folder) for result in results]), tmp_path / "compared")[0])
    say(f"note: {TERMINAL}")
    complain("robust-eval", TERMINAL)
    told = "".join(capsys.readouterr())
    assert told.count("mine") > 5
    assert not re.search(r"[^\n\x20-\x7e\xa0-\u2029\u202f-\u2065\u206a-\uffff]", told)
    assert "::" not in told
    assert "##[" not in told
    monkeypatch.delenv("GITHUB_ACTIONS")
    complain("robust-eval", TERMINAL)
    assert capsys.readouterr().err.count("\n") == 1
