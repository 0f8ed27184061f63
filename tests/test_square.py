"""The square attack: its schedule, its cost, its moves, and pyautoattack's own trajectories."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.criteria import Misclassified
from robustbench_lite.errors import BadSpec
from robustbench_lite.oracle import Case, Ledger, Scores
from robustbench_lite.passes import Passes
from robustbench_lite.plan import Finding
from robustbench_lite.registry import ATTACKS
from robustbench_lite.threat import BALLS, ball
from robustbench_lite.windows import MOVES, Sides, pattern

Run = Callable[..., list[Finding]]


class Listening(nn.Module):
    """A model that keeps what it was asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.asked = model, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.clone())
        return self.model(x)


def smooth_net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(1)
    # its kernels overlap and leave no pixel out: where a pixel does not count, rounding decides whether a change of it is kept
    return nn.Sequential(nn.Conv2d(3, 8, 8, stride=4), nn.Tanh(), nn.Flatten(), nn.Linear(392, 10)).to(dtype).eval().requires_grad_(False)


def door(model: nn.Module, x: Tensor, norm: str, eps: float) -> Scores:
    with torch.no_grad():
        logits = model(x)
    rule, none = Misclassified(logits.argmax(1)), torch.zeros(len(x), dtype=torch.long)
    threat = BALLS[norm](torch.tensor(eps, dtype=x.dtype))
    return Scores(Passes(model), Case(x, threat, rule, rule, none - 1, none), Ledger.opened(x, logits))


# --- cost ------------------------------------------------------------------------------------------------------------------


def test_it_asks_once_a_query_and_stops_at_its_budget(attack: Run, net: Any, pictures: Any, counting: Any) -> None:
    for norm in ("linf", "l2", "l1"):
        model = counting(net())
        (found,) = attack(model, "square:queries=20", pictures(1), norm=norm, eps=1e-6)
        assert (found.broken, found.forwards, found.backwards, found.steps) == (False, 22, 0, 20)
        for spec in ("square", "square:queries=20,restarts=9"):
            (found,) = attack(model, spec, pictures(1), norm=norm, eps=1e-6, budget=50)
            assert (found.broken, found.forwards) == (False, 50)


def test_bad_parameters_are_refused() -> None:
    for spec in ("square:queries=0", "square:p_init=0", "square:p_init=1.5", "square:restarts=0"):
        with pytest.raises(BadSpec, match=spec.replace("=", "=?")[:12]):
            ATTACKS.build(spec)


# --- moves -----------------------------------------------------------------------------------------------------------------


def sides_after(spec: str, queries: list[int], norm: str = "linf") -> list[int]:
    made = ATTACKS.build(spec)
    return made._sides(norm, torch.zeros(1, 3, 32, 32), torch.tensor(queries)).of_row.tolist()


def test_squares_shrink_as_published() -> None:
    queries = [0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 4999]
    halved = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    assert sides_after("square", queries) == [max(1, round(math.sqrt(0.8 / 2**h * 1024))) for h in halved]
    assert sides_after("square:queries=100,resc_schedule=true", [1, 2, 99]) == sides_after("square", [100, 200, 9900])
    windows = sides_after("square", queries, "l2")
    assert all(side % 2 == 1 and side >= 3 for side in windows)
    assert windows[0] == 29


