"""The leaderboard: what is computed from verdicts, what is said of them, and the command from end to end."""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from chores import Chore
from cli_fixture import Ran
from rich.console import Console

from robustbench_lite import leaderboard
from robustbench_lite.cards import Card, Difference, Figure
from robustbench_lite.engines.opening import Workers
from robustbench_lite.errors import InvalidEvaluation, UsageError
from robustbench_lite.leaderboard import Board, Line, compare
from robustbench_lite.models import load_model
from robustbench_lite.registry import REPORTS
from robustbench_lite.results import Verdict
from robustbench_lite.workers import run_all

N = 100
CONFIG = {
    "notes": [],
    "versions": {"robustbench-lite": "0", "torch": "0"},
    "device": "cpu",
    "data": {"digest": "d" * 64, "spec": "digits"},
    "model": {"digest": "m" * 64},
    "attacks": ["pgd", "autoattack"],
}


def shares(name: str, right: int, eps: float | None = None, n: int = N) -> Figure:
    """A figure of which the first so many images are right."""
    asked = ("pgd", "autoattack") if name == "worst" else (name,) if eps else ()
    return Figure(name, asked, "linf" if eps else None, eps, (1,) * right + (0,) * (n - right))


def line(name: str, clean: int, pgd: int, worst: int, *, card: Card | None = None, flattering: tuple[str, ...] = ()) -> Line:
    attacked = [
        shares(attack, right, eps)
        for eps in (0.05, 0.1, 0.15)
        for attack, right in (("pgd", pgd), ("autoattack", worst), ("adaptive", worst), ("worst", worst))
        if attack != "adaptive" or name == "hardened"
    ]
    corrupted = Figure("cifar-c", ("cifar-c",), None, None, (2,) * 80 + (1,) * 20, 2)
    return Line(name, (shares("clean", clean), *attacked, corrupted), card, flattering, dict(CONFIG))


def card(name: str, *figures: Figure, defense: str = "none") -> Card:
    texts = dict.fromkeys(("description", "good_for", "not_for", "command", "chosen", "digest"), "words & <signs>")
    return Card(name=name, data="digits", architecture="a", defense=defense, seed=0, trained_on=(), versions={}, figures=figures, **texts)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    undefended = line("plain", 99, 4, 0, card=card("plain", shares("pgd", 10, 0.1, n=200), shares("autoattack", 1, 0.1, n=200)))
    hardened = line("hardened", 95, 62, 60, flattering=("pgd flatters & says <so>.",))
    conditions = tuple(figure.condition for figure in hardened.figures)
    return Board("digits", (hardened, undefended), conditions, "plain", False, "robust-eval leaderboard --limit 100", tmp_path)


def verdicts(broken_by: Sequence[str | None]) -> list[Verdict]:
    """Of a worst case, by what broke each image."""
    rest = {"label": 0, "clean_prediction": 0, "prediction": 0, "target": None, "restart": 0, "reason": None, "distance": 0.0}
    rest |= {"confidence": 1.0, "steps": 1, "forwards": 1, "backwards": 1, "precision": "fp32", "seed": 0, "witness": None}
    return [
        Verdict(sample_id=str(i), group=None, condition="worst", broken=by is not None, broken_by=by, **rest)  # type: ignore[arg-type]
        for i, by in enumerate(broken_by)
    ]


# ------------------------------------------------------------------ what flatters


def flatters(stood: int, survive: int, by: Sequence[str]) -> str | None:
    """What is said where `pgd` leaves `stood` of 100 images and the rest of the attacks `survive`; the others fell to `by` in turn."""
    lost = [by[i % len(by)] for i in range(stood - survive)]
    found = verdicts([None] * survive + lost + ["pgd"] * (N - stood))
    return leaderboard._flatters("jagged", shares("pgd", stood, 0.1), shares("worst", survive, 0.1), found)


def test_a_figure_far_above_the_worst_case_is_said_to_flatter_and_by_how_much() -> None:
    said = flatters(62, 3, ["autoattack/square", "autoattack/square", "autoattack/apgd-t"])
    assert said is not None
    gap = Difference.between(shares("pgd", 62, 0.1), shares("worst", 3, 0.1))
    assert said.startswith("pgd flatters jagged at linf 0.1: 62 of 100 images stand it, 3 stand every attack, 59 points fewer")
    assert f"(95 % interval {100 * gap.low:.0f} to {100 * gap.high:.0f})" in said
    assert "square 40, apgd-t 19." in said
    assert said.endswith("so that the gradients mislead.")


