"""A folder of pictures corrupted into another: the same files however often it was stopped, and by however many processes."""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_fixture import CommandLine, Ran
from PIL import Image
from replayed import photograph

from robustbench_lite.corrupting import draws, members
from robustbench_lite.errors import DataError, InvalidEvaluation, RunMismatch, UsageError
from robustbench_lite.folders import Lot, corrupt_folder


def pictures(folder: Path, count: int, size: int = 32) -> Path:
    """Pictures of the photograph in different light, in two sub-folders."""
    photo = photograph(32)[0].permute(1, 2, 0).numpy()
    for k in range(count):
        place = folder / f"n0{k % 2}" / f"p{k}.{'png' if k % 3 else 'bmp'}"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((photo * 255 * (0.3 + 0.7 * k / count)).astype(np.uint8)).resize((size, size)).save(place)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_files_are_those_that_the_evaluation_makes(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 4)
    assert corrupt_folder(source, tmp_path / "out", ["fog:severity=3", "shot_noise:severity=1-2"], seed=7, workers=1) == (12, 0)
    for picture in ("n00/p0.bmp", "n01/p1.png"):
        image = torch.from_numpy(np.array(Image.open(source / picture))).permute(2, 0, 1)[None].float() / 255
        for member, severity in (*members("fog:severity=3"), *members("shot_noise:severity=1-2")):
            expected = member(image, severity, draws(7, member.name, severity, [picture], torch.device("cpu")))[0]
            written = np.array(Image.open((tmp_path / "out" / member.name / str(severity) / picture).with_suffix(".png")))
            assert np.array_equal(written, expected.permute(1, 2, 0).numpy())


def test_processes_and_interruptions_change_nothing(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 12)
    specs = ["impulse_noise", "glass_blur:severity=2"]
    corrupt_folder(source, tmp_path / "one", specs, workers=1)
    whole = contents(tmp_path / "one")
    assert len(whole) == 12 * 6 + 1
    corrupt_folder(source, tmp_path / "two", specs, workers=2)
    assert contents(tmp_path / "two") == whole
    for path in list((tmp_path / "two").rglob("p1*.png")):
        path.unlink()
    (tmp_path / "two" / "glass_blur" / "2" / "n00" / ".p0.png.partial").write_bytes(b"half")
    (tmp_path / "two" / "glass_blur" / "2" / "n00" / "p0.png").unlink()
    assert corrupt_folder(source, tmp_path / "two", specs, workers=1) == (19, 53)
    assert contents(tmp_path / "two") == whole
    assert corrupt_folder(source, tmp_path / "two", specs, workers=1) == (0, 72)
    assert corrupt_folder(source, tmp_path / "two", specs, workers=1, fresh=True) == (72, 0)
    assert contents(tmp_path / "two") == whole


