"""k winners take all: the mask by brute force, which ReLUs are replaced, how gamma falls, and a network of it trained and attacked."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
import torch
from robustbench_lite.defenses.job import count_correct
from robustbench_lite.defenses.kwta import SOFTNESS, WinnersTakeAll
from robustbench_lite.defenses.train_cli import main
from safetensors import safe_open
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.data import load_data
from robustbench_lite.defending import Defenses
from robustbench_lite.errors import BadSpec, ModelError
from robustbench_lite.prepare import prepare
from robustbench_lite.registry import DEFENSES
from robustbench_lite.trained import load_trained, network


def drawn(*shape: int) -> Tensor:
    """Few different values, so that many are equal, and as many negative as positive ones."""
    return torch.randint(-6, 7, shape, generator=torch.Generator().manual_seed(len(shape))).float()


def groups(x: Tensor, per_channel: bool) -> list[list[tuple[int, ...]]]:
    """Indices of the values that compete with each other."""
    own = 2 if per_channel and x.ndim > 2 else 1
    heads = product(*(range(size) for size in x.shape[:own]))
    return [[(*head, *tail) for tail in product(*(range(size) for size in x.shape[own:]))] for head in heads]


def by_hand(x: Tensor, gamma: str, per_channel: bool) -> Tensor:
    """1 where a value wins, counted one by one; gamma as it is written, so that the floor is that of exact arithmetic."""
    mask = torch.zeros_like(x)
    for group in groups(x, per_channel):
        k = max(1, int(Fraction(gamma) * len(group)))
        values = [float(x[index]) for index in group]
        for index, value in zip(group, values, strict=True):
            mask[index] = float(sum(other > value for other in values) < k)
    return mask


@pytest.mark.parametrize("shape", [(3, 4, 5, 5), (2, 3, 2, 7), (4, 100), (2, 50), (5, 1)])
@pytest.mark.parametrize("gamma", ["0.01", "0.1", "0.29", "0.5", "1"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_winners_are_those_counted_by_hand_and_gradients_reach_them_alone(shape: tuple[int, ...], gamma: str, per_channel: bool) -> None:
    x = drawn(*shape).requires_grad_()
    mask = by_hand(x.detach(), gamma, per_channel)
    found = WinnersTakeAll(float(gamma), per_channel=per_channel)(x)
    assert torch.equal(found, x * mask)
    weight = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(found, x, weight)
    assert torch.equal(gradient, weight * mask)


def test_a_negative_winner_stays_and_ties_all_win() -> None:
    x = torch.tensor([[-5.0, -1.0, -3.0, -2.0], [2.0, 2.0, 2.0, 1.0]])
    assert WinnersTakeAll(0.5)(x).tolist() == [[0, -1, 0, -2], [2, 2, 2, 0]]


def test_k_is_rounded_down_as_on_paper_and_never_0() -> None:
    x = torch.arange(1.0, 101.0)[None]
    for gamma, k in ((0.29, 29), (0.57, 57), (0.299, 29), (0.001, 1), (1.0, 100)):
        assert int((WinnersTakeAll(gamma)(x) > 0).sum()) == k


def test_samples_do_not_compete_with_each_other() -> None:
    x = torch.rand(4, 3, 6, 6)
    layer = WinnersTakeAll(0.2)
    together = layer(x * torch.tensor([1.0, 10.0, 100.0, 1000.0])[:, None, None, None])
    assert torch.allclose(together, torch.cat([layer(each[None]) for each in x]) * 10.0 ** torch.arange(4)[:, None, None, None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_it_keeps_the_type_and_the_memory_format(dtype: torch.dtype) -> None:
    x = drawn(2, 4, 5, 5).to(dtype).contiguous(memory_format=torch.channels_last)
    found = WinnersTakeAll(0.1)(x)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, x * by_hand(x.float(), "0.1", per_channel=False).to(dtype))


def test_what_is_no_number_is_not_hidden() -> None:
    x = torch.rand(2, 10)
    x[0, 3] = float("nan")
    assert WinnersTakeAll(0.1)(x).isnan().tolist() == [[i == 3 for i in range(10)], [False] * 10]


# --- stand-ins -------------------------------------------------------------------------------------------------------------


def test_stand_ins_are_the_formulas() -> None:
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    layer = WinnersTakeAll(0.25)
    straight, smooth = (layer.stand_ins[name](x) for name in ("straight", "smooth"))
    assert torch.equal(straight, x)
    for row, found in zip(x, smooth, strict=True):
        values = row.detach().flatten()
        height = (row - values.sort().values[-8]) / (SOFTNESS * values.std())
        torch.testing.assert_close(found, row / (1 + torch.exp(-height)))
        exact, ours = (torch.autograd.grad(each.sum(), x, retain_graph=True)[0] for each in (row / (1 + torch.exp(-height)), found))
        torch.testing.assert_close(ours, exact)


def test_the_smooth_stand_in_is_nearly_the_layer_away_from_its_threshold() -> None:
    x = torch.randn(4, 500)
    layer = WinnersTakeAll(0.1)
    far = (x - layer.threshold(x)).abs() > 10 * SOFTNESS * x.std(1, keepdim=True)
    assert far.sum() > 500
    assert torch.allclose(layer.stand_ins["smooth"](x)[far], layer(x)[far], atol=1e-3)


# --- which ReLUs ----------------------------------------------------------------------------------------------------------------


def rebuilt(architecture: str | nn.Module, spec: str = "kwta") -> tuple[nn.Module, list[str], list[str]]:
    """A network with the defense, the names of its ReLUs, and those of what took the place of one."""
    before = architecture if isinstance(architecture, nn.Module) else network(architecture, 10, 3)
    model = Defenses.parse(spec).rebuild(before)
    names = [[name for name, m in model.named_modules() if isinstance(m, kind)] for kind in (nn.ReLU, WinnersTakeAll)]
    return model, names[0], names[1]


RESNET18 = {"resnet18": "relu", "timm:resnet18": "act1"}
BLOCKS = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]


@pytest.mark.parametrize("name", RESNET18)
def test_a_resnet_keeps_the_relu_before_its_blocks_unless_told_otherwise(name: str) -> None:
    within = ["relu"] if name == "resnet18" else ["act1", "act2"]
    inside = [f"{block}.{each}" for block in BLOCKS for each in within]
    stem = RESNET18[name]
    assert rebuilt(name)[1:] == ([stem], inside)
    assert rebuilt(name, "kwta:stem=true")[1:] == ([], [stem, *inside])


def test_a_plain_network_has_no_stem() -> None:
    assert rebuilt("digits_cnn")[1:] == ([], ["block1.relu", "block2.relu", "block3.relu"])
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 9), nn.ReLU())
    assert rebuilt(plain)[1:] == ([], ["1", "4"])


def test_activations_inside_normalisations_are_replaced_too() -> None:
    model, left, replaced = rebuilt("timm:densenet121")
    assert left == []
    assert "features.norm0.act" in replaced
    assert len(replaced) == 121
    assert model.eval()(torch.rand(1, 3, 64, 64)).isfinite().all()


def test_a_relu_under_two_names_is_replaced_under_both() -> None:
    one = nn.ReLU()
    model, left, replaced = rebuilt(nn.ModuleDict({"a": nn.Sequential(one), "b": nn.Sequential(one)}))
    assert (left, replaced) == ([], ["a.0", "b.0"])
    assert len(list(model.modules())) == 5


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.act = nn.Linear(3, 3), nn.Sequential(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.layer(self.act(x).relu()))


def test_networks_that_cannot_be_changed_whole_are_refused() -> None:
    for architecture, said in (
        ("timm:vit_tiny_patch16_224", "kwta replaces ReLUs, and VisionTransformer has none: take a network with ReLUs, such as resnet18"),
        (Functional(), "kwta replaces modules, and Functional calls relu as a function, 2 times: write nn.ReLU there"),
    ):
        with pytest.raises(ModelError) as error:
            rebuilt(architecture)
        assert str(error.value) == said


def test_parameters_are_checked() -> None:
    for spec in ("kwta:gamma=0", "kwta:gamma=1.1", "kwta:within=layer", "kwta:start=0"):
        with pytest.raises(BadSpec, match=spec.partition("=")[0]):
            DEFENSES.build(spec)
    with pytest.raises(BadSpec, match=r"kwta: gamma falls from start=0.1 to gamma=0.1: start must be the larger one"):
        DEFENSES.build("kwta:start=0.1")


def test_every_layer_gets_what_the_spec_says() -> None:
    model, _, names = rebuilt("resnet18", "kwta:gamma=0.3,within=channel")
    layers = [model.get_submodule(name) for name in names]
    assert [(layer.gamma, layer.per_channel) for layer in layers] == [(0.3, True)] * 8


def test_a_model_of_it_is_searched_as_it_is() -> None:
    model = rebuilt("digits_cnn")[0].eval()
    preparation = prepare(model, torch.rand(4, 3, 32, 32))
    assert preparation.reason == "WinnersTakeAll is not smooth"
    assert (preparation.folded, preparation.passes.model) == (0, model)


# --- gamma over the epochs ------------------------------------------------------------------------------------------------------


def gammas(spec: str, epochs: int) -> list[float]:
    defenses, found = Defenses.parse(spec), []
    model = defenses.rebuild(network("digits_cnn", 10, 3))
    for epoch in range(epochs):
        defenses.scheduled(model, epoch, epochs)
        (gamma,) = {layer.gamma for layer in model.modules() if isinstance(layer, WinnersTakeAll)}
        found.append(gamma)
    return found


def test_gamma_falls_as_in_the_published_fine_tuning() -> None:
    found = gammas("kwta:gamma=0.03,start=0.2", 70)
    assert found == pytest.approx([0.2 - 0.005 * (epoch // 2) for epoch in range(70)])
    assert found[-1] == 0.03


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 7, 20])
def test_gamma_ends_where_it_should(epochs: int) -> None:
    found = gammas("kwta:gamma=0.07,start=0.3", epochs)
    assert found[-1] == 0.07
    assert found[0] == (0.3 if epochs > 2 else 0.07)
    assert found == sorted(found, reverse=True)
    assert gammas("kwta:gamma=0.07", epochs) == [0.07] * epochs


# --- trained and attacked -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six epochs, with a falling gamma, a running average and the best epoch chosen: whatever could leave another gamma in the network."""
    out = tmp_path_factory.mktemp("kwta") / "net.safetensors"
    words = "--data digits --defense kwta:gamma=0.1,start=0.3 --epochs 6 --ema 0.9 --validation 0.1 --device cpu --out"
    assert main([*words.split(), str(out)]) == 0
    return out


