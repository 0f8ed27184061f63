"""Certificates by bounds: what they prove withstands attacks, rounding has room, and the rest is refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from robustbench_lite.defenses.bit_depth import BitDepth
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.bound_proofs import SIZE
from robustbench_lite.bounded import graph
from robustbench_lite.certificates.crown import Crown
from robustbench_lite.certificates.ibp import IBP
from robustbench_lite.certifying import Proof
from robustbench_lite.classifier import Classifier
from robustbench_lite.data import load_data
from robustbench_lite.errors import BadSpec, UsageError
from robustbench_lite.intervals import box, margins
from robustbench_lite.labelled import from_arrays
from robustbench_lite.models import load_model
from robustbench_lite.registry import ATTACKS, CERTIFICATES
from robustbench_lite.scenarios import scenario_names
from robustbench_lite.streams import Streams
from robustbench_lite.threat import ball

DIGITS = load_data("digits")


def digits(count: int) -> tuple[Tensor, Tensor]:
    images = [DIGITS[i][0] for i in range(count)]
    return torch.stack(images), torch.tensor([int(DIGITS[i][1]) for i in range(count)])  # type: ignore[call-overload]


def proof(spec: str, classifier: Classifier, images: Tensor, labels: Tensor, eps: float, norm: str = "linf") -> Proof:
    draw = Streams(0, spec, [(str(i), 0) for i in range(len(images))], None, images.device)
    found = CERTIFICATES.build(spec).prove(classifier, images, labels, ball(norm, eps), draw)
    assert isinstance(found, Proof)
    return found


def linear(bias: float = 0.0) -> Classifier:
    """Class 1 minus class 0 is the first pixel less a half, plus a bias."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).requires_grad_(False)
    network[1].weight.zero_()
    network[1].bias.zero_()
    network[1].weight[1, 0], network[1].bias[1] = 1.0, bias - 0.5
    return Classifier(network.eval(), name="first pixel")


