"""Models of torchvision and timm: their authors' logits and preprocessing, and downloads that are checked or explained."""

from __future__ import annotations

import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image

from robustbench_lite import zoos
from robustbench_lite.classifier import Classifier
from robustbench_lite.data import load_data
from robustbench_lite.errors import ModelError, UnknownName
from robustbench_lite.models import load_model


@pytest.fixture(scope="module")
def lite0() -> Classifier:
    return load_model("efficientnet_lite0")


def bundled_paths() -> list[Path]:
    return load_data("imagenet").pictures.paths


# --- torchvision -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shufflenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    model = torchvision.models.shufflenet_v2_x0_5(weights=None).eval()
    file = tmp_path_factory.mktemp("weights") / "shufflenet.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, file)
    return model, file


def test_a_state_dict_file_gives_torchvisions_logits(shufflenet: tuple[torch.nn.Module, Path]) -> None:
    model, file = shufflenet
    classifier = load_model("shufflenet_v2_x0_5", weights=file)
    picture = Image.open(bundled_paths()[0]).convert("RGB")
    transform = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.transforms()
    with torch.no_grad():
        assert torch.equal(classifier(classifier.preprocess(picture)[None]), model(transform(picture)[None]))
    assert (classifier.classes, classifier.name) == (1000, "shufflenet_v2_x0_5[shufflenet.pth]")


def test_a_resnet_of_seven_classes(tmp_path: Path) -> None:
    model = torchvision.models.resnet18(weights=None, num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "seven.pth")
    with pytest.raises(ModelError, match=r"fc\.weight is \(7, 512\) in the file and \(1000, 512\) in the model.*pass --num-classes 7"):
        load_model("resnet18", weights=tmp_path / "seven.pth")
    classifier = load_model("resnet18", weights=tmp_path / "seven.pth", num_classes=7, mean=(0.0,), std=(1.0,))
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(classifier(x), model(x))
    assert classifier.classes == 7


@pytest.mark.parametrize(("name", "resize", "size"), [("resnet50", 232, 224), ("efficientnet_b2", 288, 288)])
def test_preprocessing_is_torchvisions_own(name: str, resize: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, on the 20 real pictures, for bilinear and bicubic weights."""
    monkeypatch.setattr(zoos, "load_into", lambda *arguments: None)
    monkeypatch.setattr(zoos, "read_state_dict", lambda *arguments, **options: {})
    classifier = load_model(name, weights="not read")
    assert (classifier.preprocess.resize, classifier.preprocess.size) == (resize, (size, size))
    official = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    for path in bundled_paths():
        picture = Image.open(path).convert("RGB")
        ours = (classifier.preprocess(picture) - classifier.mean) / classifier.std
        assert torch.equal(ours, official(picture)), path.name


@pytest.mark.parametrize("name", ["googlenet", "vit_h_14", "densenet121"])
def test_structure_is_what_official_weights_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's builders change the model when they are given official weights; without them we must do the same."""
    with torch.device("meta"):
        official = torchvision.models.get_model_weights(name).DEFAULT
        ours = torchvision.models.get_model_builder(name)(weights=None, **zoos._structure(name, official))
        monkeypatch.setattr(type(official), "get_state_dict", lambda *arguments, **options: {})
        monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *arguments, **options: None)
        theirs = torchvision.models.get_model_builder(name)(weights=official)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for attribute in ("transform_input", "image_size"):
        assert getattr(ours, attribute, None) == getattr(theirs, attribute, None)


def test_official_files_with_older_names_load() -> None:
    state = {"features.denseblock1.denselayer1.norm.1.weight": torch.ones(1), "classifier.bias": torch.ones(1)}
    renamed = zoos._as_torchvision_names("densenet121", state)
    assert list(renamed) == ["features.denseblock1.denselayer1.norm1.weight", "classifier.bias"]
    heads = {"aux1.conv.weight": torch.ones(1), "AuxLogits.fc.weight": torch.ones(1), "fc.weight": torch.ones(1)}
    assert list(zoos._as_torchvision_names("googlenet", heads)) == ["fc.weight"]


