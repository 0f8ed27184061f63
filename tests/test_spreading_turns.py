"""Who is given what again, on an engine that does as it is told and a clock that is set by hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from robustbench_lite.engines.engine import Died, Ended, Event, Failed, Job, Said
from robustbench_lite.errors import InvalidEvaluation, UsageError
from robustbench_lite.spreading import Spread, halves


@dataclass(frozen=True)
class Piece:
    name: str
    size: int = 1

    def job(self, deaths: int) -> Job:
        return (self.name, deaths)  # type: ignore[return-value]

    def parts(self) -> Sequence[Piece]:
        return [Piece(half) for half in halves(self.name)]  # of the name `ab` there are the pieces `a` and `b`


@dataclass(frozen=True)
class Word:
    text: str
    doing: str = "pgd"


class Told:
    """An engine whose events are a script: for each turn the (piece, event) pairs, and by how many seconds the clock moves on."""

    def __init__(self, size: int, *turns: tuple[float, list[tuple[str, Event]]]) -> None:
        self.size, self.turns, self.now = size, deque(turns), 0.0
        self.started: list[tuple[str, int]] = []
        self.killed: list[int] = []
        self.over: list[int] = []

    def clock(self) -> float:
        return self.now

    def start(self, job: Any) -> object:
        self.started.append(job)
        return len(self.started) - 1

    def events(self, seconds: float) -> Iterator[tuple[object, Event]]:
        if not self.turns:
            return
        passed, said = self.turns.popleft()
        self.now += passed
        for name, event in said:
            handle = max(handle for handle, (of, _) in enumerate(self.started) if of == name and handle not in self.killed + self.over)
            if not isinstance(event, Said):
                self.over.append(handle)
            yield handle, event

    def lack(self) -> None: ...

    def kill(self, handle: object) -> None:
        assert isinstance(handle, int)
        self.killed.append(handle)

    def close(self) -> None: ...


def spread(engine: Told, names: str, **more: Any) -> tuple[Spread[Piece], list[str]]:
    heard: list[str] = []
    made = Spread(engine, lambda piece, word: heard.append(f"{piece.name}{word.text}"), clock=engine.clock, **more)
    made.run(map(Piece, names))
    return made, heard


def test_a_piece_whose_worker_died_is_done_again_first() -> None:
    engine = Told(1, (1, [("a", Said(Word("1"))), ("a", Died("gone"))]), (1, [("a", Ended())]), (1, [("b", Ended())]))
    made, heard = spread(engine, "ab")
    assert engine.started == [("a", 0), ("a", 1), ("b", 0)]
    assert made.lost == ["a worker died at a (gone)"]
    assert heard == ["a1"]


def test_a_piece_that_kills_every_worker_ends_the_run() -> None:
    engine = Told(1, *[(1, [("a", Died("gone"))])] * 4)
    with pytest.raises(InvalidEvaluation, match=r"a: 4 workers died at it \(gone\)"):
        spread(engine, "a")
    assert engine.started == [("a", 0), ("a", 1), ("a", 2), ("a", 3)]


def test_after_a_second_death_a_piece_is_cut_up_and_what_is_suspicious_comes_last() -> None:
    died = [("ab", Died("gone"))]
    engine = Told(1, (1, died), (1, died), (1, [("c", Ended())]), (1, [("a", Ended())]), (1, [("b", Died("gone"))]), (1, [("b", Ended())]))
    made = Spread[Piece](engine, lambda *_: None, clock=engine.clock)
    made.run([Piece("ab", 2), Piece("c")])
    assert engine.started == [("ab", 0), ("ab", 1), ("c", 0), ("a", 2), ("b", 2), ("b", 3)]


def test_a_piece_is_not_cut_up_while_a_copy_of_it_goes_on() -> None:
    died = (1, [("ab", Died("gone"))])
    engine = Told(2, (1, [("c", Ended())]), (9, []), died, died, (9, []), died, (1, [("a", Ended())]), (1, [("b", Ended())]))
    made = Spread[Piece](engine, lambda *_: None, clock=engine.clock)
    made.run([Piece("ab", 2), Piece("c")])
    assert engine.started == [("ab", 0), ("c", 0), ("ab", 0), ("ab", 1), ("a", 2), ("b", 2)], "and no third copy of what kills"


def test_what_kills_alone_is_handed_over_and_the_rest_is_done() -> None:
    handed: list[str] = []
    died = (1, [("a", Died("gone"))])
    engine = Told(1, (1, [("b", Ended())]), died, died, (1, [("c", Ended())]), died, died)
    made = Spread[Piece](engine, lambda *_: None, deadly=lambda piece, reason: handed.append(f"{piece.name} {reason}"), clock=engine.clock)
    made.run(map(Piece, "bac"))
    assert handed == ["a gone"]
    assert "".join(name for name, _ in engine.started) == "baacaa"


def test_a_straggler_is_given_to_an_idle_worker_too_and_the_first_to_end_has_done_it() -> None:
    engine = Told(2, (1, [("a", Ended())]), (1, []), (9, []), (1, [("b", Ended())]))
    spread(engine, "ab")
    assert engine.started == [("a", 0), ("b", 0), ("b", 0)]
    assert engine.killed == [1]


def test_no_second_try_while_there_is_other_work() -> None:
    engine = Told(2, (1, [("a", Ended())]), (9, []), (1, [("b", Ended()), ("c", Ended())]))
    spread(engine, "abc")
    assert engine.started == [("a", 0), ("b", 0), ("c", 0)]


def test_silence_is_named_once_a_worker_has_spoken() -> None:
    engine = Told(1, (50, []), (1, [("a", Said(Word("1", "fmn")))]), (4, []), (7, []))
    with pytest.raises(InvalidEvaluation, match=r"a at fmn has not moved for 11 s: the model hangs"):
        spread(engine, "a", hang_after=10)
    assert engine.killed == [0]


@pytest.mark.parametrize(("code", "error"), [(2, UsageError), (4, InvalidEvaluation), (None, RuntimeError)])
def test_what_a_job_raised_is_raised_after_the_words_on_their_way(code: int | None, error: type[Exception]) -> None:
    engine = Told(2, (1, [("a", Failed(code, "no"))]), (0, [("b", Said(Word("1")))]), (0, [("b", Said(Word("2")))]), (0, []))
    heard: list[str] = []
    with pytest.raises(error, match="no"):
        Spread(engine, lambda piece, word: heard.append(piece.name + word.text), clock=engine.clock).run(map(Piece, "ab"))
    assert heard == ["b1", "b2"]
    assert engine.killed == [1]


def test_an_interruption_takes_in_what_was_sent() -> None:
    engine, heard = Told(1, (0, [("a", Said(Word("1")))]), (0, [("a", Said(Word("2")))]), (0, [("a", Said(Word("3")))]), (0, [])), []

    def hear(piece: Piece, word: Word) -> None:
        heard.append(word.text)
        if len(heard) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Spread(engine, hear, clock=engine.clock).run([Piece("a")])
    assert heard == ["1", "2", "3"]
    assert engine.killed == [0]


def test_no_worker_left() -> None:
    engine = Told(0)
    with pytest.raises(InvalidEvaluation, match="no worker is left: the same command goes on"):
        spread(engine, "a")
