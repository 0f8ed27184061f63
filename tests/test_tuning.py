"""The batch size that is measured: what is chosen of given speeds, within its time and memory; and that verdicts do not hang on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixture import Ran
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite import session
from robustbench_lite.engines.engine import Event, Job, told
from robustbench_lite.engines.opening import Workers
from robustbench_lite.errors import UsageError
from robustbench_lite.tuning import PASSES, Tuned, pass_of, tuned

PROBE = torch.arange(3.0).view(3, 1, 1, 1)


@dataclass
class Device:
    """Needs so long for a batch, and has memory for so many images."""

    seconds: Callable[[int], float]
    room: int = 10**9
    error: type[Exception] = MemoryError
    now: float = 0.0
    sizes: list[int] = field(default_factory=list)

    def __call__(self, x: Tensor) -> None:
        assert x.flatten().tolist() == [row % 3 for row in range(len(x))]
        self.sizes.append(len(x))
        if len(x) > self.room:
            raise self.error("it does not fit")
        self.now += self.seconds(len(x))

    def tuned(self, guess: int = 64, images: int = 10**6, **more: Any) -> Tuned:
        return tuned(self, PROBE, guess=guess, images=images, clock=lambda: self.now, **more)


def test_the_smallest_size_that_is_about_the_fastest() -> None:
    found = Device(lambda size: 1e-3 * max(1, size / 20)).tuned()  # twenty images take as long as one
    assert found.size == 32
    assert list(found.speeds) == [1, 2, 4, 8, 16, 32, 64, 128]  # two doublings more, which bring nothing
    assert found.speeds[32] == pytest.approx(20_000)
    assert Device(lambda size: 1e-3 * (1 + size / 20)).tuned().size == 256  # of 512, which is 3 % faster


def test_where_nothing_is_gained_images_go_one_by_one() -> None:
    device = Device(lambda size: 1e-3 * size)
    assert device.tuned() == Tuned(1, {size: pytest.approx(1000) for size in (1, 2, 4)})
    assert device.sizes == [size for size in (1, 2, 4) for _ in range(1 + PASSES)]


def test_one_slow_measurement_does_not_end_it() -> None:
    found = Device(lambda size: 0.01 if size == 4 else 1e-3).tuned(images=64)
    assert found.size == 64


def test_a_first_pass_that_prepares_things_does_not_count() -> None:
    device = Device(lambda size: 1e-3 + (0.1 if device.sizes.count(size) == 1 else 0))
    assert device.tuned(images=8).speeds[8] == pytest.approx(8000)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_memory_that_runs_out_ends_it(error: type[Exception]) -> None:
    found = Device(lambda _: 1e-3, room=8, error=error).tuned()
    assert (found.size, max(found.speeds)) == (8, 8)
    nothing = Device(lambda _: 1e-3, room=0, error=error).tuned()
    assert (nothing.size, nothing.speeds) == (1, {})
    assert nothing.in_words() == "tuned the batch size and found no memory for one image: went on with batches of 1"


def test_another_error_is_the_models_own() -> None:
    with pytest.raises(RuntimeError, match="it does not fit"):
        Device(lambda _: 1e-3, room=4, error=RuntimeError).tuned()


@pytest.mark.parametrize("second", [0.03, 0.3, 1.0])
def test_it_takes_its_time_and_no_more(second: float) -> None:
    device = Device(lambda size: second * size**0.5)
    found = device.tuned(guess=500)
    assert device.now <= 5 + second
    assert found.size == 500  # larger batches were still faster
    flat = Device(lambda size: second * size)
    assert flat.tuned(guess=500).size == (500 if second == 1 else 1)  # of one size alone nothing is known
    assert flat.now <= 5 + second


def test_no_more_images_than_there_are_and_not_far_beyond_the_guess() -> None:
    assert Device(lambda _: 1e-3).tuned(images=50).size == 32
    assert Device(lambda _: 1e-3).tuned(guess=4).size == 32
    assert Device(lambda _: 1e-3).tuned(images=1).size == 1


def test_a_backward_is_made_where_an_attack_makes_one() -> None:
    calls = list[str]()

    class Search:
        def jacobian(self, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
            assert classes.tolist() == [[0]] * len(x)
            calls.append("backward")
            return torch.zeros(len(x), 2), x

        def logits(self, x: Tensor) -> Tensor:
            calls.append("forward")
            return torch.zeros(len(x), 2)

    for spec in ("square", "pgd"):
        asked: Any = [rb.conditions.job(rb.registry.ATTACKS.build(spec), "linf", 0.1)]
        pass_of(Search(), asked, lambda: calls.append("alive"))(PROBE)  # type: ignore[arg-type]  # stands for passes
    assert calls == ["forward", "alive", "backward", "alive"]


# ---------------------------------------------------------------------- evaluations

ASKED: dict[str, Any] = {"attacks": ["pgd:steps=5", "square:queries=20"], "data": "digits", "limit": 24}


def sizes(result: rb.Result) -> tuple[Any, Any]:
    about = result.config["sessions"][-1]
    return about["batch_size"], about.get("tuned")


def test_verdicts_are_those_of_any_size(tmp_path: Path) -> None:
    rb.evaluate("digits_cnn", **ASKED, batch_size="tune", out=tmp_path / "run")
    found, fixed = rb.read_run(tmp_path / "run"), rb.evaluate("digits_cnn", **ASKED, batch_size=7)
    assert found.verdict_digest == fixed.verdict_digest
    size, speeds = sizes(found)
    assert size in (1, 2, 4, 8, 16)
    assert all(speed > 0 for speed in speeds.values())
    assert str(size) in speeds
    assert f"tuned the batch size of 1 to {max(map(int, speeds))}: went on with batches of {size}" in found.config["notes"]
    assert sizes(fixed) == (7, None)


class Narrow(nn.Module):
    """Takes four images at most."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 4:
            raise self.error
        return torch.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], 1)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), ValueError("made for four images")])
