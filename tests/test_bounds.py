"""Bounds of small networks: never above what any image reaches, exact where no ReLU is undecided, and what cannot be followed is named."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from robustbench_lite.defenses.kwta import WinnersTakeAll
from scipy.optimize import linprog
from torch import Tensor, nn
from torch.nn import functional

from robustbench_lite import crown, intervals
from robustbench_lite.bounded import Graph, graph, refuse_unbounded
from robustbench_lite.bounded_layers import Affine
from robustbench_lite.classifier import Classifier
from robustbench_lite.errors import UsageError

SHAPE = (3, 8, 8)
IMAGES = 3
ROUNDING = 1e-9


class Residual(nn.Module):
    """In-place ReLUs, a sum written into its first part, arithmetic with numbers and buffers, sizes and functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.again = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(6, 4)
        self.register_buffer("scale", torch.linspace(-1, 2, 6).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        first = self.norm(self.stem(1 - x / 2))
        skip = self.relu(first)  # and `first` from here on
        out = self.again(skip) * self.scale - 0.1
        out += first
        pooled = functional.avg_pool2d(functional.relu(-out), 2)
        return self.head(pooled.mean((2, 3)).view(x.size(0), -1))


def plain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def flat(inputs: int, *widths: int) -> list[nn.Module]:
    """Linear layers with ReLUs between, of flattened values."""
    sizes = [inputs, *widths]
    layers = [each for i, o in zip(sizes, widths, strict=False) for each in (nn.Linear(i, o), nn.ReLU())]
    return [nn.Flatten(), *layers[:-1]]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: plain(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), *flat(24, 4)),
    "norm": lambda: plain(
        nn.Conv2d(3, 6, 4, 2, "valid"), nn.BatchNorm2d(6), nn.ReLU(), *flat(54, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)
    ),
    "residual": Residual,
    "average": lambda: plain(
        nn.Conv2d(3, 6, 3, padding="same"),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, 1),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        *flat(8, 4),
    ),
    "max": lambda: plain(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *flat(24, 8, 4)),
    "max dilated": lambda: plain(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d((2, 1), 1, (1, 0), (2, 1)), *flat(216, 4)),
    "grouped": lambda: plain(
        nn.Conv2d(3, 6, 3, (2, 1), (2, 0), dilation=2, groups=3), nn.ReLU(), nn.Conv2d(6, 4, (1, 3), groups=2), nn.ReLU(), *flat(32, 4)
    ),
    "ends in a ReLU": lambda: plain(*flat(192, 9, 4), nn.ReLU()),
    "one output": lambda: plain(nn.Conv2d(3, 4, 3, 3), nn.ReLU(), *flat(16, 6, 1)),
}


def made(name: str, seed: int = 0) -> Classifier:
    """In float64, with normalisations that are not the identity."""
    torch.manual_seed(seed)
    network = NETWORKS[name]().eval()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (module.running_mean, module.weight, module.bias):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return Classifier(network, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)).double().requires_grad_(False)


def images(count: int = IMAGES) -> Tensor:
    """Some of whose pixels are at the ends of the box."""
    x = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return x.where((x > 0.1) & (x < 0.9), x.round())


METHODS: dict[str, Callable[[Graph, Tensor, Tensor, Tensor], Tensor]] = {
    "intervals": intervals.margins,
    "crown-ibp": crown.crown_ibp_margins,
    "crown": lambda g, lower, upper, labels: crown.margins(g, crown.Region(lower, upper), labels),
}


