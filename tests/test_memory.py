"""Memory does not grow with the number of images, and running out of it ends nothing that fewer images would not."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite import session
from robustbench_lite.classifier import Classifier
from robustbench_lite.data import load_data
from robustbench_lite.errors import InvalidEvaluation

NO_ROOM: list[Callable[[], Exception]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory"),
    lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 629145600 bytes"),
    lambda: MemoryError(),
]


class Small(nn.Module):
    """A linear model that has room for so many images only."""

    def __init__(self, most: int = 10**9, error: Callable[[], Exception] = MemoryError, back: int = 10**9) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 3)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.linear.bias)
        self.most, self.error, self.back = most, error, back

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > (self.back if x.requires_grad else self.most):
            raise self.error()
        logits: Tensor = self.linear(x.flatten(1) - 0.5)
        return logits


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    pixels = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = Small()(pixels).argmax(1)
    labels[::7] = (labels[::7] + 1) % 3
    return pixels, labels


def run(model: nn.Module, images: Any, attacks: str | list[str] = "pgd:steps=5", **options: object) -> rb.Result:
    chosen = {"eps": 0.1, "norm": "linf", **options}
    return rb.evaluate(Classifier(model.eval(), name="small"), attacks, images, **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", NO_ROOM, ids=["device", "torch", "numpy"])
@pytest.mark.parametrize(("most", "back"), [(3, 3), (1, 1), (10**9, 2)], ids=["first answers", "one image", "gradients"])
def test_a_model_with_room_for_few_images_is_evaluated(
    images: tuple[Tensor, Tensor], error: Callable[[], Exception], most: int, back: int
) -> None:
    found = run(Small(most, error, back), images)
    assert found.verdict_digest == run(Small(), images).verdict_digest
    assert any("memory ran out: went on with batches of" in note for note in found.config["notes"])


@pytest.mark.parametrize("error", NO_ROOM, ids=["device", "torch", "numpy"])
def test_a_model_with_room_for_no_image_is_named_as_such(images: tuple[Tensor, Tensor], error: Callable[[], Exception]) -> None:
    with pytest.raises(InvalidEvaluation, match="out of memory with a single image"):
        run(Small(0, error), images)


def broken_inside() -> Exception:
    return ValueError("made for four images\nand no more")


def test_a_model_that_fails_on_larger_batches_is_named_with_the_size(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    said = r"small took the first few images and fails on a batch of 8 \(made for four images\): .* use a smaller --batch-size"
    for where in ({"back": 4}, {"most": 4}):
        with pytest.raises(InvalidEvaluation, match=said) as raised:
            run(Small(error=broken_inside, **where), images, batch_size=8, prepare=False, out=tmp_path / "run", fresh=True)
        assert isinstance(raised.value.__cause__, ValueError)
    again = run(Small(4, broken_inside), images, batch_size=4, out=tmp_path / "run")
    assert again.verdict_digest == run(Small(), images).verdict_digest
    for options in ({}, {"compile": True}):  # what makes it faster fails quietly, and the model as given is searched
        assert run(Small(4, broken_inside), images, batch_size=4, **options).verdict_digest == again.verdict_digest


@pytest.mark.parametrize("attacks", ["pgd:steps=5", ["fgsm", "universal", "pgd:steps=5"]], ids=["one", "one of them learns"])
def test_images_in_turns_have_the_same_verdicts(
    images: tuple[Tensor, Tensor], attacks: str | list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = run(Small(), images, attacks, doubt=True)
    monkeypatch.setattr(session, "TURN", 7)
    most = 0
    attack = session.Attacking.attack

    def seen(self: session.Attacking, job: object, answers: dict[str, object], later: Sequence[str] = ()) -> None:
        nonlocal most
        most = max(most, len(answers))
        attack(self, job, answers, later)  # type: ignore[arg-type]

    monkeypatch.setattr(session.Attacking, "attack", seen)
    progress: dict[str, list[tuple[int, int]]] = {}
    in_turns = run(
        Small(), images, attacks, doubt=True, progress=lambda name, done, all_, _: progress.setdefault(name, []).append((done, all_))
    )
    assert most == 7
    assert in_turns.verdict_digest == at_once.verdict_digest
    assert sorted(in_turns.config["notes"]) == sorted(at_once.config["notes"])
    assert all(told[-1][0] == told[-1][1] for told in progress.values())
    if isinstance(attacks, str):
        assert all(all_ == 30 for _, all_ in progress[f"{attacks}[linf,0.1]"])


def test_a_run_in_turns_that_goes_on_knows_from_the_first_turn_how_many_images_there_are(
    images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(session, "TURN", 7)
    whole, told = run(Small(), images, out=tmp_path / "run"), list[int]()
    with sqlite3.connect(tmp_path / "run" / "results.sqlite") as database:
        database.execute("DELETE FROM verdicts WHERE condition = 'clean'")
        database.execute("DELETE FROM verdicts WHERE condition <> 'clean' AND sample_id NOT IN (SELECT sample_id FROM samples LIMIT 15)")
    again = run(Small(), images, out=tmp_path / "run", progress=lambda name, _, total, __: told.append(total) if name != "clean" else None)
    assert set(told) == {30}
    assert again.verdict_digest == whole.verdict_digest


@pytest.mark.parametrize("on_bad_image", ["fail", "quarantine"])
def test_an_image_that_cannot_be_read_in_its_turn_any_more(on_bad_image: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "0").mkdir()
    for number in range(12):
        Image.new("L", (4, 4), 20 * number).save(tmp_path / "0" / f"{number:02}.png")
    data = load_data(f"imagefolder:{tmp_path}")
    monkeypatch.setattr(session, "TURN", 4)

    def gone(name: str, done: int, *_: int) -> None:
        if name != "clean" and done == 4:  # the first turn is over
            for file in (tmp_path / "0").glob("*.png"):
                file.write_bytes(b"")

    asked = {"progress": gone, "on_bad_image": on_bad_image, "out": tmp_path / "run"}
    if on_bad_image == "fail":
        with pytest.raises(InvalidEvaluation, match="images cannot be used"):
            run(Small(), data, **asked)
    else:
        row = run(Small(), data, **asked).of("pgd:steps=5[linf,0.1]")
        assert len(row) == 12
        assert sum(v.broken is None for v in row) == 8
