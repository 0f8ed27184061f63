"""Pictures decoded ahead: the same pictures, verdicts and complaints, within bounds, and no thread that outlives its session."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from same_run import same
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite import ahead, pictures
from robustbench_lite.ahead import Ahead, stacked
from robustbench_lite.errors import DataError, InvalidEvaluation
from robustbench_lite.pictures import Chosen, Files, beside
from robustbench_lite.samples import Samples


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [each.name for each in threading.enumerate() if each.name == "ahead"] == []


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures of ten classes, in files of four formats; where a picture is a little brighter, there is its class."""
    draw = np.random.default_rng(0)
    for number in range(12):
        place = tmp_path / "pictures" / str(number % 10)
        place.mkdir(parents=True, exist_ok=True)
        suffix = ("png", "jpg", "tif", "bmp")[number % 4]
        picture = draw.integers(0, 200, (32, 32, 3), dtype=np.uint8)
        row, column = divmod(number % 10, 4)
        picture[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 10 + 2 * number
        Image.fromarray(picture).save(place / f"{number}.{suffix}")
    return tmp_path / "pictures"


def until(so: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not so():
        assert time.monotonic() < end
        time.sleep(0.001)


class Reader:
    """Reads numbers as pictures, and knows who has read what; those in `bad` it cannot read, and waits at those in `slow`."""

    def __init__(self, bad: tuple[int, ...] = (), slow: tuple[int, ...] = ()) -> None:
        self.bad, self.slow, self.read, self.go = bad, slow, list[int](), threading.Event()

    def __call__(self, key: int) -> Tensor | None:
        assert threading.current_thread() is not threading.main_thread()
        self.read.append(key)
        if key in self.slow:
            self.go.wait(10)
        if key in self.bad:
            raise DataError(f"{key} is bad")
        return torch.tensor(key)


# ---------------------------------------------------------------------- the threads


def test_what_is_expected_is_read_in_order_and_handed_out_once() -> None:
    read = Reader()
    with Ahead(read) as coming:
        coming.expect(range(9), 3)
        until(lambda: len(read.read) == 3)
        time.sleep(0.05)
        assert read.read == [0, 1, 2]  # there is room for three
        for key in range(9):
            until(lambda key=key: key in read.read)  # type: ignore[misc]  # mypy knows no lambda with a default
            found = coming.take(key)
            assert found is not None
            assert int(found) == key
            assert coming.take(key) is None
        assert read.read == list(range(9))


def test_many_threads_read_every_key_once(four_threads: None) -> None:
    read = Reader()
    with Ahead(read) as coming:
        coming.expect(range(200), 16)
        found = {key: coming.take(key) for key in range(200)}
        assert len([each for each in threading.enumerate() if each.name == "ahead"]) == 4
    assert sorted(set(read.read)) == sorted(read.read)  # what nobody had begun is left to whoever asked for it
    assert {key for key, picture in found.items() if picture is not None} == set(read.read)
    assert all(int(picture) == key for key, picture in found.items() if picture is not None)


def test_one_waits_for_a_picture_that_is_being_read() -> None:
    read = Reader(slow=(0,))
    with Ahead(read) as coming:
        coming.expect([0, 1], 2)
        until(lambda: read.read == [0])
        threading.Timer(0.05, read.go.set).start()
        found = coming.take(0)
    assert found is not None
    assert int(found) == 0


def test_what_cannot_be_read_is_left_to_who_asks_and_hinders_nothing() -> None:
    with Ahead(Reader(bad=(1,))) as coming:
        coming.expect(range(4), 4)
        until(lambda: len(coming._held) == 4 and all(each is None or isinstance(each, Tensor) for each in coming._held.values()))
        assert [coming.take(key) is None for key in range(4)] == [False, True, False, False]


def test_what_is_expected_no_more_is_forgotten_and_makes_room() -> None:
    read = Reader(slow=(2,))
    with Ahead(read) as coming:
        coming.expect(range(3), 3)
        until(lambda: read.read == [0, 1, 2])
        coming.expect([1, 7], 2)  # 2 is being read
        read.go.set()
        until(lambda: read.read == [0, 1, 2, 7])
        assert coming.take(2) is None
        assert [int(found) for key in (1, 7) if (found := coming.take(key)) is not None] == [1, 7]


def test_without_room_or_when_closed_nothing_is_read() -> None:
    read = Reader()
    coming = Ahead(read)
    coming.expect([1], 1)
    with coming:
        coming.expect([1], 0)
        assert not coming._threads
        assert coming.take(1) is None
    coming.expect([1], 1)
    assert (coming.take(1), read.read) == (None, [])


def test_an_end_in_the_middle_waits_for_no_thread_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "LEAVING", 0.05)
    read = Reader(slow=(0,))
    with Ahead(read) as coming:
        coming.expect([0], 1)
        until(lambda: read.read == [0])
        begun = time.monotonic()
    assert time.monotonic() - begun < 5
    read.go.set()  # else the thread would be there for ten seconds
    until(lambda: not [each for each in threading.enumerate() if each.name == "ahead"])


# ---------------------------------------------------------------------- pictures


def test_threads_read_what_is_in_files_and_nothing_else(folder: Path) -> None:
    images = rb.load_data(f"imagefolder:{folder}")
    read = beside(Chosen(images.pictures, [3, 1]))
    assert read is not None
    with pictures.quietly():
        found = read(0)
    assert found is not None
    assert torch.equal(found, images[3][0])
    assert beside(torch.zeros(2, 3, 4, 4)) is None  # type: ignore[arg-type]  # a tensor is a source of pictures
    (folder / "scan.dcm").write_bytes(b"")
    assert Files([folder / "scan.dcm"]).beside(0) is None


def test_of_large_files_one_is_decoded_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, at_once = Files(sorted(folder.glob("*/*"))), []
    monkeypatch.setattr(pictures, "LARGE", 0)

    def decoded(*_: object) -> Tensor:
        at_once.append(pictures.ONE_AT_A_TIME.locked())
        return torch.zeros(1)

    monkeypatch.setattr(Files, "_decoded", decoded)
    files.beside(0)
    monkeypatch.setattr(pictures, "LARGE", 2**20)
    files.beside(0)
    assert at_once == [True, False]


def test_a_bomb_is_refused_whatever_the_filters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread finds the filters that others have set: Pillow's warning of a picture that is too large may go unheard."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # less than 32 x 32, and more than half of it
    file = sorted(folder.glob("*/*.png"))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"Image size \(1024 pixels\) exceeds limit of 1000 pixels, as decompression bombs do"):
            Files([file]).beside(0)
    with pytest.raises(DataError, match="as decompression bombs do: scale it down"):
        Files([file])[0]