def test_gradients_are_blamed_only_where_most_was_found_without_them() -> None:
    said = flatters(62, 3, ["autoattack/apgd-t", "autoattack/square", "autoattack/apgd-ce"])
    assert said is not None
    assert "mislead" not in said


@pytest.mark.parametrize(("stood", "survive"), [(60, 60), (62, 58), (60, 51), (3, 3)])
def test_what_is_near_the_worst_case_does_not_flatter(stood: int, survive: int) -> None:
    assert flatters(stood, survive, ["autoattack/apgd-t"]) is None


def test_a_gap_over_few_images_is_not_said_to_be_one() -> None:
    found = verdicts([None] * 8 + ["autoattack/square"])
    few, left = shares("pgd", 9, 0.1, n=9), shares("worst", 8, 0.1, n=9)
    assert Difference.between(few, left).value > leaderboard.FLATTERS
    assert leaderboard._flatters("jagged", few, left, found) is None


# ------------------------------------------------------------------ what is computed


def test_undecided_is_not_right_and_the_strongest_of_several_attacks_counts_image_by_image() -> None:
    (undecided,) = verdicts([None])
    assert leaderboard._figure("clean", (), [undecided]).right == (1,)
    assert leaderboard._figure(
        "clean", (), [Verdict(**{name: getattr(undecided, name) for name in undecided.__slots__} | {"broken": None})]
    ).right == (0,)
    one, other = Figure("", ("a",), "linf", 0.1, (1, 1, 0, 0)), Figure("", ("b",), "linf", 0.1, (1, 0, 1, 0))
    both = leaderboard._strongest("adaptive", [one, other])
    assert (both.condition, both.asked, both.right) == ("adaptive[linf,0.1]", ("a", "b"), (1, 0, 0, 0))


def test_models_are_sorted_by_the_worst_case_and_not_by_what_flatters() -> None:
    weak, strong = line("weak", 100, 90, 3), line("strong", 90, 50, 45)
    assert sorted([weak, strong], key=leaderboard._rank, reverse=True) == [strong, weak]
    assert leaderboard._rank(line("a", 99, 0, 0)) > leaderboard._rank(line("b", 98, 0, 0))


def test_differences_are_to_the_undefended_model_over_the_same_images(board: Board) -> None:
    hardened, undefended = board.lines
    gap = board.difference(hardened, "autoattack[linf,0.1]")
    assert gap is not None
    assert (gap.value, gap.low > 0.4, gap.high < 0.75) == (0.6, True, True)
    assert board.difference(undefended, "clean") is None
    assert board.difference(hardened, "adaptive[linf,0.1]") is None, "the undefended one has no adaptive attack here"


def test_a_card_stands_beside_the_same_question_only() -> None:
    asked = Figure("pgd", ("pgd:steps=7",), "linf", 0.1, (1,) * N)
    assert line("a", 9, 9, 9, card=card("a", asked)).stored("pgd[linf,0.1]") is None
    same = Figure("pgd", ("pgd:steps=40",), "linf", 0.1, (1,) * N)  # its default, spelled out
    assert line("a", 9, 9, 9, card=card("a", same)).stored("pgd[linf,0.1]") == same
    assert line("a", 9, 9, 9, card=replace(card("a", same), data="digits:train")).stored("pgd[linf,0.1]") is None


def test_the_attacks_that_a_card_names_are_asked_on_other_data_too(monkeypatch: pytest.MonkeyPatch) -> None:
    known = replace(card("digits_cnn", Figure("adaptive", ("bpda",), "linf", 0.1, (1,) * N)), data="elsewhere")
    monkeypatch.setattr(leaderboard, "cards", lambda: [known])
    ((name, _, found, adaptive, _),) = leaderboard._taking_part("digits", ["digits_cnn"], [])
    assert (name, found, adaptive) == ("digits_cnn", known, ("bpda",))


def test_a_model_without_a_card_whose_layers_mislead_meets_their_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaderboard, "load_model", lambda spec: load_model(spec, defense="kwta"))
    ((_, _, found, adaptive, _),) = leaderboard._taking_part("digits", ["digits_cnn"], [])
    assert (found, adaptive) == (None, ("bpda",))


