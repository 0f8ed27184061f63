"""Several attacks in turn: who sees what, what it costs, and that a broken-off run goes on where each image stood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.cascade import Stage, through
from robustbench_lite.oracle import Scores, WhiteBox
from robustbench_lite.plan import Attack, Finding, State
from robustbench_lite.streams import Streams


class Brightness(nn.Module):
    """Class 0 below a mean of one half, class 1 above it."""

    def forward(self, x: Tensor) -> Tensor:
        over = 10 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-over, over], 1)


@dataclass(frozen=True)
class Brighter:
    """Brightens by `by`, in `steps` steps. Asks once a step."""

    by: float
    steps: int = 2
    access = Scores
    norms = ("linf",)

    def start(self, oracle: Scores, draw: Streams) -> State:
        return State.at(oracle.origin)

    def step(self, oracle: Scores, state: State, draw: Streams) -> State:
        x = (state.x + self.by / self.steps).clamp(0, 1)
        oracle.logits(x)
        return state.moved(x)


@dataclass(frozen=True)
class InTurn:
    """A weak attack, a stronger one and the strongest."""

    access = WhiteBox
    norms = ("linf",)
    spec = "in-turn"

    def parts(self, norm: str) -> Mapping[str, Attack]:
        return {"weak": Brighter(0.05), "strong": Brighter(0.15), "last": Brighter(0.25, 4)}


VALUES = (0.1, 0.2, 0.3, 0.36, 0.39, 0.44, 0.46, 0.47, 0.49, 0.6)


def data() -> tuple[Tensor, Tensor]:
    return torch.tensor(VALUES).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), torch.zeros(len(VALUES), dtype=torch.long)


def rows(result: rb.Result) -> list[tuple[str, int, int]]:
    return [(row.stage, row.attacked, row.broken) for row in result.cascade]


def test_each_attack_sees_what_those_before_it_left() -> None:
    result = rb.evaluate(Brightness().eval(), InTurn(), data(), eps=0.3)
    assert rows(result) == [("weak", 9, 3), ("strong", 6, 3), ("last", 3, 1)]
    by_value = dict(zip(VALUES, result.of("in-turn[linf,0.3]"), strict=True))
    assert by_value[0.47].broken_by == "in-turn/weak"
    assert by_value[0.36].broken_by == "in-turn/strong"
    assert by_value[0.3].broken_by == "in-turn/last"
    assert by_value[0.6].broken_by == "clean"
    assert by_value[0.2].broken is False
    assert by_value[0.2].stages == {"weak": [3, 0], "strong": [3, 0], "last": [5, 0]}
    assert by_value[0.2].forwards == 11
    assert by_value[0.49].stages == {"weak": [1, 0]}


def test_a_bf16_pass_before_each_attack_counts_to_that_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustbench_lite.engines.local.bfloat16_here", lambda _: True)
    result = rb.evaluate(Brightness().eval(), InTurn(), data(), eps=0.3, precision="bf16")
    assert rows(result) == [("weak", 9, 3), ("strong", 6, 3), ("last", 3, 1)]
    assert {v.precision for v in result.verdicts if v.broken is False and v.condition != "clean"} == {"fp32"}
    survivor = dict(zip(VALUES, result.of("in-turn[linf,0.3]"), strict=True))[0.2]
    assert survivor.stages == {"weak": [6, 0], "strong": [6, 0], "last": [10, 0]}


def test_under_another_goal_every_attack_sees_every_image_and_the_best_is_kept() -> None:
    full, closest = (rb.evaluate(Brightness().eval(), InTurn(), data(), eps=0.3, goal=goal) for goal in ("full", "closest"))
    assert rows(full) == [("weak", 9, 0), ("strong", 9, 0), ("last", 9, 7)]
    assert [(attacked, broken) for _, attacked, broken in rows(closest)] == [(9, 3), (9, 1), (9, 3)]


def test_a_budget_holds_for_all_of_them_together() -> None:
    result = rb.evaluate(Brightness().eval(), InTurn(), data(), eps=0.3, query_budget=5)
    survivors = [v for v in result.of("in-turn[linf,0.3]") if v.broken is False]
    assert {v.forwards for v in survivors} == {5}
    assert len(survivors) == 3


def test_an_image_that_one_attack_left_undecided_is_broken_by_the_next_or_stays_so() -> None:
    class Holes(Brightness):
        """No number where it is a little brighter than 0.2 or 0.36."""

        def forward(self, x: Tensor) -> Tensor:
            mean = x.flatten(1).mean(1)
            hole = ((mean - 0.225).abs() < 0.001) | ((mean - 0.385).abs() < 0.001)
            return super().forward(x).masked_fill(hole[:, None], torch.nan)

    result = rb.evaluate(Holes().eval(), InTurn(), data(), eps=0.3)
    by_value = dict(zip(VALUES, result.of("in-turn[linf,0.3]"), strict=True))
    assert by_value[0.36].broken is True
    assert by_value[0.2].broken is None
    assert "NaN" in str(by_value[0.2].reason)


class Stopping(Brightness):
    """Breaks off when it has been asked so often."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.until, self.asked = after, 0  # not under the argument's name, by which a digest would know it

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        if self.asked > self.until:
            raise KeyboardInterrupt
        return super().forward(x)