def between(lower: Tensor, upper: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, C, H, W) points of one box, every second of them a corner."""
    share = torch.rand(count, *lower.shape, generator=generator, dtype=lower.dtype)
    share[::2] = share[::2].round()
    return lower + share * (upper - lower)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_says_what_the_network_says(name: str) -> None:
    network, x = made(name), images(5)
    logits = network(x)
    expected = torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
    torch.testing.assert_close(graph(network, SHAPE).logits(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("eps", [0.0, 0.03])
def test_no_point_of_the_ball_is_below_a_bound(name: str, eps: float) -> None:
    network, x = made(name), images()
    g = graph(network, SHAPE)
    lower, upper = intervals.box(x, eps)
    least, most = intervals.bounds(g, lower, upper)
    labels = g.logits(x).argmax(1)
    bounds = {method: margins(g, lower, upper, labels) for method, margins in METHODS.items()}
    draw = torch.Generator().manual_seed(1)
    for row in range(IMAGES):
        logits = g.logits(between(lower[row], upper[row], 10_000 // IMAGES if eps else 1, draw))
        assert bool((logits >= least[row] - ROUNDING).all() & (logits <= most[row] + ROUNDING).all())
        reached = (logits[:, labels[row], None] - logits).amin(0)
        for method, bound in bounds.items():
            assert bool((bound[row] <= reached + ROUNDING).all()), method
            assert float(bound[row, labels[row]]) == 0
    if eps == 0:
        for bound in bounds.values():
            at_it = g.logits(x).gather(1, labels[:, None]) - g.logits(x)
            torch.testing.assert_close(bound, at_it, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", NETWORKS)
def test_searching_by_gradients_stays_above_the_bounds(name: str) -> None:
    """Random points are far from the worst; steps along the sign of the gradient come near it."""
    network, x = made(name), images(2)
    g, eps = graph(network, SHAPE), 0.03
    lower, upper = intervals.box(x, eps)
    labels = g.logits(x).argmax(1)
    for other in range(g.classes):
        worst, point = torch.full((2,), torch.inf, dtype=torch.float64), x
        for _ in range(20):
            point = point.detach().requires_grad_()
            logits = g.logits(point)
            margin = logits.gather(1, labels[:, None])[:, 0] - logits[:, other]
            worst = torch.minimum(worst, margin.detach())
            (slope,) = torch.autograd.grad(margin.sum(), point, allow_unused=True, materialize_grads=True)
            point = torch.minimum(torch.maximum(point - eps / 4 * slope.sign(), lower), upper)
        for method, margins in METHODS.items():
            assert bool((margins(g, lower, upper, labels)[:, other] <= worst + ROUNDING).all()), method


@pytest.mark.parametrize("name", ["plain", "residual", "average", "max"])
def test_images_of_a_batch_do_not_touch_each_other_nor_does_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g, x, labels = graph(made(name), SHAPE), images(), torch.tensor([0, 1, 2])
    lower, upper = intervals.box(x, 0.05)
    for margins in METHODS.values():
        together = margins(g, lower, upper, labels)
        alone = torch.cat([margins(g, lower[i : i + 1], upper[i : i + 1], labels[i : i + 1]) for i in range(IMAGES)])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-11)
        monkeypatch.setattr(crown, "MEMORY", 1)  # one row at a time
        torch.testing.assert_close(margins(g, lower, upper, labels), together, rtol=0, atol=1e-11)
        monkeypatch.undo()


@pytest.mark.parametrize("seed", range(3))
def test_methods_are_in_their_order(seed: int) -> None:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    g, labels = graph(network.double().requires_grad_(False), (3, 16, 16)), torch.tensor([3, 4])
    at_x = g.logits(x)
    gaps = [
        (at_x.gather(1, labels[:, None]) - at_x - margins(g, *intervals.box(x, 2 / 255), labels)).mean() for margins in METHODS.values()
    ]
    assert gaps[0] > 1.5 * gaps[1]
    assert gaps[1] > 1.1 * gaps[2] > 0


# --- against exact answers ---------------------------------------------------------------------------------------------------


def exact_margins(first: nn.Linear, second: nn.Linear, lower: np.ndarray, upper: np.ndarray, label: int) -> list[float]:
    """The least of every margin over a box, by a linear programme for each pattern of ReLUs."""
    w, b, v, c = (t.detach().numpy() for t in (first.weight, first.bias, second.weight, second.bias))
    least = [np.inf] * len(v)
    for signs in product((0.0, 1.0), repeat=len(w)):
        on = np.array(signs)
        sides = 1 - 2 * on  # on: -(w x + b) <= 0
        for other in range(len(v)):
            if other == label:
                least[other] = 0.0
                continue
            row = (v[label] - v[other]) * on
            found = linprog(row @ w, A_ub=sides[:, None] * w, b_ub=-sides * b, bounds=np.stack([lower, upper], 1))
            if found.success:
                least[other] = min(least[other], found.fun + row @ b + c[label] - c[other])
    return least


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("eps", [0.02, 0.3])
def test_bounds_are_never_above_the_exact_margin_and_meet_it_where_no_relu_is_undecided(seed: int, eps: float) -> None:
    torch.manual_seed(seed)
    first, second = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
    x = torch.rand(1, 1, 2, 2, dtype=torch.float64)
    g, label = graph(nn.Sequential(nn.Flatten(), first, nn.ReLU(), second).requires_grad_(False), (1, 2, 2)), seed % 3
    lower, upper = intervals.box(x, eps)
    exact = torch.tensor(exact_margins(first, second, lower.flatten().numpy(), upper.flatten().numpy(), label), dtype=torch.float64)
    below, above = intervals.node_bounds(g, lower, upper)[2]
    undecided = bool(((below < 0) & (above > 0)).any())
    for method, margins in METHODS.items():
        found = margins(g, lower, upper, torch.tensor([label]))[0]
        assert bool((found <= exact + 1e-8).all()), method
        if not undecided and method != "intervals":
            torch.testing.assert_close(found, exact, rtol=0, atol=1e-8)


def test_both_cases_of_the_last_test_occur() -> None:
    """A small ball decides all ReLUs of some of these networks, a large one of none of some."""
    seen = set()
    for seed, eps in product(range(8), (0.02, 0.3)):
        torch.manual_seed(seed)
        first = nn.Linear(4, 5).double()
        lower, upper = intervals.box(torch.rand(1, 4, dtype=torch.float64), eps)
        below, above = intervals.through(graph(nn.Sequential(nn.Flatten(), first), (1, 2, 2)).nodes[2].operation, (lower, upper))
        seen.add(bool(((below < 0) & (above > 0)).any()))
    assert seen == {False, True}


@given(st.integers(0, 10_000), st.floats(0, 0.5))
def test_a_linear_network_is_bounded_exactly(seed: int, eps: float) -> None:
    """Over a box, w x is least at lower where w > 0 and at upper where w < 0; over an l2 ball in the box, at x - eps w / |w|."""
    torch.manual_seed(seed)
    layer, label = nn.Linear(12, 4).double().requires_grad_(False), seed % 4
    g = graph(nn.Sequential(nn.Flatten(), layer), (3, 2, 2))
    x = torch.rand(1, 3, 2, 2, dtype=torch.float64)
    lower, upper = intervals.box(x, eps)
    w, b = layer.weight[label] - layer.weight, layer.bias[label] - layer.bias
    exact = torch.where(w > 0, w * lower.flatten(), w * upper.flatten()).sum(1) + b
    for margins in METHODS.values():
        torch.testing.assert_close(margins(g, lower, upper, torch.tensor([label]))[0], exact, rtol=0, atol=1e-10)
    centre = torch.full_like(x, 0.5)
    wide = crown.Region(torch.zeros_like(x), torch.ones_like(x), centre, torch.tensor([eps], dtype=x.dtype))
    in_ball = w @ centre.flatten() - eps * w.norm(dim=1) + b
    torch.testing.assert_close(crown.margins(g, wide, torch.tensor([label]))[0], in_ball, rtol=0, atol=1e-10)


def test_a_relu_by_hand() -> None:
    """relu(x) - relu(-x) = x over [0.25, 1] - 0.5: lines of slope 2/3 and 1/3 above, 1 and 0 below."""
    first, second = nn.Linear(1, 2), nn.Linear(2, 2)
    network = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second).double().requires_grad_(False)
    first.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    first.bias.copy_(torch.tensor([-0.5, 0.5]))
    second.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
    second.bias.zero_()
    lower, upper = torch.full((1, 1, 1, 1), 0.25).double(), torch.ones(1, 1, 1, 1).double()
    g, label = graph(network, (1, 1, 1)), torch.tensor([0])
    # values z in [-0.25, 0.5]: intervals 0 - 0.25; above -z the line (0.25 / 0.75) (-z + 0.5), below z the line z: 4/3 z - 1/6 at z = -0.25
    assert float(intervals.margins(g, lower, upper, label)[0, 1]) == pytest.approx(-0.25)
    assert float(crown.crown_ibp_margins(g, lower, upper, label)[0, 1]) == pytest.approx(-4 / 3 * 0.25 - 1 / 6)


@pytest.mark.parametrize("name", ["plain", "residual", "max"])
def test_no_point_of_an_l2_ball_is_below_its_bound_which_is_tighter_than_the_boxs(name: str) -> None:
    g, x, eps = graph(made(name), SHAPE), images(), 0.3
    lower, upper = intervals.box(x, eps)
    labels = g.logits(x).argmax(1)
    bound = crown.margins(g, crown.Region(lower, upper, x, torch.full((IMAGES,), eps, dtype=x.dtype)), labels)
    draw = torch.Generator().manual_seed(2)
    for row in range(IMAGES):
        way = torch.randn(3000, *SHAPE, generator=draw, dtype=x.dtype)
        logits = g.logits((x[row] + eps * way / way.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)).clamp(0, 1))
        assert bool((bound[row] <= (logits[:, labels[row], None] - logits).amin(0) + ROUNDING).all())
    assert float(bound.sum()) > float(crown.margins(g, crown.Region(lower, upper), labels).sum()) + 1


@pytest.mark.parametrize("name", NETWORKS)
def test_affine_operations_are_their_jacobians(name: str) -> None:
    """radius by |J| r and adjoint by the transpose of J, where J is autograd's."""
    g, draw = graph(made(name), SHAPE), torch.Generator().manual_seed(3)
    for node in g.nodes:
        if not isinstance(node.operation, Affine):
            continue
        shape = g.nodes[node.inputs[0]].shape
        x, r = (torch.rand(1, *shape, generator=draw, dtype=torch.float64) for _ in range(2))
        rows = torch.randn(2, *node.shape, generator=draw, dtype=torch.float64)
        slopes = torch.autograd.functional.jacobian(node.operation.forward, x).reshape(rows[0].numel(), -1)
        torch.testing.assert_close(node.operation.radius(r).flatten(), slopes.abs() @ r.flatten(), rtol=0, atol=1e-12)
        torch.testing.assert_close(node.operation.adjoint(rows, shape).flatten(1), rows.flatten(1) @ slopes, rtol=0, atol=1e-12)


