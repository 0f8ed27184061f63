"""Skip gradients: against the sum split by hand, against the published code's hooks, and how many branches a model has."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.functional import cosine_similarity, cross_entropy

from robustbench_lite.errors import BadSpec, ModelError, UsageError
from robustbench_lite.registry import ATTACKS
from robustbench_lite.residual import residual_branches, skip_gradient
from robustbench_lite.threat import ball


class Block(nn.Module):
    """relu(z + f(z)) as torchvision writes it: one ReLU used twice, the sum made in place."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.projection = nn.Conv2d(width, out, 1) if width != out else None

    def branch(self, z: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(z)))))

    def skip(self, z: Tensor) -> Tensor:
        return z if self.projection is None else self.projection(z)

    def forward(self, z: Tensor) -> Tensor:
        out = self.branch(z)
        out += self.skip(z)
        return self.relu(out)


class Dense(nn.Module):
    """f(z), which a dense block concatenates with z."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, growth, 3, padding=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.conv(torch.relu(self.norm(torch.cat(features, 1))))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.layers = nn.ModuleList([Dense(6 + 4 * i, 4) for i in range(4)])
        self.head = nn.Sequential(nn.BatchNorm2d(22), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(22, 10))

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features))
        return self.head(torch.cat(features, 1))


def resnet() -> nn.Sequential:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))
    return nn.Sequential(nn.Conv2d(3, 8, 3), Block(8, 8), Block(8, 12), Block(12, 12), Block(12, 12), head)


def made(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """In eval mode, frozen and in float64, with statistics like a trained network's and logits that differ between images."""
    torch.manual_seed(seed)
    net, x = build().double(), torch.rand(16, 3, 32, 32, dtype=torch.float64)
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        net.train()(x)
        last.bias -= net.eval()(x).mean(0)
    return net.requires_grad_(False)


