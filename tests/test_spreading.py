"""Work over workers that die, dawdle and hang, on a cluster that is simulated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_cluster import Cluster, Slice

from robustbench_lite.engines.engine import Event, Failed
from robustbench_lite.errors import InvalidEvaluation, UsageError
from robustbench_lite.spreading import WAIT, Spread


def slices(images: int, each: int) -> tuple[list[Slice], set[int]]:
    done: set[int] = set()
    return [Slice(n, tuple(range(start, min(start + each, images))), done) for n, start in enumerate(range(0, images, each))], done


def over(cluster: Cluster, **more: Any) -> tuple[Spread[Slice], list[int]]:
    heard: list[int] = []

    def hear(piece: Slice, image: int) -> None:
        heard.append(image)
        piece.done.add(image)

    return Spread(cluster, hear, clock=cluster.clock, **more), heard


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**16))
def test_every_image_is_done_whatever_dies(images: int, each: int, workers: int, seed: int) -> None:
    pieces, done = slices(images, each)
    draws = np.random.default_rng(seed)
    cluster = Cluster(workers, lives=lambda _: draws.exponential(2.0 * each), pace=lambda worker: 1 + worker % 3)
    spread, heard = over(cluster, retries=10**6)
    spread.run(pieces)
    assert done == set(range(images))
    assert not cluster.handles, "nobody works on"
    assert len(heard) <= 2 * images, "an image is done twice at most: by a worker that was slow and by the one that took over"


def test_a_death_costs_what_was_not_sent_alone() -> None:
    pieces, _ = slices(100, 100)
    spread, heard = over(Cluster(1, lives=lambda job: 40.5 if job == 0 else np.inf))
    spread.run(pieces)
    assert heard == list(range(100)), "none twice"
    assert spread.lost == ["a worker died at slice 0 (killed by SIGKILL)"]


def test_an_image_that_kills_every_worker_ends_the_run() -> None:
    pieces, done = slices(200, 10)
    spread, _ = over(Cluster(2, deadly={57}))
    with pytest.raises(InvalidEvaluation, match=r"slice 5: 4 workers died at it .*the same command goes on"):
        spread.run(pieces)
    assert done >= set(range(200)) - {55, 56, 57, 58, 59}, "what is not suspicious is done before"


@given(st.sets(st.integers(0, 199), max_size=6), st.integers(1, 64), st.integers(1, 12))
def test_images_that_kill_are_found_one_by_one(deadly: set[int], each: int, workers: int) -> None:
    pieces, done = slices(200, each)
    handed: list[tuple[int, ...]] = []
    spread, _ = over(Cluster(workers, start_up=20, deadly=deadly), deadly=lambda piece, _: handed.append(piece.images))
    spread.run(pieces)
    assert done == set(range(200)) - deadly
    assert sorted(handed) == [(image,) for image in sorted(deadly)]
    assert len(spread.lost) <= len(deadly) * (2 * 2 + np.ceil(np.log2(each))), (
        "two at the shard, one each time that it is halved, two alone"
    )


def test_workers_that_all_die_end_the_run_soon() -> None:
    spread, heard = over(Cluster(4, lives=lambda _: 0.5))
    with pytest.raises(InvalidEvaluation, match=r"37 workers died before any had done anything \(killed by SIGKILL\)"):
        spread.run(slices(50_000, 256)[0])
    assert not heard


def test_a_slow_worker_is_overtaken_and_its_copy_ended() -> None:
    pieces, done = slices(40, 10)
    cluster = Cluster(4, pace=lambda worker: 100.0 if worker == 3 else 1.0)
    spread, heard = over(cluster)
    spread.run(pieces)
    assert done == set(range(40))
    assert cluster.now < 60, "instead of a thousand seconds"
    assert cluster.started == 5
    assert len(heard) == len(set(heard)) == 40


def test_work_is_not_issued_twice_while_it_is_no_slower_than_others() -> None:
    pieces, _ = slices(35, 10)
    cluster = Cluster(8)
    over(cluster)[0].run(pieces)
    assert cluster.started == len(pieces)


def test_a_worker_that_hangs_is_named() -> None:
    pieces, _ = slices(20, 10)
    cluster = Cluster(2, pace=lambda worker: 1.0 if worker == 0 else 10**6)
    cluster.lack = lambda: None  # type: ignore[method-assign]  # its workers begin at once
    spread, _ = over(cluster, hang_after=60, slow=np.inf)
    with pytest.raises(InvalidEvaluation, match=r"slice 1 has not moved for 6\d s: the model hangs"):
        spread.run(pieces)
    assert not cluster.handles


class Failing(Cluster):
    """Whose first job ends in an error."""

    def events(self, seconds: float):  # type: ignore[no-untyped-def]  # as its parent's
        for handle, event in super().events(seconds):
            said: Event = Failed(2, "the image x.png cannot be read") if handle == 0 else event
            if handle == 0:
                self.kill(0)
            yield handle, said


def test_a_worker_that_hangs_is_left_where_its_copy_goes_on() -> None:
    pieces, done = slices(20, 10)
    cluster = Cluster(2, pace=lambda worker: 1.0 if worker == 0 else 10**6)
    over(cluster, hang_after=60)[0].run(pieces)
    assert done == set(range(20))


def test_workers_that_do_not_begin_are_waited_for_so_long() -> None:
    cluster = Cluster(2, start_up=10**6)
    with pytest.raises(
        UsageError, match=r"^no worker has begun within 120 s: each needs 1 GPU, and 0 are free; --hang-after 240 would wait"
    ):
        over(cluster)[0].run(slices(20, 10)[0])
    assert 120 < cluster.now < 123
    assert not cluster.handles
    patient = Cluster(2, start_up=600)
    spread, heard = over(patient, hang_after=700)
    spread.run(slices(20, 10)[0])
    assert sorted(heard) == list(range(20))


def test_an_error_ends_all() -> None:
    pieces, _ = slices(20, 10)
    cluster = Failing(2)
    with pytest.raises(UsageError, match=r"^the image x\.png cannot be read$"):
        over(cluster)[0].run(pieces)
    assert not cluster.handles


def test_without_workers_nothing_is_waited_for() -> None:
    with pytest.raises(InvalidEvaluation, match="no worker is left"):
        over(Cluster(0))[0].run(slices(3, 1)[0])


def test_a_thousand_workers_of_which_many_die() -> None:
    """ImageNet's 50,000 images in shards of 256 take little longer than the slowest shard does, though one job in ten dies."""
    pieces, done = slices(50_000, 256)
    draws = np.random.default_rng(0)
    cluster = Cluster(1000, lives=lambda _: draws.uniform(0, 256) if draws.random() < 0.1 else np.inf, start_up=20)
    spread, heard = over(cluster)
    spread.run(pieces)
    assert len(done) == 50_000
    assert len(heard) - 50_000 < 0.01 * 50_000
    assert cluster.now < 2 * 256 + 40 + 10 * WAIT
    assert len(spread.lost) > 10
