"""Stages of gradient attacks: each one's formula by hand, what they make together, and what does not go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import signal, stats
from torch import Tensor, nn
from torch.nn import functional

from robustbench_lite.criteria import Misclassified
from robustbench_lite.errors import BadSpec
from robustbench_lite.oracle import Case, Ledger, WhiteBox
from robustbench_lite.passes import Passes
from robustbench_lite.pipeline import Pipeline, Stage
from robustbench_lite.plan import Finding, parts
from robustbench_lite.registry import ATTACKS
from robustbench_lite.streams import Streams
from robustbench_lite.threat import ball

Run = Callable[..., list[Finding]]
Gradient = Callable[[Tensor], Tensor]
EPS = 0.05
STAGES = ("mi", "ni", "vmi:neighbours=3", "vni:neighbours=3", "di", "ti:size=3", "si", "admix:partners=2")


def smooth(classes: int = 5) -> nn.Module:
    """A model without kinks, so that gradients change with every step, in float64."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, classes)).double()
    for layer in (net[0], net[3]):
        nn.init.normal_(layer.weight, std=0.3)
    return net.eval().requires_grad_(False)


def built(spec: str) -> Pipeline:
    (made,) = parts(ATTACKS.build(spec), "linf").values()
    assert isinstance(made, Pipeline)
    return made


def asked(model: nn.Module, x: Tensor, y: Tensor, norm: str = "linf", eps: float = EPS) -> WhiteBox:
    rule = Misclassified(y)
    case = Case(x, ball(norm, eps), rule, rule, torch.full_like(y, -1), torch.zeros_like(y))
    return WhiteBox(Passes(model), case, Ledger.opened(x, model(x)))


def drawn(x: Tensor, step: int | None) -> Streams:
    steps = None if step is None else torch.full((len(x),), step)
    return Streams(0, "c", [(str(i), 0) for i in range(len(x))], steps, x.device)


def last(
    spec: str, model: nn.Module, x: Tensor, y: Tensor, draw: Callable[[Tensor, int | None], Streams] = drawn, eps: float = EPS
) -> Tensor:
    """The last image of a pipeline."""
    attack, oracle = built(spec), asked(model, x, y, eps=eps)
    state = attack.start(oracle, draw(x, None))
    for step in range(attack.steps):
        state = attack.step(oracle, state, draw(x, step))
    return state.x


