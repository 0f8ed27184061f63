"""Checkpoints: read without running code, unwrapped, and refused with the reason where they do not fit."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustbench_lite.checkpoints import load_into, read_state_dict
from robustbench_lite.errors import ModelError


def network(classes: int = 4) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 2, 3), norm=nn.BatchNorm2d(2), flat=nn.Flatten(), fc=nn.Linear(72, classes)))


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


WRAPPINGS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "ema": {key: value + 1 for key, value in state.items() if value.is_floating_point()}},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.1},
    "net": lambda state: {"net": state, "acc": torch.tensor(0.9)},
    "ema": lambda state: {"ema": state},
    "twice": lambda state: {"state_dict": {"net": state}},
    "module.": lambda state: prefixed("module.", state),
    "model.": lambda state: prefixed("model.", state),
    "_orig_mod.": lambda state: prefixed("_orig_mod.", state),
    "all": lambda state: {"state_dict": prefixed("module._orig_mod.model.", state)},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping_comes_off(wrapping: str, tmp_path: Path) -> None:
    saved, fresh = network(), network()
    torch.save(WRAPPINGS[wrapping](saved.state_dict()), tmp_path / "weights.pth")
    load_into(fresh, read_state_dict(tmp_path / "weights.pth"), "weights.pth", "net")
    for key, value in saved.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key


def test_safetensors_and_half_precision(tmp_path: Path) -> None:
    saved, fresh = network(), network()
    save_file(
        {key: value.half() if value.is_floating_point() else value for key, value in saved.state_dict().items()}, tmp_path / "w.safetensors"
    )
    load_into(fresh, read_state_dict(tmp_path / "w.safetensors"), "w", "net")
    assert torch.equal(fresh.fc.weight, saved.fc.weight.half().float())
    assert fresh.fc.weight.dtype == torch.float32


def test_a_models_own_prefix_stays() -> None:
    """A model that has a part called `model` wants its keys as they are."""
    outer = nn.Module()
    outer.model = network()
    state = {key: value + 1 for key, value in outer.state_dict().items()}
    load_into(outer, state, "f", "outer")
    assert torch.equal(outer.state_dict()["model.fc.bias"], state["model.fc.bias"])


def test_old_files_without_batch_counts_load() -> None:
    state = {key: value + 1 for key, value in network().state_dict().items() if not key.endswith("num_batches_tracked")}
    model = network()
    load_into(model, state, "f", "net")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_another_class_count_names_the_flag() -> None:
    with pytest.raises(ModelError) as caught:
        load_into(network(4), network(7).state_dict(), "mine.pth", "net", classes=4)
    message = "mine.pth does not fit net: fc.weight is (7, 72) in the file and (4, 72) in the model"
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith(": pass --num-classes 7")
    assert "missing" not in str(caught.value)


def test_a_layer_of_another_shape_does_not_blame_the_class_count() -> None:
    state = network().state_dict() | {"conv.weight": torch.zeros(2, 1, 3, 3)}
    with pytest.raises(ModelError, match=r"conv\.weight is \(2, 1, 3, 3\) in the file and \(2, 3, 3, 3\) in the model$"):
        load_into(network(), state, "f", "net", classes=4)
    state = network().state_dict() | {"fc.weight": torch.zeros(7, 50), "fc.bias": torch.zeros(7)}
    with pytest.raises(ModelError, match=r"fc\.bias is \(7,\) in the file and \(4,\) in the model$"):
        load_into(network(), state, "f", "net", classes=4)


def test_missing_and_unexpected_keys_are_listed() -> None:
    state = network().state_dict()
    moved = {f"backbone.{key}" if key.startswith(("conv", "norm")) else key: value for key, value in state.items()}
    with pytest.raises(ModelError) as caught:
        load_into(network(), moved, "f", "net")
    text = str(caught.value)
    assert "6 missing (conv.weight, conv.bias, norm.weight and 3 more)" in text
    assert "unexpected (backbone.conv.weight, backbone.conv.bias, backbone.norm.weight and 4 more)" in text
    assert "\n" not in text


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"state_dict": network().state_dict(), "extra": Evil(marker)}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match=r"could run code.*--allow-pickle") as caught:
        read_state_dict(tmp_path / "evil.pth")
    assert "mkdir" in str(caught.value)
    assert not marker.exists()
    assert "fc.weight" in read_state_dict(tmp_path / "evil.pth", allow_pickle=True)
    assert marker.exists(), "the payload works, so that the refusal above was needed"


def test_a_whole_pickled_model_loads_only_when_allowed(tmp_path: Path) -> None:
    saved = network()
    torch.save({"model": saved}, tmp_path / "whole.pt")
    with pytest.raises(ModelError, match="--allow-pickle"):
        read_state_dict(tmp_path / "whole.pt")
    assert torch.equal(read_state_dict(tmp_path / "whole.pt", allow_pickle=True)["fc.weight"], saved.fc.weight)


@pytest.mark.parametrize("kept", [0, 1, 10, 500, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_cut_off_file_is_one_line(kept: float, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    save_file(network().state_dict(), file) if suffix == ".safetensors" else torch.save(network().state_dict(), file)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept if isinstance(kept, int) else kept * len(content))])
    with pytest.raises(ModelError, match="weights") as caught:
        read_state_dict(file)
    assert "\n" not in str(caught.value)
    assert "could run code" not in str(caught.value)


def test_files_without_weights(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    with pytest.raises(ModelError, match="there is no weights file"):
        read_state_dict(tmp_path / "nowhere.pt")
    with pytest.raises(ModelError, match="holds a list without weights"):
        read_state_dict(tmp_path / "list.pt")
    with pytest.raises(ModelError, match="holds a dict without weights"):
        read_state_dict(tmp_path / "numbers.pt")