def test_a_size_that_does_not_fit_is_not_chosen(error: Exception) -> None:
    x = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    result = rb.evaluate(Narrow(error).eval(), "pgd:steps=2", (x, [0] * 20), eps=0.1, batch_size="tune", prepare=False)
    assert max(sizes(result)[1]) <= 4
    assert not [note for note in result.config["notes"] if "memory ran out" in note]


class Wavering(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.mean((1, 2, 3)), torch.rand(len(x))], 1)


def test_a_randomised_model_needs_a_number(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"data": (torch.rand(4, 3, 8, 8), [0] * 4), "eps": 0.1, "out": tmp_path / "run"}
    with pytest.raises(UsageError, match="is randomised, and what attacks find hangs on the batch size then: give --batch-size a number"):
        rb.evaluate(Wavering().eval(), "pgd:steps=2", **asked, batch_size="tune")
    assert sizes(rb.evaluate(Wavering().eval(), "pgd:steps=2", **asked, batch_size=3))[0] == 3


@dataclass
class Here:
    """An engine that does each job at once, in this process."""

    size: int = 1
    said: list[tuple[object, Event]] = field(default_factory=list)

    def start(self, job: Job) -> object:
        handle = object()
        told(job, lambda event: self.said.append((handle, event)))
        return handle

    def events(self, seconds: float) -> Iterator[tuple[object, Event]]:
        said, self.said = self.said, []
        yield from said

    def kill(self, handle: object) -> None: ...
    def close(self) -> None: ...


def test_a_worker_measures_once_for_all_its_shards_and_the_driver_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = list[int]()

    def measure(*_: object, guess: int, images: int) -> Tuned:
        measured.append(images)
        return Tuned(5, {1: 10.0, 5: 50.0})

    monkeypatch.setattr(session, "tuned", measure)
    monkeypatch.setattr(Workers, "open", lambda *_: Here())
    result = rb.evaluate("digits_cnn", **ASKED, batch_size="tune", workers=Workers(count=1, shard=8))
    assert measured == [8]  # of three shards the first
    assert result.config["notes"] == ["tuned the batch size of 1 to 5: went on with batches of 5"]
    assert sizes(result) == ("tune", None)  # each worker has its own
    assert result.verdict_digest == rb.evaluate("digits_cnn", **ASKED, batch_size=7).verdict_digest


def test_the_command_line_takes_it(inside: Callable[..., Ran]) -> None:
    run = ("--model", "digits_cnn", "--data", "digits", "--limit", "4", "--attack", "fgsm", "--out", "run")
    assert inside(*run, "--batch-size", "tune").code == 0
    assert sizes(rb.read_run("run"))[1]
    refused = inside(*run, "--batch-size", "fast")
    assert (refused.code, "--batch-size takes a whole number, auto or tune, got 'fast'" in refused.complaint) == (2, True)
