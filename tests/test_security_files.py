"""Files of others: none reaches beyond its folder, fills the memory or starts a program; and what a run leaves is for its owner's eyes."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import subprocess
import sys
import time
import tomllib
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_lite import evaluate, load_data, load_model, private, unpacking
from robustbench_lite.errors import DataError, ModelError, UsageError

ROOT = Path(__file__).parents[1]


def arrays(file: Path, **more: np.ndarray) -> Path:
    np.savez_compressed(file, images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4), **more)
    return file


def header(shape: tuple[int, ...]) -> bytes:
    """An array without anything in it, whatever its shape."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def bomb(file: Path, name: str, size: int) -> Path:
    """So many zeros in a thousandth of the bytes."""
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w", force_zip64=True) as stream:
        for _ in range(size // 2**20):
            stream.write(bytes(2**20))
    return file


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bombs of a megabyte are as good as those of a terabyte, and faster."""
    monkeypatch.setattr(unpacking, "FREE", 2**18)


def test_the_limits_that_hold() -> None:
    assert (unpacking.LARGEST_GIB, unpacking.FREE, unpacking.MOST_TIMES) == (32, 2**28, 200)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("spec", ["npz:{}", "medmnist:{}", "medmnist-c:{folder}"])
def test_an_array_that_grows_a_thousandfold_is_refused(tmp_path: Path, spec: str) -> None:
    file = bomb(arrays(tmp_path / "evil.npz"), "test_images.npy", 2**21)
    with pytest.raises(DataError, match=r"'test_images\.npy' would grow from [\d,]+ to 2,097,152 bytes, as a decompression bomb does"):
        load_data(spec.format(file, folder=tmp_path))


@pytest.mark.usefixtures("small")
def test_weights_and_models_that_grow_a_thousandfold_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "evil.pt")
    bomb(tmp_path / "evil.pt", "archive/data/1", 2**21)
    for name in ("evil.pt", "evil.pt2"):
        (tmp_path / name).write_bytes((tmp_path / "evil.pt").read_bytes())
    with pytest.raises(ModelError, match="as a decompression bomb does"):
        load_model("resnet18", weights=tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="as a decompression bomb does"):
        load_model(str(tmp_path / "evil.pt2"))


def test_what_is_larger_than_the_limit_is_refused_unless_it_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = arrays(tmp_path / "large.npz", noise=np.random.default_rng(0).integers(0, 256, 2**20, np.uint8))
    load_data(f"npz:{file}")
    monkeypatch.setenv(unpacking.VARIABLE, str(2**-11))
    with pytest.raises(DataError, match=r"noise.* more than 0\.000488281: set ROBUST_EVAL_MAX_UNPACKED_GIB to a larger number"):
        load_data(f"npz:{file}")
    monkeypatch.setenv(unpacking.VARIABLE, "much")
    with pytest.raises(UsageError, match="takes a number of GiB, got 'much'"):
        load_data(f"npz:{file}")


@pytest.mark.parametrize("shape", [(10**6, 10**6), (2**62, 4), (10**9,)])
def test_an_array_that_promises_more_than_it_has_is_refused_at_once(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as archive:
        archive.writestr("images.npy", header(shape))
        archive.writestr("labels.npy", header((4,)))
    began = time.monotonic()
    with pytest.raises(DataError, match=r"images\.npy says that it has \d+ bytes"):
        load_data(f"npz:{tmp_path / 'evil.npz'}")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_compression_is_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(arrays(tmp_path / "evil.npz"), "a", method) as archive:
        archive.writestr("more.npy", header((1,)))
    with pytest.raises(DataError, match="compressed in a way that is not read here"):
        load_data(f"npz:{tmp_path / 'evil.npz'}")


@pytest.mark.parametrize("name", ["../../evil.npy", "/tmp/robustbench-evil.npy", "a/../../evil.npy", "C:\\evil.npy"])
def test_names_in_an_archive_lead_nowhere(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    with zipfile.ZipFile(arrays(inside / "evil.npz"), "a") as archive:
        info = zipfile.ZipInfo(name)
        archive.writestr(info, header((0,)))
        link = zipfile.ZipInfo("link.npy")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="damaged"):  # the link is no array, and was not followed
        load_data(f"npz:{inside / 'evil.npz'}")
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/robustbench-evil.npy").exists()


# ------------------------------------------------------------------ pictures


def png(width: int, height: int) -> bytes:
    """A file that claims to be so large, with next to nothing in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore")  # Pillow only warns of the first
@pytest.mark.parametrize("side", [9_600, 20_000, 60_000])
def test_a_picture_of_too_many_pixels_is_an_error(tmp_path: Path, side: int) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.png").write_bytes(png(side, side))
    data = load_data(f"imagefolder:{tmp_path}")
    with pytest.raises(DataError, match=r"cannot read the image .*a\.png: .*pixels.*scale it down"):
        data[0]


def test_a_picture_that_another_program_would_decode_is_not_read(tmp_path: Path) -> None:
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    (tmp_path / "0").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "0" / "a.eps")
    (tmp_path / "0" / "a.eps").rename(tmp_path / "0" / "a.png")
    with pytest.raises(DataError, match="cannot identify"):
        load_data(f"imagefolder:{tmp_path}")[0]


