"""The architectures that can be trained: sizes as in the literature, layers, first weights, and one step of training each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from robustbench_lite.defenses.job import _made
from robustbench_lite.defenses.preact_resnet import preactivated
from robustbench_lite.defenses.request import Request
from robustbench_lite.defenses.splitting import splits
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, batch_norm, conv2d, linear, relu
from torchvision import models as tv
from training_fixture import made, recipe, training

from robustbench_lite.catalogue import listing
from robustbench_lite.defending import Defenses
from robustbench_lite.errors import ModelError, UnknownName
from robustbench_lite.labelled import from_arrays
from robustbench_lite.trained import network

NAMES = (
    "cifar_resnet18",
    "cifar_resnet34",
    "cifar_densenet121",
    "preact_resnet18",
    "wrn_28_10",
    "wrn_40_2",
    "small_cnn",
    "small_cnn_gn",
)
LARGE = ("cifar_resnet34", "cifar_densenet121", "wrn_28_10")


def weights(net: nn.Module) -> int:
    return sum(each.numel() for each in net.parameters())


def on_meta(name: str, classes: int = 10, channels: int = 3) -> nn.Module:
    with torch.device("meta"):  # all shapes and none of the work
        return network(name, classes, channels)


# --- sizes


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("cifar_resnet18", 11_173_962),
        ("cifar_resnet34", 21_282_122),
        ("cifar_densenet121", 6_956_298),
        ("preact_resnet18", 11_172_170),  # 11,171,146 where the last normalisation is left out
        ("wrn_28_10", 36_479_194),
        ("wrn_40_2", 2_243_546),
    ],
)
def test_the_number_of_weights_is_that_of_the_literature(name: str, published: int) -> None:
    assert weights(on_meta(name)) == published


@pytest.mark.parametrize(("name", "depth", "factor"), [("wrn_28_10", 28, 10), ("wrn_40_2", 40, 2)])
def test_a_wide_network_has_the_layers_of_its_paper(name: str, depth: int, factor: int) -> None:
    blocks, widths = (depth - 4) // 6, [16 * factor, 32 * factor, 64 * factor]
    pairs = [(before, width) for before, width in zip([16, *widths[:-1]], widths, strict=True)]
    pairs += [(width, width) for width in widths] * (blocks - 1)
    convolutions = 9 * 3 * 16 + sum(9 * a * b + 9 * b * b + (a * b if a != b else 0) for a, b in pairs)
    normalisations = sum(2 * a + 2 * b for a, b in pairs) + 2 * widths[-1]
    assert weights(on_meta(name)) == convolutions + normalisations + widths[-1] * 10 + 10


@pytest.mark.parametrize(("name", "theirs"), [("cifar_resnet18", tv.resnet18), ("cifar_resnet34", tv.resnet34)])
def test_only_the_stem_differs_from_the_network_for_larger_images(name: str, theirs: Any) -> None:
    with torch.device("meta"):
        larger = theirs(num_classes=10)
    assert weights(larger) - weights(on_meta(name)) == 3 * 64 * (7 * 7 - 3 * 3)
    shapes = [{key: value.shape for key, value in net.state_dict().items() if key != "conv1.weight"} for net in (larger, on_meta(name))]
    assert shapes[0] == shapes[1]


def test_small_networks_are_small_and_know_no_batch() -> None:
    assert weights(on_meta("small_cnn")) == (9 * 3 + 1) * 16 + (9 * 16 + 1) * 32 + (9 * 32 + 1) * 32 + 10 * (512 + 1)
    assert weights(on_meta("small_cnn_gn")) == weights(on_meta("small_cnn")) + 2 * (16 + 32 + 32)
    for name in ("small_cnn", "small_cnn_gn"):
        net, x = network(name, 10, 3).train(), torch.rand(4, 3, 32, 32)
        torch.testing.assert_close(net(x)[:1], net(x[:1]))


# --- layers


@pytest.mark.parametrize("name", NAMES)
def test_images_of_any_channels_become_logits_of_any_classes(name: str) -> None:
    for classes, channels in ((10, 3), (100, 1), (2, 5)):
        assert on_meta(name, classes, channels)(torch.empty(3, channels, 32, 32, device="meta")).shape == (3, classes)


@pytest.mark.parametrize("name", [name if name not in LARGE else pytest.param(name, marks=pytest.mark.slow) for name in NAMES])
def test_every_weight_has_a_gradient_in_a_first_step(name: str) -> None:
    net = network(name, 10, 3).train()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    net(x).log_softmax(1)[:, 3].sum().backward()
    assert x.grad is not None
    for each in (x, *net.parameters()):
        assert each.grad is not None
        assert each.grad.isfinite().all()
        assert each.grad.any()


@pytest.mark.parametrize(
    ("name", "relus"),
    [
        ("cifar_resnet18", 1 + 2 * 8),
        ("cifar_resnet34", 1 + 2 * 16),
        ("cifar_densenet121", 2 * (6 + 12 + 24 + 16) + 3 + 1),
        ("preact_resnet18", 2 * 8 + 1),
        ("wrn_28_10", 2 * 12 + 1),
        ("wrn_40_2", 2 * 18 + 1),
        ("small_cnn", 3),
        ("small_cnn_gn", 3),
    ],
)
def test_all_relus_are_modules_that_can_be_exchanged(name: str, relus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net, called, by_modules = on_meta(name), [], []
    function = nn.functional.relu
    monkeypatch.setattr(nn.functional, "relu", lambda x, inplace=False: called.append(x.shape) or function(x, inplace))
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda module, inputs, output: by_modules.append(output.shape))
    net(torch.empty(1, 3, 32, 32, device="meta"))
    assert called == by_modules
    assert len(called) == relus


@pytest.mark.parametrize("name", ["cifar_resnet18", "cifar_densenet121", "preact_resnet18", "wrn_40_2"])
def test_the_image_is_halved_between_stages_and_nowhere_else(name: str) -> None:
    net, sides = on_meta(name), []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, output: sides.append(output.shape[-1]))
    net(torch.empty(1, 3, 32, 32, device="meta"))
    assert sides[0] == 32
    assert sides == sorted(sides, reverse=True)
    assert set(sides) == ({8, 16, 32} if name == "wrn_40_2" else {4, 8, 16, 32})


def by_hand(state: dict[str, Tensor], x: Tensor, stages: int, blocks: int) -> Tensor:
    """The forward pass of a pre-activation network, written from the papers' figures."""

    def active(x: Tensor, name: str) -> Tensor:
        mean, variance, scale, shift = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return relu(batch_norm(x, mean, variance, scale, shift))

    x = conv2d(x, state["stem.weight"], padding=1)
    for stage in range(1, stages + 1):
        for block in range(blocks):
            name = f"stage{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            before = active(x, f"{name}.norm1")
            inner = conv2d(before, state[f"{name}.conv1.weight"], padding=1, stride=stride)
            branch = conv2d(active(inner, f"{name}.norm2"), state[f"{name}.conv2.weight"], padding=1)
            projection = state.get(f"{name}.projection.weight")
            x = branch + (x if projection is None else conv2d(before, projection, stride=stride))
    pooled = avg_pool2d(active(x, "norm"), x.shape[-1]).flatten(1)
    return linear(pooled, state["head.weight"], state["head.bias"])


