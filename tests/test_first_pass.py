"""A first pass in reduced precision, and what is said of witnesses that did not hold on the model as given."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from same_run import same
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.engines import local
from robustbench_lite.errors import RunMismatch
from robustbench_lite.passes import Passes
from robustbench_lite.store import read_run

LIAR = '''
import torch
import torch.nn.functional as F
from torch import nn

class Liar(nn.Module):
    """Images darker than 0.6 are of class 0. A copy of it, such as is prepared for speed, errs between 0.4 and 0.5."""

    def __init__(self, bump=0.0):
        super().__init__()
        self.bump, self.training = bump, False

    def __deepcopy__(self, memo):
        return Liar(bump=100.0)

    def forward(self, x):
        light = x.mean((1, 2, 3))
        climb = light - 0.6 + self.bump * F.relu(light - 0.4) * F.relu(0.5 - light)
        return torch.stack([-climb, climb], 1)

def build():
    return Liar()
'''
VALUES = (0.1, 0.3, 0.33, 0.55)
ASKED: dict[str, Any] = {"attacks": ["pgd:steps=4"], "eps": 0.15}
ROW = "pgd:steps=4[linf,0.15]"


def data() -> tuple[Tensor, Tensor]:
    return torch.tensor(VALUES).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous(), torch.zeros(len(VALUES), dtype=torch.long)


def liar(folder: Path) -> Any:
    (folder / "liar.py").write_text(LIAR)
    return rb.load_model(f"{folder / 'liar.py'}:build")


def said(result: rb.Result) -> list[str]:
    return [note for note in result.config["notes"] if "did not hold" in note]


def test_witnesses_that_do_not_hold_are_counted_and_do_not_count(tmp_path: Path) -> None:
    result = rb.evaluate(liar(tmp_path), data=data(), **ASKED, out=tmp_path / "run")
    by_value = dict(zip(VALUES, result.of(ROW), strict=True))
    assert [by_value[value].broken for value in VALUES] == [False, False, False, True]
    assert by_value[0.1].unconfirmed == by_value[0.55].unconfirmed == 0
    lost = [by_value[value].unconfirmed or 0 for value in (0.3, 0.33)]
    assert min(lost) > 0
    words = f"{ROW}: {sum(lost)} witnesses of 2 images, found on the prepared model, did not hold on the model as given and do not count"
    assert said(result) == [words]
    assert said(read_run(tmp_path / "run")) == [words]  # a report made later says the same
    assert said(rb.evaluate(liar(tmp_path), data=data(), **ASKED, out=tmp_path / "run")) == [words]  # once


def test_on_the_model_as_given_there_is_nothing_to_count(tmp_path: Path) -> None:
    result = rb.evaluate(liar(tmp_path), data=data(), **ASKED, prepare=False)
    assert {v.unconfirmed for v in result.verdicts} == {None}
    assert not said(result)


def test_workers_count_them_too(tmp_path: Path) -> None:
    model = liar(tmp_path)
    alone, spread = (rb.evaluate(model, data=data(), **ASKED, workers=workers) for workers in (None, 2))
    assert said(alone)
    same(alone, spread)


def test_a_run_that_was_killed_counts_none_twice(tmp_path: Path) -> None:
    model = liar(tmp_path)
    alone = rb.evaluate(model, data=data(), **ASKED, batch_size=1)

    def stop(name: str, decided: int, *_: int) -> None:
        if name == ROW and decided == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rb.evaluate(model, data=data(), **ASKED, batch_size=1, out=tmp_path / "run", progress=stop)
    with sqlite3.connect(tmp_path / "run" / "results.sqlite") as database:
        assert database.execute("SELECT count(*) FROM verdicts WHERE condition = ?", (ROW,)).fetchone() == (2,)
    again = rb.evaluate(model, data=data(), **ASKED, batch_size=1, out=tmp_path / "run")
    assert said(again) == said(alone) != []


def test_what_the_first_pass_lost_is_not_lost_by_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under bfloat16 the model errs, and the pass in float32 after it does not."""
    monkeypatch.setattr(local, "bfloat16_here", lambda _: True)

    class Rough(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            climb = x.mean((1, 2, 3)) - (0.4 if torch.is_autocast_enabled("cpu") else 0.6)
            return torch.stack([-climb, climb], 1)

    result = rb.evaluate(Rough().eval(), data=data(), **ASKED, precision="bf16", prepare=False)
    lost = [v.unconfirmed for v in result.of(ROW)]
    assert lost[0] == 0
    assert min(lost[1:]) > 0
    assert said(result) == [
        f"{ROW}: {sum(lost)} witnesses of 3 images, found in bfloat16 on the prepared model, did not hold on the model as given "
        "and do not count"
    ]
    assert f"{ROW}: broken images: 1 in bfloat16, 0 in float32 after that" in result.config["notes"]


class Watching(nn.Module):
    """Notes whether TF32 is allowed, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool, bool]] = []
        self.layer = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.note("forward")
        if x.requires_grad:
            x.register_hook(lambda _: self.note("backward"))
        answer: Tensor = self.layer(x.flatten(1))
        return answer

    def note(self, what: str) -> None:
        self.seen.append((what, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))


def test_tf32_is_allowed_for_the_passes_of_the_search_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "tf32_here", lambda _: True)
    torch.manual_seed(0)
    model = Watching().eval()
    x = data()[0]
    labels = model(x).argmax(1).detach()
    model.seen.clear()
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    result = rb.evaluate(model, data=(x, labels), attacks=["pgd:steps=3"], eps=1e-4, precision="tf32", prepare=False)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
    flags = [(what, matmul) for what, matmul, convolution in model.seen if matmul is convolution]
    assert len(flags) == len(model.seen)
    slopes = [flag for what, flag in flags if what == "backward"]
    assert slopes[-6:] == [True] * 3 + [False] * 3  # before them, whether there are gradients at all is asked
    assert not any(slopes[:-6])
    assert result.config["precision"] == result.config["identity"]["precision"] == "tf32"
    assert {v.precision for v in result.of("pgd:steps=3[linf,0.0001]")} == {"fp32"}  # survivors were searched again


def test_a_witness_of_the_first_pass_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "tf32_here", lambda _: True)
    result = rb.evaluate("digits_cnn", "pgd:steps=5", "digits", limit=20, eps=0.2, precision="tf32")
    attacked = [v for v in result.of("pgd:steps=5[linf,0.2]") if v.broken_by != "clean"]
    assert {v.precision for v in attacked if v.broken} == {"tf32"}
    assert "tf32" in str(result.table.set_index("condition").search["pgd:steps=5[linf,0.2]"])


def test_where_there_is_no_tf32_float32_is_searched_and_said() -> None:
    result = rb.evaluate("digits_cnn", "fgsm", "digits", limit=4, eps=0.1, device="cpu", precision="tf32")
    assert "this processor does not compute in TF32: searched in float32" in result.config["notes"]
    assert result.config["precision"] == "fp32"


def test_a_run_does_not_go_on_where_the_processor_has_another_precision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What an image has survived is a number of stages, which are others there: it would lack one."""
    asked: dict[str, Any] = {"data": "digits", "limit": 6, "eps": 0.2, "device": "cpu", "precision": "tf32", "out": tmp_path / "run"}
    rb.evaluate("digits_cnn", "pgd:steps=5", **asked)
    monkeypatch.setattr(local, "tf32_here", lambda _: True)
    with pytest.raises(RunMismatch, match="another precision"):
        rb.evaluate("digits_cnn", "pgd:steps=5", **asked)


def test_which_processors_have_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, has in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert local.tf32_here(torch.device("cuda")) is has
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert not local.tf32_here(torch.device("cuda"))
    assert not local.tf32_here(torch.device("cpu"))


@pytest.mark.gpu
def test_an_accelerator_rounds_otherwise_in_tf32() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval().cuda().requires_grad_(False)
    x = torch.rand(64, 3, 32, 32, device="cuda")
    with local.exact():
        exact, rough = Passes(model).logits(x), Passes(model, reduced="tf32").logits(x)
        assert torch.equal(Passes(model).logits(x), exact)
    assert 0 < (exact - rough).abs().max() < 1e-2
    result = rb.evaluate("digits_cnn", "pgd:steps=10", "digits", limit=200, eps=0.05, device="cuda", precision="tf32")
    plain = rb.evaluate("digits_cnn", "pgd:steps=10", "digits", limit=200, eps=0.05, device="cuda")
    assert sum(one.broken != other.broken for one, other in zip(result.verdicts, plain.verdicts, strict=True)) <= 2
    assert result.config["precision"] == "tf32"
