"""Attacks on scores or labels alone: the gradients that they estimate, what they cost, the doors that they stay behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.criteria import Misclassified
from robustbench_lite.errors import BadSpec
from robustbench_lite.estimates import slope
from robustbench_lite.oracle import Case, Labels, Ledger, Scores, WhiteBox
from robustbench_lite.passes import Passes
from robustbench_lite.plan import Finding
from robustbench_lite.registry import ATTACKS
from robustbench_lite.threat import ball

Run = Callable[..., list[Finding]]


def door(model: nn.Module, x: Tensor, norm: str = "linf", eps: float = 0.1) -> Scores:
    with torch.no_grad():
        logits = model(x)
    rule, none = Misclassified(logits.argmax(1)), torch.zeros(len(x), dtype=torch.long)
    return Scores(Passes(model), Case(x, ball(norm, eps), rule, rule, none - 1, none), Ledger.opened(x, logits))


def test_of_many_queries_the_best_of_each_row_is_kept(net: Any, pictures: Any) -> None:
    x, model = pictures(5), net()
    oracle = door(model, x, eps=0.1)
    shifts = torch.rand(5, 7, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.2 - 0.1
    queries = (x[:, None] + shifts).clamp(0, 1)
    logits = oracle.logits(queries)
    assert torch.allclose(logits, model(queries.flatten(0, 1)).view(5, 7, 10), atol=1e-5)
    margin = torch.stack([oracle.criterion.margin(logits[:, query]) for query in range(7)], 1)
    best = margin.argmax(1)
    assert (best < 6).any()  # the last is not the best of every row
    assert torch.equal(oracle.ledger.margin, margin.amax(1))
    assert torch.equal(oracle.ledger.best, queries[torch.arange(5), best])
    assert torch.equal(oracle.ledger.logits, logits[torch.arange(5), best])
    assert oracle.ledger.forwards.tolist() == [7] * 5


class Planes(nn.Module):
    """Two linear classes, where every image meets the same gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(192, generator=torch.Generator().manual_seed(3))

    def forward(self, x: Tensor) -> Tensor:
        height = x.flatten(1) @ self.weight - 0.5 * self.weight.sum() + 3
        return torch.stack([height, -height], 1)


def test_the_doors_are_as_narrow_as_they_can_be() -> None:
    assert ATTACKS.get("noise").access is Labels
    assert {ATTACKS.get(name).access for name in ("square", "nes", "spsa", "es-pgd")} == {Scores}
    assert not hasattr(Scores, "gradient")
    assert hasattr(WhiteBox, "gradient")


def test_the_slope_of_a_plane_is_found_by_projections(pictures: Any) -> None:
    """Along every axis once: exactly the gradient, in however many portions."""
    model, x = Planes(), pictures(3)
    axes = torch.eye(192).view(192, 3, 8, 8)
    estimate = slope(door(model, x), x, 192, 0.01, lambda name, count: axes[int(name.split()[1]) :][:count].expand(3, -1, -1, -1, -1))
    right = Misclassified(model(x).argmax(1))
    sign = torch.where(right.labels == 0, -1.0, 1.0)[:, None]
    assert torch.allclose(192 * estimate.flatten(1), 2 * sign * model.weight, atol=1e-2)


def test_what_one_image_gets_does_not_depend_on_the_others(net: Any, pictures: Any, streams: Any) -> None:
    model, x = net(), pictures(5)
    every = slope(door(model, x), x, 40, 0.01, lambda name, count: streams(5).normal(name, count, 3, 8, 8))
    alone = slope(door(model, x[2:3]), x[2:3], 40, 0.01, lambda name, count: streams(1, first=2).normal(name, count, 3, 8, 8))
    assert torch.allclose(every[2:3], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("spec", "forwards"),
    [("noise:queries=7", 8), ("nes:steps=3,samples=20", 64), ("spsa:steps=2,samples=33", 135), ("es-pgd:iterations=3,samples=100", 304)],
)
def test_costs_are_as_documented(attack: Run, net: Any, pictures: Any, counting: Any, spec: str, forwards: int) -> None:
    (found,) = attack(net(), spec, pictures(1), eps=1e-6)
    assert (found.broken, found.forwards, found.backwards) == (False, forwards, 0)


def test_es_pgd_takes_more_samples_as_it_goes_and_moves_when_it_has_them(net: Any, pictures: Any, streams: Any) -> None:
    made = ATTACKS.build("es-pgd")
    assert [made.blocks(i) for i in (0, 19, 20, 39, 40, 99)] == [1, 1, 10, 10, 20, 20]
    assert made.steps == 20 + 20 * 10 + 60 * 20
    assert ATTACKS.build("es-pgd:samples=20000").steps == 20 + 20 * 10 + 60 * 200
    assert ATTACKS.build("es-pgd:samples=500").steps == 20 + 80 * 5
    x = 0.25 + 0.5 * pictures(2)
    oracle, made = door(net(), x, eps=0.1), ATTACKS.build("es-pgd:iterations=22,samples=300")
    state = made.start(oracle, streams(2))
    moves = []
    for step in range(made.steps):
        after = made.step(oracle, state, streams(2, step=step))
        moves.append(not torch.equal(after.x, state.x))
        state = after
    assert moves == [True] * 20 + [False, False, True] * 2


