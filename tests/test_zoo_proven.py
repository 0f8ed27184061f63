"""What the zoo's cards say is proven, and the models that a defense is put around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from handmade_runs import IMAGES, attack, first, made, row, verdict
from robustbench_lite.defenses.zoo import make, measuring
from robustbench_lite.defenses.zoo.entries import ENTRIES, UNDEFENDED

import robustbench_lite as rb
from robustbench_lite.cards import SEED, Difference, Figure, cards
from robustbench_lite.catalogue import description
from robustbench_lite.data import load_data
from robustbench_lite.defending import Defenses
from robustbench_lite.errors import InvalidEvaluation
from robustbench_lite.leaderboard import Board, Line
from robustbench_lite.models import load_model
from robustbench_lite.proofs import ProofVerdict
from robustbench_lite.registry import REPORTS
from robustbench_lite.results import Condition, Result

SHIPPED = {card.name: card for card in cards() if card.name in ENTRIES}
CERTIFIED = [name for name, entry in ENTRIES.items() if entry.certificates]
TRAINED_FOR_IT = ["digits_ibp", "digits_crown_ibp", "digits_colt"]
AROUND = [name for name, entry in ENTRIES.items() if entry.around is not None]


def figure(name: str, condition: str) -> Figure:
    found = SHIPPED[name].figure(condition)
    assert found is not None
    return found


# --- what is proven


@pytest.mark.parametrize("name", TRAINED_FOR_IT)
@pytest.mark.parametrize("certificate", ["crown", "zonotope"])
def test_training_for_a_proof_proves_a_third_at_least(name: str, certificate: str) -> None:
    assert figure(name, f"{certificate}[linf,0.1]").accuracy > 0.3


@pytest.mark.parametrize("certificate", ["crown", "zonotope"])
def test_of_colt_more_is_proven_than_of_adversarial_training(certificate: str) -> None:
    ours, plain = (figure(name, f"{certificate}[linf,0.1]") for name in ("digits_colt", "digits_small_pgd_at"))
    assert Difference.between(ours, plain).low > 0


@pytest.mark.parametrize("name", CERTIFIED)
def test_no_attack_breaks_what_is_proven(name: str) -> None:
    card = SHIPPED[name]
    proofs = [each for each in card.figures if each.proven]
    assert [each.condition for each in proofs] == [f"{certificate}[linf,0.1]" for certificate in ENTRIES[name].certificates]
    for proof in proofs:
        for attacked in card.figures:
            if not attacked.proven and attacked.eps is not None and attacked.eps <= 0.1:
                stood = make._over(attacked, proof.n, card.data)
                assert stood.n == proof.n
                assert all(sure <= right for sure, right in zip(proof.right, stood.right, strict=True)), attacked.condition


@pytest.mark.parametrize("name", CERTIFIED)
def test_a_card_says_that_what_is_proven_is_a_lower_bound(name: str) -> None:
    (line,) = [line for line in description(name).splitlines() if line.strip().startswith("crown[linf,0.1]")]
    assert line.endswith("proven, at least, whatever the attack")


@pytest.mark.parametrize("name", TRAINED_FOR_IT)
def test_a_card_can_be_proven_again(name: str, tmp_path: Path) -> None:
    few = rb.evaluate(name, (), "digits", certify="crown", eps=0.1, limit=3, seed=SEED, witnesses="none", out=tmp_path)
    told = make._over(figure(name, "crown[linf,0.1]"), 3, "digits").right
    holds = {proof.sample_id: int(proof.proven) for proof in few.proofs}
    assert tuple(holds[key] for key in load_data("digits", limit=3, seed=SEED).ids) == told


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CERTIFIED)
def test_the_bracket_of_a_bundled_model(name: str, tmp_path: Path) -> None:
    asked = ["apgd", "pgd:loss=margin,restarts=3"]
    run = rb.evaluate(name, asked, "digits", certify=["crown", "zonotope"], eps=0.1, limit=50, seed=SEED, out=tmp_path)
    bracket = run.brackets["worst[linf,0.1]"]
    assert bracket.proven <= bracket.surviving
    for proven in run.proof_rows:
        assert proven.proven == sum(make._over(figure(name, proven.condition), 50, "digits").right)
        assert (proven.accuracy > 0.3) == (name in TRAINED_FOR_IT)


def runs(broken: set[str], proven: set[str]) -> Sequence[Result]:
    """What `measure` gives: pgd and an adaptive attack break these images, autoattack none, and crown proves those."""

    def attacked(*specs: str) -> Result:
        rows = []
        for condition in (attack(spec, eps) for spec in specs for eps in measuring.RADII):
            fell = broken if condition.attack == "pgd" and condition.eps == 0.1 else set()
            rows.append((condition, [verdict(condition, key, key in fell, prediction=int(key not in fell)) for key in IMAGES]))
        fog = Condition("fog[1]", "corruption", corruption="fog", severity=1)
        return made(*rows, (fog, row(fog, set())))

    crown = Condition("crown[linf,0.1]", "certified", norm="linf", eps=0.1, certificate="crown", confidence=1.0, proof_of="m")
    proofs = [ProofVerdict(crown.name, key, 1, 1, key in proven, 0.1 * (key in proven), None) for key in reversed(IMAGES)]
    plain = made()
    certified = replace(plain, config={**plain.config, "model": {"digest": "m"}}, certificates=[crown], proofs=proofs)
    return attacked("pgd", "apgd"), attacked("autoattack"), certified


def test_what_is_proven_becomes_a_figure_of_its_own() -> None:
    *others, crown = measuring.figures(runs(first(40), set(IMAGES[40:70])), ("apgd",))
    assert (crown.condition, crown.asked, crown.proven) == ("crown[linf,0.1]", ("crown",), True)
    assert crown.right == (0,) * 40 + (1,) * 30 + (0,) * 30, "in the order of the data, and not of the proofs"
    assert not any(each.proven for each in others)


def test_a_proof_of_what_an_attack_broke_is_refused() -> None:
    with pytest.raises(InvalidEvaluation, match=r"crown\[linf,0.1\] proves that image 39 is 1 .* pgd\[linf,0.1\] found"):
        measuring.figures(runs(first(40), set(IMAGES[39:70])), ("apgd",))


# --- where it is shown


def test_the_leaderboard_says_what_cards_prove_and_that_it_is_a_lower_bound(tmp_path: Path) -> None:
    name = "digits_colt"
    card = SHIPPED[name]
    clean, attacked = Figure("clean", (), None, None, (1,) * 10), Figure("worst", ("pgd",), "linf", 0.1, (1,) * 10)
    config = {"notes": [], "data": {"spec": "digits", "digest": "d"}, "versions": {"robustbench-lite": "0"}}
    config |= {"device": "cpu", "attacks": ["pgd"]}
    corrupted = Figure("cifar-c", ("cifar-c",), None, None, (1,) * 10)
    line = Line(name, (clean, attacked, corrupted), card, (), config | {"model": {"digest": "m"}})
    board = Board("digits", (line,), ("clean", "worst[linf,0.1]", "cifar-c"), None, False, "robust-eval leaderboard", tmp_path)
    proven = sum(figure(name, "crown[linf,0.1]").right)
    assert f"{name}: at least {proven} of the 100 images of its card stay right at linf 0.1, whatever the attack: crown" in board.proven[0]
    assert len(board.proven) == 2
    _, page = REPORTS.get("leaderboard")(board)
    said = page.read_text("utf-8")
    assert "What is proven is a lower bound" in said
    assert board.proven[1] in said
    other = replace(line, config=config | {"data": {"spec": "digits:train", "digest": "d"}})
    assert replace(board, lines=(other,)).proven == (), "a card is of its own data only"


# --- around another model


@pytest.mark.parametrize("name", AROUND)
def test_a_defense_around_a_model_of_the_zoo_is_put_there_as_by_hand(name: str) -> None:
    card = SHIPPED[name]
    assert card.around == UNDEFENDED
    ours, by_hand = load_model(name), load_model(UNDEFENDED, defense=card.defense)
    assert (ours.digest, ours.trained_on, ours.learnt_from) == (by_hand.digest, by_hand.trained_on, by_hand.learnt_from)
    assert ours.digest != load_model(UNDEFENDED).digest
    x = torch.stack([image for image, _ in load_data("digits", limit=8)])
    with torch.inference_mode():
        assert torch.equal(ours(x), by_hand(x))
    assert card.command == f"robust-eval --model {UNDEFENDED} --defense {card.defense}"
    assert Defenses.parse(card.defense).parts[0].kind in ("input", "output")


def test_what_is_put_around_a_model_is_made_without_a_checkpoint_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def measured(classifier: rb.Classifier, *_: object) -> list[Result]:
        asked.append(classifier.digest)
        folder = tmp_path / "run"
        folder.mkdir()
        return [replace(made(config={"versions": {}}), folder=folder)]

    monkeypatch.setattr(measuring, "measure", measured)
    monkeypatch.setattr(measuring, "figures", lambda *_: ())
    monkeypatch.setattr(make, "BUILD", tmp_path)
    card = make.made("digits_jpeg", 1)
    assert (card.around, card.digest) == (UNDEFENDED, SHIPPED[UNDEFENDED].digest)
    other = make.FOLDER / "digits_augmix.safetensors"
    (tmp_path / f"{UNDEFENDED}.safetensors").write_bytes(other.read_bytes())
    again = make.made("digits_jpeg", 1, [UNDEFENDED])
    assert again.digest == SHIPPED["digits_augmix"].digest, "put around what the same make has trained"
    assert asked[0] == load_model("digits_jpeg").digest != asked[1]
    monkeypatch.setattr(make, "FOLDER", tmp_path / "shipped")
    make.FOLDER.mkdir()
    make._ship(card)
    assert [file.name for file in make.FOLDER.iterdir()] == ["digits_jpeg.json"]
    assert make._shipped("digits_jpeg") == card


def test_the_rounds_of_make_zoo_train_before_they_wrap() -> None:
    for entry in ENTRIES.values():
        assert entry.around is None or ENTRIES[entry.around].around is None