# --- training, and what is no number -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["intervals", "crown-ibp"])
@pytest.mark.parametrize("name", ["plain", "norm", "average"])
def test_gradients_reach_the_weights(method: str, name: str) -> None:
    """Along a random direction of all weights, against a difference quotient."""
    network = made(name).requires_grad_(True).train()
    g, x, labels = graph(network, SHAPE), images(), torch.tensor([0, 1, 2])
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    weights = list(network.parameters())
    torch.manual_seed(0)
    ways = [torch.randn_like(weight) for weight in weights]

    def value() -> Tensor:
        return METHODS[method](g, *intervals.box(x, 0.01), labels).sum()

    found = sum((slope * way).sum() for slope, way in zip(torch.autograd.grad(value(), weights), ways, strict=True))
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    sides = []
    for step in (1e-7, -1e-7):
        with torch.no_grad():
            for weight, way in zip(weights, ways, strict=True):
                weight += step * way
            sides.append(value())
            for weight, way in zip(weights, ways, strict=True):
                weight -= step * way
    torch.testing.assert_close(found, (sides[0] - sides[1]) / 2e-7, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["plain", "max", "residual"])
def test_what_is_no_number_bounds_nothing(broken: float, name: str) -> None:
    network = made(name)
    next(m for m in network.modules() if isinstance(m, nn.Conv2d)).weight[0, 0, 0, 0] = broken
    x = images(1)
    for margins in METHODS.values():
        found = margins(graph(network, SHAPE), *intervals.box(x, 0.1), torch.tensor([0]))
        assert not bool((found[0, 1:] > 0).any())


