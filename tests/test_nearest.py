"""The goal `closest` and attacks that seek it by themselves: what is kept, what is told of the way there, who leaves, several eps from
one search, and balls of each image's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.distances import curves
from robustbench_lite.errors import UsageError
from robustbench_lite.judge import Judge
from robustbench_lite.oracle import Labels, Scores, WhiteBox
from robustbench_lite.passes import Passes
from robustbench_lite.plan import Finding, Plan, State
from robustbench_lite.radii import radii_of
from robustbench_lite.results import Result
from robustbench_lite.scheduler import run
from robustbench_lite.streams import Streams
from robustbench_lite.threat import L0, Linf, ball, sized

Run = Callable[..., list[Finding]]


class Brightness(nn.Module):
    """Class 0 below a mean of one half, class 1 from there on."""

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        over = x.flatten(1).mean(1) - 0.5
        return torch.stack([-over, over], 1)


@dataclass(frozen=True)
class Visits:
    """Asks about images of these grey values, one a step."""

    values: tuple[float, ...]
    restarts: int = 1
    shift: float = 0.0  # added in the second restart
    stops: int = 1000  # steps after which it is done
    access = Scores
    norms = ("linf",)
    goal = "closest"

    @property
    def steps(self) -> int:
        return len(self.values)

    def start(self, oracle: Scores, draw: Streams) -> State:
        return State.at(oracle.origin)

    def step(self, oracle: Scores, state: State, draw: Streams) -> State:
        value = torch.tensor(self.values)[state.t] + self.shift * torch.tensor([float(restart) for _, restart in draw.rows])
        x = torch.zeros_like(state.x) + value.view(-1, 1, 1, 1)
        oracle.logits(x)
        return state.moved(x, done=state.t + 1 >= self.stops)


@dataclass(frozen=True)
class Brightening(Visits):
    """The same for `evaluate`, which tells attacks by their parameters."""

    values: tuple[float, ...] = (0.9, 0.7, 0.6, 0.55)


@dataclass(frozen=True)
class WithGradients(Brightening):
    access = WhiteBox


def greys(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def visited(attack: Run, values: tuple[float, ...], eps: float = 0.2, **more: Any) -> Finding:
    plan = {name: more.pop(name) for name in ("goal", "patience", "budget") if name in more}
    return attack(Brightness(), Visits(values, **more), greys(0.4), eps=eps, labels=torch.tensor([0]), **plan)[0]


# --- what is kept ----------------------------------------------------------------------------------------------------------


def test_it_keeps_the_nearest_wherever_it_lies_and_eps_only_says_whether_that_is_broken(attack: Run) -> None:
    for eps, broken in ((0.2, False), (0.3, True)):
        found = visited(attack, (0.9, 0.7, 0.8, 0.45), eps)
        assert (found.broken, found.met, found.distance) == (broken, True, pytest.approx(0.3))
        assert found.image.flatten().tolist() == pytest.approx([0.7] * 4)
        assert [passes for passes, _ in found.approach] == [1, 2]
        assert [distance for _, distance in found.approach] == pytest.approx([0.5, 0.3])


def test_asked_for_the_first_it_stays_in_the_ball_and_leaves_at_once(attack: Run) -> None:
    found = visited(attack, (0.9, 0.58, 0.55), goal="first")
    assert (found.broken, found.steps, found.distance) == (True, 2, pytest.approx(0.18))
    assert not visited(attack, (0.9, 0.7), goal="first").met


def test_an_image_that_nothing_breaks_has_no_approach(attack: Run) -> None:
    found = visited(attack, (0.45, 0.2))
    assert (found.broken, found.met, found.approach) == (False, False, ())


def test_the_way_is_told_in_twentieths_and_its_end_exactly(attack: Run) -> None:
    values = tuple(0.9 - 0.001 * step for step in range(300))
    approach = visited(attack, values).approach
    assert approach[-1] == (300, pytest.approx(0.201))
    distances = [distance for _, distance in approach]
    assert all(later <= 0.95 * sooner * (1 + 1e-6) for sooner, later in pairwise(distances[:-1]))
    assert len(distances) < 25
    assert all(distance == pytest.approx(0.5 - 0.001 * (passes - 1), abs=1e-5) for passes, distance in approach)


def test_a_second_restart_goes_on_where_the_first_had_come(attack: Run) -> None:
    found = visited(attack, (0.9, 0.8, 0.7), restarts=2, shift=-0.12)
    # the first asks four times, at the end about its last image; the second is 0.38, 0.28 and 0.18 away, and adds what is nearer than 0.3
    assert found.approach == tuple(
        (passes, pytest.approx(distance)) for passes, distance in ((1, 0.5), (2, 0.4), (3, 0.3), (6, 0.28), (7, 0.18))
    )
    assert (found.broken, found.restart, found.forwards) == (True, 1, 8)


def test_a_budget_ends_the_way(attack: Run) -> None:
    assert visited(attack, (0.9, 0.8, 0.7), budget=2).distance == pytest.approx(0.4)


# --- who leaves ------------------------------------------------------------------------------------------------------------


def test_patience_ends_what_comes_no_nearer_and_nothing_before_something_was_found(attack: Run) -> None:
    values = (0.45,) * 5 + (0.9, 0.8) + (0.85,) * 9 + (0.6,)
    assert visited(attack, values, patience=3).steps == 10
    assert visited(attack, values).distance == pytest.approx(0.2)


def test_a_row_that_says_it_is_done_leaves(attack: Run) -> None:
    assert visited(attack, (0.9, 0.8, 0.7), stops=2).steps == 2


def test_some_rows_are_asked_and_only_they_pay(subjects: Any) -> None:
    @dataclass(frozen=True)
    class Half:
        """Asks about every second row."""

        access = Labels
        norms = ("linf",)
        steps = 2
        goal = "closest"

        def start(self, oracle: Labels, draw: Streams) -> State:
            return State.at(oracle.origin)

        def step(self, oracle: Labels, state: State, draw: Streams) -> State:
            rows = torch.arange(0, len(state.x), 2)
            with oracle.among(rows) as some:
                assert some.predict(torch.full_like(some.origin, 0.8)).tolist() == [1] * len(rows)
            return state.moved(state.x)

    model = Brightness()
    waiting = subjects(model, greys(0.1, 0.2, 0.3, 0.4, 0.45))
    plan = Plan(Half(), ball("linf", 1.0), "c", Passes(model), Judge(Passes(model)), "closest")
    found = {f.id: f for part in run(plan, waiting, 5) for f in part}
    assert [found[f"image {i}"].met for i in range(5)] == [True, False, True, False, True]
    assert [found[f"image {i}"].distance for i in (0, 2, 4)] == pytest.approx([0.7, 0.5, 0.35])
    # those that are not asked by the attack are asked about their last image, as every row is
    assert [found[f"image {i}"].forwards for i in range(5)] == [3, 1, 3, 1, 3]


# --- runs ------------------------------------------------------------------------------------------------------------------


def ran(attacks: Any, **options: Any) -> Result:
    data = (greys(0.1, 0.4, 0.45, 0.9), torch.tensor([0, 0, 0, 0]))
    return rb.evaluate(Brightness(), attacks, data, **{"norm": "linf", "eps": [0.3, 0.12], **options})


def test_one_search_serves_every_eps_and_the_table_has_the_median() -> None:
    result = ran(Brightening())
    table = result.table.set_index("condition")
    wide, narrow = (name for name in table.index if name.startswith("Brightening"))
    assert [v.broken for v in result.of(wide)] == [False, True, True, True]
    assert [v.broken for v in result.of(narrow)] == [False, False, True, True]
    for name in (wide, narrow):
        assert [v.nearest for v in result.of(name)] == pytest.approx([0.45, 0.15, 0.10, 0.0])
        assert table.loc[name, "median_distance"] == pytest.approx(0.125)
        assert table.loc[name, "goal"] == "closest"
    assert table.loc[narrow, "seconds"] == 0.0


def test_the_worst_case_is_of_the_nearest_of_all() -> None:
    result = ran([Brightening(), Brightening(values=(0.51,))], eps=[0.2])
    worst = next(c.name for c in result.conditions if c.kind == "worst")
    assert [v.nearest for v in result.of(worst)] == pytest.approx([0.41, 0.11, 0.06, 0.0])
    assert result.table.set_index("condition").loc[worst, "median_distance"] == pytest.approx(0.085)


def test_nothing_at_any_distance_is_said() -> None:
    result = ran(Brightening(values=(0.2, 0.3)), eps=[0.3])
    row = next(c.name for c in result.conditions if c.kind == "attack")
    assert [v.reason for v in result.of(row)] == ["nothing was found at any distance"] * 3 + [None]
    assert result.table.set_index("condition").loc[row, "median_distance"] == float("inf")


def test_witnesses_beyond_eps_are_kept_and_verified(tmp_path: Path) -> None:
    result = ran(Brightening(), eps=[0.3], out=tmp_path / "run")
    row = next(c.name for c in result.conditions if c.kind == "attack")
    assert [v.witness is not None for v in result.of(row)] == [True, True, True, False]
    checked = rb.verify(tmp_path / "run", Brightness())
    assert (checked.holding, checked.failures) == (3, [])


def test_the_nearest_cannot_be_asked_for_on_a_surrogate() -> None:
    with pytest.raises(UsageError, match="seeks nothing on the model"):
        ran(WithGradients(), surrogates=[rb.Classifier(nn.Sequential(Brightness(), nn.Identity()).eval(), name="other")], goal="closest")


def ids() -> list[str]:
    return [v.sample_id for v in ran("fgsm", eps=[0.1]).of("clean")]


# --- balls of each image's own ---------------------------------------------------------------------------------------------


def test_every_image_is_judged_by_its_own_radius() -> None:
    # the first image is broken from 0.4 on, the second from 0.1, the third from 0.05
    own = dict(zip(ids(), (0.5, 0.09, 0.06, 0.1), strict=True))
    result = ran("fgsm", radii=own, eps=None)
    row = next(c for c in result.conditions if c.kind == "attack")
    assert (row.name, row.eps, row.scaled) == ("fgsm[linf,1x]", 1.0, True)
    assert [v.broken for v in result.of(row.name)] == [True, False, True, True]
    assert [v.radius for v in result.of(row.name)][:3] == pytest.approx([0.5, 0.09, 0.06])
    assert [v.distance for v in result.of(row.name)][:3] == pytest.approx([0.5, 0.09, 0.06])
    doubled = ran("fgsm", radii=own, eps=[2, 0.5])
    assert [v.broken for v in doubled.of("fgsm[linf,2x]")] == [True, True, True, True]
    assert [v.broken for v in doubled.of("fgsm[linf,0.5x]")] == [False, False, False, True]
    assert [c.name for c in doubled.conditions if c.kind == "worst"] == ["worst[linf,2x]", "worst[linf,0.5x]"]


def test_radii_and_one_search_for_every_eps() -> None:
    result = ran(Brightening(), radii=dict(zip(ids(), (0.5, 0.1, 0.1, 0.1), strict=True)), eps=[1, 2])
    once, twice = (c.name for c in result.conditions if c.kind == "attack")
    assert [v.broken for v in result.of(once)] == [True, False, True, True]
    assert [v.broken for v in result.of(twice)] == [True, True, True, True]
    assert [v.radius for v in result.of(twice)][:2] == pytest.approx([1.0, 0.2])


def test_witnesses_of_own_radii_are_verified(tmp_path: Path) -> None:
    ran("fgsm", radii=dict(zip(ids(), (0.5, 0.2, 0.06, 0.1), strict=True)), eps=None, out=tmp_path / "run")
    assert rb.verify(tmp_path / "run", Brightness()).failures == []


def test_a_count_is_rounded_down_to_no_less_than_one() -> None:
    scales = torch.tensor([0.1, 1.0, 2.6])
    assert sized(L0(torch.tensor(1.0)), scales).eps.tolist() == [1, 1, 2]
    assert sized(Linf(torch.tensor(0.5)), scales).eps.tolist() == pytest.approx([0.05, 0.5, 1.3])


def test_a_file_of_radii(tmp_path: Path) -> None:
    path = tmp_path / "radii.csv"
    path.write_text("eps,sample_id,why\n0.1,a,x\n0.2,b,y\n", encoding="utf-8")
    assert radii_of(path, ["b", "a"]) == {"b": 0.2, "a": 0.1}
    for text, words in (
        ("id,eps\na,1\n", "needs the columns"),
        ("sample_id,eps\na,much\n", "no number"),
        ("sample_id,eps\na\n", "no number"),
        ("sample_id,eps\na,1\na,2\n", "names a twice"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=words):
            radii_of(path, ["a"])
    path.write_bytes(b"\xef\xbb\xbfsample_id,eps\na,1\n")  # as spreadsheets write it
    assert radii_of(path, ["a"]) == {"a": 1.0}
    with pytest.raises(UsageError, match="must be a number"):
        radii_of({"a": "x"}, ["a"])  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="1 of 2 images have no eps of their own"):
        radii_of({"a": 1.0}, ["a", "c"])
    for eps in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="must be positive"):
            radii_of({"a": eps}, ["a"])
    with pytest.raises(UsageError, match="cannot be read"):
        radii_of(tmp_path / "none.csv", ["a"])


def test_what_is_learnt_is_made_for_one_size() -> None:
    with pytest.raises(UsageError, match="made for one size"):
        ran("patch", norm="patch", eps=None, radii=dict.fromkeys(ids(), 0.5))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"eps": [1, 0]}, "must be positive, got 0"),
        ({"eps": [-1]}, "must be positive, got -1"),
        ({"radii": 1e-50}, "too small a number"),
        ({"norm": "l0", "radii": 1.9}, "must be whole, got 1.9"),
        ({"norm": "l0", "radii": 3.0, "eps": [0.5]}, "must be whole, got 1.5"),
        ({"eps": [4]}, "more than the whole range"),
    ],
)
def test_what_is_no_ball_of_its_own_for_some_image_is_refused(more: dict[str, Any], words: str) -> None:
    asked: dict[str, Any] = {"norm": "linf", "eps": None, "radii": 0.5} | more
    with pytest.raises(UsageError, match=words):
        ran("pgd", **{**asked, "radii": dict.fromkeys(ids(), asked["radii"])})


def test_patience_is_not_asked_for_in_vain() -> None:
    with pytest.raises(UsageError, match="leave --patience out"):
        ran("pgd", patience=5, goal="first")


# --- what could not be decided ---------------------------------------------------------------------------------------------


class Shell(Brightness):
    """No numbers come out where the image is a little darker than those of class 1."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return super().forward(x) + torch.where((mean > 0.5) & (mean < 0.6), torch.nan, 0.0)[:, None]