# --- downloads -------------------------------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str] = []

    def log_message(self, *arguments: Any) -> None:
        self.asked.append(self.path)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "served"
    folder.mkdir()
    Quiet.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.value, "url", url)


def test_official_weights_are_downloaded_once_and_checked(
    served: tuple[str, Path], cache: Path, shufflenet: tuple[torch.nn.Module, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = served
    content = shufflenet[1].read_bytes()
    name = f"shuffle-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(content)
    point_to(f"{url}/{name}", monkeypatch)
    for _ in range(2):
        classifier = load_model("shufflenet_v2_x0_5")
        x = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(classifier(x), shufflenet[0]((x - classifier.mean) / classifier.std))
    assert Quiet.asked == [f"/{name}"]
    assert classifier.name == "shufflenet_v2_x0_5[IMAGENET1K_V1]"

    (folder / "shuffle-00000000.pth").write_bytes(content)
    point_to(f"{url}/shuffle-00000000.pth", monkeypatch)
    with pytest.raises(ModelError, match="invalid hash value"):
        load_model("shufflenet_v2_x0_5")
    assert sorted(os.listdir(cache)) == [name]

    point_to(f"{url}/nothing-12345678.pth", monkeypatch)
    with pytest.raises(ModelError, match="HTTP Error 404"):
        load_model("shufflenet_v2_x0_5")


def test_without_a_network_the_message_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("http://127.0.0.1:1/shuffle-12345678.pth", monkeypatch)  # nothing listens there
    with pytest.raises(ModelError) as caught:
        load_model("shufflenet_v2_x0_5")
    text = str(caught.value)
    for part in ("http://127.0.0.1:1/shuffle-12345678.pth", str(cache / "shuffle-12345678.pth"), "--weights FILE", "efficientnet_lite0"):
        assert part in text
    assert "\n" not in text
    assert not list(cache.iterdir())


def test_a_cached_file_needs_no_network(cache: Path, shufflenet: tuple[torch.nn.Module, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("http://127.0.0.1:1/shuffle-12345678.pth", monkeypatch)
    cache.mkdir(parents=True)
    (cache / "shuffle-12345678.pth").write_bytes(shufflenet[1].read_bytes())
    assert load_model("shufflenet_v2_x0_5").classes == 1000
    (cache / "shuffle-12345678.pth").write_bytes(b"half a fi")
    with pytest.raises(ModelError, match=r"shuffle-12345678\.pth is damaged"):
        load_model("shufflenet_v2_x0_5")


# --- timm ------------------------------------------------------------------------------------------------------------------


def test_timm_reads_a_file_and_prepares_pictures_as_timm_does(lite0: Classifier, tmp_path: Path) -> None:
    import timm

    torch.save(lite0.model.state_dict(), tmp_path / "lite0.pth")
    classifier = load_model("timm:tf_efficientnet_lite0", weights=tmp_path / "lite0.pth")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(lite0.model))
    for path in bundled_paths():
        picture = Image.open(path).convert("RGB")
        ours = (classifier.preprocess(picture) - classifier.mean) / classifier.std
        assert torch.equal(ours, transform(picture)), path.name
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(classifier(x), lite0(x))
    assert classifier.name == "timm:tf_efficientnet_lite0[lite0.pth]"
    with pytest.raises(
        ModelError, match=r"does not fit timm:tf_efficientnet_lite0.*classifier\.weight is \(1000, 1280\).*--num-classes 1000"
    ):
        load_model("timm:tf_efficientnet_lite0", weights=tmp_path / "lite0.pth", num_classes=7)


def test_timm_without_a_network_answers_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"timm/resnet18\.a1_in1k.*--weights FILE.*efficientnet_lite0"):
        load_model("timm:resnet18.a1_in1k")


@pytest.mark.parametrize(("spec", "near"), [("timm:resnte18", "timm:resnet18"), ("timm:resnet18.a1_in2k", "timm:resnet18.a1_in1k")])
def test_timm_names_that_do_not_exist(spec: str, near: str) -> None:
    with pytest.raises(UnknownName, match=f"did you mean .*'{near}'"):
        load_model(spec)