def known(v: rb.Verdict) -> tuple[Any, ...]:
    return v.condition, v.sample_id, v.broken, v.broken_by, v.forwards, v.stages


@pytest.mark.parametrize("after", range(9, 24, 2))
def test_a_run_broken_off_between_two_attacks_goes_on_where_each_image_stood(tmp_path: Path, after: int) -> None:
    whole = rb.evaluate(Brightness().eval(), InTurn(), data(), eps=0.3, batch_size=3)
    stopping = Stopping(after).eval()
    with pytest.raises(KeyboardInterrupt):
        rb.evaluate(stopping, InTurn(), data(), eps=0.3, batch_size=3, out=tmp_path / "run")
    stopping.until = 10**9
    asked = stopping.asked
    resumed = rb.evaluate(stopping, InTurn(), data(), eps=0.3, batch_size=3, out=tmp_path / "run", shuffle_seed=1)
    assert [known(v) for v in resumed.verdicts] == [known(v) for v in whole.verdicts]
    assert stopping.asked > asked


def test_survivors_of_an_attack_are_not_attacked_by_it_again(tmp_path: Path) -> None:
    asked: dict[str, list[float]] = {"weak": [], "last": []}

    @dataclass(frozen=True)
    class Watched(Brighter):
        name: str = "weak"

        def step(self, oracle: Scores, state: State, draw: Streams) -> State:
            asked[self.name] += state.x.flatten(1).mean(1).tolist()
            if self.name == "last" and len(asked["last"]) > 2 and not going_on:
                raise KeyboardInterrupt
            return super().step(oracle, state, draw)

    @dataclass(frozen=True)
    class Two:
        access = WhiteBox
        norms = ("linf",)
        spec = "two"

        def parts(self, norm: str) -> Mapping[str, Attack]:
            return {"weak": Watched(0.05), "last": Watched(0.25, 5, "last")}

    going_on = False
    run: Callable[[], rb.Result] = lambda: rb.evaluate(Brightness().eval(), Two(), data(), eps=0.3, out=tmp_path / "run")  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        run()
    going_on = True
    asked["weak"].clear()
    result = run()
    assert asked["weak"] == []
    assert rows(result) == [("weak", 9, 3), ("last", 6, 4)]


def found(broken: bool | None, margin: float, *, reduced: bool = False) -> Finding:
    return Finding("a", broken, None, torch.rand(1), torch.zeros(2), margin, 0.1, 0, None, 1, 1, 1, reduced)


@pytest.mark.parametrize(
    ("results", "broken", "margin"),
    [
        ([(None, -2, False), (None, -1, True), (False, -3, False)], None, -2),  # a later attack does not decide what one left open
        ([(False, -1, False), (False, -0.5, True), (False, -3, False)], False, -1),  # the best of float32 stays
        ([(None, -1, True), (False, -3, False)], False, -3),  # what bf16 left open was attacked again
        ([(False, -1, False), (True, 2, True)], True, 2),  # settled in float32, whatever found it
        ([(None, -1, False), (True, 2, False)], True, 2),
    ],
)
def test_what_is_kept_of_an_image_on_its_way(results: list[tuple[Any, float, bool]], broken: bool | None, margin: float) -> None:
    plan = SimpleNamespace(goal="first", budget=None)
    stages = [Stage("s", plan) for _ in results]  # type: ignore[arg-type]
    answers = iter([found(b, m, reduced=r) for b, m, r in results])
    ended = [c for part in through(stages, [Waiting("a")], {}, lambda *_: [[next(answers)]], lambda _: None) for c in part]  # type: ignore[list-item]
    assert [(c.finding.broken, c.finding.margin) for c in ended] == [(broken, margin)]
    assert ended[0].finding.forwards == len(results)
    assert ended[0].costs == {"s": (len(results), len(results))}


@dataclass(frozen=True)
class Waiting:
    id: str
    spent: int = 0


def test_a_budget_that_ended_the_search_is_said() -> None:
    result = rb.evaluate(Brightness().eval(), InTurn(), data(), eps=0.3, query_budget=5)
    assert [finding.figures["ended"] for finding in result.findings if finding.check == "unfinished"] == [3]
