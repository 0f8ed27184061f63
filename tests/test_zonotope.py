"""Zonotopes: sound at ten thousand points, exact where they can be, by hand in one dimension; and what estimates are good for."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_lite.certifying import Proof
from robustbench_lite.classifier import Classifier
from robustbench_lite.errors import ModelError, UsageError
from robustbench_lite.models import load_model
from robustbench_lite.registry import CERTIFICATES
from robustbench_lite.streams import Streams
from robustbench_lite.threat import ball
from robustbench_lite.zonotope import (
    Noise,
    Projected,
    Region,
    Zonotope,
    cauchy,
    estimated_region,
    exact_region,
    layers_of,
    relaxed,
)


def noise(seed: int = 0) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: cauchy(torch.rand(shape, generator=generator))


def network(seed: int = 0) -> nn.Sequential:
    """In float64, for images of 2 x 6 x 6: a convolution with a stride and padding, one in two groups, and two linear layers."""
    torch.manual_seed(seed)
    convolutions = [nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=2), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5)).double().requires_grad_(False)


def box(count: int = 3, eps: float = 0.2, shape: tuple[int, ...] = (2, 6, 6)) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return (x - eps).clamp(min=0), (x + eps).clamp(max=1)


def enclosed(layers: nn.Sequential, lower: Tensor, upper: Tensor) -> Zonotope:
    zonotope = Zonotope.of_box(lower, upper)
    for layer in layers:
        zonotope = zonotope.after(layer)
    return zonotope


def points(lower: Tensor, upper: Tensor, count: int) -> Tensor:
    """(count, B, ...), half of them corners of the box."""
    drawn = torch.rand(count, *lower.shape, generator=torch.Generator().manual_seed(1), dtype=lower.dtype)
    drawn[::2] = drawn[::2].round()
    return lower + drawn * (upper - lower)


# --- one ReLU, by hand


@pytest.mark.parametrize(
    ("lower", "upper", "slope", "offset"),
    [
        (-1, 3, 0.75, 0.375),  # 3/4 of x, between 0 and 3/4 above it
        (-2, 2, 0.5, 0.5),
        (-3, 1, 0.25, 0.375),
        (1, 2, 1, 0),
        (0, 2, 1, 0),
        (-2, -1, 0, 0),
        (-2, 0, 0, 0),
        (0, 0, 1, 0),
    ],
)
def test_a_relu_is_relaxed_as_by_hand(lower: float, upper: float, slope: float, offset: float) -> None:
    found = relaxed(torch.tensor([float(lower)]), torch.tensor([float(upper)]))
    assert [value.item() for value in found] == [slope, offset]


@given(st.floats(-3, 3), st.floats(0, 4), st.floats(0, 1))
def test_a_relaxed_relu_holds_every_output(lower: float, width: float, share: float) -> None:
    upper = lower + width
    x = lower + share * width
    slope, offset = (value.item() for value in relaxed(*torch.tensor([lower, upper], dtype=torch.float64)))
    assert slope * x - 1e-9 <= max(x, 0) <= slope * x + 2 * offset + 1e-9
    assert 0 <= slope <= 1


def test_one_neuron_by_hand() -> None:
    """2 a - b - 1 for a in [0, 2] and b in [0, 1]: [-2, 3], slope 3/5, offset 3/5; then 0.6 x + 0.6 + 0.6 e, which is [-1.2, 3]."""
    layer = nn.Linear(2, 1).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[2.0, -1.0]]))
    layer.bias.fill_(-1)
    before = Zonotope.of_box(torch.zeros(1, 2), torch.tensor([[2.0, 1.0]])).after(layer)
    after = before.after(nn.ReLU())
    assert [float(value) for value in before.bounds] == [-2, 3]
    assert [float(value) for value in after.bounds] == pytest.approx([-1.2, 3])
    assert after.centre.item() == pytest.approx(0.6 * 0.5 + 0.6)
    assert after.errors.flatten().tolist() == pytest.approx([1.2, -0.3, 0.6])


def test_tighter_bounds_that_are_known_are_used() -> None:
    zonotope = Zonotope.of_box(torch.tensor([[-1.0]]), torch.tensor([[3.0]]))
    certain = zonotope.after(nn.ReLU(), (torch.tensor([[0.0]]), torch.tensor([[3.0]])))
    assert torch.equal(certain.errors, zonotope.errors)


# --- exact where it can be


def test_affine_layers_are_exact() -> None:
    """The extremes of a linear network are attained at the corners that its own weights name."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(27, 4)).double().requires_grad_(False)
    lower, upper = box()
    found = enclosed(layers, lower, upper).bounds
    probe = torch.zeros(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    for output in range(4):
        (weight,) = torch.autograd.grad(layers(probe)[0, output], probe)
        for k, corner in enumerate((torch.where(weight > 0, lower, upper), torch.where(weight > 0, upper, lower))):
            assert torch.allclose(found[k][:, output], layers(corner)[:, output], atol=1e-12)


def test_a_network_whose_relus_are_all_certain_is_exact() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().requires_grad_(False)
    layers[0].bias.copy_(torch.tensor([5.0, -5.0, 5.0, -5.0]))
    lower, upper = box(shape=(3,))
    least, largest = enclosed(layers, lower, upper).bounds
    corners = torch.stack([layers(torch.where(torch.tensor(side), lower, upper)) for side in product((True, False), repeat=3)])
    assert torch.allclose(least, corners.amin(0), atol=1e-12)
    assert torch.allclose(largest, corners.amax(0), atol=1e-12)


# --- sound


@pytest.mark.parametrize("seed", [0, 1])
def test_ten_thousand_points_of_the_box_lie_inside_after_every_layer(seed: int) -> None:
    layers, (lower, upper) = network(seed), box(count=2)
    zonotope, x = Zonotope.of_box(lower, upper), points(lower, upper, 5000)
    for layer in layers:
        zonotope, x = zonotope.after(layer), layer(x.flatten(0, 1)).unflatten(0, (5000, 2))  # type: ignore[no-untyped-call]  # torch's
        least, largest = zonotope.bounds
        assert (x >= least - 1e-12).all()
        assert (x <= largest + 1e-12).all()
    assert ((largest - least) < 60 * (x.amax(0) - x.amin(0))).all()  # and not because everything does


def test_points_are_inside_along_every_direction_and_not_only_along_the_axes() -> None:
    """A box around the outputs would pass the test above; the zonotope's extent in a direction is its errors' projected on it."""
    layers, (lower, upper) = network(), box(count=1)
    zonotope, x = enclosed(layers, lower, upper), layers(points(lower, upper, 2000)[:, 0])
    directions = torch.randn(50, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    extent = (zonotope.errors[0] @ directions.T).abs().sum(0)
    assert ((x - zonotope.centre) @ directions.T <= extent + 1e-12).all()
    least, largest = zonotope.bounds
    assert (extent < 0.95 * (largest - least)[0].div(2) @ directions.T.abs()).any()


def test_images_of_a_batch_do_not_know_of_each_other() -> None:
    layers, (lower, upper) = network(), box(count=4, eps=0.1)
    together = enclosed(layers, lower, upper).bounds
    for k in range(4):
        alone = enclosed(layers, lower[k : k + 1], upper[k : k + 1]).bounds
        assert all(torch.allclose(one[k : k + 1], other, atol=1e-12) for one, other in zip(together, alone, strict=True))


# --- a point of the region, by its symbols


def drawn_symbols(region: Region, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    count = len(region.centre)
    return [2 * torch.rand(count, *shape, generator=generator, dtype=region.centre.dtype) - 1 for shape in region.shapes]


def test_a_point_of_a_region_is_the_zonotopes_at_the_same_symbols() -> None:
    lower, upper = box(count=1)
    region, zonotope = exact_region((lower + upper) / 2, (upper - lower) / 2, list(network()))
    symbols = drawn_symbols(region, 0)
    own = [symbols[0].flatten()]
    own += [symbol.flatten()[offset.flatten() != 0] for symbol, (_, offset) in zip(symbols[1:], region.relaxations, strict=True)]
    expected = zonotope.centre[0] + torch.cat(own) @ zonotope.errors[0]
    assert torch.allclose(region.at(symbols)[0], expected, atol=1e-12)


def test_every_image_of_the_box_is_a_point_of_the_region() -> None:
    """The symbols of a ReLU that lead where the network itself goes lie in [-1, 1]."""
    layers, (lower, upper) = network(), box()
    region, _ = exact_region((lower + upper) / 2, (upper - lower) / 2, list(layers))
    x = points(lower, upper, 2)[1]
    symbols, value, relaxations = [(x - region.centre) / region.radius], x, iter(region.relaxations)
    for layer in layers:
        before, value = value, layer(value)
        if isinstance(layer, nn.ReLU):
            slope, offset = next(relaxations)
            symbols.append(torch.where(offset > 0, (value - slope * before) / offset.clamp(min=1e-12) - 1, 0.0))
    assert all((symbol.abs() <= 1 + 1e-9).all() for symbol in symbols)
    assert torch.allclose(region.at(symbols), layers(x), atol=1e-9)


def test_a_region_that_is_cut_is_that_of_fewer_layers() -> None:
    lower, upper = box()
    centre, radius, layers = (lower + upper) / 2, (upper - lower) / 2, list(network())
    for count in range(len(layers) + 1):
        cut, shorter = exact_region(centre, radius, layers)[0].cut(count), exact_region(centre, radius, layers[:count])[0]
        assert cut.shapes == shorter.shapes
        assert torch.equal(cut.at(drawn_symbols(cut, 3)), shorter.at(drawn_symbols(shorter, 3)))


# --- estimates


def test_cauchy_values_have_the_quartiles_of_the_distribution_and_are_finite() -> None:
    drawn = cauchy((torch.arange(100000) + 0.5) / 100000)
    assert drawn.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist() == pytest.approx([-1, 0, 1], abs=1e-3)
    assert cauchy(torch.tensor([0.0, 1 - 2**-24])).isfinite().all()


@pytest.mark.parametrize(("projections", "middle"), [(50, 1.02), (200, 1.01)])
def test_an_estimate_is_about_the_exact_norm_and_on_either_side_of_it(projections: int, middle: float) -> None:
    """The median of k absolute Cauchy values has the standard deviation pi / (2 sqrt k): 0.222 and 0.111."""
    errors = torch.randn(1, 300, 40, generator=torch.Generator().manual_seed(0))
    exact, ratios = errors.abs().sum(1), []
    for seed in range(50):
        drawn = noise(seed)((projections, 300))
        estimate = Projected(torch.zeros(1, 40), (drawn @ errors[0])[None]).estimated_bounds[1]
        ratios.append(estimate / exact)
    found = torch.cat(ratios)
    assert found.median().item() == pytest.approx(middle, abs=0.05)
    assert found.std().item() == pytest.approx(math.pi / 2 / math.sqrt(projections), rel=0.25)
    assert 0.3 < (found > 1).float().mean() < 0.7


def test_projections_pass_a_network_as_its_zonotope_does() -> None:
    """With many projections, and the same relaxations, estimated bounds are nearly the exact ones; after the first layer they are exact."""
    lower, upper = box(count=2)
    centre, radius, layers = (lower + upper) / 2, (upper - lower) / 2, list(network())
    first = Projected.of_box(centre, radius, 3, lambda shape: noise()(shape).double()).affine(layers[0])
    assert torch.allclose(first.estimated_bounds[1], Zonotope.of_box(lower, upper).after(layers[0]).bounds[1], atol=1e-12)
    second = Projected.of_box(centre, radius, 2000, lambda shape: noise()(shape).double()).affine(layers[0]).affine(layers[2])
    known = Zonotope.of_box(lower, upper).after(layers[0]).after(layers[2])
    assert torch.allclose(second.estimated_bounds[1] - second.centre, known.bounds[1] - known.centre, rtol=0.2)
    region, projected = estimated_region(centre, radius, layers, 2000, lambda shape: noise(7)(shape).double())
    exact, zonotope = exact_region(centre, radius, layers)
    widths = [found[1] - found[0] for found in (projected.estimated_bounds, zonotope.bounds)]
    assert (widths[0] / widths[1]).tolist() == [[pytest.approx(1, abs=0.2)] * 5] * 2
    assert region.shapes == exact.shapes


# --- as a certificate


def classifier_of(seed: int = 0) -> Classifier:
    model = network(seed).float()
    model[-1].weight.mul_(4)
    return Classifier(model.eval(), mean=(0.1, 0.5), std=(1.0, 0.8), classes=5)


def proofs(classifier: Classifier, eps: float, count: int = 20, rival: int = 0) -> tuple[Proof, Tensor, Tensor]:
    """Of the predicted labels, or of those so many classes further."""
    x = torch.rand(count, 2, 6, 6, generator=torch.Generator().manual_seed(3)).round(decimals=1)
    labels = (classifier(x).argmax(1) + rival) % 5
    proof = CERTIFICATES.build("zonotope").prove(classifier, x, labels, ball("linf", eps), draws(count))
    return proof, x, labels


def draws(count: int) -> Streams:
    return Streams(0, "zonotope", [(str(k), 0) for k in range(count)], None, torch.device("cpu"))


@pytest.mark.parametrize(("seed", "eps"), [(0, 0.1), (1, 0.06), (2, 0.06)])
def test_what_is_proven_no_point_of_the_ball_refutes(seed: int, eps: float) -> None:
    classifier = classifier_of(seed)
    proof, x, labels = proofs(classifier, eps)
    assert 0 < proof.proven.sum() < 20
    drawn = points((x - eps).clamp(min=0), (x + eps).clamp(max=1), 1000)
    logits = classifier(drawn.flatten(0, 1)).unflatten(0, (1000, 20))  # type: ignore[no-untyped-call]  # torch's
    other = logits.masked_fill(torch.nn.functional.one_hot(labels, 5).bool(), -torch.inf).amax(2)
    margins = (logits.gather(2, labels.expand(1000, 20)[..., None])[..., 0] - other).amin(0)
    assert (margins >= proof.margin - 1e-4).all()
    assert (margins[proof.proven] > 0).all()
    assert torch.equal(proof.radius, eps * proof.proven)
    assert torch.equal(proof.prediction, labels)


def test_a_wrong_prediction_is_never_proven_nor_what_is_no_number() -> None:
    wrong, _, labels = proofs(classifier_of(), 1e-6, rival=1)
    assert not wrong.proven.any()
    assert (wrong.prediction != labels).all()
    assert (wrong.radius == 0).all()
    broken = classifier_of()
    broken.model[0].bias[0] = torch.nan
    assert not proofs(broken, 1e-6)[0].proven.any()


def test_a_margin_within_rounding_is_not_proven() -> None:
    """Logits of about 500 that differ by 0.001, whatever the image: float32 has 0.00003 between one such number and the next."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 2)).requires_grad_(False).eval()
    model[1].weight.fill_(1000 / 72)
    x, label = torch.full((1, 2, 6, 6), 0.5), torch.tensor([0])
    found = []
    for lead in (0.001, 0.1):
        model[1].bias.copy_(torch.tensor([lead, 0.0]))
        proof = CERTIFICATES.build("zonotope").prove(Classifier(model, classes=2), x, label, ball("linf", 0.1), draws(1))
        assert proof.margin.item() == pytest.approx(lead, rel=1e-4)
        found.append(bool(proof.proven))
    assert found == [False, True]


def test_the_ball_is_as_large_as_attacks_may_take_it() -> None:
    """A witness may lie beyond eps by the slack of rounding; what is proven holds for it too."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).requires_grad_(False).eval()
    model[1].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    threat = ball("linf", 0.1)
    assert float(threat.reach) > 0.1
    x, label = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    model[1].bias.copy_(torch.tensor([0.0, 0.0]))
    proof = CERTIFICATES.build("zonotope").prove(Classifier(model, classes=2), x, label, threat, draws(1))
    assert proof.margin.double().item() == pytest.approx(2 * (0.5 - float(threat.reach)), abs=1e-7)
    assert proof.margin.item() < 0.8


def test_what_the_certificate_cannot_do_is_refused() -> None:
    certificate = CERTIFICATES.build("zonotope")
    with pytest.raises(ModelError, match=r"block1\.norm is a BatchNorm2d"):
        certificate.fits(load_model("digits_cnn"))
    with pytest.raises(ModelError, match="0 is a GELU"):
        certificate.fits(Classifier(nn.Sequential(nn.GELU(), nn.Linear(2, 2)).eval()))
    x = torch.zeros(2, 2, 6, 6)
    with pytest.raises(UsageError, match="zonotope proves linf balls, not l2"):
        certificate.prove(classifier_of(), x, torch.zeros(2).long(), ball("l2", 0.1), draws(2))
    with pytest.raises(UsageError, match="several labels"):
        certificate.prove(classifier_of(), x, torch.zeros(2, 5), ball("linf", 0.1), draws(2))


# --- what cannot be followed


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Linear(2, 2), "Linear is no plain nn.Sequential"),
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), "1 is a BatchNorm2d, and zonotopes follow Conv2d"),
        (nn.Sequential(nn.Sequential(nn.Linear(1, 1), nn.GELU())), r"0\.1 is a GELU"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")), r"0 is a Conv2d, .* \(padded by zeros\)"),
        (nn.Sequential(nn.Flatten(2)), "0 is a Flatten"),
        (nn.Sequential(type("Doubled", (nn.Linear,), {})(2, 2)), "0 is a Doubled"),
        (nn.Sequential(type("Skipping", (nn.Sequential,), {"forward": lambda self, x: x})(nn.ReLU())), "0 is a Skipping"),
    ],
)
def test_what_cannot_be_followed_is_named(model: nn.Module, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        layers_of(model)


def test_layers_come_in_order_and_as_often_as_they_stand_there() -> None:
    relu, linear = nn.ReLU(), nn.Linear(2, 2)
    model = nn.Sequential(linear, relu, nn.Sequential(nn.Identity(), linear, relu), nn.Linear(2, 1))
    assert [type(layer).__name__ for layer in layers_of(model)] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