def test_preparing_starts_no_threads_and_divides_as_torch_does() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = rb.classifier.Preprocess(size=None, resize=None, channels=1)(Image.fromarray(levels))
    assert torch.equal(found, torch.from_numpy(levels)[None].float() / 255)
    assert found.is_contiguous()


# ---------------------------------------------------------------------- evaluations


class Mean(nn.Module):
    """Tells ten classes by the part of a picture that is the brightest."""

    def forward(self, x: Tensor) -> Tensor:
        return 50 * nn.functional.avg_pool2d(x, 8).mean(1).flatten(1)[:, :10]


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Samples, "expect", lambda *_: None)


ASKED: dict[str, Any] = {
    "attacks": ["pgd:steps=3,restarts=2", "square:queries=5"],
    "corruptions": "fog:severity=1-2",
    "eps": 0.05,
    "batch_size": 3,
}


def test_verdicts_and_witnesses_are_those_without_threads(folder: Path, monkeypatch: pytest.MonkeyPatch, four_threads: None) -> None:
    seen, take = [], Ahead.take
    monkeypatch.setattr(Ahead, "take", lambda self, key: seen.append(take(self, key)) or seen[-1])  # type: ignore[func-returns-value]
    found = rb.evaluate(Mean().eval(), data=f"imagefolder:{folder}", **ASKED)
    assert sum(picture is not None for picture in seen) > len(seen) / 4
    monkeypatch.undo()
    alone(monkeypatch)
    expected = rb.evaluate(Mean().eval(), data=f"imagefolder:{folder}", **ASKED)
    assert found.verdicts == expected.verdicts
    assert {str(v.broken_by).partition(":")[0] for v in found.verdicts} >= {"None", "pgd", "square"}
    same(found, expected)