@pytest.mark.parametrize("eps", [[0.2, 0.45], [0.45, 0.2]])
def test_a_search_that_met_with_no_numbers_is_undecided_at_every_size_that_it_did_not_come_to(eps: list[float]) -> None:
    """Broken at 0.45, for its image lies at 0.4; nearer, nobody knows, whichever size was asked for first."""
    result = rb.evaluate(Shell(), [Brightening((0.8, 0.55))], (greys(0.4), torch.tensor([0])), norm="linf", eps=eps)
    far, near = (next(c.name for c in result.conditions if c.kind == "attack" and c.eps == size) for size in (0.45, 0.2))
    assert [(v.broken, v.distance) for v in result.of(far)] == [(True, pytest.approx(0.4))]
    assert [v.broken for v in result.of(near)] == [None]
    assert [result.of(f"worst[linf,{size}]")[0].broken for size in (0.45, 0.2)] == [True, None]
    assert [curve.at(0.1) for curve in curves(result)] == [0, 0]
    assert result.table.set_index("condition").loc[near, "median_distance"] == 0


def test_of_two_lanes_the_nearest_is_kept_and_what_either_could_not_decide() -> None:
    def made(broken: bool | None, distance: float, met: bool = True, reason: str | None = None) -> Finding:
        approach = ((5, distance),) if met else ()
        return Finding("a", broken, reason, torch.zeros(1), torch.zeros(2), 0.1, distance, 0, None, 5, 5, 5, approach=approach)

    near, cut = made(True, 0.4), made(None, 5.0, reason="NaN")
    for found in (near.merged(cut, "closest"), cut.merged(near, "closest")):
        assert (found.broken, found.distance, found.reason, found.forwards) == (True, 0.4, "NaN", 10)
    stood, nothing = made(False, 2.0), made(None, 0.0, met=False, reason="NaN")
    for found in (stood.merged(nothing, "closest"), nothing.merged(stood, "closest")):
        assert (found.broken, found.distance, found.met, found.reason) == (None, 2.0, True, "NaN")


def test_doubts_have_balls_of_one_size() -> None:
    with pytest.raises(UsageError, match="leave --radii or --doubt out"):
        ran("fgsm", radii={"a": 1.0}, doubt=True)