@pytest.fixture(scope="module")
def provable() -> Classifier:
    """A few hundred steps on interval bounds of the digits' training images."""
    torch.manual_seed(0)
    train = load_data("digits:split=train")
    images = torch.stack([image for image, _ in train])
    labels = torch.tensor([int(label) for label in train.labels])  # type: ignore[arg-type]
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10))
    g, optimizer = graph(network, images.shape[1:]), torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(300):
        at = torch.randint(len(images), (100,))
        worst = -margins(g, *box(images[at], 0.06 * min(1.0, step / 200)), labels[at])
        loss = nn.functional.cross_entropy(worst, labels[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Classifier(network.eval().requires_grad_(False), classes=10, name="provable", data="digits")


# --- exact answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["ibp", "crown"])
def test_a_linear_classifier_is_proven_up_to_its_distance_and_no_further(spec: str) -> None:
    images = torch.full((4, 1, 2, 2), 0.5)
    images[:, 0, 0, 0] = torch.tensor([0.7, 0.61, 0.59, 0.2])
    labels = torch.tensor([1, 1, 1, 1])
    found = proof(spec, linear(), images, labels, 0.1)
    assert found.proven.tolist() == [True, True, False, False]
    assert found.prediction.tolist() == [1, 1, 1, 0]
    torch.testing.assert_close(found.radius.float(), torch.tensor([0.1, 0.1, 0.0, 0.0]))
    torch.testing.assert_close(found.margin.float(), torch.tensor([0.1, 0.01, -0.01, -0.4]), rtol=0, atol=1e-5)


def test_a_proof_holds_in_the_balls_own_slack_and_not_beyond_the_box() -> None:
    """The first image could only be lost below 0, and the second at a distance that attacks are allowed by rounding."""
    images = torch.full((2, 1, 2, 2), 0.5)
    images[0, 0, 0, 0] = 0.1
    never = proof("crown", linear(bias=0.51), images[:1], torch.tensor([1]), 0.3)  # x + 0.01 > 0 in the box
    assert never.proven.tolist() == [True]
    assert float(never.margin) == pytest.approx(0.01, abs=1e-6)
    slack = float(ball("linf", 0.1).reach) - 0.1
    edge = proof("crown", linear(bias=0.1), images[1:], torch.tensor([1]), 0.1)
    assert edge.proven.tolist() == [False]
    assert float(edge.margin) == pytest.approx(-slack, abs=1e-7)


def test_l2_balls_of_a_linear_classifier() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).requires_grad_(False).eval()
    images, classifier = torch.full((1, 3, 2, 2), 0.5), Classifier(network)
    weight = network[1].weight
    label = int(network(images.flatten(1)).argmax())
    w = weight[label] - weight[1 - label]
    distance = float((network(images.flatten(1))[0, label] - network(images.flatten(1))[0, 1 - label]) / w.norm())
    for share, expected in ((0.99, True), (1.01, False)):
        assert proof("crown", classifier, images, torch.tensor([label]), distance * share, "l2").proven.tolist() == [expected]


# --- what is proven is true --------------------------------------------------------------------------------------------------


def test_what_is_proven_withstands_attacks(provable: Classifier) -> None:
    run = rb.evaluate(provable, data="digits", attacks=["fgsm", "pgd", "apgd"], certify=["ibp", "crown"], eps=0.05, norm="linf", limit=60)
    accuracy = {row.certificate: row.accuracy for row in run.proof_rows}
    assert 0.3 < accuracy["ibp"] <= accuracy["crown"]
    proven = {verdict.id for verdict in run.proofs if verdict.proven}
    broken = {verdict.sample_id for verdict in run.verdicts if verdict.broken}
    assert broken
    assert not proven & broken


def points_of(image: Tensor, norm: str, eps: float, count: int) -> Tensor:
    """(count, C, H, W) of a ball as far as attacks may go: inside, corners, half of the values at an end, and both ends of all."""
    draw, reach = torch.Generator().manual_seed(0), float(ball(norm, eps).reach)
    way = torch.rand(count, *image.shape, generator=draw) * 2 - 1 if norm == "linf" else torch.randn(count, *image.shape, generator=draw)
    way[::3] = way[::3].sign()
    way[1::3] = way[1::3].sign() * (torch.rand(way[1::3].shape, generator=draw) < 0.5)
    way[0], way[1] = 1.0, -1.0
    if norm == "l2":
        way = way / torch.linalg.vector_norm(way.flatten(1), dim=1).clamp(min=1e-9).reshape(-1, 1, 1, 1)
    return (image + reach * way).clamp(0, 1)


def assert_points_hold(spec: str, classifier: Classifier, eps: float, norm: str, count: int) -> None:
    """10,000 points of the first proven ball of a few digits are predicted as it says."""
    images, labels = digits(count)
    found = proof(spec, classifier, images, labels, eps, norm)
    row = int(found.proven.long().argmax())
    assert bool(found.proven[row])
    with torch.no_grad():
        logits = classifier(points_of(images[row], norm, eps, 10_000))
    margin = logits[:, labels[row]] - logits.scatter(1, labels[row].expand(len(logits), 1), -torch.inf).amax(1)
    assert float(margin.min()) >= float(found.margin[row]) - 1e-4
    assert bool((margin > 0).all())


@pytest.mark.parametrize(
    ("spec", "norm", "eps"), [("ibp", "linf", 0.05), ("crown", "linf", 0.05), ("zonotope", "linf", 0.05), ("crown", "l2", 0.2)]
)
def test_ten_thousand_points_of_a_proven_ball_are_predicted_as_it_says(provable: Classifier, spec: str, norm: str, eps: float) -> None:
    assert_points_hold(spec, provable, eps, norm, 6)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("l2", 0.05)])
def test_ten_thousand_points_around_digits_of_a_bundled_model(norm: str, eps: float) -> None:
    assert_points_hold("crown:batch=1", load_model("digits_pgd_at"), eps, norm, 2)