# --- refusals ----------------------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] if x.sum() > 0 else x.flatten(1)[:, 4:8]


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) + torch.rand(192)


class Reading(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x.flatten(1))


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "sigmoid": (nn.Sequential(nn.Flatten(), nn.Sigmoid()), r"1 is a Sigmoid, and bounds follow .*ReLU"),
    "kwta": (nn.Sequential(nn.Conv2d(3, 3, 1), WinnersTakeAll(0.2), nn.Flatten()), r"1 is a WinnersTakeAll"),
    "function": (nn.Sequential(Reading()), r"0 \(Reading\) calls sigmoid"),
    "padding": (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")), r"padding_mode='reflect'"),
    "one-sided": (nn.Sequential(nn.Conv2d(3, 3, 2, padding="same")), r"0 is a Conv2d that is padded on one side"),
    "ceil": (nn.Sequential(nn.MaxPool2d(3, ceil_mode=True)), r"0 is a MaxPool2d with ceil_mode"),
    "no statistics": (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), r"without running statistics"),
    "dropout": (nn.Sequential(nn.Dropout()).train(), r"0 is a Dropout in training mode"),
    "branch": (Branching(), r"cannot be traced.*without branches"),
    "noise": (Noisy(), r"makes a tensor of its own"),
    "subclass": (nn.Sequential(type("Odd", (nn.Conv2d,), {"forward": Reading.forward})(3, 3, 1)), r"Odd"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_bounds_cannot_follow_is_named(name: str) -> None:
    network, words = REFUSED[name]
    with pytest.raises(UsageError, match=words):
        graph(network, SHAPE)
    with pytest.raises(UsageError, match=words):
        refuse_unbounded(network)
    assert set(vars(network)) == set(vars(nn.Sequential()) if isinstance(network, nn.Sequential) else vars(type(network)()))


def test_a_hook_is_refused_for_bounds_would_pass_it_by() -> None:
    network = made("plain")
    network.model[1].register_forward_hook(lambda *_: None)
    with pytest.raises(UsageError, match=r"model\.1 has hooks"):
        graph(network, SHAPE)


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(UsageError, match=r"does not take images of \(3, 9, 11\)"):
        graph(made("plain"), (3, 9, 11))


def test_what_no_logit_hangs_on_is_left_out() -> None:
    class Idle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            functional.relu(flat - 0.5)
            return flat * 2

    assert len(graph(Idle(), (1, 2, 2)).nodes) == 3


class Odd(nn.Module):
    """A network whose forward is a function."""

    def __init__(self, way: Callable[[Odd, Tensor], Tensor]) -> None:
        super().__init__()
        self.way, self.fc, self.relu, self.channels = way, nn.Linear(192, 4), nn.ReLU(), nn.BatchNorm1d(3)
        self.offset, self.pair = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(2, 4))
        self.turned, self.rows = nn.Linear(192, 4), nn.Conv2d(2, 2, 1)
        nn.init.normal_(self.channels.running_mean)
        nn.init.normal_(self.channels.weight)
        nn.init.normal_(self.channels.bias)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


