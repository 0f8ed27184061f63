"""APGD: its schedule and its trajectories against references of another make, its closed forms, and pyautoattack's."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.criteria import Misclassified
from robustbench_lite.losses import LOSSES
from robustbench_lite.oracle import Case, Ledger, WhiteBox
from robustbench_lite.passes import Passes
from robustbench_lite.plan import Finding, State, parts
from robustbench_lite.registry import ATTACKS
from robustbench_lite.threat import BALLS, Ball, ball

Run = Callable[..., list[Finding]]
APGD = sys.modules[ATTACKS.get("apgd").__module__]
SPARSE = sys.modules[ATTACKS.get("apgd-l1").__module__]
EPS = {"linf": 0.0625, "l2": 0.5, "l1": 3.0}  # exact in float32, as the peer keeps its step sizes
NORMS = tuple(EPS)
every_norm = pytest.mark.parametrize("norm", NORMS)


class Recording(nn.Module):
    """A model that keeps every batch it is asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.asked = model, list[Tensor]()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        answer: Tensor = self.model(x)
        return answer


class Given:
    """Draws that are handed out instead of drawn."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def uniform(self, *_: object, **__: object) -> Tensor:
        return self.noise

    normal = uniform


def by_hand(
    spec: str, model: nn.Module, x: Tensor, y: Tensor, threat: Ball, draw: Any, target: Tensor | None = None
) -> tuple[Tensor, State]:
    """(every batch that one of our attacks asks about, one after the other, its last state)."""
    (made,) = parts(ATTACKS.build(spec), threat.norm).values()
    recording, rule = Recording(model), Misclassified(y)
    aim = torch.full_like(y, -1) if target is None else target
    case = Case(x, threat, rule, rule if target is None else rule.aimed(target), aim, torch.zeros_like(y))
    oracle = WhiteBox(Passes(recording), case, Ledger.opened(x, model(x)))
    state = made.start(oracle, draw)
    for _ in range(made.steps):
        state = made.step(oracle, state, draw)
    return torch.stack(recording.asked), state


def doubled(net: Any, pictures: Any, count: int = 12, classes: int = 10) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = net(classes).double(), pictures(count).double()
    return model, x, model(x).argmax(1)


# --- the schedule ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50, 100, 1000])
def test_checkpoints_are_those_of_the_paper(net: Any, pictures: Any, streams: Any, steps: int) -> None:
    # section 3.2: p_0 = 0, p_1 = 0.22, p_j+1 = p_j + max(p_j - p_j-1 - 0.03, 0.06), in hundredths
    shares, expected = [0, 22], []
    while shares[-1] <= 100:
        expected.append(shares[-1])
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 3, 6))
    found = [(done, window) for done, window in enumerate(APGD.windows(steps)) if window]
    assert [done for done, _ in found] == [sum(window for _, window in found[: i + 1]) for i in range(len(found))]
    assert len(APGD.windows(steps)) == steps + 1
    assert all(window >= 1 for _, window in found)
    if steps % 100 == 0:
        assert [100 * done // steps for done, _ in found] == expected == [22, 41, 57, 70, 80, 87, 93, 99]


def test_the_l1_ball_shrinks_in_three_stages_and_ends_at_eps() -> None:
    widths, shrinks, checks = SPARSE.schedule(100)
    assert widths == [3.0] * 30 + [2.0] * 30 + [1.0] * 40
    assert [step for step, shrunk in enumerate(shrinks) if shrunk] == [30, 60]
    assert all(checks)
    widths, shrinks, checks = SPARSE.schedule(1000)  # windows of 12, 12 and 16, from where a ball is entered
    assert [step for step, check in enumerate(checks) if check][:3] == [11, 23, 35]
    assert [step for step, check in enumerate(checks) if check and step >= 600][:3] == [600, 616, 632]
    for steps in range(1, 12):
        widths, shrinks, _ = SPARSE.schedule(steps)
        assert len(widths) == steps
        assert widths[-1] == 1.0
        assert sum(shrinks) == len(set(widths)) - 1


def climbed_alone(model: nn.Module, x: Tensor, y: Tensor, threat: Ball, start: Tensor, steps: int, loss: Any) -> list[Tensor]:
    """Algorithm 1 for one image in linf or l2, with whole histories and no masks."""
    eps, rho = float(threat.eps), 0.75

    def value(at: Tensor) -> tuple[float, Tensor]:
        at = at.clone().requires_grad_()
        f = loss(model(at), y).sum()
        return float(f.detach()), torch.autograd.grad(f, at)[0]

    checkpoints, window = [], 0.22
    share = window
    while share < 1 + 1e-9:
        checkpoints.append(int(share * steps + 1e-9))
        window = max(window - 0.03, 0.06)
        share += window
    images, (f, g) = [start], value(start)
    losses, best, eta = [f], (f, start, g), 2 * eps
    now, before, changed, best_at = start, start, [True], [f]
    for k in range(steps):
        direction = g.sign() if threat.norm == "linf" else g / g.norm()
        z = threat.project(now + eta * direction, x)
        new = z if k == 0 else threat.project(now + 0.75 * (z - now) + 0.25 * (now - before), x)
        before, now = now, new
        f, g = value(now)
        losses.append(f)
        images.append(now)
        best = (f, now, g) if f > best[0] else best
        if k + 1 in checkpoints:
            last = max(c for c in [0, *checkpoints] if c < k + 1)
            risen = sum(losses[i + 1] > losses[i] for i in range(last, k + 1))
            stalled = risen <= rho * (k + 1 - last) or (not changed[-1] and best_at[-1] == best[0])
            changed.append(stalled)
            best_at.append(best[0])
            if stalled:
                eta, (_, now, g) = eta / 2, best
    return images


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_it_is_the_papers_algorithm(net: Any, pictures: Any, streams: Any, norm: str, loss: str) -> None:
    model, x, y = doubled(net, pictures)
    threat = ball(norm, EPS[norm] / 4)
    asked, state = by_hand(f"apgd:steps=100,loss={loss}", model, x, y, threat, streams(len(x)))
    assert (state.share < 2).any(), "no step was halved, so that was not tested"
    together = []
    for row in range(len(x)):
        one = slice(row, row + 1)
        alone = torch.stack(climbed_alone(model, x[one], y[one], threat, asked[0, one], 100, LOSSES[loss]))
        together.append(int(((asked[:, one] - alone).abs().flatten(1).amax(1) < 1e-6).long().cumprod(0).sum()))
    # where a climb has come to rest, roundings say whether its loss still rises, and they are the processor's
    assert min(together) > 50, together
    assert sum(steps < len(asked) for steps in together) <= 1, together


# --- what holds of every climb ---------------------------------------------------------------------------------------------


@every_norm
@pytest.mark.parametrize("spec", ["apgd:steps=30", "apgd-dlr:steps=30"])
def test_it_starts_at_the_edge_and_ends_with_the_best_image_it_asked_about(
    net: Any, pictures: Any, streams: Any, norm: str, spec: str
) -> None:
    model, x, y = doubled(net, pictures)
    threat = ball(norm, EPS[norm] / 4)
    asked, state = by_hand(spec, model, x, y, threat, streams(len(x)))
    assert len(asked) == 31
    rule, reach = Misclassified(y), 3 if norm == "l1" else 1
    outer = ball(norm, reach * float(threat.eps))
    assert all(outer.contains(images, x).all() for images in asked)
    if norm == "linf":  # but for a value or two that the box cuts short
        assert (threat.distance(asked[0], x) >= 0.95 * threat.eps).all()
    late = asked[19:] if norm == "l1" else asked  # what was asked about in its last ball
    heights = torch.stack([rule.loss(model(images), ATTACKS.build(spec).loss) for images in late])
    assert threat.contains(state.x, x).all()
    assert torch.allclose(rule.loss(model(state.x), ATTACKS.build(spec).loss), heights.amax(0))


class Plane(nn.Module):
    """Classes parted by planes at chosen distances from the grey image, the nearest first."""

    def __init__(self, offsets: tuple[float, ...]) -> None:
        super().__init__()
        self.weights = torch.randn(48, len(offsets), generator=torch.Generator().manual_seed(3))
        self.offsets = offsets

    def forward(self, x: Tensor) -> Tensor:
        lengths = {"linf": self.weights.abs().sum(0), "l2": self.weights.norm(dim=0), "l1": self.weights.abs().amax(0)}
        height = (x - 0.5).flatten(1) @ (self.weights / lengths[self.norm]) - torch.tensor(self.offsets)
        return torch.cat([torch.zeros_like(height[:, :1]), height], 1)


ONE, TWO, FOUR = (0.3,), (0.3, 0.35), (0.3, 0.35, 0.4, 0.45)


@pytest.mark.parametrize(
    ("spec", "norm", "offsets"),
    # with several planes a climb away from the label may end at a farther one; in l1 it may stop at two values where one would do
    [(spec, norm, ONE) for norm in NORMS for spec in ("apgd", "apgd:loss=margin", "apgd-dlr", "apgd-t")]
    + [("apgd-t", norm, offsets) for norm in ("linf", "l2") for offsets in (TWO, FOUR)],
)
def test_on_planes_it_succeeds_just_beyond_the_nearest_and_not_before(
    attack: Run, spec: str, norm: str, offsets: tuple[float, ...]
) -> None:
    model, x = Plane(offsets), torch.full((2, 3, 4, 4), 0.5)
    model.norm = norm
    for share, expected in ((0.99, False), (1.1 if norm == "l1" else 1.01, True)):
        found = attack(model, spec, x, norm=norm, eps=share * offsets[0])
        assert [f.broken for f in found] == [expected] * 2
        lanes = min(9, len(offsets)) if spec == "apgd-t" else 1
        assert expected or {(f.steps, f.forwards, f.backwards) for f in found} == {(100 * lanes, 102 * lanes, 101 * lanes)}


@pytest.mark.slow
@every_norm
def test_it_is_not_weaker_than_pgd_with_as_many_steps(attack: Run, net: Any, pictures: Any, norm: str) -> None:
    x, eps = pictures(40), EPS[norm] / 5
    ours = {f.id for f in attack(net(), "apgd", x, norm=norm, eps=eps) if f.broken}
    strongest = ours | {f.id for f in attack(net(), "apgd-t", x, norm=norm, eps=eps) if f.broken}
    theirs = {f.id for f in attack(net(), "pgd:steps=100", x, norm=norm, eps=eps) if f.broken}
    assert 0 < len(theirs) < 40
    assert len(theirs - ours) <= 1
    assert theirs <= strongest


@pytest.mark.parametrize("spec", ["apgd:steps=20", "apgd-t:steps=20,targets=3"])
def test_in_wider_balls_verdicts_do_not_depend_on_the_batch(attack: Run, net: Any, pictures: Any, spec: str) -> None:
    x = pictures(30)
    runs = [attack(net(), spec, x, norm="l1", eps=0.7, batch_size=size) for size in (1, 7, 64)]
    assert 0 < sum(bool(f.broken) for f in runs[0]) < 30
    for found in runs[1:]:
        assert [(f.broken, f.steps) for f in found] == [(f.broken, f.steps) for f in runs[0]]
        assert torch.allclose(torch.stack([f.image for f in found]), torch.stack([f.image for f in runs[0]]), atol=1e-4)


def test_a_sparse_step_moves_the_values_with_the_largest_gradients_equally_far() -> None:
    gradient = torch.tensor([[5.0, -4.0, 3.0, 0.0], [0.0, 0.0, -1.0, 0.0]]).view(2, 1, 2, 2)
    step = SPARSE.sparse_sign(gradient, torch.tensor([0.5, 1.0])).flatten(1)
    assert step.tolist() == [[0.5, -0.5, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]]


def test_the_fields_own_names_build_it() -> None:
    assert ATTACKS.build("apgd-ce") == ATTACKS.build("apgd")
    assert ATTACKS.build("apgd-ce:loss=dlr").loss == ATTACKS.build("apgd-dlr").loss == "dlr"
    assert (ATTACKS.build("apgd-t").loss, ATTACKS.build("apgd-t").targets) == ("dlr", 9)
    assert ATTACKS.spec_of(ATTACKS.build("apgd-t:targets=5")) == "apgd-t:targets=5"


# --- pyautoattack ----------------------------------------------------------------------------------------------------------


@contextmanager
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def peer(monkeypatch: pytest.MonkeyPatch, targeted: bool, **options: Any) -> Any:
    """Its APGD, made to compute in float64 throughout: its l1 projection is in float32, and leaves values that were to stay beside
    where they were by one rounding, so that it counts them as moved."""
    from pyautoattack import autopgd_base

    def projected(origin: Tensor, delta: Tensor, eps: float) -> Tensor:
        return BALLS["l1"](torch.tensor(eps)).project(origin + delta, origin) - origin - delta

    monkeypatch.setattr(autopgd_base, "L1_projection", projected)
    monkeypatch.setattr(autopgd_base, "L0_norm", lambda x: (x.abs() > 1e-12).flatten(1).sum(1))
    monkeypatch.setattr(autopgd_base, "check_zero_gradients", lambda *_, **__: None)
    return (autopgd_base.APGDAttack_targeted if targeted else autopgd_base.APGDAttack)(**options)


@pytest.mark.peers
@every_norm
@pytest.mark.parametrize("spec", ["apgd", "apgd-dlr", "apgd-t"])
def test_from_its_own_start_its_trajectory_is_ours(net: Any, pictures: Any, monkeypatch: pytest.MonkeyPatch, norm: str, spec: str) -> None:
    with double_by_default():
        model, x, y = doubled(net, pictures, 40)
        recording = Recording(model)
        target = model(x).argsort(1)[:, -2] if spec == "apgd-t" else None
        name = norm.capitalize() if norm == "linf" else norm.upper()
        options = {} if spec == "apgd-t" else {"loss": ATTACKS.build(spec).loss}
        attack = peer(monkeypatch, spec == "apgd-t", predict=recording, norm=name, eps=EPS[norm] / 4, **options)
        attack.init_hyperparam(x)
        attack.y_target = target
        torch.manual_seed(0)
        if norm == "l1":
            # our steps into the smaller balls count, so that its other stages have one step less
            attack.decr_eps_pgd(x, y, [3 * EPS[norm] / 4, 2 * EPS[norm] / 4, EPS[norm] / 4], [30, 29, 39])
        else:
            attack.attack_single_run(x, y)
        theirs = torch.stack(recording.asked)
        torch.manual_seed(0)
        noise = torch.randn(x.shape) if norm != "linf" else 2 * torch.rand(x.shape) - 1
        asked, _ = by_hand(spec, model, x, y, ball(norm, EPS[norm] / 4), Given(noise), target)
    assert len(asked) == len(theirs) == 101
    # once broken, an image is searched no further: there the ratio can be constant, and the gradient that both climb mere rounding
    alive = torch.stack([model(images).argmax(1) == y for images in theirs]).cummin(0).values
    far = ((asked - theirs).flatten(2).abs().amax(2) * alive).amax(0) > 1e-6
    print(norm, spec, int(far.sum()), "of", len(far), "rows part;", int(alive[-1].sum()), "survive")
    assert ((asked - theirs)[:11].flatten(2).abs().amax(2) * alive[:11]).max() < 1e-6
    # where its first checkpoint compares the first loss with 0 and not with the one at the start, the steps may be halved otherwise
    assert far.sum() <= 2


@pytest.mark.peers
@pytest.mark.slow
@every_norm
@pytest.mark.parametrize("spec", ["apgd", "apgd-dlr", "apgd-t:targets=5"])
def test_it_breaks_as_many_images_of_a_trained_model(attack: Run, norm: str, spec: str) -> None:
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    classifier = rb.load_model("digits_cnn")
    images = rb.load_data(str(classifier.data), limit=50, preprocess=classifier.preprocess)
    x, y = torch.stack([image for image, _ in images]), torch.tensor(list(images.labels))
    right = classifier(x).argmax(1) == y
    x, y = x[right], y[right]
    eps = {"linf": 0.05, "l2": 1.0, "l1": 12.0}[norm]
    name, wide = norm.capitalize() if norm == "linf" else norm.upper(), {"use_largereps": norm == "l1"}
    with torch.random.fork_rng():
        if spec.startswith("apgd-t"):
            made = APGDAttack_targeted(classifier, norm=name, eps=eps, n_target_classes=5, **wide)
        else:
            made = APGDAttack(classifier, norm=name, eps=eps, loss=ATTACKS.build(spec).loss, **wide)
        theirs = classifier(made.perturb(x, y)).argmax(1) != y
    ours = torch.tensor([bool(f.broken) for f in attack(classifier, spec, x, labels=y, norm=norm, eps=eps)])
    only_theirs, only_ours = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
    print(norm, spec, "robust", int((~ours).sum()), "of", len(y), "only theirs", only_theirs, "only ours", only_ours)
    assert 0 < ours.sum() < len(y)
    assert only_theirs - only_ours <= 2
    assert math.fabs(only_theirs - only_ours) <= 4