@pytest.mark.slow
def test_ten_thousand_points_of_a_ball_that_smoothing_proves_win_their_votes(provable: Classifier) -> None:
    """By 20 votes each. Only on the rim, in the worst direction, may the odds be as bad as even."""
    images, labels = digits(6)
    found = proof("smoothing:sigma=0.1,n=2000", provable, images, labels, 0.05, "l2")
    row = int(found.radius.argmax())
    assert bool(found.proven[row])
    generator, lost, won = torch.Generator().manual_seed(1), 0, 0
    for part in points_of(images[row], "l2", float(found.radius[row]), 10_000).split(20):
        noisy = part.repeat_interleave(20, 0)
        noisy = noisy + 0.1 * torch.randn(noisy.shape, generator=generator)
        with torch.no_grad():
            right = (provable(noisy).argmax(1) == labels[row]).reshape(-1, 20).sum(1)
        won, lost = won + int((right >= 10).sum()), lost + int((right <= 3).sum())
    assert lost == 0
    assert won > 9900


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.2)])
def test_every_registered_attack_of_a_norm_leaves_what_is_proven(provable: Classifier, norm: str, eps: float) -> None:
    images, labels = digits(12)
    proven = proof("crown", provable, images, labels, eps, norm).proven.nonzero()[:, 0][:4]
    x, y, others = images[proven], labels[proven], [DIGITS[i] for i in range(60, 100)]
    learnt_from = from_arrays(torch.stack([image for image, _ in others]), torch.tensor([label for _, label in others]))
    assert len(x) == 4
    refused = set()
    # `foolbox` needs a name, and attacks of scenarios are made of others
    names = [name for name in ATTACKS.names() if name not in ("foolbox", *scenario_names())]
    fitting = [name for name in names if norm in ATTACKS.build(name).norms]
    for name in fitting:
        try:
            run = rb.evaluate(provable, [name], (x, y), norm=norm, eps=eps, query_budget=60, fit_data=learnt_from, witnesses="none")
        except UsageError:
            refused.add(name)
            continue
        attacked = [v for v in run.verdicts if v.condition != "clean"]
        assert attacked
        assert all(v.broken is False for v in attacked), name
    assert refused == {"bpda", "sgm"}, "they need stand-ins and residual connections"