def test_rows_at_different_steps_get_what_they_would_get_alone(net: Any, pictures: Any, streams: Any) -> None:
    """One row at its twentieth block, where iterations are one block long, the other in the middle of a longer one."""
    x = 0.25 + 0.5 * pictures(2)
    made = ATTACKS.build("es-pgd:iterations=22,samples=300")
    states = []
    for row, steps in ((0, 5), (1, 21)):
        oracle = door(net(), x[row : row + 1])
        state = made.start(oracle, streams(1, first=row))
        for step in range(steps):
            state = made.step(oracle, state, streams(1, first=row, step=step))
        states.append((state, made.step(oracle, state, streams(1, first=row, step=steps))))
    draw = streams(2)
    both = states[0][0].join(states[1][0])
    moved = made.step(door(net(), x), both, type(draw)(draw.seed, draw.condition, draw.rows, both.t, draw.device))
    expected = states[0][1].join(states[1][1])
    assert torch.allclose(moved.x, expected.x, atol=1e-4)
    assert torch.allclose(moved.total, expected.total, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("spec", "norm"), [("nes:steps=20", "linf"), ("nes:steps=20", "l2"), ("spsa:steps=20", "linf"),
                                            ("es-pgd:iterations=20", "linf")])  # fmt: skip
def test_each_is_stronger_than_noise(attack: Run, net: Any, pictures: Any, spec: str, norm: str) -> None:
    x, eps = 0.2 + 0.6 * pictures(10), {"linf": 0.02, "l2": 0.15}[norm]
    found = attack(net(), spec, x, norm=norm, eps=eps, goal="full")
    floor = attack(net(), "noise", x, norm=norm, eps=eps, goal="full")
    assert sum(f.margin > n.margin for f, n in zip(found, floor, strict=True)) >= 9


def test_noise_reaches_the_edge_of_the_ball_and_its_inside(net: Any, pictures: Any, streams: Any) -> None:
    x = 0.3 + 0.4 * pictures(4)
    for norm, eps in (("linf", 0.1), ("l2", 0.5), ("l1", 0.5), ("l0", 8.0)):
        oracle, made, threat = door(net(), x, norm, eps), ATTACKS.build("noise"), ball(norm, eps)
        state = made.start(oracle, streams(4))
        first = made.step(oracle, state, streams(4, step=0))
        second = made.step(oracle, first, streams(4, step=1))
        assert torch.allclose(threat.distance(second.x, x), torch.full((4,), eps), rtol=1e-3)
        assert not torch.equal(first.x, second.x)
        if norm == "linf":
            assert torch.allclose((second.x - x).abs(), torch.full_like(x, eps), atol=1e-6)


@pytest.mark.parametrize(
    "spec", ["nes:samples=51", "nes:sigma=0", "spsa:delta=0", "es-pgd:samples=150", "es-pgd:samples=0", "noise:queries=0"]
)
def test_bad_parameters_are_refused(spec: str) -> None:
    with pytest.raises(BadSpec, match=spec.replace("=", "=?")[:10]):
        ATTACKS.build(spec)


@pytest.mark.peers
def test_spsa_with_torchattacks_directions_gives_its_images(pictures: Any, net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchattacks

    model, x, eps, steps = net(), pictures(4), 0.05, 3
    y, drawn, bernoulli = model(x).argmax(1), list[Tensor](), Tensor.bernoulli_
    # every batch of directions goes to all images; it is -1 or 1 once it has been scaled
    monkeypatch.setattr(Tensor, "bernoulli_", lambda v: drawn.append(bernoulli(v).clone().mul(2).sub(1)) or v)
    torch.manual_seed(0)
    theirs = torchattacks.SPSA(model, eps=eps, nb_iter=steps, nb_sample=96, max_batch_size=32)(x, y)

    class Replayed:
        def uniform(self, stream: str, *shape: int) -> Tensor:
            return (drawn.pop(0)[:, 0] > 0).to(x)[None].expand(len(x), *shape)

    made, oracle = ATTACKS.build(f"spsa:steps={steps},samples=96"), door(model, x, eps=eps)
    draw = Replayed()
    state = made.start(oracle, draw)
    for _ in range(steps):
        state = made.step(oracle, state, draw)
    assert not drawn
    assert (state.x - theirs).abs().max() < 1e-5


# --- masked gradients ------------------------------------------------------------------------------------------------------


class KWinners(nn.Module):
    """Keep the largest tenth of an image's activations: jagged, so that gradients point nowhere (Xiao et al., ICLR 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(flat.shape[1] // 10, dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, 0).view_as(x)


def small_digits(name: str, **options: Any) -> tuple[Tensor, Tensor]:
    """Grey digits of 8 px: few enough values for an estimate to be good in few queries."""
    import robustbench_lite as rb

    data = rb.load_data(name, **options)
    return nn.functional.avg_pool2d(torch.stack([image for image, _ in data])[:, :1], 4), torch.tensor(list(data.labels))


def k_winners_net() -> nn.Module:
    """A small network of that kind, trained on the digits for a few epochs."""
    x, y = small_digits("digits:train")
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, 2, 1)]
    net = nn.Sequential(*(layer for c in convolutions for layer in (c, KWinners())), nn.Flatten(), nn.Linear(512, 10))
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(8):
        for rows in torch.randperm(len(x)).split(64):
            adam.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            adam.step()
    return net.eval().requires_grad_(False)


@pytest.mark.slow
def test_es_pgd_breaks_what_gradients_do_not(attack: Run) -> None:
    with torch.random.fork_rng():
        model = k_winners_net()
    x, y = small_digits("digits", limit=60)
    right = (model(x).argmax(1) == y).nonzero()[:40, 0]
    noise, pgd, restarted, estimated = (
        sum(bool(f.broken) for f in attack(model, spec, x[right], eps=0.1, labels=y[right], batch_size=40))
        for spec in ("noise", "pgd:step_size=0.1", "pgd:steps=100,restarts=5,step_size=0.1", "es-pgd:iterations=20")
    )
    print(len(right), noise, pgd, restarted, estimated)
    assert noise < pgd
    assert estimated >= pgd + 8
    assert estimated >= restarted + 3
