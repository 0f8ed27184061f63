"""Zero-gamma and no bias decay, against torchvision's own and by the parameter groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from robustbench_lite.defenses.optimizing import optimizer_for, start_at_zero
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision import models as tv
from training_fixture import digits, made, recipe, training

from robustbench_lite.classifier import Classifier
from robustbench_lite.errors import UsageError
from robustbench_lite.trained import network

PROBE = torch.zeros(1, 3, 32, 32)


def zeros(model: nn.Module) -> set[str]:
    return {name for name, value in model.named_parameters() if name.endswith("weight") and not value.any()}


def started(model: nn.Module, probe: Tensor = PROBE) -> set[str]:
    """The scales that zero-gamma sets, once it has been seen to change nothing else."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count = start_at_zero(Classifier(model.eval()), probe)
    after = model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert count == len(changed)
    assert changed == zeros(model)
    return changed


# --- zero-gamma


@pytest.mark.parametrize("build", [tv.resnet18, tv.resnet50, pytest.param(tv.resnext50_32x4d, marks=pytest.mark.slow)])
def test_zero_gamma_is_torchvisions_for_its_residual_networks(build: Any) -> None:
    theirs = zeros(build(zero_init_residual=True))
    assert started(build(num_classes=10)) == theirs
    assert "layer2.0.bn2.weight" in theirs or "layer2.0.bn3.weight" in theirs  # whose skip is a projection


def test_zero_gamma_is_timms_for_a_stem_and_skips_of_another_kind() -> None:
    theirs = zeros(timm.create_model("resnet26d", zero_init_last=True))
    ours = timm.create_model("resnet26d", zero_init_last=False)
    assert len(theirs) == 8
    assert started(ours) == theirs


def test_a_residual_network_for_small_images_starts_as_its_skips() -> None:
    assert started(network("cifar_resnet18", 10, 3)) == {f"layer{stage}.{block}.bn2.weight" for stage in (1, 2, 3, 4) for block in (0, 1)}


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


class Around(nn.Module):
    """A stem, one block, a head."""

    def __init__(self, block: Callable[[Tensor, Around], Tensor], branch: nn.Module, other: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.branch, self.other, self.head = conv(3, 4), branch, other or nn.Identity(), nn.Linear(8, 10)
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        z = self.block(self.stem(x), self).mean((2, 3))
        return self.head(pad(z, (0, 8 - z.shape[1])))


def two(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, stride), nn.ReLU(), conv(outputs, outputs))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Around(lambda z, net: z + net.branch(z), conv(4, 4)), {"branch.1.weight"}),
        (Around(lambda z, net: net.branch(z) + net.other(z), two(4, 8, 2), conv(4, 8, 2)), {"branch.2.1.weight"}),
        (Around(lambda z, net: net.branch(z) + pad(z[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)), two(4, 8, 2)), {"branch.2.1.weight"}),
        (Around(lambda z, net: z + net.branch(z), nn.Sequential(two(4, 4), nn.GroupNorm(2, 4))), {"branch.1.weight"}),
    ],
    ids=["one layer", "projection", "cut and padded", "group norm"],
)
def test_the_branch_of_a_block_is_told_by_its_layers(model: nn.Module, expected: set[str]) -> None:
    assert started(model) == expected


@pytest.mark.parametrize(
    "model",
    [
        Around(lambda z, net: net.branch(z) + net.other(z), conv(4, 8), conv(4, 8)),
        Around(lambda z, net: net.branch(z) + net.other(z), two(4, 8), two(4, 8)),
        Around(lambda z, net: net.branch(z) + net.other(z), conv(4, 4), nn.BatchNorm2d(4)),
        Around(lambda z, net: z + net.branch(z).relu(), two(4, 4)),
        Around(lambda z, net: torch.cat([z, net.branch(z)], 1), two(4, 4)),
        Around(lambda z, net: z + net.branch(z), nn.Sequential(two(4, 4), nn.BatchNorm2d(4, affine=False))),
    ],
    ids=["two projections", "two branches", "a scaled image", "a ReLU last", "concatenated", "a normalisation without weights"],
)
def test_what_is_no_residual_branch_or_ends_otherwise_stays(model: nn.Module) -> None:
    with pytest.raises(UsageError):
        started(model)
    assert not zeros(model)


@pytest.mark.parametrize("name", ["preact_resnet18", "wrn_40_2", "cifar_densenet121", "small_cnn_gn"])
def test_zero_gamma_where_no_branch_ends_in_a_normalisation_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^--zero-gamma: no residual branch of {name} ends in a normalisation: leave it out$"):
        start_at_zero(made(name).untrained(), PROBE)


def test_training_starts_with_it() -> None:
    assert len(zeros(training(digits(32), what=made("cifar_resnet18"), zero_gamma=True).classifier)) == 8
    with pytest.raises(UsageError, match="no residual branch of digits_cnn"):
        training(digits(32), what=made("digits_cnn"), zero_gamma=True)


# --- decay


def groups(model: nn.Module, optimizer: str) -> dict[float, set[str]]:
    """Names of the weights by their decay, once each weight has been seen to be in one group."""
    names = {id(value): name for name, value in model.named_parameters()}
    made = optimizer_for(model, recipe(no_bias_decay=True, weight_decay=0.3, optimizer=optimizer)).param_groups
    found = [names[id(value)] for group in made for value in group["params"]]
    assert sorted(found) == sorted(names.values())
    return {group["weight_decay"]: {names[id(value)] for value in group["params"]} for group in made}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_without_bias_decay_only_convolutions_and_linear_layers_decay(optimizer: str) -> None:
    model = tv.resnet18()
    parts = groups(model, optimizer)
    expected = {name for name, value in model.named_parameters() if value.dim() in (2, 4)}  # in this network: matrices and kernels
    assert len(expected) == 21
    assert parts == {0.3: expected, 0.0: {name for name, _ in model.named_parameters()} - expected}


def test_attention_decays_and_tokens_and_positions_do_not() -> None:
    model = tv.VisionTransformer(image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=10)
    decayed = groups(model, "adamw")[0.3]
    block = "encoder.layers.encoder_layer_0"
    attention = {f"{block}.self_attention.in_proj_weight", f"{block}.self_attention.out_proj.weight"}
    assert decayed == attention | {"conv_proj.weight", f"{block}.mlp.0.weight", f"{block}.mlp.3.weight", "heads.head.weight"}


def test_a_step_without_gradients_shows_what_decays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    for value in model.parameters():
        nn.init.ones_(value)
        value.grad = torch.zeros_like(value)
    optimizer_for(model, recipe(no_bias_decay=True, weight_decay=0.5, lr=0.1, momentum=0.0)).step()
    assert {name: float(value.detach().mean()) for name, value in model.named_parameters()} == {
        "0.weight": pytest.approx(0.95),
        "0.bias": 1.0,
        "1.weight": 1.0,
        "1.bias": 1.0,
        "3.weight": pytest.approx(0.95),
        "3.bias": 1.0,
    }


def test_otherwise_all_weights_decay() -> None:
    (group,) = optimizer_for(tv.resnet18(), recipe(weight_decay=0.3)).param_groups
    assert group["weight_decay"] == 0.3
    assert len(group["params"]) == 62