@dataclass
class Written:
    """The update written out, for the formula of each direction: x, the gradients' function and the step go in."""

    model: nn.Module
    x: Tensor
    y: Tensor
    step: float = EPS / 3

    def gradient(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(functional.cross_entropy(self.model(x), self.y, reduction="sum"), x)[0]

    def climbed(self, direction: Callable[[Tensor, int], Tensor]) -> Tensor:
        x = self.x
        for t in range(3):
            x = (x + self.step * direction(x, t).sign()).clamp(self.x - EPS, self.x + EPS).clamp(0, 1)
        return x


@pytest.fixture
def written(pictures: Any) -> Written:
    model, x = smooth(), pictures(4).double()
    return Written(model, x, model(x).argmax(1))


def sized(g: Tensor) -> Tensor:
    return g / g.abs().mean((1, 2, 3), keepdim=True)


def test_mi_adds_up_gradients_of_one_size(written: Written) -> None:
    m = torch.zeros(())

    def direction(x: Tensor, t: int) -> Tensor:
        nonlocal m
        m = 0.7 * m + sized(written.gradient(x))
        return m

    ours = last("mi:steps=3,decay=0.7", written.model, written.x, written.y)
    assert torch.allclose(ours, written.climbed(direction), atol=1e-7)
    assert not torch.allclose(ours, last("mi:steps=3,decay=0", written.model, written.x, written.y), atol=1e-3)


def test_ni_asks_where_the_momentum_leads(written: Written) -> None:
    m = torch.zeros(())

    def direction(x: Tensor, t: int) -> Tensor:
        nonlocal m
        m = 0.7 * m + sized(written.gradient(x + written.step * 0.7 * m))
        return m

    ours = last("ni:steps=3,decay=0.7", written.model, written.x, written.y)
    assert torch.allclose(ours, written.climbed(direction), atol=1e-7)
    assert not torch.allclose(ours, last("mi:steps=3,decay=0.7", written.model, written.x, written.y), atol=1e-3)


@pytest.mark.parametrize("look_ahead", [False, True])
def test_vmi_and_vni_correct_by_the_last_steps_neighbours(written: Written, look_ahead: bool) -> None:
    m, v = torch.zeros(()), torch.zeros(())

    def direction(x: Tensor, t: int) -> Tensor:
        nonlocal m, v
        g = written.gradient(x + written.step * m if look_ahead else x)
        m = m + sized(g + v)
        noise = [drawn(x, t).uniform(f"neighbour {i}", 3, 8, 8, low=-4 * EPS, high=4 * EPS) for i in range(2)]
        v = (written.gradient(x + noise[0]) + written.gradient(x + noise[1])) / 2 - g
        return m

    name = "vni" if look_ahead else "vmi"
    ours = last(f"{name}:steps=3,neighbours=2,reach=4", written.model, written.x, written.y)
    assert torch.allclose(ours, written.climbed(direction), atol=1e-7)
    assert not torch.allclose(ours, last("ni:steps=3" if look_ahead else "mi:steps=3", written.model, written.x, written.y), atol=1e-3)


def test_si_climbs_the_mean_over_scales(written: Written) -> None:
    ours = last("si:steps=3,scales=4", written.model, written.x, written.y)
    expected = written.climbed(lambda x, t: sum(written.gradient(x / 2**i) / 2**i for i in range(4)) / 4)
    assert torch.allclose(ours, expected, atol=1e-7)


def test_ti_convolves_with_a_gaussian_of_sum_one(written: Written) -> None:
    bell = stats.norm.pdf(np.linspace(-2, 2, 5))
    kernel = np.outer(bell, bell) / np.outer(bell, bell).sum()

    def smoothed(g: Tensor) -> Tensor:
        return torch.tensor(np.stack([[signal.convolve2d(c, kernel, mode="same") for c in image] for image in g.numpy()]))

    stage = ATTACKS.build("ti:size=5,deviations=2")
    gradient = written.gradient(written.x)
    assert torch.allclose(stage.filtered(gradient), smoothed(gradient), atol=1e-12)
    ours = last("ti:steps=3,size=5,deviations=2", written.model, written.x, written.y)
    assert torch.allclose(ours, written.climbed(lambda x, t: smoothed(written.gradient(x))), atol=1e-7)
    point = ATTACKS.build("ti:size=1").filtered(gradient)
    assert torch.equal(point, gradient)


def test_admix_adds_a_share_of_pictures_and_scales_the_sum() -> None:
    x = torch.zeros(2, 1, 3, 16, 16)
    views = ATTACKS.build("admix:scales=2,partners=3,share=0.2").views(x, drawn(x, 0))
    assert views.shape == (2, 6, 3, 16, 16)
    assert torch.equal(views[:, 3:], views[:, :3] / 2)
    partners = views[:, :3] / 0.2
    assert 0 <= partners.min() < 0.2
    assert 0.8 < partners.max() <= 1 + 1e-6
    assert (partners.flatten(2).std(2) > 0.05).all()
    assert not torch.equal(views[0], views[1])
    grey = torch.zeros(2, 1, 1, 16, 16)
    assert ATTACKS.build("admix").views(grey, drawn(grey, 0)).shape == (2, 15, 1, 16, 16)
    with pytest.raises(BadSpec, match="these images have 4 channels"):
        ATTACKS.build("admix").views(torch.zeros(2, 1, 4, 16, 16), drawn(grey, 0))


def test_di_resamples_as_an_affine_grid_does(pictures: Any) -> None:
    x = pictures(6, shape=(3, 9, 12)).double().view(3, 2, 3, 9, 12)
    ours = ATTACKS.build("di:probability=1,largest=1.5").views(x, drawn(x, 0))
    _, size, down, right = drawn(x, 0).uniform("diverse inputs", 2, 4).double().flatten(0, 1).unbind(1)
    size = 1 + 0.5 * size
    theta = torch.zeros(6, 2, 3, dtype=torch.double)
    theta[:, 0, 0] = theta[:, 1, 1] = 1.5 / size
    theta[:, 0, 2], theta[:, 1, 2] = ((1.5 - 2 * place * (1.5 - size)) / size - 1 for place in (right, down))
    expected = functional.grid_sample(
        x.flatten(0, 1), functional.affine_grid(theta, [6, 3, 9, 12], align_corners=False), align_corners=False
    )
    assert torch.allclose(ours.flatten(0, 1), expected, atol=1e-6)


def test_di_transforms_each_image_with_its_own_probability_and_place(pictures: Any) -> None:
    x = pictures(1).expand(400, -1, -1, -1)[:, None]
    views = ATTACKS.build("di:probability=0.3").views(x, drawn(x, 0))
    moved = (views != x).flatten(1).any(1)
    assert 0.2 < moved.float().mean() < 0.4
    assert len(views[moved].flatten(1).unique(dim=0)) == moved.sum()
    assert torch.equal(ATTACKS.build("di:probability=0").views(x, drawn(x, 0)), x)


@pytest.mark.parametrize("spec", ["di:probability=1", "si", "admix:partners=2", "admix:partners=2,scales=2+di+si:scales=2", "si+ti:size=3"])
def test_gradients_are_pulled_back_through_the_views(written: Written, spec: str) -> None:
    attack, draw = built(spec), drawn(written.x, 0)
    slope = attack._slope(asked(written.model, written.x, written.y), written.x, draw)
    leaf = written.x[:, None].clone().requires_grad_()
    views = leaf
    for stage in attack.stages:
        views = stage.views(views, draw)
    many = views.shape[1]
    losses = functional.cross_entropy(written.model(views.flatten(0, 1)), written.y.repeat_interleave(many), reduction="none")
    (expected,) = torch.autograd.grad(losses.view(-1, many).mean(1).sum(), leaf)
    for stage in attack.stages:
        expected = stage.filtered(expected[:, 0])[:, None]
    assert torch.allclose(slope, expected[:, 0], atol=1e-12)


def test_neighbours_have_transforms_of_their_own(written: Written) -> None:
    seen: list[Tensor] = []

    def slope(x: Tensor, draw: Streams) -> Tensor:
        seen.append(draw.uniform("diverse inputs", 4))
        return torch.ones_like(x)

    stage, oracle, draw = ATTACKS.build("vmi:neighbours=3"), asked(written.model, written.x, written.y), drawn(written.x, 0)
    state = built("vmi").start(oracle, draw)
    stage.variance(state, torch.zeros_like(state.x), slope, torch.tensor(EPS), draw)
    assert len(torch.cat([*seen, draw.uniform("diverse inputs", 4)]).unique(dim=0)) == 16


# --- on a linear model -----------------------------------------------------------------------------------------------------


class Plane(nn.Module):
    """Two classes, parted by a plane at a chosen linf, l2 and l1 distance from the grey image."""

    def __init__(self, norm: str, distance: float) -> None:
        super().__init__()
        self.weight = torch.randn(48, generator=torch.Generator().manual_seed(3))
        self.offset = distance * float({"linf": self.weight.abs().sum(), "l2": self.weight.norm(), "l1": self.weight.abs().max()}[norm])

    def forward(self, x: Tensor) -> Tensor:
        height = (x - 0.5).flatten(1) @ self.weight + self.offset
        return 0.1 * torch.stack([height, -height], 1)


PLANES = [
    (spec, norm) for spec in ("mi", "si", "admix:partners=2", "ti:size=1", "di:probability=0", "si:scales=2+mi") for norm in ("linf", "l2")
]
PLANES += [(spec, "linf") for spec in ("ni", "vmi:neighbours=2", "vni:neighbours=2", "ni+si:scales=2")]


@pytest.mark.parametrize(("spec", "norm"), [*PLANES, ("mi", "l1"), ("si", "l1")])
def test_on_a_linear_model_it_succeeds_just_beyond_the_plane_and_not_before(attack: Run, spec: str, norm: str) -> None:
    x = torch.full((2, 3, 4, 4), 0.5)
    for share, expected in ((0.99, False), (1.01, True)):
        assert [f.broken for f in attack(Plane(norm, 0.2), spec, x, norm=norm, eps=share * 0.2)] == [expected] * 2


# --- together --------------------------------------------------------------------------------------------------------------


def test_what_one_stage_sets_holds_for_all() -> None:
    made = ATTACKS.build("ti:size=7+mi:steps=4,loss=dlr+di:step_size=0.3")
    assert (made.steps, made.shared("step_size"), made.shared("loss")) == (4, 0.3, "dlr")
    assert made.spec == ATTACKS.spec_of(made) == "ti:size=7+mi:steps=4,loss=dlr+di:step_size=0.3"
    assert ATTACKS.build(made.spec) == made
    assert ATTACKS.build("mi-fgsm+di-fgsm").spec == "mi+di"
    assert ATTACKS.build("mi:steps=4+di:steps=4").steps == 4
    assert made.norms == ("linf", "l2", "l1")
    assert ATTACKS.build("di+vmi").norms == ("linf",)


@dataclass(frozen=True)
class Slow(Stage):
    step_size: float | None = 0.05


def test_a_stages_own_default_holds_in_any_order() -> None:
    mi, given = ATTACKS.build("mi"), ATTACKS.build("mi:step_size=0.2")
    assert [Pipeline(stages).shared("step_size") for stages in ((mi, Slow()), (Slow(), mi), (mi,), (Slow(), given))] == [
        0.05,
        0.05,
        None,
        0.2,
    ]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("pgd:steps=5+mi", r"pgd:steps=5 cannot be combined with others: .*\bdi, .*\bmi, .*\bvni can$"),
        ("di+foolbox:LinfPGD", "foolbox:LinfPGD cannot be combined"),
        ("pgd+bim", "pgd cannot be combined"),
        ("di+mi+di:probability=1", r"di is named twice in di\+mi\+di: name it once"),
        ("mi+di+vmi", "mi and vmi each bring their momentum: keep one of them"),
        ("mi:steps=5+di+ti:steps=20", "mi:steps=5 and ti:steps=20 contradict each other: steps is 5 or 20, not both"),
        ("mi:loss=dlr+di:loss=margin", "loss is dlr or margin"),
        ("ti:size=4", "ti: size=4: a kernel with a centre has an odd size, such as 5"),
        ("mi+di:probability=2", "di:probability=2: "),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(spec: str, said: str) -> None:
    with pytest.raises(BadSpec, match=said) as refused:
        ATTACKS.build(spec)
    assert "\n" not in str(refused.value)


def test_stages_act_in_the_same_order_however_they_are_named(written: Written) -> None:
    one, other = (last(spec, written.model, written.x, written.y) for spec in ("ti:size=3,steps=3+ni+si", "si+ni+ti:size=3,steps=3"))
    assert torch.equal(one, other)
    alone = [last(f"{spec},steps=3", written.model, written.x, written.y) for spec in ("ti:size=3", "ni:decay=1", "si:scales=5")]
    assert all(not torch.allclose(one, x, atol=1e-3) for x in alone)


@pytest.mark.parametrize("spec", [*STAGES, "admix:scales=2,partners=2+di+ti:size=3+vmi:neighbours=2"])
def test_costs_are_as_told(attack: Run, net: Any, pictures: Any, spec: str) -> None:
    (found,) = attack(net(), spec, pictures(1), eps=1e-6)
    assert found.broken is False
    made = ATTACKS.build(spec)
    if isinstance(made, Pipeline):
        assert (found.forwards, found.backwards) == (10 * 4 * 3 + 11, 10 * 4 * 3)
        return
    forwards, backwards = (eval(part.rsplit(" ", 1)[0], vars(made)) for part in made.cost.split(", "))
    assert (found.forwards, found.backwards) == (forwards, backwards)


@pytest.mark.parametrize("spec", ["mi:steps=6", "admix:scales=1,partners=2+di+ti:size=3+vmi:neighbours=2,steps=6"])
def test_a_broken_image_leaves_and_batches_change_nothing(attack: Run, net: Any, pictures: Any, spec: str) -> None:
    x = pictures(16)
    few, all_at_once, full = (
        attack(net(), spec, x, eps=0.04, batch_size=size, goal=goal) for size, goal in ((3, "first"), (16, "first"), (16, "full"))
    )
    assert [(f.broken, f.steps) for f in few] == [(f.broken, f.steps) for f in all_at_once]
    assert all(torch.allclose(a.image, b.image, atol=1e-4) for a, b in zip(few, all_at_once, strict=True))
    steps = [f.steps for f in few if f.broken]
    assert 0 < len(steps) < 16
    assert min(steps) < 6
    assert {f.steps for f in few if not f.broken} == {f.steps for f in full} == {6}
    assert [f.broken for f in full] == [f.broken for f in few]
    assert sum(f.margin for f in full) > sum(f.margin for f in few)


EVENTS: list[str] = []


@dataclass(frozen=True)
class Heard(Stage):
    name: str = ""

    @contextmanager
    def hooks(self, model: nn.Module, probe: Tensor) -> Iterator[None]:
        EVENTS.append(f"{self.name} in, {tuple(probe.shape)}")
        try:
            yield
        finally:
            EVENTS.append(f"{self.name} out")


def test_the_hooks_of_every_stage_hold_and_are_gone_after_an_error(pictures: Any) -> None:
    EVENTS.clear()
    pipeline = Pipeline((Heard(name="a"), Stage(), Heard(name="b")))
    with pytest.raises(KeyError), pipeline.hooks(nn.Identity(), pictures(1)):
        raise KeyError
    assert EVENTS == ["a in, (1, 3, 8, 8)", "b in, (1, 3, 8, 8)", "b out", "a out"]


# --- against torchattacks --------------------------------------------------------------------------------------------------


class GlobalDraws(Streams):
    """Draws from torch's global state, in the peer's order."""

    def uniform(self, stream: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.randn(len(self.rows), *shape, dtype=torch.double).uniform_(low, high)


def globally_drawn(x: Tensor, step: int | None) -> Streams:
    return GlobalDraws(0, "c", [(str(i), 0) for i in range(len(x))], None, x.device)


@pytest.mark.peers
@pytest.mark.parametrize(
    ("spec", "peer", "options"),
    [
        ("mi:step_size=0.25", "MIFGSM", {}),
        ("ni:step_size=0.25", "NIFGSM", {}),
        ("vmi:step_size=0.25,neighbours=5", "VMIFGSM", {}),
        ("vni:step_size=0.25,neighbours=5", "VNIFGSM", {}),
        ("ti:step_size=0.25", "TIFGSM", {"diversity_prob": 0.0}),
        ("ti:step_size=0.25+mi:decay=0.9", "TIFGSM", {"diversity_prob": 0.0, "decay": 0.9}),
        ("si:step_size=0.25+ni", "SINIFGSM", {}),
    ],
)
def test_images_are_torchattacks(pictures: Any, spec: str, peer: str, options: dict[str, float]) -> None:
    """It climbs the batch's mean loss, so a power of two of images, of which nothing but the draws is random."""
    torchattacks = pytest.importorskip("torchattacks")
    model, x = smooth(), pictures(64).double()
    y = model(x).argmax(1)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = getattr(torchattacks, peer)(model, eps=8 / 255, alpha=2 / 255, steps=10, **options)
        if peer == "TIFGSM":
            theirs.stacked_kernel = theirs.stacked_kernel.double()
        theirs = theirs(x, y)
        torch.manual_seed(5)
        ours = last(spec, model, x, y, globally_drawn, eps=8 / 255)
    print(spec, "largest difference from", peer, float((ours - theirs).abs().max()))
    assert (ours - theirs).abs().max() <= 1e-5