def images(count: int = 6, side: int = 12) -> Tensor:
    return torch.rand(count, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([3, 1, 4, 1, 5, 9])


def slope(net: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return grad(cross_entropy(net(x), LABELS[: len(x)], reduction="sum"), x)[0]


def skipped(net: nn.Module, x: Tensor, gamma: float) -> Tensor:
    with skip_gradient(net, residual_branches(net, x[:1]), gamma):
        return slope(net, x)


def leaf(z: Tensor) -> Tensor:
    return z.detach().requires_grad_()


def resnet_by_hand(net: nn.Module, x: Tensor, gamma: float) -> Tensor:
    """Backwards block by block: through relu(z + f(z)) goes g + gamma J_f' g where the skip is the identity."""
    stem, *blocks, head = net.children()
    z = [stem(x)]
    for block in blocks:
        z.append(block(z[-1]).detach())
    last = leaf(z.pop())
    (g,) = grad(cross_entropy(head(last), LABELS, reduction="sum"), last)
    for block, before in zip(reversed(blocks), reversed(z), strict=True):
        before = leaf(before)
        f, skip = block.branch(before), block.skip(before)
        g = g * (f + skip > 0)
        (through,) = grad(f, before, g)
        g = g + gamma * through if block.projection is None else grad(skip, before, g)[0] + through
    x = leaf(x)
    return grad(stem(x), x, g)[0]


def densenet_by_hand(net: nn.Module, x: Tensor, gamma: float) -> Tensor:
    """Backwards layer by layer: what has come to a layer's features goes on to all features before it, times gamma."""
    features = [net.stem(x)]
    for layer in net.layers:
        features.append(layer(features))
    features = [leaf(f) for f in features]
    g = list(grad(cross_entropy(net.head(torch.cat(features, 1)), LABELS, reduction="sum"), features))
    for number in reversed(range(len(net.layers))):
        before = features[: number + 1]
        for i, more in enumerate(grad(net.layers[number](before), before, gamma * g[number + 1])):
            g[i] = g[i] + more
    x = leaf(x)
    return grad(net.stem(x), x, g[0])[0]


SMALL = [(resnet, resnet_by_hand), (DenseNet, densenet_by_hand)]


@pytest.mark.parametrize(("build", "by_hand"), SMALL)
@pytest.mark.parametrize("gamma", [0.0, 0.2, 0.5, 1.0])
def test_it_is_the_residual_sum_split_by_hand(build: Any, by_hand: Any, gamma: float) -> None:
    net, x = made(build), images()
    ours, exact, plain = skipped(net, x, gamma), by_hand(net, x, gamma), slope(net, x)
    torch.testing.assert_close(ours, exact, rtol=1e-10, atol=0)
    assert cosine_similarity(ours.flatten(1), exact.flatten(1)).min() > 1 - 1e-9
    if gamma == 1:
        assert torch.equal(ours, plain)
    else:
        assert cosine_similarity(plain.flatten(1), exact.flatten(1)).max() < 0.999


@pytest.mark.parametrize("frozen", [True, False])
def test_blocks_with_a_projection_are_no_identity(frozen: bool) -> None:
    net = made(resnet).requires_grad_(not frozen)
    assert residual_branches(net, images(1)) == ["1.bn2", "3.bn2", "4.bn2"]
    assert residual_branches(made(DenseNet).requires_grad_(not frozen), images(1)) == [f"layers.{i}" for i in range(4)]


class Branchy(nn.Module):
    """One branch f, used twice; g, h: what surrounds it."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.f, self.g, self.how = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), forward
        self.relu, self.weight = nn.ReLU(inplace=True), nn.Parameter(torch.rand(3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x).flatten(1)


FORMS: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str]]] = {
    "none": (lambda m, x: m.f(m.g(x)), []),
    "the images themselves are the skip": (lambda m, x: x + m.f(x), ["f"]),
    "one branch used twice": (lambda m, x: (z := x + m.f(x)) + m.f(z), ["f", "f"]),
    "a scaled branch": (lambda m, x: x + 0.1 * m.f(x), ["f"]),
    "a branch scaled by itself": (lambda m, x: x + (y := m.f(x)) * y.mean((2, 3), True).sigmoid(), ["f"]),
    "alpha": (lambda m, x: torch.add(x, m.f(x), alpha=0.3), ["f"]),
    "a layer that is no module": (lambda m, x: x + nn.functional.conv2d(x, m.weight), [""]),
    "two branches of one sum": (lambda m, x: x + (m.f(x) + m.g(x)), ["g"]),
    "parallel branches concatenated": (lambda m, x: torch.cat([m.f(x), m.g(x)], 1), []),
    "parallel branches added": (lambda m, x: m.f(x) + m.g(x), []),
    "halves": (lambda m, x: torch.cat([(z := torch.cat([m.g(x), m.g(x)], 1).chunk(2, 1))[0], m.f(z[1])], 1), []),
    "dense": (lambda m, x: torch.cat([z := m.g(x), m.f(z)], 1), ["f"]),
    "a constant": (lambda m, x: m.f(x) + m.weight.sum() + 1, []),
    "a parameter is the skip": (lambda m, x: (w := m.weight.sum() * torch.ones_like(x)) + m.f(x * w), []),
    "twice itself": (lambda m, x: (z := m.f(x)) + z, []),
    "a formula": (lambda m, x: torch.tanh((z := m.f(x)) + 0.04 * z**3), []),
    "a gate": (lambda m, x: (z := m.f(x)) * m.g(z).sigmoid(), []),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("frozen", [True, False])
def test_a_branch_is_told_by_structure(form: str, frozen: bool) -> None:
    torch.manual_seed(0)
    how, expected = FORMS[form]
    net = Branchy(how).double().requires_grad_(not frozen)
    x = images(2)
    assert residual_branches(net, x[:1]) == expected
    if len(expected) == 1 and form != "dense":  # where x is the skip of the only branch, the gradient of the skip alone is a one
        with skip_gradient(net, expected, 0.0):
            z = leaf(x)
            torch.testing.assert_close(grad(net(z).sum(), z)[0], torch.ones_like(x))


def test_a_branch_used_twice_is_damped_twice() -> None:
    net, x = Branchy(FORMS["one branch used twice"][0]).double().requires_grad_(False), images(2)
    first = leaf(x)
    f = net.f(first)
    second = leaf(first + f)
    through = grad(net.f(second).sum(), second)[0]
    g = 1 + 0.3 * through
    exact = g + 0.3 * grad(f, first, g)[0]
    z = leaf(x)
    with skip_gradient(net, residual_branches(net, x), 0.3):
        torch.testing.assert_close(grad(net(z).sum(), z)[0], exact)


# --- the context -----------------------------------------------------------------------------------------------------------


def hooks(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules())


@pytest.mark.parametrize("build", [resnet, DenseNet])
def test_nothing_is_left_of_it(build: Any) -> None:
    net, x = made(build), images()
    branches, plain, damped = residual_branches(net, x), slope(net, x), skipped(net, x, 0.5)
    before, logits = copy.deepcopy(net.state_dict()), net(x)
    assert hooks(net) == 0
    with skip_gradient(net, branches, 0.5):
        assert torch.equal(net(x), logits)
        assert torch.equal(net(x.clone().requires_grad_()), logits)
        assert hooks(net) > 0
    assert hooks(net) == 0
    with pytest.raises(RuntimeError), skip_gradient(net, branches, 0.5):
        net(x[:, :2])
    assert hooks(net) == 0
    assert torch.equal(slope(net, x), plain)
    assert torch.equal(skipped(net, x, 0.5), damped)  # and does not compound
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(RuntimeError):  # a probe that the model does not take
        residual_branches(net, x[:, :2])
    assert hooks(net) == 0


def test_passes_may_break_off_and_batches_may_change() -> None:
    net, x = made(resnet), images()
    exact = resnet_by_hand(net, x, 0.5)
    with skip_gradient(net, residual_branches(net, x), 0.5):
        with pytest.raises(RuntimeError):
            net(x[:, :2].requires_grad_())
        with torch.no_grad():
            net(x)
        torch.testing.assert_close(slope(net, x), exact)
        torch.testing.assert_close(slope(net, x[:2]), exact[:2])
        net.requires_grad_(True)
        torch.testing.assert_close(slope(net, x), exact)


def test_some_branches_only() -> None:
    net, x = made(resnet), images()
    z = leaf(x)
    before = net[:4](z)
    undamped = net[5](torch.relu(before + net[4].branch(before).detach()))
    (exact,) = grad(cross_entropy(undamped, LABELS, reduction="sum"), z)
    with skip_gradient(net, ["4.bn2"], 0.0):
        torch.testing.assert_close(slope(net, x), exact)
    with skip_gradient(net, [], 0.0):
        assert torch.equal(slope(net, x), slope(made(resnet), x))


def test_a_pass_with_other_branches_is_refused() -> None:
    net, x = made(resnet), images(1)
    with skip_gradient(net, ["1.bn2", "2.bn2"], 0.5), pytest.raises(ModelError, match="showed 2 residual branches and, in a later pass, 1"):
        slope(net, x)


# --- how many branches a model has -------------------------------------------------------------------------------------------

VIT = partial(tv.VisionTransformer, image_size=64, patch_size=16, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64)
FEW = [
    (tv.resnet18, 8 - 3),  # blocks without those that project; the first of a basic ResNet does not
    (tv.resnet50, 3 + 4 + 6 + 3 - 4),
    (tv.densenet121, 6 + 12 + 24 + 16),
    (tv.efficientnet_b0, 0 + 1 + 1 + 2 + 2 + 3 + 0),  # a stage of n blocks has n - 1 that neither stride nor widen
    (tv.convnext_tiny, 3 + 3 + 9 + 3),
    (VIT, 2 * 3),  # attention and perceptron
    (tv.squeezenet1_1, 0),
    (tv.shufflenet_v2_x0_5, 0),  # a branch beside the other half of the channels, and not beside what it is computed from
    (partial(timm.create_model, "resnet18"), 8 - 3),
    (partial(timm.create_model, "vit_tiny_patch16_224", img_size=64, depth=3), 2 * 3),
    (partial(timm.create_model, "convnext_atto"), 2 + 2 + 6 + 2),
]
MANY = [
    (tv.resnext50_32x4d, 3 + 4 + 6 + 3 - 4),
    (tv.wide_resnet50_2, 3 + 4 + 6 + 3 - 4),
    (tv.resnet152, 3 + 8 + 36 + 3 - 4),
    (tv.densenet201, 6 + 12 + 48 + 32),
    (tv.mobilenet_v2, 0 + 1 + 2 + 3 + 2 + 2 + 0),
    (tv.mnasnet0_5, 0 + 2 + 2 + 2 + 1 + 3 + 0),
    (tv.swin_t, 2 * (2 + 2 + 6 + 2)),
    (tv.vgg11, 0),
    (partial(tv.inception_v3, init_weights=False), 0),
    (partial(timm.create_model, "resnext50_32x4d"), 3 + 4 + 6 + 3 - 4),
    (partial(timm.create_model, "wide_resnet50_2"), 3 + 4 + 6 + 3 - 4),
    (partial(timm.create_model, "seresnet50"), 3 + 4 + 6 + 3 - 4),
    (partial(timm.create_model, "densenet121"), 6 + 12 + 24 + 16),
    (partial(timm.create_model, "efficientnet_b0"), 0 + 1 + 1 + 2 + 2 + 3 + 0),
    (partial(timm.create_model, "convnextv2_atto"), 2 + 2 + 6 + 2),  # response normalisation is z + w z n(z): a formula, no branch
    (partial(timm.create_model, "swin_tiny_patch4_window7_224", img_size=64, window_size=4), 2 * (2 + 2 + 6 + 2)),
    (partial(timm.create_model, "mixer_s32_224", img_size=64), 2 * 8),
    (partial(timm.create_model, "inception_resnet_v2"), 10 + 20 + 10),
]


@pytest.mark.parametrize(("build", "expected"), FEW + [pytest.param(*case, marks=pytest.mark.slow) for case in MANY])
def test_all_branches_of_an_architecture_are_found(build: Any, expected: int) -> None:
    with torch.device("meta"):  # the graph without the work
        net, probe = build().eval(), torch.rand(1, 3, 96, 96) if "inception" in str(build) else torch.rand(1, 3, 64, 64)
    branches = residual_branches(net, probe)
    assert len(branches) == len(set(branches)) == expected


@pytest.mark.slow
def test_the_layers_of_an_exported_program_are_no_modules() -> None:
    net, x = made(resnet), images(1)
    exported = torch.export.export(net, (x,)).module()
    assert residual_branches(exported, x) == ["", "", ""]
    torch.testing.assert_close(skipped(exported, x, 0.2), skipped(net, x, 0.2))


# --- the attack --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [resnet, DenseNet])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_attack_keeps_the_contract_on_models_with_skips(attack: Any, pictures: Any, build: Any, norm: str) -> None:
    net, x, eps = made(build).float(), pictures(4, shape=(3, 12, 12)), {"linf": 0.1, "l2": 1.0, "l1": 12.0}[norm]
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    runs = [attack(net, "sgm:gamma=0.5", x, norm=norm, eps=eps, batch_size=size) for size in (4, 4, 1)]
    assert hooks(net) == 0
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    found = [torch.stack([f.image for f in run]) for run in runs]
    assert ball(norm, eps).contains(found[0], x).all()
    assert any(f.broken for f in runs[0])
    assert torch.equal(found[0], found[1])
    for run, seen in zip(runs, found, strict=True):
        assert [(f.broken, f.steps) for f in run] == [(f.broken, f.steps) for f in runs[0]]
        torch.testing.assert_close(seen, found[0], atol=1e-4, rtol=0)


def test_its_first_step_is_along_the_skip_gradient(attack: Any, pictures: Any) -> None:
    net, x = made(resnet).float(), pictures(6, shape=(3, 12, 12))
    for gamma in (0.0, 0.3, 1.0):
        found = attack(net, f"sgm:steps=1,step_size=1,gamma={gamma}", x, eps=0.01, labels=LABELS, goal="full")
        moved = (x + 0.01 * skipped(net, x, gamma).sign()).clamp(0, 1)
        wrong = net(x).argmax(1) != LABELS
        images = torch.stack([f.image for f in found])
        assert torch.equal(wrong, torch.tensor([f.broken for f in found]))
        ours = [torch.allclose(a, b, atol=1e-7) or torch.equal(a, c) for a, b, c in zip(images, moved, x, strict=True)]
        assert all(ours)


def test_the_published_rule_leaves_out_blocks_whose_number_ends_in_zero() -> None:
    build = partial(tv.ResNet, tv.resnet.BasicBlock, [1, 1, 12, 1], num_classes=10)
    net, probe = made(build), images(1, 32)
    modes: dict[str, Tensor] = {}
    for mode in ("strict", "reference_compat"):
        with ATTACKS.build(f"sgm:gamma=0,mode={mode}").hooks(net, probe):
            modes[mode] = slope(net, probe)
    blocks = ["layer1.0.bn2", *(f"layer3.{i}.bn2" for i in range(1, 12))]
    assert residual_branches(net, probe) == blocks
    assert torch.equal(modes["strict"], skipped(net, probe, 0.0))
    with skip_gradient(net, [name for name in blocks if name not in ("layer1.0.bn2", "layer3.10.bn2")], 0.0):
        assert torch.equal(modes["reference_compat"], slope(net, probe))
    assert cosine_similarity(modes["strict"].flatten(), modes["reference_compat"].flatten(), 0) < 0.99


def test_what_cannot_be_used_is_said_in_one_line(attack: Any, net: Any, pictures: Any) -> None:
    with pytest.raises(UsageError, match="sgm needs residual connections, and this model shows none: give it a ResNet") as error:
        attack(net(), "sgm", pictures(2))
    assert "\n" not in str(error.value)
    for spec in ("sgm:gamma=1.5", "sgm:gamma=-0.1", "sgm:mode=loose"):
        with pytest.raises(BadSpec, match=spec.partition("=")[0]):
            ATTACKS.build(spec)


# --- against the published hooks -----------------------------------------------------------------------------------------------


def published(net: nn.Module, name: str, x: Tensor, gamma: float) -> Tensor:
    """The gradient under the hooks of torchattack's SGM, which are those of the authors' repository."""
    from torchattack import SGM

    hooked = nn.Sequential(nn.Identity(), copy.deepcopy(net))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its hooks are of a kind that is no more
        SGM(hooked, None, torch.device("cpu"), hook_cfg=name, gamma=gamma)
        return slope(hooked, x)


RN18, RN50, DN121 = tv.resnet18, tv.resnet50, tv.densenet121
BOTTLENECK = partial(tv.ResNet, tv.resnet.Bottleneck, [1, 1, 12, 1])  # a ResNet-101's rule on fewer blocks


@pytest.mark.peers
@pytest.mark.parametrize(
    ("build", "name", "mode"),
    [
        (RN18, "resnet18", "reference_compat"), (RN50, "resnet50", "strict"), (RN50, "resnet50", "reference_compat"),
        (DN121, "densenet121", "strict"), (DN121, "densenet121", "reference_compat"), (BOTTLENECK, "resnet101", "reference_compat"),
        pytest.param(tv.resnet101, "resnet101", "reference_compat", marks=pytest.mark.slow),
    ],
)  # fmt: skip
@pytest.mark.parametrize("gamma", [0.2, 0.5])
def test_signs_agree_with_the_published_code(build: Any, name: str, mode: str, gamma: float) -> None:
    net, x = made(build), images(2, 32)
    with ATTACKS.build(f"sgm:gamma={gamma},mode={mode}").hooks(net, x[:1]):
        ours = slope(net, x)
    theirs = published(net, name, x, gamma)
    assert torch.equal(ours.sign(), theirs.sign())
    assert cosine_similarity(ours.flatten(1), theirs.flatten(1)).min() > 1 - 1e-9
    assert cosine_similarity(slope(net, x).flatten(1), theirs.flatten(1)).max() < 0.99


@pytest.mark.peers
def test_the_published_code_differs_from_the_paper_where_a_block_number_ends_in_zero() -> None:
    net, x = made(BOTTLENECK), images(2, 32)
    assert cosine_similarity(skipped(net, x, 0.2).flatten(1), published(net, "resnet101", x, 0.2).flatten(1)).max() < 0.99