def test_a_pre_activation_network_computes_what_the_papers_draw() -> None:
    torch.manual_seed(0)
    net, x = preactivated(4, (8, 12, 16), 2, classes=5, channels=3).double(), torch.rand(3, 3, 16, 16).double()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    net(x)  # for statistics that are not the first ones
    torch.testing.assert_close(net.eval()(x), by_hand(net.state_dict(), x, stages=3, blocks=2))


# --- first weights


@pytest.mark.parametrize("name", ["cifar_resnet18", "preact_resnet18", "wrn_40_2", "small_cnn"])
def test_first_weights_of_convolutions_are_drawn_as_he_does(name: str) -> None:
    torch.manual_seed(0)
    for module in network(name, 10, 3).modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            error = 4 / math.sqrt(2 * module.weight.numel())  # four standard errors of a standard deviation
            assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_out), rel=error)


# --- names


def test_architectures_are_listed_with_a_sentence_each() -> None:
    lines = {line.split()[0]: line for line in listing("architectures").splitlines() if line}
    assert set(NAMES) <= set(lines)
    assert "3x3 stem" in lines["cifar_resnet18"]


def test_a_name_that_does_not_exist_gets_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"unknown architecture 'wrn_28_1': did you mean 'wrn_28_10'"):
        network("wrn_28_1", 10, 3)
    with pytest.raises(UnknownName, match=r"unknown architecture 'timm:resnet10': did you mean 'timm:resnet1"):
        network("timm:resnet10", 10, 3)


def test_grey_images_are_refused_where_a_network_takes_colours_only() -> None:
    with pytest.raises(ModelError, match=r"^torchvision's resnet18 takes colour images, and these have 1 channel: take a timm:NAME$"):
        network("resnet18", 10, 1)


def test_small_images_take_the_variant_for_small_images() -> None:
    found = splits("digits")
    asked = ("resnet18", "resnet34", "densenet121", "resnet50", "wrn_40_2")
    taken = [_made(Request(out=Path("x.safetensors"), model=name), found, Defenses(), recipe()).architecture for name in asked]
    assert taken == ["cifar_resnet18", "cifar_resnet34", "cifar_densenet121", "resnet50", "wrn_40_2"]


# --- one step of each kind


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("cifar_resnet18", 32),
        ("wrn_40_2", 32),
        ("small_cnn_gn", 28),
        ("resnet18", 64),
        ("mobilenet_v3_small", 64),
        ("timm:resnet10t", 64),
        pytest.param("googlenet", 64, marks=pytest.mark.slow),
        pytest.param("vit_b_16", 224, marks=pytest.mark.slow),
        pytest.param("cifar_densenet121", 32, marks=pytest.mark.slow),
        pytest.param("timm:vit_tiny_patch16_224", 224, marks=pytest.mark.slow),
        pytest.param("timm:convnext_atto", 64, marks=pytest.mark.slow),
    ],
)
def test_one_step_of_training_moves_the_weights(name: str, side: int) -> None:
    pixels = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    data = from_arrays(pixels, torch.tensor([0, 1, 2, 0]), "tiny", classes=3)
    run = training(data, what=made(name, classes=3, size=side), epochs=1, batch_size=4, schedule="constant")
    before = {key: value.clone() for key, value in run.classifier.named_parameters()}
    after = dict(run.run().named_parameters())
    assert all(value.isfinite().all() for value in after.values())
    moved = [key for key, value in after.items() if not torch.equal(value, before[key])]
    assert len(moved) > 0.5 * len(after)  # torchvision's ViT starts with a head of zeros, which no gradient passes yet