def test_pictures_that_a_dead_worker_had_done_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker begins its pictures anew."""
    source, told, corrupt = pictures(tmp_path / "in", 4), list[tuple[int, int]](), Lot.corrupt
    (source / "broken.png").write_bytes(b"")
    monkeypatch.setattr(Lot, "corrupt", lambda self, send: (corrupt(self, send), corrupt(self, send)))
    with pytest.raises(InvalidEvaluation, match=r"1 of 5 pictures could not be corrupted: broken\.png[^;]*; the other 4 of 5 files"):
        corrupt_folder(source, tmp_path / "out", ["fog:severity=3"], workers=1, progress=lambda *at: told.append(at))
    assert (told[4], told[-1]) == ((5, 5), (5, 5))
    (source / "broken.png").unlink()
    assert corrupt_folder(source, tmp_path / "out", ["snow:severity=1"], workers=1) == (4, 0)


def test_another_version_is_refused_and_fresh_starts_over(tmp_path: Path) -> None:
    source, target = pictures(tmp_path / "in", 2), tmp_path / "out"
    corrupt_folder(source, target, ["fog:severity=1", "contrast:severity=1"], workers=1)
    record = target / "corrupt.json"
    record.write_text(record.read_text().replace('"version": "', '"version": "older '))
    with pytest.raises(RunMismatch, match="another version"):
        corrupt_folder(source, target, ["fog:severity=1"], workers=1)
    assert corrupt_folder(source, target, ["fog:severity=1"], workers=1, fresh=True) == (2, 0)
    assert not (target / "contrast" / "1").exists()  # it may be drawn otherwise now


def test_storage_as_jpeg_is_that_of_the_published_files(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 2)
    corrupt_folder(source, tmp_path / "out", ["fog:severity=1"], storage_jpeg=85, workers=1)
    image = torch.from_numpy(np.array(Image.open(source / "n01/p1.png"))).permute(2, 0, 1)[None].float() / 255
    ((member, severity),) = members("fog:severity=1")
    stored = member(image, severity, draws(0, "fog", 1, ["n01/p1.png"], torch.device("cpu")), storage_jpeg=85)[0]
    with Image.open(tmp_path / "out/fog/1/n01/p1.JPEG") as file:
        assert file.format == "JPEG"
        assert np.array_equal(np.array(file), stored.permute(1, 2, 0).numpy())


def test_crops_as_the_published_sets(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 1, size=80)
    corrupt_folder(source, tmp_path / "out", ["contrast:severity=1"], size=32, resize=40, workers=1)
    with Image.open(tmp_path / "out/contrast/1/n00/p0.png") as file:
        assert file.size == (32, 32)


def test_grey_pictures_stay_grey(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))).save(tmp_path / "in" / "grey.png")
    corrupt_folder(tmp_path / "in", tmp_path / "out", ["fog:severity=1", "snow:severity=1"], workers=1)
    with Image.open(tmp_path / "out/snow/1/grey.png") as file:
        assert file.mode == "L"


def test_refusals(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 2)
    with pytest.raises(DataError, match="there is no folder"):
        corrupt_folder(tmp_path / "nowhere", tmp_path / "out", ["fog"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no pictures"):
        corrupt_folder(tmp_path / "empty", tmp_path / "out", ["fog"])
    with pytest.raises(UsageError, match="name a folder beside it"):
        corrupt_folder(source, source / "out", ["fog"])
    with pytest.raises(UsageError, match=r"severity must be 1\.\.5, got 6"):
        corrupt_folder(source, tmp_path / "out", ["fog:severity=6"])
    with pytest.raises(UsageError, match=r"1\.\.100, got 0"):
        corrupt_folder(source, tmp_path / "out", ["fog"], storage_jpeg=0)
    with pytest.raises(UsageError, match="larger --resize"):
        corrupt_folder(source, tmp_path / "out", ["fog"], size=32, resize=16)
    corrupt_folder(source, tmp_path / "out", ["fog:severity=1"], workers=1)
    with pytest.raises(RunMismatch, match="another seed"):
        corrupt_folder(source, tmp_path / "out", ["fog:severity=1"], seed=1, workers=1)
    corrupt_folder(source, tmp_path / "out", ["snow:severity=1"], workers=1)  # more of the same is welcome
    Image.new("RGB", (32, 32)).save(source / "n00" / "p0.png")
    with pytest.raises(DataError, match="differ in their ending only"):
        corrupt_folder(source, tmp_path / "out", ["fog"], workers=1)


def test_fresh_leaves_nothing_of_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where it is killed and gone on with, nor of corruptions that it was not asked for."""
    source, out = pictures(tmp_path / "in", 4), tmp_path / "out"
    corrupt_folder(source, tmp_path / "expected", ["fog:severity=1-2"], seed=1, workers=1)
    corrupt_folder(source, out, ["fog:severity=1-2"], seed=0, workers=1)
    with monkeypatch.context() as patched:
        patched.setattr("robustbench_lite.folders.Lot.corrupt", lambda *_: None)  # killed before the first picture
        corrupt_folder(source, out, ["fog:severity=1"], seed=1, workers=1, fresh=True)
    assert corrupt_folder(source, out, ["fog:severity=1-2"], seed=1, workers=1) == (8, 0)
    assert contents(out) == contents(tmp_path / "expected")
    corrupt_folder(source, out, ["fog:severity=1"], seed=0, workers=1, fresh=True)
    corrupt_folder(source, out, ["snow:severity=1"], seed=1, workers=1, fresh=True)
    assert corrupt_folder(source, out, ["fog:severity=1-2"], seed=1, workers=1) == (8, 0)
    assert corrupt_folder(source, out, ["snow:severity=1"], seed=1, workers=1) == (0, 4)
    assert corrupt_folder(source, out, ["snow:severity=1"], seed=1, workers=1, fresh=True) == (4, 0)


def test_a_bad_picture_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 3)
    (source / "n00" / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (9, 9)).save(source / "n00" / "tiny.png")
    with pytest.raises(InvalidEvaluation, match=r"2 of 5 pictures could not be corrupted: .*broken.png.*tiny.png.*16 pixels are the least"):
        corrupt_folder(source, tmp_path / "out", ["fog:severity=1"], workers=1)
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3


def test_the_command(inside: Callable[..., Ran], tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 2)
    ran = inside("corrupt", source, tmp_path / "out", "--corruption", "fog", "--severity", "2-3", "--workers", "1")
    assert (ran.code, ran.out) == (0, f"4 pictures written to {tmp_path / 'out'}\n")
    again = inside("corrupt", source, tmp_path / "out", "--corruption", "fog", "--severity", "2-3", "--workers", "1")
    assert again.out == f"0 pictures written to {tmp_path / 'out'}, 4 were there already\n"
    for options, words in (
        (("--corruption", "frog"), "did you mean 'fog'"),
        (("--corruption", "fog", "--severity", "0"), "severity must be 1..5, got 0"),
        (("--corruption", "frost", "--frost-dir", str(tmp_path / "nowhere")), "nowhere"),
    ):
        ran = inside("corrupt", source, tmp_path / "more", *options, "--workers", "1")
        assert ran.code in (2, 4)
        assert words in ran.complaint


@pytest.mark.slow
def test_a_thousand_pictures_killed_and_gone_on_with(robust_eval: CommandLine, tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 1000)
    asked = ("-c", "gaussian_noise:severity=3", "-c", "elastic_transform:severity=2", "--workers", "2")
    assert robust_eval("corrupt", source, tmp_path / "whole", *asked).code == 0
    process = robust_eval.start("corrupt", source, tmp_path / "killed", *asked)
    until = time.monotonic() + 200
    while len(list((tmp_path / "killed").rglob("*.png"))) < 300:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    time.sleep(1)  # its workers notice that they are alone, and end
    before = contents(tmp_path / "killed")
    time.sleep(1)
    assert contents(tmp_path / "killed") == before
    assert 300 <= len(before) < 2001
    ran = robust_eval("corrupt", source, tmp_path / "killed", *asked)
    assert ran.code == 0
    assert "were there already" in ran.out
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