def test_one_image_has_a_difference_that_says_nothing() -> None:
    one, other = (Figure("cifar-c", (), None, None, (right,), 75) for right in (70, 60))
    found = Difference.between(one, other)
    assert (found.value, found.low, found.high) == (pytest.approx(10 / 75), -1.0, 1.0)
    two, none = (Figure("cifar-c", (), None, None, right, 75) for right in ((75, 30), (0, 0)))
    assert Difference.between(two, none).low == -1.0
    assert Difference.between(two, none).high == 1.0


def test_a_note_of_all_models_stands_once_and_names_the_others_models(board: Board) -> None:
    for each in board.lines:
        each.config["notes"] = ["frost is procedural"]
    board.lines[0].config["notes"] = ["frost is procedural", "trained on noise"]
    board = replace(board, lines=(board.lines[0], replace(board.lines[1], undecided=2)))
    assert board.notes == (
        "frost is procedural",
        "hardened: trained on noise",
        "plain: 2 images are undecided, and count as not right",
        "plain: no adaptive attack is known: the worst case is over pgd and autoattack only",
    )


# ------------------------------------------------------------------ what is written


def test_the_table_says_all_at_80_columns(board: Board) -> None:
    table, _ = REPORTS.get("leaderboard")(board)
    written = io.StringIO()
    Console(width=80, file=written, color_system=None).print(table)
    text = written.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for words in (
        "62.0",
        "52–71",
        "+60.0",
        "plain",
        "hardened",
        "pgd flatters & says <so>.",
        "card 5.0",
        "card: what the model's card says, of 200 images",
        "linf 0.15: digits, 100 images",
        "points more than plain",
    ):
        assert words in text
    assert "…" not in text


def test_the_csv_has_a_line_per_model_and_condition(board: Board) -> None:
    REPORTS.get("leaderboard")(board)
    with (board.folder / "leaderboard.csv").open(newline="") as stream:
        rows = {(row["model"], row["condition"]): row for row in csv.DictReader(stream)}
    assert len(rows) == 5 + 3 * 3 + 3 * 4 - 1
    hardened, plain = (rows[name, "autoattack[linf,0.1]"] for name in ("hardened", "plain"))
    assert (hardened["accuracy"], hardened["baseline"], hardened["difference"], hardened["card_accuracy"]) == ("0.6", "plain", "0.6", "")
    assert (plain["card_n"], plain["card_accuracy"], plain["difference"]) == ("200", "0.005", "")
    assert float(hardened["ci_low"]) < 0.6 < float(hardened["ci_high"])
    assert (rows["plain", "cifar-c"]["answers"], rows["plain", "cifar-c"]["accuracy"]) == ("2", "0.9")


def test_the_page_is_one_file_without_script_or_network(board: Board) -> None:
    _, path = REPORTS.get("leaderboard")(board)
    text = path.read_text("utf-8")
    assert not [word for word in ("<script", "src=", "http", "url(", "@import") if word in text]
    root = ET.fromstring(text.replace("<!DOCTYPE html>", "").strip())
    said = " ".join("".join(root.itertext()).split())
    for words in (
        "hardened stands the most",
        "pgd flatters & says <so>.",
        "card: 5.0 of 200",
        "+60.0",
        "robust-eval leaderboard --limit 100",
        "m" * 64,
    ):
        assert words in said


# ------------------------------------------------------------------ processes


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_tasks_run_and_report_and_name_themselves_where_they_fail(workers: int) -> None:
    told: list[str] = []
    run_all([Chore("one"), Chore("two")], Workers(count=workers), lambda name, *_: told.append(name))
    assert sorted(told) == ["one", "two"]
    with pytest.raises(UsageError, match="two: it cannot be used"):
        run_all([Chore("two", "refuses")], Workers(count=workers), lambda *_: None)


def test_a_process_that_dies_is_an_error_and_no_result() -> None:
    told: list[str] = []
    with pytest.raises(InvalidEvaluation, match="two: 4 workers died at it"):
        run_all([Chore("two", "dies")], Workers(count=2), lambda name, *_: told.append(name))
    assert told == ["two"] * 4, "it began each time, and died of what it did"