def test_a_trained_network_comes_back_with_its_layers(checkpoint: Path) -> None:
    with safe_open(checkpoint, "pt") as opened:
        said = opened.metadata()
    found = load_trained(checkpoint)
    layers = [module for module in found.model.modules() if isinstance(module, WinnersTakeAll)]
    assert [layer.gamma for layer in layers] == [0.1] * 3
    digits = load_data("digits:test")
    right = count_correct(found, digits) / len(digits)
    assert f"{right:.4f}" == said["test_accuracy"]
    assert right > 0.9


def test_plain_gradients_are_masked_and_those_of_the_smooth_stand_in_are_not(checkpoint: Path, tmp_path: Path) -> None:
    attacks = ["pgd:steps=20", "bpda:steps=20,step_size=0.125"]
    result = rb.evaluate(str(checkpoint), attacks, "digits", eps=0.02, limit=60, out=tmp_path / "run")
    plain, smooth = (sum(v.broken is False for v in result.verdicts if v.condition == f"{each}[linf,0.02]") for each in attacks)
    assert plain > smooth + 12, (plain, smooth)
    assert not any("mislead" in note for note in result.config["notes"])


def test_a_run_without_the_adaptive_attack_says_what_is_missing(checkpoint: Path, tmp_path: Path) -> None:
    said = "layers of the model (WinnersTakeAll) mislead attacks that follow gradients: add the attack bpda, which follows stand-ins"
    for attacks, model, noted in (
        (["pgd:steps=1"], str(checkpoint), True),
        (["pgd:steps=1", "bpda:steps=1+mi"], str(checkpoint), False),
        (["pgd:steps=1"], "digits_cnn", False),
        ([], str(checkpoint), False),
    ):
        result = rb.evaluate(model, attacks, "digits", eps=0.02, limit=10, out=tmp_path / f"{model[-6:]} {len(attacks)}")
        assert (said in result.config["notes"]) == noted
