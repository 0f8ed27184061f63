"""The Python interface: a module and images of one's own in, a DataFrame and witnesses out, and nothing of theirs changed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robustbench_lite as rb

Net = Callable[..., nn.Module]
Pictures = Callable[..., Tensor]


@pytest.fixture
def mine(net: Net, pictures: Pictures) -> tuple[nn.Module, Tensor, Tensor]:
    """A model with gradients on its parameters, images, and labels that it gets right but for the first."""
    model, images = net().requires_grad_(True), pictures(24)
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 10
    return model, images, labels


def test_forms_of_data_agree(mine: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = mine
    loader = DataLoader(TensorDataset(images, labels), batch_size=5)
    forms = [loader, (images, labels), (images.numpy(), labels.tolist()), [(images[:9], labels[:9]), (images[9:], labels[9:])]]
    tables = [rb.evaluate(model, ["pgd:steps=5"], data, eps=0.02).table.drop(columns="seconds") for data in forms]
    assert [list(table["n"]) for table in tables] == [[24] * 3] * 4
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])
    clean, attacked, worst = tables[0]["correct"]
    assert 0 < attacked == worst < clean == 23
    named = rb.load_data("digits", limit=7)
    assert list(rb.evaluate("digits_cnn", "fgsm", named).table["n"]) == [7, 7, 7]


def test_a_result(mine: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = mine
    result = rb.evaluate(model, attacks=["pgd:steps=5", "fgsm"], data=(images, labels), eps="8/255")
    assert isinstance(result, rb.Result)
    assert isinstance(result.table, pd.DataFrame)
    assert list(result.table["condition"]) == ["clean", "pgd:steps=5[linf,8/255]", "fgsm[linf,8/255]", "worst[linf,8/255]"]
    page = result._repr_html_()
    assert "<table" in page
    assert "pgd:steps=5[linf,8/255]" in page
    broken = [v for v in result.of("pgd:steps=5[linf,8/255]") if v.witness]
    assert broken
    for verdict in broken:  # the evidence, checked by hand
        witness = result.witness(verdict.condition, verdict.sample_id)
        assert witness is not None
        assert (witness.adversarial - witness.clean).abs().max() <= 8 / 255 + 1e-6
        with torch.no_grad():
            assert int(model(witness.adversarial[None]).argmax()) == verdict.prediction != verdict.label


def test_nothing_of_the_callers_is_changed(mine: tuple[nn.Module, Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, labels = mine
    monkeypatch.chdir(tmp_path)
    model[0].weight.requires_grad_(False)
    wanted = [p.requires_grad for p in model.parameters()]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    calls: list[int] = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    pixels, classes = images.clone(), labels.clone()
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002 - to see that nobody used it
    rb.evaluate(model, ["pgd:steps=3", "foolbox:LinfPGD:steps=3"], (images, labels), eps=0.02)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert [len(part._forward_hooks) for part in model.modules()] == [0, 0, 1, 0, 0, 0, 0]
    assert calls
    assert not any(part.training for part in model.modules())
    assert torch.equal(images, pixels)
    assert torch.equal(labels, classes)
    assert list(tmp_path.iterdir()) == []  # a run in memory leaves nothing on disk


def test_a_run_on_disk_goes_on_and_is_verified_with_its_model(mine: tuple[nn.Module, Tensor, Tensor], tmp_path: Path, net: Net) -> None:
    model, images, labels = mine
    asked: list[int] = []
    model.register_forward_hook(lambda *_: asked.append(1))
    first = rb.evaluate(model, ["pgd:steps=5"], (images, labels), eps=0.02, out=tmp_path / "run")
    asked.clear()
    again = rb.evaluate(model, ["pgd:steps=5"], (images, labels), eps=0.02, out=tmp_path / "run")
    assert len(asked) == 6  # whether it is randomised, and whether it still answers as it did
    pd.testing.assert_frame_equal(first.table, again.table)
    pd.testing.assert_frame_equal(first.table, rb.read_run(tmp_path / "run").table)
    checked = rb.verify(tmp_path / "run", model)
    assert (checked.failures, checked.not_kept) == ([], 0)
    assert checked.holding == sum(bool(v.witness) for v in first.of("pgd:steps=5[linf,0.02]")) > 0
    with pytest.raises(rb.RobustEvalError, match=r"robustbench_lite\.verify\(run, model\)"):
        rb.verify(tmp_path / "run")
    with pytest.raises(rb.RobustEvalError, match="is not the model"):
        rb.verify(tmp_path / "run", net(seed=1))
    with pytest.raises(rb.RobustEvalError, match="another model"):
        rb.evaluate(net(seed=1), ["pgd:steps=5"], (images, labels), eps=0.02, out=tmp_path / "run")


def test_several_labels_an_image(net: Net, pictures: Pictures, tmp_path: Path) -> None:
    model, images = net(classes=4), pictures(12)
    with torch.no_grad():
        labels = (model(images) > 0).long()
    result = rb.evaluate(model, ["pgd:steps=5"], (images, labels), eps=0.05, out=tmp_path / "run")
    clean, attacked, _ = result.table["correct"]
    assert attacked < clean == 12
    broken = [v for v in result.of("pgd:steps=5[linf,0.05]") if v.witness]
    assert all(len(v.prediction) == 4 and v.prediction != list(map(int, v.label)) for v in broken)
    assert rb.verify(tmp_path / "run", model).holding == len(broken) > 0
    with pytest.raises(rb.RobustEvalError, match="leave --target out"):
        rb.evaluate(model, ["pgd"], (images, labels), eps=0.05, target=1)


def test_one_at_a_time_works_too(mine: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = mine
    assert list(rb.evaluate(model, "fgsm", (images[:1], labels[:1]), eps=0.02).table["n"]) == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"goal": "best"}, "goal must be first or closest or full, got 'best'"),
        ({"precision": "fp16"}, "precision must be fp32 or bf16"),
        ({"batch_size": "big"}, "batch size must be auto"),
        ({"witnesses": "some"}, "witnesses must be all or none"),
        ({"on_bad_image": "skip"}, "must be fail or quarantine"),
        ({"norm": "l3"}, "has no norm l3"),
        ({"eps": float("nan")}, "finite"),
        ({"eps": float("inf"), "norm": "l0"}, "finite"),
        ({"eps": -0.1}, "positive"),
        ({"eps": None}, "no usual eps"),
        ({"eps": []}, "list of eps is empty"),
        ({"limit": 0}, "limit"),
        ({"device": "tpu"}, "unknown device"),
        ({"target": 10}, "classes 0..9"),
    ],
)
def test_options_that_make_no_sense(mine: tuple[nn.Module, Tensor, Tensor], options: dict[str, object], words: str) -> None:
    model, images, labels = mine
    asked = {"attacks": ["pgd:steps=2"], "eps": 0.02} | options
    with pytest.raises(rb.RobustEvalError, match=words):
        rb.evaluate(model, data=(images, labels), **asked)


def test_models_and_data_that_do_not_fit(mine: tuple[nn.Module, Tensor, Tensor], net: Net) -> None:
    model, images, labels = mine
    for other, data, words in (
        (net().train(), (images, labels), "training mode"),
        (net(classes=3), (images, labels), "3 outputs, but the data has the label"),
        (model, (images[:, :1], labels), "does not take 1x8x8 images"),
        (model, (images * 3, labels), r"must lie in \[0, 1\]"),
        (model, (images, labels[:3]), "must be one each"),
        (model, [], "no batches"),
        (model, [images], r"must yield \(images, labels\)"),
        (model, None, "no default data set"),
    ):
        with pytest.raises(rb.RobustEvalError, match=words):
            rb.evaluate(other, ["fgsm"], data, eps=0.02)


def test_a_model_whose_own_code_fails(mine: tuple[nn.Module, Tensor, Tensor]) -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise self.error

    _, images, labels = mine
    for error, seen, words in (
        (ZeroDivisionError("by zero"), rb.errors.ModelError, "images: by zero$"),
        (KeyError(), rb.errors.ModelError, "images: KeyError$"),
        (MemoryError("full"), rb.errors.InvalidEvaluation, "^out of memory with a single image: full$"),
        (rb.errors.InvalidEvaluation("of its own"), rb.errors.InvalidEvaluation, "^of its own$"),
    ):
        failing = Failing().eval()
        failing.error = error
        with pytest.raises(seen, match=words):
            rb.evaluate(failing, ["fgsm"], (images, labels), eps=0.02)
