"""Keyed draws: what they depend on, what they do not, and their exact values."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from robustbench_lite.streams import Streams, generator

CPU = torch.device("cpu")
GOLDEN_UNIFORM = [[0.7228325009346008, 0.905763566493988], [0.9651739597320557, 0.005722999572753906]]
GOLDEN_NORMAL = [[0.8778074383735657, 0.3118358552455902], [-0.8012751936912537, 0.5917786955833435]]
GOLDEN_SEEDS = [2939524909135290133, 6530930603551133063]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=6), st.data())
def test_a_row_draws_the_same_in_whatever_batch(rows: list[tuple[str, int]], data: st.DataObject) -> None:
    together = Streams(3, "c", rows, None, CPU)
    order = data.draw(st.permutations(range(len(rows))))
    again = Streams(3, "c", [rows[i] for i in order], None, CPU)
    for draw in (lambda s: s.uniform("a", 2, 3), lambda s: s.normal("a", 4), lambda s: torch.tensor(s.seeds("a"))):
        assert torch.equal(draw(together)[order], draw(again))
        assert torch.equal(draw(together)[:1], draw(Streams(3, "c", rows[:1], None, CPU)))


def test_rows_of_one_batch_may_be_at_different_steps() -> None:
    rows = [("a", 0), ("a", 0), ("b", 0)]
    mixed = Streams(0, "c", rows, torch.tensor([0, 5, 5]), CPU).normal("n", 3)
    for i, (row, step) in enumerate(zip(rows, (0, 5, 5), strict=True)):
        assert torch.equal(mixed[i], Streams(0, "c", [row], torch.tensor([step]), CPU).normal("n", 3)[0])


def test_every_part_of_the_key_counts(streams: Callable[..., Streams]) -> None:
    changed = [
        streams(1),
        streams(1, seed=1),
        streams(1, first=1),
        streams(1, condition="d"),
        streams(1, restart=1),
        streams(1, step=0),
        streams(1, step=1),
    ]
    values = [tuple(draw.uniform("s", 4)[0].tolist()) for draw in changed] + [tuple(streams(1).uniform("t", 4)[0].tolist())]
    assert len(set(values)) == 8
    assert generator("ab", "c").random() != generator("a", "bc").random()


def test_exact_values_so_that_no_draw_changes_silently() -> None:
    draw = Streams(7, "pgd[linf,4/255]", [("image", 0), ("other", 2)], torch.tensor([3, 4]), CPU)
    assert draw.uniform("random point", 2).tolist() == GOLDEN_UNIFORM
    assert draw.uniform("random point", 2, low=-1.0, high=1.0).tolist() == [[2 * v - 1 for v in row] for row in GOLDEN_UNIFORM]
    assert draw.normal("n", 2).tolist() == GOLDEN_NORMAL
    assert draw.seeds("foolbox") == GOLDEN_SEEDS


def test_global_random_state_is_left_alone(streams: Callable[..., Streams]) -> None:
    def state() -> tuple[object, ...]:
        legacy = np.random.get_state()  # noqa: NPY002 - it is what must not change
        return torch.get_rng_state().tolist(), legacy[1].tolist(), legacy[2:], random.getstate()

    before = state()
    streams(3).uniform("a", 5)
    streams(3).normal("a", 5)
    streams(3).seeds("a")
    assert state() == before


def test_the_draws_have_their_distributions(streams: Callable[..., Streams]) -> None:
    many = streams(40)
    assert stats.kstest(many.uniform("u", 500).flatten().numpy(), "uniform").pvalue > 0.01
    assert stats.kstest(many.uniform("v", 500, low=-1.0, high=1.0).flatten().numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert stats.kstest(many.normal("n", 500).flatten().numpy(), "norm").pvalue > 0.01
    first = many.normal("n", 500)[:, 0].numpy()  # across rows, whose keys differ in one digit
    assert stats.kstest(first, "norm").pvalue > 0.01
    assert abs(np.corrcoef(many.normal("n", 500)[:2].numpy())[0, 1]) < 0.15


def test_draws_are_float32_in_their_range_and_seeds_fit_every_generator(streams: Callable[..., Streams]) -> None:
    values = streams(5).uniform("u", 2000, low=-1.0, high=1.0)
    assert values.dtype == torch.float32
    assert values.min() >= -1
    assert values.max() < 1
    assert all(0 <= seed < 2**63 for seed in streams(50).seeds("s"))


def test_as_many_steps_as_rows_are_needed() -> None:
    with pytest.raises(ValueError, match="zip"):
        Streams(0, "c", [("a", 0), ("b", 0)], torch.tensor([1]), CPU).uniform("u", 1)