def test_a_move_in_linf_sets_one_square_to_the_edge_of_the_ball(pictures: Any) -> None:
    x = 0.3 + 0.4 * pictures(4, shape=(3, 16, 16))
    u = torch.tensor([[0.0, 0.0, 0.9, 0.1, 0.9], [0.5, 0.25, 0.1, 0.1, 0.1], [0.99, 0.99, 0.9, 0.9, 0.9], [0.0, 0.99, 0.2, 0.7, 0.2]])
    sides = Sides((4, 8), torch.tensor([0, 1, 0, 1]))
    moved = MOVES["linf"].move(x, x, ball("linf", 0.1), sides, u)
    for row, (top, left, side) in enumerate([(0, 0, 4), (4, 2, 8), (11, 11, 4), (0, 7, 8)]):
        expected = x[row].clone()
        expected[:, top : top + side, left : left + side] += 0.1 * (2 * u[row, 2:] - 1).sign()[:, None, None]
        assert torch.allclose(moved[row], expected)


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("l1", 1)])
def test_windows_keep_the_image_at_the_edge_of_the_ball_and_move_only_two_of_them(norm: str, order: int, streams: Any) -> None:
    origin, eps = torch.full((5, 3, 20, 20), 0.5), 0.4
    threat, moves = ball(norm, eps), MOVES[norm]
    x = moves.start(origin, threat, streams(5))
    assert torch.allclose(threat.distance(x, origin), torch.full((5,), eps), rtol=1e-4)
    u = torch.rand(5, moves.numbers(3), generator=torch.Generator().manual_seed(0))
    moved = moves.move(x, origin, threat, Sides((5,), torch.zeros(5, dtype=torch.long)), u)
    assert torch.allclose(threat.distance(moved, origin), torch.full((5,), eps), rtol=1e-4)
    for row in range(5):
        places = [int(v) for v in (u[row, :4] * 15)]
        windows = torch.zeros(20, 20, dtype=torch.bool)
        windows[places[2] : places[2] + 5, places[3] : places[3] + 5] = True
        emptied = windows.clone()
        emptied[places[0] : places[0] + 5, places[1] : places[1] + 5] = False
        windows[places[0] : places[0] + 5, places[1] : places[1] + 5] = True
        delta = (moved - origin)[row]
        assert (delta[:, emptied] == 0).all()
        if norm == "l2":  # in l1 the projection shrinks the rest
            assert torch.allclose(delta[:, ~windows], (x - origin)[row][:, ~windows], atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_row_is_moved_as_it_would_be_alone_whatever_the_sides_of_the_others(norm: str, pictures: Any, streams: Any) -> None:
    origin, threat, moves = pictures(6, shape=(3, 12, 20)), ball(norm, {"linf": 0.1, "l2": 0.5, "l1": 3.0}[norm]), MOVES[norm]
    x = moves.start(origin, threat, streams(6))
    before = x.clone()
    u = torch.rand(6, moves.numbers(3), generator=torch.Generator().manual_seed(1))
    level = torch.tensor([0, 1, 2, 0, 1, 2])
    moved = moves.move(x, origin, threat, Sides((11, 5, 3), level), u)
    assert torch.equal(x, before)
    assert threat.contains(moved, origin).all()
    for row in range(6):
        one = slice(row, row + 1)
        alone = moves.move(x[one], origin[one], threat, Sides((11, 5, 3), level[one]), u[one])
        assert not torch.equal(alone, x[one])
        assert torch.allclose(moved[one], alone, atol=1e-6)


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.5), ("l1", 3.0)])
def test_many_moves_do_not_drift_out_of_the_ball(norm: str, eps: float, pictures: Any, streams: Any) -> None:
    """Every move starts from the last one's rounding."""
    origin, threat, moves = pictures(4, shape=(3, 16, 16)), ball(norm, eps), MOVES[norm]
    x = moves.start(origin, threat, streams(4))
    u = torch.rand(500, 4, moves.numbers(3), generator=torch.Generator().manual_seed(2))
    for numbers in u:
        x = moves.move(x, origin, threat, Sides((5, 3), torch.tensor([0, 1, 0, 1])), numbers)
    assert threat.contains(x, origin).all()
    assert (threat.distance(x, origin) > 0.9 * eps).all()