def test_dicom_files_that_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

    monkeypatch.setattr("robustbench_lite.dicom.MOST_INFLATED", 64)
    (tmp_path / "0").mkdir()
    deflated, plain = (
        (DeflatedExplicitVRLittleEndian, 8, "it inflates to 64 bytes"),
        (ExplicitVRLittleEndian, 60_000, "60000 x 60000"),
    )
    for syntax, side, said in (deflated, plain):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = syntax, "1.2.3", "1.2.4"
        dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.3", "1.2.4"
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = side, side, 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation, dataset.PixelData = 8, 8, 7, 0, bytes(64)
        dataset.save_as(tmp_path / "0" / "a.dcm", enforce_file_format=True)
        with pytest.raises(DataError, match=said):
            load_data(f"imagefolder:{tmp_path}")[0]


# ------------------------------------------------------------------ what a run leaves


def opened(folder: Path) -> dict[str, int]:
    """What others than the owner may do with everything in a folder and with itself."""
    return {str(path): path.stat().st_mode & 0o077 for path in (folder, *folder.rglob("*"))}


@pytest.fixture
def umask() -> None:
    """The usual one of the world, and not what this machine has."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def run(folder: Path) -> Path:
    result = evaluate("digits_cnn", "fgsm", "digits", eps=0.3, limit=6, out=folder)
    result.write(["html", "csv", "json", "markdown", "junit"])
    return folder


@pytest.mark.usefixtures("umask")
def test_a_run_is_for_the_eyes_of_its_owner(tmp_path: Path) -> None:
    run(tmp_path / "runs" / "one")
    found = opened(tmp_path / "runs")
    assert len(found) > 10
    assert any("witnesses/" in name for name in found)
    assert set(found.values()) == {0}


@pytest.mark.usefixtures("umask")
def test_a_folder_that_was_there_keeps_its_readers(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(0o750)
    found = opened(run(tmp_path / "shared"))
    assert {mode & 0o007 for mode in found.values()} == {0}
    assert {mode for name, mode in found.items() if Path(name).is_file()} == {0o040}
    assert found[str(tmp_path / "shared")] == 0o050


def test_the_umask_takes_away_more(tmp_path: Path, umask: None) -> None:
    (tmp_path / "shared").mkdir(0o755)
    os.umask(0o077)
    private.write(tmp_path / "shared" / "a", b"")
    assert (tmp_path / "shared" / "a").stat().st_mode & 0o777 == 0o600


def test_a_link_in_a_run_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json.partial").symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError) as refused:
        run(tmp_path / "run")
    assert "run.json.partial" in str(refused.value)
    assert (tmp_path / "mine").read_text() == "mine"


# ------------------------------------------------------------------ the network

WATCH = """
import sys
def watch(event, arguments):
    if event in ("socket.__new__", "socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.Request"):
        with open({log!r}, "a") as log:
            log.write(event + " " + repr(arguments)[:200] + "\\n")
sys.addaudithook(watch)
"""


def test_a_run_opens_no_socket(tmp_path: Path) -> None:
    """In no process of it: the watcher is imported by every one."""
    log = tmp_path / "log"
    (tmp_path / "sitecustomize.py").write_text(WATCH.format(log=str(log)))
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", "import socket; socket.socket()"], env=env, check=True)
    assert log.read_text().startswith("socket.__new__"), "the watcher sees one"
    log.unlink()
    words = ["--model", "digits_cnn", "--data", "digits", "--limit", "6", "--attack", "fgsm", "--eps", "0.1", "--out", "run"]
    commands = [words, ["verify", "run"], ["report", "run"], ["list", "models"]]
    code = f"from robustbench_lite.cli import *\nfor words in {commands!r}: assert exit_code('robust-eval', app, words) == 0"
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, cwd=tmp_path)
    assert not log.exists(), log.read_text()


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    table = (ROOT / "docs" / "security.md").read_text().partition("what each earns")[2]
    first = {word for line in table.splitlines() if line.startswith("| ") for word in re.findall(r"[\w-]+", line.split("|")[1])}
    assert not {re.split(r"[><=!\[; ]", each)[0].lower() for each in needed} - first