def test_a_bad_image_is_named_alone_and_as_ever(folder: Path, monkeypatch: pytest.MonkeyPatch, four_threads: None) -> None:
    (folder / "3" / "3.bmp").write_bytes(b"no picture")
    with pytest.raises(InvalidEvaluation, match=r"1 of 12 images cannot be used: 3/3.bmp \(cannot read the image"):
        rb.evaluate(Mean().eval(), data=f"imagefolder:{folder}", **ASKED)
    found = rb.evaluate(Mean().eval(), data=f"imagefolder:{folder}", on_bad_image="quarantine", **ASKED)
    alone(monkeypatch)
    assert found.verdicts == rb.evaluate(Mean().eval(), data=f"imagefolder:{folder}", on_bad_image="quarantine", **ASKED).verdicts
    assert {v.sample_id for v in found.verdicts if v.broken is None} == {"3/3.bmp"}


def test_filters_of_warnings_are_afterwards_what_they_were(folder: Path, four_threads: None) -> None:
    file = folder / "0" / "0.tif"
    Image.new("RGB", (32, 32)).save(file)
    file.write_bytes(file.read_bytes()[:8] * 9)  # of which Pillow warns
    before = list(warnings.filters)
    rb.evaluate(Mean().eval(), data=f"imagefolder:{folder}", on_bad_image="quarantine", **ASKED)
    assert list(warnings.filters) == before


def test_what_pillow_warns_of_in_threads_is_quiet(folder: Path, four_threads: None) -> None:
    for number, file in enumerate(sorted(folder.glob("*/*"))):
        picture = Image.new("P", (32, 32), number)
        picture.putpalette([*range(256)] * 3)
        picture.save(file.with_name("transparent.png"), transparency=bytes(range(256)))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        rb.evaluate(Mean().eval(), (), f"imagefolder:{folder}", batch_size=5)
    assert told == []


def test_an_interruption_ends_the_threads(folder: Path, four_threads: None) -> None:
    def interrupted(name: str, done: int, *_: int) -> None:
        if name.startswith("pgd") and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rb.evaluate(Mean().eval(), data=f"imagefolder:{folder}", progress=interrupted, **ASKED)


def test_pictures_that_wait_have_bounds_of_number_and_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = []
    expect = Ahead.expect
    monkeypatch.setattr(Ahead, "expect", lambda self, keys, room: rooms.append(room) or expect(self, keys, room))  # type: ignore[func-returns-value]
    rb.evaluate(Mean().eval(), (), f"imagefolder:{folder}", batch_size=5)
    monkeypatch.setattr("robustbench_lite.samples.BYTES", 2 * 3 * 32 * 32 * 4)
    rb.evaluate(Mean().eval(), (), f"imagefolder:{folder}", batch_size=5)
    rb.evaluate("digits_cnn", (), "digits", limit=10)  # in memory
    assert list(dict.fromkeys(rooms)) == [5, 2]


def test_an_image_is_read_once_for_all_corruptions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, load = list[str](), Samples.load
    monkeypatch.setattr(Samples, "load", lambda self, key, variant=None: read.append(key) or load(self, key, variant))  # type: ignore[func-returns-value]

    def reads(*corruptions: str) -> int:
        read.clear()
        rb.evaluate(Mean().eval(), (), f"imagefolder:{folder}", corruptions=corruptions)
        return len(read)

    assert reads("fog:severity=1") == reads("fog", "gaussian_noise")


# ---------------------------------------------------------------------- the way to the device


def test_on_cuda_a_batch_goes_through_pinned_memory_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory, **k: asked.append({"pinned": pin_memory}) or empty(*a, **k))  # type: ignore[func-returns-value]
    monkeypatch.setattr(Tensor, "to", lambda self, *a, **k: asked.append({"to": a, **k}) or self)  # type: ignore[func-returns-value]
    each = [torch.rand(3, 4, 4) for _ in range(5)]
    found = stacked(each, torch.device("cuda"))
    assert asked == [{"pinned": True}, {"to": (torch.device("cuda"),), "non_blocking": True}]
    assert torch.equal(found, torch.stack(each))


@pytest.mark.gpu
def test_on_an_accelerator_the_batch_is_what_was_loaded() -> None:
    for _ in range(20):  # memory that is given back is used again: a copy must not be overtaken by the next batch
        each = [torch.rand(3, 224, 224) for _ in range(16)]
        assert torch.equal(stacked(each, torch.device("cuda")).cpu(), torch.stack(each))