FOLLOWED: dict[str, Callable[[Odd, Tensor], Tensor]] = {
    "keywords": lambda m, x: m.fc(input=m.relu(input=x - 0.5).flatten(1)),
    "three dimensions": lambda m, x: m.fc(m.channels(x.reshape(x.size(0), 3, -1)).flatten(1)),
    "sizes": lambda m, x: m.fc(x.reshape(-1, x.shape[1] * x.size(2) * x.shape[-1])),
    "view": lambda m, x: m.fc(x.view(x.size(0), -1)),
    "twice": lambda m, x: m.fc(m.relu(m.relu(x - 0.5) - 0.1).flatten(1)) + m.fc(x.flatten(1)),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_odd_forwards_are_followed_as_they_are(name: str) -> None:
    torch.manual_seed(0)
    network, x = Odd(FOLLOWED[name]).double().requires_grad_(False), images()
    g = graph(network, SHAPE)
    lower, upper = intervals.box(x, 0.03)
    least, most = intervals.bounds(g, lower, upper)
    draw = torch.Generator().manual_seed(1)
    for row in range(IMAGES):
        points = between(lower[row], upper[row], 500, draw)
        torch.testing.assert_close(g.logits(points), network(points), rtol=1e-12, atol=1e-12)
        assert bool((network(points) >= least[row] - ROUNDING).all() & (network(points) <= most[row] + ROUNDING).all())


NAMED: dict[str, tuple[Callable[[Odd, Tensor], Tensor], str]] = {
    "divided by 0": (lambda m, x: m.fc((x / 0).flatten(1)), r"the network calls truediv"),
    "layer of a weight": (lambda m, x: m.fc(x.flatten(1)) * m.relu(m.offset), r"^relu is called with something else"),
    "function of a weight": (lambda m, x: m.fc(x.flatten(1)) * torch.relu(m.offset), r"calls relu"),
    "size of a weight": (lambda m, x: m.fc(x.flatten(1)) * m.offset.size(0), r"calls size"),
    "times the batch": (lambda m, x: m.fc(x.flatten(1) * x.shape[0]), r"calls mul"),
    "times a sum with the batch": (lambda m, x: m.fc(x.flatten(1) * (1 + x.size(0))), r"calls mul"),
    "the batch in a shape": (lambda m, x: x.reshape(x.size(0), x.size(0), -1).mean(1), r"calls reshape"),
    "a row an image": (lambda m, x: m.fc(x.flatten(1)) + m.pair, r"size of tensor"),
    "the batch for channels": (lambda m, x: m.rows(x.mean(1)).flatten(1), r"rows takes \(2, 8, 8\)"),
    "too large": (lambda m, x: m.fc((x * 10**400).flatten(1)), r"calls mul"),
    "a part": (lambda m, x: x.flatten(1)[:, :4], r"calls getitem"),
    "in two": (lambda m, x: m.fc(torch.cat([x, x], 1).flatten(1)[:, :192]), r"calls cat"),
    "mixed": (lambda m, x: m.fc((x - x.mean(0)).flatten(1)), r"calls mean"),
    "all at once": (lambda m, x: m.fc(x.flatten(0).reshape(-1, 192)), r"calls flatten"),
}


@pytest.mark.parametrize("name", NAMED)
def test_odd_forwards_that_cannot_be_followed_are_named(name: str) -> None:
    way, words = NAMED[name]
    with pytest.raises(UsageError, match=words):
        graph(Odd(way), SHAPE)


def test_a_layer_whose_forward_was_replaced_is_named() -> None:
    network = Odd(lambda m, x: m.turned(x.flatten(1)))
    network.turned.forward = lambda x: -network.fc(x)  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="turned has another forward than its class"):
        graph(network, SHAPE)
