"""Classifiers by name: real weights answer as published, a user's own code is run with care, and what goes wrong is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.classifier import Classifier, Preprocess, untold
from robustbench_lite.data import load_data
from robustbench_lite.errors import BadSpec, ModelError, UnknownName
from robustbench_lite.models import load_model

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def right(classifier: Classifier) -> int:
    """How many of the 20 bundled ImageNet images a classifier gets right."""
    images = load_data("imagenet", preprocess=classifier.preprocess)
    with torch.no_grad():
        predictions = classifier(torch.stack([image for image, _ in images])).argmax(1)
    return int((predictions == torch.tensor(images.labels)).sum())


@pytest.fixture(scope="module")
def lite0() -> Classifier:
    return load_model("efficientnet_lite0")


def test_efficientnet_lite0_gets_18_of_20_right(lite0: Classifier) -> None:
    assert right(lite0) == 18
    assert (lite0.classes, lite0.data, lite0.name) == (1000, "imagenet", "efficientnet_lite0")
    assert not any(p.requires_grad for p in lite0.parameters())
    assert not any(part.training for part in lite0.modules())


def test_wrong_normalisation_and_interpolation_cost_accuracy() -> None:
    """Published figures for these two mistakes, which also shows that the flags take effect."""
    assert right(load_model("efficientnet_lite0", **IMAGENET)) == 15
    assert right(load_model("efficientnet_lite0", interpolation="bilinear")) == 17


def test_efficientnet_lite1_gets_18_of_20_right_and_19_at_lite0s_size() -> None:
    assert right(load_model("efficientnet_lite1")) == 18
    assert right(load_model("efficientnet_lite1", size=224, resize=256)) == 19


def test_a_missing_weight_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustbench_lite.models.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'robustbench-lite\[demo\]'"):
        load_model("efficientnet_lite0")


def test_loading_leaves_the_global_random_state_alone(lite0: Classifier, tmp_path: Path) -> None:
    torch.save(lite0.model.state_dict(), tmp_path / "w.pth")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_model("timm:tf_efficientnet_lite0", weights=tmp_path / "w.pth")
    load_model("efficientnet_lite0")
    assert torch.equal(torch.rand(1), expected)


# --- the user's own code ---------------------------------------------------------------------------------------------------

FILE = """
from dataclasses import dataclass
import torch
from beside import WIDTH

@dataclass
class Size:
    classes: "int" = 4

def build():
    torch.manual_seed(5)
    return torch.nn.Sequential(torch.nn.Conv2d(1, WIDTH, 3), torch.nn.Flatten(), torch.nn.Linear(WIDTH * 36, Size().classes)).eval()

def sized(num_classes=3):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, num_classes)).eval()

def normalised():
    from robustbench_lite.classifier import Classifier, Preprocess, untold
    return Classifier(sized(), mean=(0.5,) * 3, std=(0.5,) * 3, preprocess=Preprocess(size=(8, 8), resize=9), classes=3, data="digits")

def training():
    return torch.nn.Linear(2, 2)

def broken():
    return 1 / 0

def nothing():
    return {"model": 1}
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("WIDTH = 2\n")
    (tmp_path / "net.py").write_text(FILE)
    return tmp_path / "net.py"


def test_a_factory_in_a_file(code: Path, tmp_path: Path) -> None:
    import sys

    before = list(sys.path)
    classifier = load_model(f"{code}:build")
    assert sys.path == before
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(classifier(x), classifier.model(x))
    assert classifier.name == "net.py:build"
    assert classifier.preprocess.channels == 1, "its first convolution takes one channel"
    changed = {key: value + 1 for key, value in classifier.model.state_dict().items()}
    torch.save(changed, tmp_path / "w.pth")
    again = load_model(f"{code}:build", weights=tmp_path / "w.pth")
    assert torch.equal(again.model[2].bias, changed["2.bias"])
    assert load_model(f"{code}:sized", num_classes=6)(torch.rand(1, 3, 8, 8)).shape == (1, 6)


def test_a_factory_in_a_module(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code.parent / "robust_eval_test_zoo").mkdir()
    (code.parent / "robust_eval_test_zoo" / "__init__.py").write_text(FILE.replace("from beside import WIDTH", "WIDTH = 2"))
    monkeypatch.chdir(code.parent)
    assert load_model("robust_eval_test_zoo:build").name == "robust_eval_test_zoo:build"