def test_a_model_of_less_than_float32_is_refused() -> None:
    class Coarse(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                made: Tensor = self.inner(x)
            return made

    images = torch.full((1, 1, 2, 2), 0.5)  # which bfloat16 holds exactly
    with pytest.raises(UsageError, match="bfloat16"):
        proof("crown", Classifier(Coarse(linear().model).eval()), images, torch.tensor([0]), 0.25)


@pytest.mark.slow
def test_a_model_trained_against_attacks_has_proofs_at_a_small_eps_that_intervals_alone_do_not_find() -> None:
    images, labels = digits(6)
    tight, loose = (proof(spec, load_model("digits_pgd_at"), images, labels, 0.01) for spec in ("crown", "ibp"))
    assert bool((loose.margin <= tight.margin + 1e-9).all())
    assert int(tight.proven.sum()) >= 5 > int(loose.proven.sum())


def test_neither_batch_nor_order_changes_a_proof(provable: Classifier) -> None:
    images, labels = digits(12)
    whole = proof("crown", provable, images, labels, 0.05)
    parts = [proof("crown:batch=5", provable, images, labels, 0.05)]
    back = proof("crown:batch=1", provable, images.flip(0), labels.flip(0), 0.05)
    for other in (*parts, Proof(*(column.flip(0) for column in (back.proven, back.prediction, back.radius, back.margin)))):
        assert torch.equal(whole.proven, other.proven)
        torch.testing.assert_close(whole.margin, other.margin, rtol=0, atol=1e-10)


def test_a_certificate_changes_no_weight_and_is_of_the_classifier_itself(provable: Classifier) -> None:
    images, labels = digits(2)
    before, digest = copy.deepcopy(provable.state_dict()), provable.digest
    found = proof("crown", provable, images, labels, 0.05)
    assert all(torch.equal(tensor, before[key]) for key, tensor in provable.state_dict().items())
    assert {certificate.holds_for(provable) for certificate in (IBP(), Crown())} == {digest}
    assert found.margin.dtype == torch.float64
    assert IBP().confidence == Crown().confidence == 1.0


# --- rounding ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits_standard", "digits_pgd_at", "digits_trades", "digits_augmix"])
def test_float32_moves_logits_by_far_less_than_there_is_room_for(name: str) -> None:
    model = load_model(name)
    images, _ = digits(200)
    with torch.no_grad():
        exact = graph(copy.deepcopy(model).double(), images.shape[1:]).logits(images.double())
        moved = (model(images) - exact).abs().amax(1) / exact.abs().amax(1)
    assert 0 < float(moved.max()) < SIZE / 10


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_a_margin_of_the_size_of_rounding_proves_nothing(size: float) -> None:
    """A constant on both logits does not change the margin, and drowns it in float32."""
    classifier = linear()
    classifier.model[1].bias += size
    images = torch.full((1, 1, 2, 2), 0.7)
    assert proof("crown", classifier, images, torch.tensor([1]), 0.1).proven.tolist() == [size < 1e3 * 0.99]


def test_what_is_no_number_is_never_proven() -> None:
    classifier = linear()
    classifier.model[1].bias[0] = torch.nan
    found = proof("crown", classifier, torch.full((1, 1, 2, 2), 0.7), torch.tensor([1]), 0.1)
    assert (found.proven.tolist(), found.prediction.tolist(), found.radius.tolist()) == ([False], [-1], [0.0])


# --- refusals ----------------------------------------------------------------------------------------------------------------


class Alternating(nn.Module):
    """Answers by a number of Python's own, which a trace would fix."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.flatten(1)[:, :2] * float(self.calls % 3)


@pytest.mark.parametrize("spec", ["ibp", "crown"])
def test_models_that_bounds_cannot_follow_are_refused_by_name(spec: str) -> None:
    certificate, images = CERTIFICATES.build(spec), torch.rand(1, 1, 2, 2)
    with pytest.raises(UsageError, match=r"kwta.* model\.block1\.relu is a WinnersTakeAll"):
        certificate.fits(load_model("digits_kwta"))
    with pytest.raises(UsageError, match=r"rounding is a Rounding"):
        certificate.fits(BitDepth().wrap(linear()))
    with pytest.raises(UsageError, match=r"1 is a Sigmoid"):
        certificate.fits(Classifier(nn.Sequential(nn.Flatten(), nn.Sigmoid()).eval()))
    with pytest.raises(UsageError, match=r"draws nothing itself"):
        proof(spec, Classifier(Alternating().eval()), images, torch.tensor([0]), 0.1)
    with pytest.raises(UsageError, match=r"not l1"):
        proof(spec, linear(), images, torch.tensor([0]), 0.1, "l1")
    with pytest.raises(UsageError, match=r"several labels"):
        proof(spec, linear(), images, torch.tensor([[0.0, 1.0]]), 0.1)
    training = linear()
    training.model[0].train()
    with pytest.raises(UsageError, match=r"model\.0 of first pixel is in training mode"):
        certificate.fits(training)


@pytest.mark.parametrize("spec", ["ibp:batch=0", "crown:batch=x", "crown:alpha=1"])
def test_wrong_parameters(spec: str) -> None:
    with pytest.raises(BadSpec):
        CERTIFICATES.build(spec)


def test_both_are_registered_and_written_as_they_are_read() -> None:
    assert {"ibp", "crown"} <= set(CERTIFICATES.names())
    assert CERTIFICATES.spec_of(CERTIFICATES.build("crown:batch=3")) == "crown:batch=3"
