"""Archives of torch.export and TorchScript: the same logits as the model they were made from, and no code run."""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustbench_lite.errors import ModelError
from robustbench_lite.models import load_model


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop, self.fc = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Dropout(), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    net = Net()
    net(torch.rand(16, 3, 16, 16))  # so that the running statistics are not those of a fresh layer
    return net.eval()


def export(model: nn.Module, file: Path, fixed: bool = False) -> Path:
    batch = None if fixed else ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(model, (torch.rand(2, 3, 16, 16),), dynamic_shapes=batch), file)
    return file


def script(model: nn.Module, file: Path, freeze: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scripted = torch.jit.script(model)
        (torch.jit.freeze(scripted) if freeze else scripted).save(file)
    return file


MAKERS: dict[str, Callable[[nn.Module, Path], Path]] = {
    "m.pt2": export,
    "m.pt": script,
    "m.ts": script,
    "frozen.pth": lambda model, file: script(model, file, freeze=True),
}


@pytest.mark.parametrize("name", MAKERS)
def test_logits_and_gradients_are_those_of_the_model(name: str, net: Net, tmp_path: Path) -> None:
    classifier = load_model(str(MAKERS[name](net, tmp_path / name)), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    for batch in (1, 2, 7):
        x = torch.rand(batch, 3, 16, 16, requires_grad=True)
        expected = net((x - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1))
        assert torch.allclose(classifier(x), expected, atol=1e-6)
        found, wanted = (torch.autograd.grad(logits.square().sum(), x)[0] for logits in (classifier(x), expected))
        assert torch.allclose(found, wanted, atol=1e-6)
        assert found.abs().sum() > 0
    assert not any(p.requires_grad for p in classifier.parameters())
    assert not any(part.training for part in classifier.eval().modules() if hasattr(part, "training"))  # a frozen one has no flag
    assert classifier.name == name


def test_an_exported_archive_tells_its_size_channels_and_classes(net: Net, tmp_path: Path) -> None:
    classifier = load_model(str(export(net, tmp_path / "m.pt2")))
    assert classifier.classes == 5
    assert (classifier.preprocess.size, classifier.preprocess.resize, classifier.preprocess.channels) == ((16, 16), 16, 3)
    with pytest.raises(ModelError, match="5 classes, not 7"):
        load_model(str(tmp_path / "m.pt2"), num_classes=7)


def test_archives_with_other_weights_have_other_digests(net: Net, tmp_path: Path) -> None:
    """A frozen archive has no state dict, so its weights must be told apart in another way."""
    other = Net().eval()
    for make in (export, lambda model, file: script(model, file, freeze=True)):
        name = "m.pt2" if make is export else "m.pt"
        digests = []
        for model in (net, other):
            digests.append(load_model(str(make(model, tmp_path / name))).digest)
        assert digests[0] != digests[1]


@pytest.mark.parametrize("make", [export, script])
def test_training_mode_is_refused(make: Callable[[nn.Module, Path], Path], tmp_path: Path) -> None:
    file = make(Net().train(), tmp_path / ("m.pt2" if make is export else "m.pt"))
    with pytest.raises(ModelError, match="in training mode"):
        load_model(str(file))


@pytest.mark.parametrize("part", ["drop", "norm"])
def test_one_layer_in_training_mode_is_refused(part: str, tmp_path: Path) -> None:
    model = Net().eval()
    getattr(model, part).train()
    with pytest.raises(ModelError, match="in training mode"):
        load_model(str(export(model, tmp_path / "m.pt2")))


def test_a_fixed_batch_is_refused(net: Net, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"takes batches of 2 images only.*dynamic_shapes"):
        load_model(str(export(net, tmp_path / "m.pt2", fixed=True)))


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no image classifier"):
        load_model(str(export(nn.Conv2d(3, 2, 3).eval(), tmp_path / "m.pt2")))


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def rewritten(file: Path, member: str, change: Callable[[bytes], bytes]) -> Path:
    with zipfile.ZipFile(file) as archive:
        parts = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts:
            archive.writestr(name, change(content) if name.endswith(member) else content)
    return file


def test_an_archive_whose_sample_inputs_run_code_is_refused(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, payload = tmp_path / "ran", io.BytesIO()
    torch.save(((Evil(marker),), {}), payload)
    file = rewritten(export(net, tmp_path / "m.pt2"), "sample_inputs/model.pt", lambda _: payload.getvalue())
    with pytest.raises(ModelError, match="could run code: pass --allow-pickle"):
        load_model(str(file))
    assert not marker.exists()
    # torch's warning about it has a broken format string, which would fail the test
    monkeypatch.setattr(logging.getLogger("torch._export.serde.serialize"), "disabled", True)
    load_model(str(file), allow_pickle=True)
    assert marker.exists(), "torch runs it, so that the refusal above was needed"


def test_an_archive_with_pickled_tensors_is_refused(net: Net, tmp_path: Path) -> None:
    def as_pickle(content: bytes) -> bytes:
        config = json.loads(content)
        next(iter(config["config"].values()))["use_pickle"] = True
        return json.dumps(config).encode()

    file = rewritten(export(net, tmp_path / "m.pt2"), "_weights_config.json", as_pickle)
    with pytest.raises(ModelError, match="could run code"):
        load_model(str(file))


@pytest.mark.parametrize("name", ["m.pt2", "m.pt"])
@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_a_cut_off_archive_is_one_line(name: str, kept: float, net: Net, tmp_path: Path) -> None:
    file = MAKERS[name](net, tmp_path / name)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept if isinstance(kept, int) else kept * len(content))])
    with pytest.raises(ModelError, match=name) as caught:
        load_model(str(file))
    assert "\n" not in str(caught.value)


def test_a_state_dict_is_no_model(net: Net, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"holds no whole model.*--weights"):
        load_model(str(tmp_path / "weights.pth"))
    with pytest.raises(ModelError, match="TorchScript archive, a whole model"):
        load_model("resnet18", weights=script(net, tmp_path / "m.pt"))
    with pytest.raises(ModelError, match="brings its own weights"):
        load_model(str(tmp_path / "m.pt"), weights=tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="there is no model file"):
        load_model(str(tmp_path / "nowhere.pt2"))
