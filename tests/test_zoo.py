"""Cards, the bundled models that have one, and what `make zoo` compares."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from robustbench_lite.defenses.zoo import FOLDER, make
from robustbench_lite.defenses.zoo.entries import ENTRIES, UNDEFENDED
from robustbench_lite.defenses.zoo.make import BUILD, app, unlike
from robustbench_lite.defenses.zoo.measuring import figures, measure

from robustbench_lite.cards import SEED, Card, Difference, Figure, cards
from robustbench_lite.catalogue import description
from robustbench_lite.data import load_data
from robustbench_lite.defending import Defenses
from robustbench_lite.errors import ModelError, UnknownName, UsageError
from robustbench_lite.models import load_model
from robustbench_lite.stats import paired_interval, wilson
from robustbench_lite.trained import Made

SHIPPED = {card.name: card for card in cards() if card.name in ENTRIES}

CARD = Card(
    name="fake",
    description="A card for tests.",
    good_for="tests",
    not_for="anything else",
    data="digits",
    architecture="digits_cnn",
    defense="none",
    command="robust-train --data digits --out fake.safetensors",
    seed=3,
    chosen="not at all",
    trained_on=("augmix",),
    digest="0" * 64,
    versions={"torch": "2"},
    figures=(
        Figure("clean", (), None, None, (1,) * 38 + (0,) * 2),
        Figure("adaptive", ("square", "bpda"), "linf", 0.1, (1, 0) * 20),
        Figure("cifar-c", ("cifar-c",), None, None, (75, 30) * 20, 75),
    ),
)


@pytest.mark.parametrize(
    ("counts", "published"),
    [
        # Newcombe, Statistics in Medicine 17, 1998, table II, method 10
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((20, 12, 2, 16), (0.0562, 0.3292)),
        ((2, 97, 1, 0), (0.8721, 0.9854)),
        ((0, 29, 1, 0), (0.6666, 0.9882)),
        ((0, 30, 0, 0), (0.8395, 1.0)),
        ((54, 0, 0, 0), (-0.0664, 0.0664)),
    ],
)
def test_the_paired_interval_is_newcombes(counts: tuple[int, int, int, int], published: tuple[float, float]) -> None:
    assert paired_interval(*counts) == pytest.approx(published, abs=5e-5)
    both, first, second, neither = counts
    low, high = paired_interval(both, second, first, neither)
    assert (-high, -low) == pytest.approx(published, abs=5e-5)


def test_the_paired_interval_of_altmans_book() -> None:
    # Altman, Statistics with Confidence, 2000, page 52
    assert paired_interval(14, 5, 0, 22) == pytest.approx((0.011, 0.226), abs=5e-4)


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (3, -1, 0, 0)])
def test_a_paired_interval_needs_counts(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="counts of 0 or more"):
        paired_interval(*counts)


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "fake.json"
    file.write_text(CARD.written(), "utf-8")
    assert Card.read(file) == CARD
    assert len(CARD.written().splitlines()) < 80, "an image must not take a line"


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-9], lambda text: text.replace('"seed"', '"sead"'), lambda text: text.replace("75 30", "x 30")]
)
def test_a_damaged_card_is_refused(tmp_path: Path, damage: object) -> None:
    file = tmp_path / "fake.json"
    file.write_text(damage(CARD.written()), "utf-8")  # type: ignore[operator]  # the cases above are functions
    with pytest.raises(ModelError, match=r"fake.json cannot be read"):
        Card.read(file)


def test_figures_are_computed_from_the_images() -> None:
    clean, adaptive, corrupted = CARD.figures
    assert (clean.n, clean.accuracy, clean.interval) == (40, 0.95, wilson(38, 40))
    assert adaptive.condition == "adaptive[linf,0.1]"
    assert corrupted.accuracy == pytest.approx((1 + 30 / 75) / 2)
    assert corrupted.interval == pytest.approx(wilson(40 * corrupted.accuracy, 40)), "75 answers about an image are not 75 images"


def test_differences_pair_image_by_image() -> None:
    first, second = Figure("pgd", ("pgd",), "linf", 0.1, (1, 1, 1, 0, 1)), Figure("pgd", ("pgd",), "linf", 0.1, (1, 0, 0, 1, 1))
    found = Difference.between(first, second)
    assert (found.value, (found.low, found.high)) == (pytest.approx(0.2), paired_interval(2, 2, 1, 0))
    # own differences 0.2, 0.4, 0.6: mean 0.4, standard error 0.2 / sqrt(3), Student's 4.302653 with 2 degrees of freedom
    several = Difference.between(Figure("c", (), None, None, (3, 4, 5), 5), Figure("c", (), None, None, (2, 2, 2), 5))
    assert (several.value, several.high - several.value) == (pytest.approx(0.4), pytest.approx(4.302653 * 0.2 / 3**0.5, rel=1e-5))
    with pytest.raises(ValueError, match="does not pair"):
        Difference.between(first, CARD.figures[0])


def test_a_model_made_again_is_held_to_its_card() -> None:
    assert unlike(CARD, CARD) == []
    worse = replace(CARD, figures=(replace(CARD.figures[0], right=(1,) * 30 + (0,) * 10), *CARD.figures[1:]))
    better = replace(CARD, figures=(CARD.figures[0], replace(CARD.figures[1], right=(1,) * 40), CARD.figures[2]))
    assert [line.partition(":")[0] for line in unlike(worse, CARD)] == ["clean"]
    assert [line.partition(":")[0] for line in unlike(better, CARD)] == ["adaptive[linf,0.1]"], "a figure too good is no reproduction"
    fewer = replace(CARD, figures=CARD.figures[:2])
    assert "measured otherwise" in unlike(fewer, CARD)[0]
    weaker = replace(CARD, figures=(CARD.figures[0], replace(CARD.figures[1], asked=("square",)), CARD.figures[2]))
    assert "measured otherwise" in unlike(weaker, CARD)[0]
    assert "no card" in unlike(CARD, None)[0]


def test_a_card_over_more_images_is_compared_on_the_same_ones() -> None:
    many, few = (load_data("digits", limit=n, seed=SEED).ids for n in (60, 20))
    told = Figure("clean", (), None, None, tuple(int(key in few) for key in many))  # right exactly where the few are
    card = replace(CARD, figures=(told,))
    assert unlike(replace(CARD, figures=(replace(told, right=(1,) * 20),)), card) == []
    assert "0.00% of 20 images" in unlike(replace(CARD, figures=(replace(told, right=(0,) * 20),)), card)[0]


@pytest.mark.slow
def test_a_model_is_made_with_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = replace(ENTRIES["digits_kwta"], recipe={"epochs": 2}, adaptive=("bpda", "square:queries=10"))
    monkeypatch.setattr(make, "BUILD", tmp_path)
    monkeypatch.setattr(make, "FOLDER", tmp_path / "shipped")
    monkeypatch.setitem(ENTRIES, "digits_kwta", quick)
    card = make.made("digits_kwta", 3)
    assert make.unlike(card, make._shipped("digits_kwta")) == ["there is no card yet: add --update"]
    (tmp_path / "shipped").mkdir()
    make._ship(card)
    assert make._shipped("digits_kwta") == card
    weights = load_model(str(tmp_path / "digits_kwta.safetensors")).digest
    again = make.made("digits_kwta", 3)
    assert replace(again, digest=card.digest) == card, "the same machine gives the same answers"
    assert load_model(str(tmp_path / "digits_kwta.safetensors")).digest == weights, "and the same weights"
    assert sorted(file.name for file in (tmp_path / "shipped").iterdir()) == ["digits_kwta.json", "digits_kwta.safetensors"]
    assert not [file for file in tmp_path.iterdir() if file.is_dir() and file.name != "shipped"], "a finished run is left behind"


@pytest.mark.slow
def test_what_is_measured_becomes_figures(tmp_path: Path) -> None:
    adaptive = ("square:queries=20", "apgd:loss=dlr,steps=5")  # not spelled as conditions are
    results = measure(load_model("digits_cnn"), "digits", adaptive, 2, tmp_path)
    result, found = results[0], {figure.condition: figure for figure in figures(results, adaptive)}
    assert {condition: figure.n for condition, figure in found.items() if figure.n != 6} == {
        f"autoattack[linf,{eps}]": 2 for eps in (0.05, 0.1, 0.15)
    }
    assert list(found) == [
        "clean",
        *(f"{attack}[linf,{eps}]" for attack in ("pgd", "autoattack", "adaptive") for eps in (0.05, 0.1, 0.15)),
        "cifar-c",
    ]
    assert found["cifar-c"].answers == 75
    for verdict, right in zip(result.of("clean"), found["clean"].right, strict=True):
        assert right == (not verdict.broken)
    each = [[v.broken for v in result.of(c.name)] for c in result.conditions if c.eps == 0.1 and c.attack not in ("pgd", "autoattack")]
    assert found["adaptive[linf,0.1]"].right == tuple(int(not any(broken)) for broken in zip(*each[:2], strict=True))


def test_every_model_of_the_zoo_is_shipped() -> None:
    assert set(SHIPPED) == set(ENTRIES), "make zoo UPDATE=1"


@pytest.mark.parametrize(
    ("name", "condition", "least"),
    [
        ("digits_pgd_at", "autoattack[linf,0.1]", 0.1),
        ("digits_pgd_at", "autoattack[linf,0.15]", 0.2),
        ("digits_augmix", "cifar-c", 0.0),
    ],
)
def test_a_defense_is_worth_something(name: str, condition: str, least: float) -> None:
    defended, undefended = SHIPPED[name].figure(condition), SHIPPED[UNDEFENDED].figure(condition)
    assert defended is not None
    assert undefended is not None
    found = Difference.between(defended, undefended)
    assert found.value >= least
    assert found.low > 0


def test_pgd_flatters_a_masked_defense() -> None:
    pgd, adaptive = (SHIPPED["digits_kwta"].figure(f"{name}[linf,0.05]") for name in ("pgd", "adaptive"))
    assert pgd is not None
    assert adaptive is not None
    found = Difference.between(pgd, adaptive)
    assert found.value >= 0.3
    assert found.low > 0.2


@pytest.mark.parametrize("name", SHIPPED)
def test_a_bundled_model_is_what_its_card_says(name: str) -> None:
    card, entry = SHIPPED[name], ENTRIES[name]
    assert card.around == entry.around
    checkpoint = FOLDER / f"{card.around or name}.safetensors"
    assert sha256(checkpoint.read_bytes()).hexdigest() == card.digest
    assert checkpoint.stat().st_size < 300_000
    classifier = load_model(name)
    assert (classifier.name, classifier.data, classifier.trained_on) == (name, card.data, card.trained_on)
    assert Defenses.parse(card.defense) == Defenses.parse(entry.defense), "make zoo UPDATE=1"
    if card.around is None:
        assert card.command == entry.request(BUILD / f"{name}.safetensors").command, "make zoo UPDATE=1"
    clean = card.figure("clean")
    assert clean is not None
    data = load_data("digits", limit=clean.n, seed=SEED)
    with torch.inference_mode():
        answers = classifier(torch.stack([image for image, _ in data])).argmax(1).tolist()
    assert tuple(int(answer == label) for answer, label in zip(answers, data.labels, strict=True)) == clean.right
    for figure in card.figures:
        right = make._over(clean, figure.n, card.data).right
        assert set(figure.right) <= set(range(figure.answers + 1))
        if figure.eps is not None:
            assert all(one <= other for one, other in zip(figure.right, right, strict=True)), "an attack mends no image, nor does a proof"


@pytest.mark.parametrize("name", SHIPPED)
def test_describe_says_what_the_card_says(name: str) -> None:
    said, card = description(name), SHIPPED[name]
    for words in (
        card.description,
        card.good_for,
        card.not_for,
        card.command,
        card.digest,
        "autoattack[linf,0.15]",
        f"of {card.figures[0].n}",
    ):
        assert words in said
    assert (f"to {UNDEFENDED}" in said) == (name != UNDEFENDED)


def test_a_checkpoint_says_what_it_is() -> None:
    from safetensors import safe_open

    for name, card in SHIPPED.items():
        with safe_open(FOLDER / f"{card.around or name}.safetensors", "pt") as opened:
            made = Made.read(opened.metadata(), FOLDER)
        assert (made.architecture, made.data) == (card.architecture, card.data)
        assert card.around is not None or Defenses.parse(made.defense) == Defenses.parse(card.defense)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [(["digits_pgd"], UnknownName, "did you mean 'digits_pgd_at'"), (["--images", "0"], UsageError, "--images must be 1 or more")],
)
def test_make_zoo_refuses_what_it_cannot_make(words: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        app(words)


def test_a_card_is_plain_json() -> None:
    assert json.loads(CARD.written())["figures"][2]["right"].startswith("75 30 75 30")