def test_a_classifier_keeps_what_it_brings_unless_flags_say_otherwise(code: Path) -> None:
    kept = load_model(f"{code}:normalised")
    assert (kept.preprocess, kept.classes, kept.data) == (Preprocess(size=(8, 8), resize=9), 3, "digits")
    changed = load_model(f"{code}:normalised", mean=(0.0, 0.1, 0.2), size=6, interpolation="lanczos")
    assert changed.preprocess == Preprocess(size=(6, 6), resize=6, interpolation="lanczos")
    assert changed.mean.flatten().tolist() == pytest.approx([0.0, 0.1, 0.2])
    assert changed.std.flatten().tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("{file}:training", {}, "net.py:training is in training mode"),
        ("{file}:broken", {}, "failed: ZeroDivisionError: division by zero"),
        ("{file}:nothing", {}, "must return a torch.nn.Module or a Classifier, got dict"),
        ("{file}:biuld", {}, "names no function: did you mean 'build'"),
        ("{file}", {}, "name the function in it that builds the model"),
        ("{folder}/other.py:build", {}, "there is no file"),
        ("{folder}/damaged.py:build", {}, "SyntaxError"),
        ("no_such_package.zoo:build", {}, "ModuleNotFoundError: No module named 'no_such_package'"),
        ("{folder}/model.onnx", {}, "is no archive"),
        ("resnet18", {"num_classes": 7}, "published weights have 1000 classes: --num-classes 7 needs --weights FILE"),
        ("efficientnet_lite0", {"num_classes": 7}, "efficientnet_lite0 has 1000 classes, not 7"),
        ("resnet18", {"weights": "nowhere.pth"}, "there is no weights file nowhere.pth"),
        ("{file}:build", {"mean": (123.7,)}, "in [0, 1] units"),
        ("{file}:build", {"std": (0.0,)}, "in [0, 1] units"),
        ("{file}:build", {"resize": 8, "size": 16}, "smaller than the crop"),
        ("{file}:build", {"size": 0}, "size must be 1 or more"),
        ("{file}:build", {"num_classes": 0}, "the number of classes must be 1 or more"),
        ("{file}:build", {"interpolation": "cubic"}, "interpolation must be one of nearest"),
    ],
)
def test_mistakes_are_one_line(spec: str, options: dict[str, Any], message: str, code: Path) -> None:
    (code.parent / "damaged.py").write_text("def build(:\n")
    (code.parent / "model.onnx").write_bytes(b"x")
    with pytest.raises(ModelError) as caught:
        load_model(spec.format(file=code, folder=code.parent), **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_do_not_exist() -> None:
    with pytest.raises(UnknownName, match="unknown model 'resnet51': did you mean 'resnet50'"):
        load_model("resnet51")
    with pytest.raises(UnknownName, match="did you mean 'efficientnet_lite0'"):
        load_model("efficientnet_lite_0")
    with pytest.raises(BadSpec, match="takes no parameters"):
        load_model("efficientnet_lite0:wide")


def test_list_of_names() -> None:
    from robustbench_lite.models import names

    listed = names()
    assert "efficientnet_lite0" in listed["bundled"]
    assert len(listed["torchvision"]) >= 80
    assert "timm:convnext_tiny.fb_in1k" in listed["timm"]


class Scaled(nn.Module):
    """Has a setting that its description leaves out, and counts its calls."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor, self.calls = factor, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.factor * x.flatten(1)


class Pooled(nn.AvgPool2d):
    """Hands a setting on under another name."""

    def __init__(self, wide: bool) -> None:
        super().__init__(2, ceil_mode=wide)


def digest(*layers: nn.Module) -> str:
    return Classifier(nn.Sequential(*layers).eval()).digest


def test_layers_that_answer_otherwise_have_digests_of_their_own() -> None:
    made = [
        *(nn.AvgPool2d(2, **more) for more in ({}, {"divisor_override": 3}, {"ceil_mode": True}, {"count_include_pad": False})),
        *(Pooled(wide) for wide in (False, True)),
        *(Scaled(factor) for factor in (1.0, 2.0, 3.0)),
        *(nn.MultiheadAttention(8, heads).requires_grad_(False) for heads in (1, 2)),
    ]
    for layer in made[-2:]:
        layer.load_state_dict(made[-1].state_dict())
    assert len({digest(layer) for layer in made}) == len(made)


def test_a_digest_hangs_on_no_call_and_on_nothing_that_a_description_tells_already() -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Flatten(), Scaled())
    classifier = Classifier(nn.Sequential(*layers).eval())
    before = classifier.digest
    classifier(torch.rand(2, 3, 8, 8))
    assert classifier.digest == before
    assert [list(untold(layer)) for layer in layers] == [[]] * len(layers)
    assert [list(untold(layer)) for layer in (Scaled(2.0), nn.AvgPool2d(2, 1, divisor_override=3))] == [
        [("factor", 2.0)],
        [("divisor_override", 3)],
    ]
    assert Classifier(Classifier(nn.Flatten().eval(), name="one")).digest == Classifier(Classifier(nn.Flatten().eval(), name="two")).digest