@pytest.mark.parametrize(("order", "falloff"), [(2, 2), (1, 4)])
@pytest.mark.parametrize("side", [1, 3, 4, 6, 7, 29])
def test_patterns_are_the_published_loop(side: int, order: int, falloff: int) -> None:
    def rectangle(height: int, width: int) -> Tensor:
        delta, middle = torch.zeros(height, width, dtype=torch.float64), (height // 2, width // 2)
        for k in range(max(middle) + 1):
            rows = slice(max(middle[0] - k, 0), min(middle[0] + k + 1, height))
            delta[rows, max(middle[1] - k, 0) : min(middle[1] + k + 1, width)] += 1 / (k + 1) ** falloff
        return delta / delta.norm(p=order)

    halves = [rectangle(side // 2, side)] if side > 1 else []
    expected = torch.cat([*halves, -rectangle(side - side // 2, side)])
    assert torch.allclose(pattern(side, order, falloff), expected / expected.norm(p=order), atol=1e-12)


def test_a_worse_image_is_never_kept(net: Any, pictures: Any, streams: Any) -> None:
    x = pictures(8)
    for norm in ("linf", "l2", "l1"):
        oracle, made = door(net(), x, norm, 0.02), ATTACKS.build("square")
        state = made.start(oracle, streams(8))
        for step in range(40):
            after = made.step(oracle, state, streams(8, step=step))
            assert (after.margin >= state.margin).all()
            assert torch.allclose(oracle.criterion.margin(net()(after.x)), after.margin, atol=1e-5)
            state = after
        assert torch.allclose(state.margin, oracle.ledger.margin, atol=1e-5)  # the best that it asked about is where it stands


# --- pyautoattack ----------------------------------------------------------------------------------------------------------

PEERS_NORM = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def peers_queries(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, queries: int) -> tuple[list[Tensor], list[Tensor]]:
    """What pyautoattack asks about, and the random numbers that it draws, for one image."""
    from pyautoattack.square import SquareAttack

    listening, drawn, rand = Listening(model), list[Tensor](), torch.rand
    made = SquareAttack(listening, norm=PEERS_NORM[norm], n_queries=queries, eps=eps, seed=0, resc_schedule=False, device="cpu")
    made.init_hyperparam(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *shape: drawn.append(rand(*shape)) or drawn[-1])
        made.attack_single_run(x, y)
    return listening.asked, drawn


class Replayed:
    """Streams that give one image what the peer drew for it."""

    def __init__(self, drawn: list[Tensor], norm: str, tiles: int) -> None:
        start, each = (1, 3) if norm == "linf" else (2 * tiles, 6)  # calls: signs; or two a tile. Then so many a query
        numbers = [call.flatten() for call in drawn]
        self.start = torch.cat(numbers[:start])
        self.moves = torch.stack([torch.cat(numbers[at : at + each]) for at in range(start, len(numbers), each)])

    def uniform(self, stream: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        if stream != "moves":
            return self.start.view(1, *shape) * (high - low) + low
        block = torch.zeros(1, *shape, dtype=self.moves.dtype)
        block[0, : len(self.moves)] = self.moves
        return block


@pytest.mark.peers
@pytest.mark.parametrize(("norm", "eps", "tolerance"), [("linf", 0.002, 1e-9), ("l2", 0.05, 1e-8), ("l1", 0.3, 5e-5)])
def test_with_pyautoattacks_numbers_its_trajectory_is_ours(norm: str, eps: float, tolerance: float, pictures: Any) -> None:
    # its l1 projection computes in float32 and fails on anything else
    dtype, before = torch.float32 if norm == "l1" else torch.float64, torch.get_default_dtype()
    model, images, compared = smooth_net(dtype), pictures(8, shape=(3, 32, 32)).to(dtype), 0
    torch.set_default_dtype(dtype)
    try:
        for number in range(8):
            x = images[number : number + 1]
            torch.manual_seed(number)
            asked, drawn = peers_queries(model, x, model(x).argmax(1), norm, eps, 40)
            if len(asked) <= 12:  # broken at once, or nearly
                continue
            oracle, made = door(Listening(model), x, norm, eps), ATTACKS.build("square")
            draw = Replayed(drawn, norm, tiles=25)
            listening = oracle._passes.model
            listening.asked.clear()
            state = made.start(oracle, draw)
            for _ in asked[1:]:
                state = made.step(oracle, state, draw)
            ours, theirs = torch.cat(listening.asked), torch.cat(asked)
            steps = 12 if norm == "l1" else len(theirs)
            assert (ours - theirs)[:steps].abs().max() < tolerance, number
            broken = [model(queries).argmax(1).ne(model(x).argmax(1)).any() for queries in (ours, theirs)]
            assert norm == "l1" or broken[0] == broken[1]
            compared += 1
    finally:
        torch.set_default_dtype(before)
    assert compared >= 4


@pytest.mark.peers
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 3.0), ("l1", 25.0)])
def test_it_is_not_weaker_than_pyautoattack(norm: str, eps: float, attack: Run) -> None:
    import pyautoattack.square

    import robustbench_lite as rb

    model = rb.load_model("digits_cnn")
    data = rb.load_data(str(model.data), limit=60, preprocess=model.preprocess)
    x, y = torch.stack([image for image, _ in data]), torch.tensor(list(data.labels))
    with torch.no_grad():
        right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    ours = torch.tensor([bool(f.broken) for f in attack(model, "square:queries=500", x, norm=norm, eps=eps, labels=y, batch_size=64)])
    with torch.random.fork_rng(), torch.no_grad():
        peer = pyautoattack.square.SquareAttack(model, norm=PEERS_NORM[norm], n_queries=500, eps=eps, resc_schedule=False, device="cpu")
        theirs = model(peer.perturb(x, y)).argmax(1) != y
    only_theirs, only_ours = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
    print(norm, eps, len(x), int(ours.sum()), int(theirs.sum()), only_theirs, only_ours)
    assert 0 < int(theirs.sum()) < len(x)
    assert only_theirs - only_ours <= 2 + 2 * math.sqrt(only_theirs + only_ours)
