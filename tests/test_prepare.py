"""Preparing a frozen model: it must say what it said, and be left as given where that is not sure."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.passes import Passes
from robustbench_lite.prepare import CACHE, prepare


class Block(nn.Module):
    """Convolution, normalisation and something between that and the classes."""

    def __init__(self, between: Callable[[Tensor], Tensor] | nn.Module = F.relu) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.between, self.head = between, nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.norm(self.convolution(x))).flatten(1))


def used(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model as if trained: every normalisation has seen data and has weights of its own."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.3, 2, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, 0, 0.3, generator=generator)
    return model.eval().requires_grad_(False)


def probe(size: int = 8, count: int = 4) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def resnet18() -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    return used(torchvision.models.resnet18(weights=None, num_classes=7))


def lite0() -> nn.Module:
    import timm

    torch.manual_seed(0)
    return used(timm.create_model("tf_efficientnet_lite0", num_classes=7))


@pytest.mark.parametrize(
    ("made", "size", "layers"),
    [(lambda: rb.load_model("digits_cnn").requires_grad_(False), 32, 3), (resnet18, 64, 20), (lite0, 64, 49)],
    ids=["digits_cnn", "resnet18", "lite0"],
)
def test_folding_changes_no_logit_and_not_the_given_model(made: Callable[[], nn.Module], size: int, layers: int) -> None:
    model, x = made(), probe(size)
    before = copy.deepcopy(model.state_dict())
    done = prepare(model, x)
    assert (done.reason, done.folded) == (None, layers)
    assert done.passes.prepared
    assert norms(done.passes.model) == 0
    assert norms(model) == layers
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    other = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(9))
    exact = Passes(model).logits(other)
    assert (done.passes.logits(other) - exact).abs().max() <= 1e-4 * exact.abs().max().clamp(min=1)
    assert not any(p.requires_grad for p in done.passes.model.parameters())
    assert not any(module.training for module in done.passes.model.modules())


def test_the_activation_that_a_normalisation_carries_is_kept() -> None:
    from timm.layers import BatchNormAct2d

    model = Block(nn.Identity())
    model.norm = BatchNormAct2d(4)
    used(model)
    done = prepare(model, probe())
    assert done.folded == 1
    with torch.no_grad():
        assert (done.passes.model.norm(-torch.ones(1, 4, 2, 2)) == 0).all()
    assert torch.allclose(done.passes.logits(probe()), Passes(model).logits(probe()), atol=1e-5)


class TopK(nn.Module):
    """k winners take all."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return torch.where(flat >= flat.topk(60, dim=1).values[:, -1:], flat, torch.zeros_like(flat)).view_as(x)


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-6 * torch.randn_like(x)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.mean() > 0 else -x


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (TopK(), "topk is not smooth"),
        (lambda x: (x * 8).round() / 8, "round is not smooth"),
        (lambda x: (x * 8).round_() / 8, "round_ is not smooth"),
        (lambda x: torch.sign(x), "sign is not smooth"),
        (lambda x: (x * 8).int() / 8, "int is not smooth"),
        (lambda x: x * (x > 0.1), "gt is not smooth"),
        (Noise(), "randn_like is not smooth"),
        (Branching(), "cannot be traced"),
    ],
)
def test_what_rounding_can_tip_over_is_run_as_given(between: Any, reason: str) -> None:
    model = used(Block(between))
    done = prepare(model, probe())
    assert reason in str(done.reason)
    assert ("traced" in str(done.reason)) == isinstance(between, Branching)
    assert done.passes.model is model
    assert not done.passes.prepared
    assert done.described()["as_given_because"] == done.reason


def test_a_check_of_the_shape_is_no_reason() -> None:
    """torchvision's and timm's transformers have one."""

    def checked(x: Tensor) -> Tensor:
        torch._assert(x.shape[2] == x.shape[3], "square images are needed")
        return x

    assert prepare(used(Block(checked)), probe()).reason is None


@pytest.mark.parametrize(
    "between",
    [F.gelu, lambda x: F.leaky_relu(x, 0.1), F.normalize, lambda x: x.reshape(x.shape[0], -1), lambda x: x.view(x.size(0), -1)],
    ids=["gelu", "leaky_relu", "normalize", "shape", "view"],
)
def test_what_is_smooth_is_folded_whatever_its_name_begins_with(between: Any) -> None:
    model = used(Block(between))
    done = prepare(model, probe())
    assert (done.reason, done.folded) == (None, 1)
    assert torch.allclose(done.passes.logits(probe()), Passes(model).logits(probe()), atol=1e-5)
    assert done.passes.gradient(probe(), rule(), "ce")[1].isfinite().all()


