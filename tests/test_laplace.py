"""Laplace's last layer: the posterior against explicit Hessians, its predictive by hand, and confidences far from the images."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from robustbench_lite.defenses.laplace import BayesianLinear, Laplace
from torch import Tensor, nn

from robustbench_lite.classifier import Classifier
from robustbench_lite.data import load_data
from robustbench_lite.errors import BadSpec, ModelError, UsageError
from robustbench_lite.laplace import GRID, Factors, Posterior, best_by_evidence, best_on_held_out, with_bias
from robustbench_lite.models import load_model


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def explicit(factors: Factors) -> Tensor:
    """N A (x) G as one matrix, in the order of W's columns."""
    a = factors.feature_basis @ factors.features.diag() @ factors.feature_basis.T
    g = factors.class_basis @ factors.classes.diag() @ factors.class_basis.T
    return factors.count * torch.kron(a, g)


def of_cross_entropy(phi: Tensor, weights: Tensor) -> Tensor:
    """The Hessian of the summed cross-entropy over the entries of W (K, n + 1), column by column, by automatic differentiation."""
    classes = len(weights)
    labels = torch.zeros(len(phi), dtype=torch.int64)

    def loss(columns: Tensor) -> Tensor:
        return nn.functional.cross_entropy(phi @ columns.reshape(-1, classes), labels, reduction="sum")

    found: Tensor = torch.autograd.functional.hessian(loss, weights.T.reshape(-1))  # type: ignore[no-untyped-call]
    return found


def test_the_factors_are_the_hessian_where_the_answers_are_alike() -> None:
    features, weights = drawn(7, 3), drawn(4, 4)
    weights[:, :3] = 0  # the bias decides, so that p is the same for all
    phi = with_bias(features)
    factors = Factors.of([(features[:2], phi[:2] @ weights.T), (features[2:], phi[2:] @ weights.T)])
    torch.testing.assert_close(explicit(factors), of_cross_entropy(phi, weights))


def test_one_image_has_exact_factors_and_several_have_the_means_of_theirs() -> None:
    features, weights = drawn(5, 3), drawn(4, 4, seed=1)
    phi = with_bias(features)
    one = Factors.of([(features[:1], phi[:1] @ weights.T)])
    torch.testing.assert_close(explicit(one), of_cross_entropy(phi[:1], weights))
    p = (phi @ weights.T).softmax(1)
    curvature = torch.stack([row.diag() - torch.outer(row, row) for row in p]).mean(0)
    outer = torch.stack([torch.outer(row, row) for row in phi]).mean(0)
    together = Factors.of([(features, phi @ weights.T)])
    torch.testing.assert_close(explicit(together), 5 * torch.kron(outer, curvature))


def binary() -> tuple[np.ndarray, np.ndarray, float]:
    """Features in pairs x, -x, the weight that a logistic regression without a bias has, and a prior variance; p (1 - p) is one number
    for all features of one margin."""
    w = np.array([1.5, -0.5])
    ortho = np.array([0.5, 1.5])
    along = 0.8 * w / (w @ w)
    x = np.stack([sign * along + t * ortho for t in (-2.0, -0.3, 0.7, 1.1) for sign in (1, -1)])
    return x, w, 0.3