def test_one_ray_serves_all_models(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def run(tasks: Sequence[leaderboard.Task], workers: Workers, progress: object) -> None:
        said.extend(["begun", *{task.workers.engine for task in tasks if task.workers}])
        raise InvalidEvaluation("enough")

    monkeypatch.setattr(Workers, "open", lambda _: said.append("opened") or SimpleNamespace(close=lambda: said.append("closed")))
    monkeypatch.setattr(leaderboard, "run_all", run)
    with pytest.raises(InvalidEvaluation, match="enough"):
        compare("digits", workers=Workers("ray"))
    assert said == ["opened", "begun", "ray", "closed"]


# ------------------------------------------------------------------ the command

Inside = Callable[..., Ran]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "digit"), "did you mean 'digits'"),
        (("--data", "mnist"), "no bundled model is for mnist"),
        (("--limit", "0"), "limit must be 1 or more, got 0"),
        (("--workers", "0"), "--workers must be 1 or more, got 0"),
        (("--full", "--limit", "5"), "--full takes all images: leave --limit out"),
        (("--model", "digit_cnn"), "did you mean 'digits_cnn'"),
        (("--model", "digits_cnn", "--model", "digits_cnn"), "two of the models are called digits_cnn"),
        (("--model", "digits_cnn", "--eps", "much"), "'much' is not a number"),
        (("--model", "nothing.safetensors"), "no checkpoint nothing.safetensors"),
    ],
)
def test_bad_input_is_one_line(inside: Inside, options: tuple[str, ...], words: str) -> None:
    ran = inside("leaderboard", *options)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.complaint


def test_live_figures_are_those_of_an_evaluation_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from robustbench_lite.evaluation import evaluate

    monkeypatch.setattr(leaderboard, "cards", lambda: [])
    monkeypatch.setattr(leaderboard, "EVERY", ("pgd", "fgsm"))  # autoattack takes long
    asked = {"eps": [0.1, "0.06"], "limit": 12, "workers": 1, "out": tmp_path}
    found = compare("digits", ["digits_cnn"], **asked)  # type: ignore[arg-type]
    (only,) = found.lines
    assert found.conditions[1:5] == ("pgd[linf,0.1]", "fgsm[linf,0.1]", "worst[linf,0.1]", "pgd[linf,0.06]"), "the first decides the order"
    assert found.command.endswith(f"--eps 0.1 --eps 0.06 --limit 12 --out {tmp_path}")
    alone = evaluate("digits_cnn", ["pgd", "fgsm"], "digits", corruptions=["cifar-c"], eps=[0.06, 0.1], limit=12)
    table = alone.table.set_index("condition").correct
    for name in ("clean", "pgd[linf,0.06]", "fgsm[linf,0.1]", "worst[linf,0.06]"):
        figure = only.figure(name)
        assert figure is not None
        assert (sum(figure.right), figure.n) == (table[name], 12)
    corrupted = only.figure("cifar-c")
    assert corrupted is not None
    assert sum(corrupted.right) == alone.table[alone.table.kind == "corruption"].correct.sum()
    assert corrupted.answers == 75

    again = compare("digits", ["digits_cnn"], **asked)  # type: ignore[arg-type]
    assert [line.figures for line in again.lines] == [only.figures]
    assert ["batch_size" in session for session in again.lines[0].config["sessions"]] == [True, False]  # nothing was left to do


BLIND = """
import torch
from torch import nn

class Blind(nn.Module):
    def forward(self, x):
        logits = torch.stack([x.mean((1, 2, 3)) * k for k in range(10)], 1)
        return torch.where(x.mean((1, 2, 3))[:, None] > 0.3, logits * torch.nan, logits)

def build():
    return Blind().eval()
"""


def test_images_that_no_attack_could_decide_are_named_and_are_exit_code_4(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaderboard, "cards", lambda: [])
    monkeypatch.setattr(leaderboard, "EVERY", ("pgd", "fgsm"))
    (tmp_path / "blind.py").write_text(BLIND)
    ran = inside("leaderboard", "--model", f"{tmp_path / 'blind.py'}:build", "--limit", "8", "--workers", "1", "--eps", "0.1")
    assert ran.code == 4
    (count,) = re.findall(r"images are undecided \((\d+) of blind.py:build\)", ran.err)
    assert 0 < int(count) <= 8, ran.err
    assert f"note: {count} images are undecided, and count as not right" in ran.out