def rule() -> Any:
    from robustbench_lite.criteria import Misclassified

    return Misclassified(torch.zeros(4, dtype=torch.long))


def test_a_hook_or_a_training_module_is_run_as_given() -> None:
    model = used(Block())
    handle = model.norm.register_forward_hook(lambda *_: None)
    assert prepare(model, probe()).reason == "norm has hooks"
    handle.remove()
    backward = model.norm.register_full_backward_hook(lambda *_: None)
    assert prepare(model, probe()).reason == "norm has hooks"
    backward.remove()
    model.norm.train()
    assert prepare(model, probe()).reason == "norm is in training mode"
    model.eval()
    assert prepare(model, probe()).folded == 1


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_parametrised_convolution_is_not_folded(name: str) -> None:
    model = Block()
    getattr(nn.utils.parametrizations, name)(model.convolution)
    done = prepare(used(model), probe())
    assert (done.folded, done.reason) == (0, None)
    assert torch.allclose(done.passes.logits(probe()), Passes(model).logits(probe()), atol=1e-5)


class UsedTwice(Block):
    def forward(self, x: Tensor) -> Tensor:
        seen = self.convolution(x)
        return self.head((self.norm(seen) + seen).flatten(1))


class Shared(Block):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(192, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.convolution(self.other(self.convolution(x)))).flatten(1))


@pytest.mark.parametrize("made", [UsedTwice, Shared])
def test_a_convolution_that_others_see_is_not_folded(made: Callable[[], nn.Module]) -> None:
    model = used(made())
    done = prepare(model, probe())
    assert (done.folded, done.reason) == (0, None)
    assert torch.allclose(done.passes.logits(probe()), Passes(model).logits(probe()), atol=1e-5)


def test_a_module_that_keeps_what_it_saw_is_not_left_with_a_stand_in() -> None:
    class Keeping(nn.Module):
        seen: Any = None

        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            return x

    keeping = Keeping()
    assert prepare(used(Block(keeping)), probe()).folded == 1
    assert isinstance(keeping.seen, Tensor)


def test_a_folded_model_that_disagrees_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustbench_lite import prepare as module

    monkeypatch.setattr(module, "fuse_conv_bn_weights", lambda w, b, *_: (nn.Parameter(w * 1.1), nn.Parameter(torch.zeros(len(w)))))
    model = used(Block())
    done = prepare(model, probe())
    assert "logits differ by" in str(done.reason)
    assert done.passes.model is model


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_a_model_without_room_for_a_folded_one_is_run_as_given(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    from robustbench_lite.passes import Passes

    asked = Passes.logits

    def full(self: Passes, x: Tensor) -> Tensor:
        if self.prepared:
            raise error("DefaultCPUAllocator: can't allocate memory")
        return asked(self, x)

    monkeypatch.setattr(Passes, "logits", full)
    model = used(Block())
    done = prepare(model, probe())
    assert done.reason == "the folded model does not run"
    assert done.passes.model is model


def test_micro_batches_say_what_whole_batches_say(counting: Callable[[nn.Module], Any]) -> None:
    model = counting(used(Block()))
    x = probe(count=10)
    whole, cut = Passes(model), Passes(model, micro=4)
    labels = rule().join(rule(), rule()).take(slice(0, 10))
    assert torch.allclose(cut.logits(x), whole.logits(x), atol=1e-5)
    model.calls = 0
    logits, gradient = cut.gradient(x, labels, "ce")
    assert model.calls == 3
    expected = whole.gradient(x, labels, "ce")
    assert torch.allclose(logits, expected[0], atol=1e-5)
    assert torch.allclose(gradient, expected[1], atol=1e-5)


def test_the_micro_batch_keeps_activations_small_and_no_hook_behind() -> None:
    model = used(Block())
    micro, bytes_of_one = prepare(model, probe()).passes.micro, 4 * 8 * 8 * 4
    assert micro is not None
    assert micro.bit_count() == 1
    assert micro * bytes_of_one < CACHE <= 2 * micro * bytes_of_one
    assert prepare(model, probe(), cut=False).passes.micro is None
    assert not any(module._forward_hooks for module in model.modules())