def test_the_binary_posterior_and_its_predictive_are_those_of_logistic_regression() -> None:
    x, w, variance = binary()
    z = x @ w
    assert np.allclose(abs(z), 0.8)
    p = 1 / (1 + np.exp(-z))
    phi = np.concatenate([x, np.ones((len(x), 1))], 1)
    covariance = np.linalg.inv((phi.T * (p * (1 - p))) @ phi + np.eye(3) / variance)
    query = np.array([[3.0, 1.0], [-0.2, 5.0], [0.0, 0.0]])
    at = np.concatenate([query, np.ones((3, 1))], 1)
    spread = np.einsum("bi,ij,bj->b", at, covariance, at)
    posterior = Posterior.of(Factors.of([(torch.tensor(x), torch.tensor(z)[:, None])]), variance)
    features, logits = torch.tensor(query).float(), torch.tensor(query @ w).float()[:, None]
    np.testing.assert_allclose(posterior.spread(features)[:, 0].numpy(), spread, rtol=1e-5)
    by_hand = query @ w / np.sqrt(1 + np.pi / 8 * spread)
    np.testing.assert_allclose(posterior.probit(features, logits)[:, 0].numpy(), by_hand, rtol=1e-5)

    noise = torch.linspace(-5, 5, 2001).double()  # a mean over a grid with the normal density is an integral
    values = torch.tensor(query @ w)[:, None] + torch.tensor(spread).sqrt()[:, None] * noise
    density = torch.exp(-noise.square() / 2)
    integral = (values.sigmoid() * density).sum(1) / density.sum()
    many = torch.randn(40_000, 1, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(posterior.sampled(features, logits, many)[:, 0].sigmoid().numpy(), integral.numpy(), atol=6e-3)
    np.testing.assert_allclose(1 / (1 + np.exp(-by_hand)), integral.numpy(), atol=0.02)


def test_draws_have_the_covariance_of_the_explicit_posterior() -> None:
    features, weights, variance = drawn(6, 2), drawn(3, 3, seed=2), 2.0
    factors = Factors.of([(features, with_bias(features) @ weights.T)])
    posterior = Posterior.of(factors, variance)
    covariance = torch.linalg.inv(explicit(factors) + torch.eye(9, dtype=torch.float64) / variance)
    query = drawn(4, 2, seed=3)
    at = with_bias(query)
    expected = torch.stack([(jacobian := torch.kron(row[None], torch.eye(3).double())) @ covariance @ jacobian.T for row in at])
    u = posterior.class_basis.double()
    found = u @ torch.diag_embed(posterior.spread(query.float()).double()) @ u.T
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    logits = (at @ weights.T).float()
    diagonal = expected.diagonal(dim1=1, dim2=2).float()
    torch.testing.assert_close(posterior.probit(query.float(), logits), logits / (1 + math.pi / 8 * diagonal).sqrt())
    noise = drawn(20_000, 3, seed=4)
    roots = torch.linalg.cholesky(expected)
    by_roots = (logits.double() + torch.einsum("bij,sj->sbi", roots, noise)).softmax(2).mean(0)
    torch.testing.assert_close(posterior.sampled(query.float(), logits, noise.float()).softmax(1).double(), by_roots, atol=0.012, rtol=0)


def test_draws_do_not_hang_on_the_choice_of_eigenvectors() -> None:
    features, weights = drawn(6, 2), drawn(3, 3, seed=2)
    one = Posterior.of(Factors.of([(features, with_bias(features) @ weights.T)]), 1.0)
    turned = Posterior(one.shrink, -one.feature_basis, one.class_basis * torch.tensor([1.0, -1.0, -1.0]))
    query, noise = features.float(), drawn(50, 3).float()
    logits = (with_bias(features) @ weights.T).float()
    torch.testing.assert_close(one.sampled(query, logits, noise), turned.sampled(query, logits, noise))


def test_the_evidence_is_the_one_of_the_gaussian() -> None:
    features, weights = drawn(6, 2), drawn(3, 3, seed=2)
    factors = Factors.of([(features, with_bias(features) @ weights.T)])
    for variance in (0.1, 4.0):
        precision = explicit(factors) + torch.eye(9, dtype=torch.float64) / variance
        expected = -weights.square().sum() / (2 * variance) - (torch.logdet(precision) + 9 * math.log(variance)) / 2
        assert factors.evidence(weights, variance) == pytest.approx(float(expected))
    found = best_by_evidence(factors, weights)
    assert found in GRID
    assert 1e-6 < found < 1e6
    assert factors.evidence(weights, found) == max(factors.evidence(weights, each) for each in GRID)


def test_held_out_images_choose_a_wide_prior_where_the_layer_is_too_sure_and_a_narrow_one_where_it_is_not() -> None:
    features = drawn(200, 2)
    logits = torch.stack([features[:, 0], -features[:, 0]], 1) * 5
    factors = Factors.of([(features, logits)])
    right = (features[:, 0] < 0).long()
    wrong_often = torch.where(torch.arange(200) % 4 == 0, 1 - right, right)
    given = features.float(), logits.float()
    assert best_on_held_out(factors, *given, right) == GRID[0]
    assert best_on_held_out(factors, *given, wrong_often) > 0.1


# --- around a classifier


def standard(spec: str = "laplace") -> Classifier:
    return load_model("digits_standard", defense=spec)


@pytest.fixture(scope="module")
def wrapped() -> Classifier:
    return standard()


@pytest.mark.parametrize("predictive", ["probit", "samples"])
@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_along_a_ray_confidence_keeps_below_a_limit_known_in_closed_form(outputs: int, predictive: str) -> None:
    torch.manual_seed(0)
    head = nn.Linear(12, outputs).requires_grad_(False)
    phi = torch.rand(30, 12)
    posterior = Posterior.of(Factors.of([(phi, head(phi))]), 10.0)
    layer = BayesianLinear(head, posterior, 100 if predictive == "samples" else 0, "")
    direction = torch.rand(1, 12)
    far, further = (layer(t * direction) for t in (1e5, 1e6))
    sure = [torch.sigmoid(z.abs()) if outputs == 1 else z.softmax(1).amax(1) for z in (head(1e6 * direction), far, further)]
    assert float(sure[0]) > 1 - 1e-6
    assert float(sure[2]) < 0.999
    torch.testing.assert_close(sure[1], sure[2], atol=1e-3, rtol=0)
    if predictive == "probit":
        at = torch.cat([direction, torch.zeros(1, 1)], 1)
        spread = ((at @ posterior.feature_basis).square() @ posterior.shrink) @ posterior.class_basis.T.square()
        limit = (direction @ head.weight.T) / (math.pi / 8 * spread).sqrt()
        torch.testing.assert_close(further, limit, atol=1e-3, rtol=1e-3)


def test_far_from_the_digits_the_network_is_sure_and_the_wrapped_one_is_not(wrapped: Classifier) -> None:
    x = 1e4 * torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = load_model("digits_standard")
    assert plain(x).softmax(1).amax(1).min() > 0.9999
    assert wrapped(x).softmax(1).amax(1).max() < 0.99


def test_predictions_stay_where_variances_are_equal_and_nearly_all_of_the_digits(wrapped: Classifier) -> None:
    digits = load_data("digits", limit=200)
    x, y = torch.stack([image for image, _ in digits]), torch.tensor([int(str(label)) for _, label in digits])
    plain = load_model("digits_standard")
    with torch.no_grad():
        before, after = plain(x), wrapped(x)
    assert (before.argmax(1) == after.argmax(1)).float().mean() >= 0.99
    assert (after.argmax(1) == y).float().mean() > 0.97
    assert (after.softmax(1).amax(1) <= before.softmax(1).amax(1) + 1e-5).float().mean() > 0.99
    features, logits = drawn(50, 4).float(), drawn(50, 2, seed=5).float()
    two = Posterior.of(Factors.of([(features, logits)]), 100.0)
    assert torch.equal(two.probit(features, logits).argmax(1), logits.argmax(1))
    torch.testing.assert_close(two.class_basis.square(), torch.full((2, 2), 0.5))


def test_gradients_reach_the_image_and_are_right(wrapped: Classifier) -> None:
    for model in (wrapped, standard("laplace:predictive=samples,variance=1")):
        assert f"samples={0 if model is wrapped else 100}\n" in repr(model)
        model = model.double()
        x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
        (slope,) = torch.autograd.grad(model(x)[0, 3], x)
        step = 1e-6 * slope.sign()
        with torch.no_grad():
            rise = float((model(x + step) - model(x - step))[0, 3])
        assert rise == pytest.approx(2 * float((slope * step).sum()), rel=1e-3)
        model.float()


def test_what_was_fitted_is_in_its_description_and_not_in_the_given_model(wrapped: Classifier) -> None:
    given = load_model("digits_standard")
    before = given.digest
    again = Laplace().wrap(given)
    assert given.digest == before
    assert again.digest == wrapped.digest
    described = repr(again)
    assert "data=digits:split=train" in described
    assert "variance=" in described
    other, sampled = standard("laplace:variance=3"), Laplace(variance=3.0, predictive="samples").wrap(given)
    assert len({before, again.digest, other.digest, sampled.digest}) == 4
    assert other.name == "digits_standard+laplace:variance=3.0"
    assert other.learnt_from == given.learnt_from


def test_images_that_it_did_not_see_may_choose_the_variance(wrapped: Classifier) -> None:
    chosen = [re.search(r"variance=(\S+),", repr(each)) for each in (standard("laplace:validation=digits"), wrapped)]
    assert all(chosen)
    assert len({found[1] for found in chosen if found}) == 2


class Scaled(nn.Module):
    """Ends in something else than a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1))
        return 2 * logits


def test_what_cannot_be_is_said_in_a_line() -> None:
    scaled = Classifier(Scaled().eval(), classes=10, name="scaled")
    with pytest.raises(ModelError, match=r"^laplace: scaled does not say what it was trained on: write laplace:data=SPEC$"):
        Laplace().wrap(scaled)
    with pytest.raises(ModelError, match=r"^laplace needs a network that ends in a linear layer of features, and scaled does not"):
        Laplace(data="digits:train").wrap(scaled)
    scaled.classes = 5
    with pytest.raises(UsageError, match=r"^laplace: digits:train has the label 9, and scaled 5 classes"):
        Laplace(data="digits:train").wrap(scaled)
    for spec in ("laplace:variance=0", "laplace:predictive=mean", "laplace:variance=1,validation=digits"):
        with pytest.raises(BadSpec, match="laplace"):
            standard(spec)
