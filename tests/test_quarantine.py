"""Images that cannot be read: the run ends and names them, or goes on, counts them as not correct, and reads them again once mended."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_fixture import CommandLine, Ran
from PIL import Image
from same_run import same
from torch import Tensor

import robustbench_lite as rb
from robustbench_lite.data import load_data
from robustbench_lite.errors import InvalidEvaluation
from robustbench_lite.labelled import LabelledImages
from robustbench_lite.quarantine import Quarantined, quarantine
from robustbench_lite.session import Session
from robustbench_lite.store import read_run

Inside = Callable[..., Ran]
RUN = ("--model", "digits_cnn", "--data", "imagefolder:pictures", "--attack", "fgsm", "--eps", "0.1")
INTO = ("--out", "run")
GO_ON = ("--on-bad-image", "quarantine")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten pictures; `3/bad.*` is for the test to spoil."""
    draw = np.random.default_rng(0)
    for number in range(10):
        (tmp_path / "pictures" / str(number)).mkdir(parents=True)
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "pictures" / str(number) / "one.png")
    return tmp_path / "pictures"


def jpeg(file: Path) -> bytes:
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file)
    return file.read_bytes()


def cut_off(file: Path) -> None:
    file.write_bytes(jpeg(file)[:2000])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def no_picture(file: Path) -> None:
    file.write_text("a note")


def bomb(file: Path) -> None:
    """40,000 x 40,000 white pixels, if its header is to be believed."""
    Image.new("1", (8, 8)).save(file.with_suffix(".bmp"))
    content = bytearray(file.with_suffix(".bmp").read_bytes())
    content[18:26] = (40_000).to_bytes(4, "little") * 2
    file.with_suffix(".bmp").unlink()
    file.write_bytes(content)


@pytest.mark.parametrize("spoil", [cut_off, empty, no_picture, bomb])
def test_a_file_that_cannot_be_read_is_named_and_counted(inside: Inside, pictures: Path, spoil: Callable[[Path], None]) -> None:
    spoil(pictures / "3" / "bad.jpg")
    refused = inside(*RUN, *INTO)
    assert (refused.code, refused.out) == (4, "")
    assert "1 of 11 images cannot be used: 3/bad.jpg" in refused.complaint
    assert "--on-bad-image quarantine" in refused.complaint
    ran = inside(*RUN, *INTO, *GO_ON, "--corruption", "fog:severity=1", "--fresh")
    assert (ran.code, "Traceback" in ran.err) == (4, False)
    assert "note: 1 of 11 images could not be read and count as not correct: 3/bad.jpg (cannot read the image" in " ".join(ran.out.split())
    result = read_run("run")
    assert [(each.sample_id, each.conditions) for each in quarantine(result)] == [("3/bad.jpg", 3)]
    for row in result.table.itertuples():
        assert (row.n, row.undecided, row.unreadable) == (11, 1, 1)
        assert row.accuracy == row.correct / 11
        assert row.correct == sum(v.broken is False for v in result.of(row.condition))
    with open("run/quarantine.csv", newline="") as stream:
        assert [row["sample_id"] for row in csv.DictReader(stream)] == ["3/bad.jpg"]
    assert "could not be read and count as not correct: 3/bad.jpg" in Path("run/report.html").read_text()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file or directory")])
def test_files_that_go_or_close_after_they_were_listed(
    inside: Inside, pictures: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    opened = Image.open

    def refusing(file: Path, *args: object, **more: object) -> object:
        if Path(file).parent.name == "3":
            raise error
        return opened(file, *args, **more)

    monkeypatch.setattr(Image, "open", refusing)
    assert "3/one.png (cannot read the image" in inside(*RUN, *INTO).complaint
    assert inside(*RUN, *INTO, *GO_ON).code == 4
    (found,) = quarantine(read_run("run"))
    assert found.sample_id == "3/one.png"
    assert str(error.strerror) in found.reason


@pytest.mark.parametrize("first", [(), GO_ON])
def test_once_mended_it_is_read_by_the_same_command(inside: Inside, pictures: Path, first: tuple[str, ...]) -> None:
    """The file has another size then, which is no reason to start over, and what was decided stays."""
    bad = pictures / "3" / "bad.jpg"
    whole = jpeg(bad)
    assert inside(*RUN, "--out", "unbroken").code == 0
    bad.write_bytes(whole[:2000])
    assert inside(*RUN, *INTO, *first).code == 4
    before = {v.sample_id: v for v in read_run("run").of("clean")}
    bad.write_bytes(whole)
    ran = inside(*RUN, *INTO, *first)
    assert (ran.code, ran.err) == (0, "")
    assert "could not be read" not in ran.out
    assert not Path("run/quarantine.csv").exists()
    one, other = read_run("run"), read_run("unbroken")
    assert {(v.condition, v.sample_id): (v.broken, v.prediction) for v in one.verdicts} == {
        (v.condition, v.sample_id): (v.broken, v.prediction) for v in other.verdicts
    }
    assert all(v == before[v.sample_id] for v in one.of("clean") if v.sample_id in before and before[v.sample_id].broken is not None)
    (pictures / "4" / "one.png").write_bytes(whole)  # an image that was read has to stay what it was
    assert "another data" in inside(*RUN, *INTO, *first).complaint


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Pictures that the model knows."""
    images = load_data("digits", limit=30)
    for index, label in enumerate(images.labels):
        (tmp_path / "digits" / str(label)).mkdir(parents=True, exist_ok=True)
        pixels = (images.pictures[index][0] * 255).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / "digits" / str(label) / f"{index}.png")
    return tmp_path / "digits"


@pytest.mark.parametrize("first", [(), GO_ON], ids=["named", "counted"])
@pytest.mark.parametrize(("attack", "learns"), [("fgsm", False), ("universal", False), ("universal", True)])
def test_a_file_that_breaks_under_attack(
    inside: Inside, digits: Path, monkeypatch: pytest.MonkeyPatch, first: tuple[str, ...], attack: str, learns: bool
) -> None:
    """It is named, or counted; either way the same command goes on once it is mended, though its size is another by then."""
    run, row = ("--model", "digits_cnn", "--data", "imagefolder:digits", "--attack", attack, "--eps", "0.02"), f"{attack}[linf,0.02]"
    assert inside(*run, "--out", "unbroken").code == 0
    unbroken = read_run("unbroken")
    attacked = {v.sample_id for v in unbroken.of(row)}
    name = next(v.sample_id for v in unbroken.of("clean") if v.broken is False and (v.sample_id in attacked) is not learns)
    bad, clean = digits / name, Session._clean
    whole = bad.read_bytes()

    def breaking(self: Session, ids: list[str]) -> Any:
        answers = clean(self, ids)
        cut_off(bad)
        return answers

    with monkeypatch.context() as during:
        during.setattr(Session, "_clean", breaking)
        ran = inside(*run, *INTO, *first)
    assert ran.code == 4
    if first:
        result = read_run("run")
        (found,) = quarantine(result)
        assert (found.sample_id, found.conditions) == (name, 1)
        assert {v.broken is None for v in result.of("clean")} == {False}
        assert sum(v.broken is None for v in result.of(row)) == 1
    else:
        assert f"1 of 30 images cannot be used: {name} (cannot read the image" in ran.complaint
    assert inside(*run, *INTO, *GO_ON).code == 4  # it is still broken
    bad.write_bytes(whole)
    assert inside(*run, *INTO, *first).code == 0
    if not learns:  # else it has taught nothing
        same(unbroken, read_run("run"))


def test_once_mended_workers_read_it_too(robust_eval: CommandLine, inside: Inside, pictures: Path) -> None:
    bad = pictures / "3" / "one.png"
    whole = bad.read_bytes()
    assert inside(*RUN, "--out", "unbroken").code == 0
    cut_off(bad)
    ran = robust_eval(*RUN, *INTO, "--workers", 1)
    assert "1 of 10 images cannot be used: 3/one.png" in ran.complaint
    bad.write_bytes(whole)
    ran = robust_eval(*RUN, *INTO, "--workers", 1)
    assert (ran.code, ran.err) == (0, "")
    same(read_run("unbroken"), read_run("run"), lost=True)


def test_a_search_for_the_nearest_counts_it_as_distance_0(inside: Inside, pictures: Path) -> None:
    cut_off(pictures / "3" / "bad.jpg")
    command = (*RUN[:4], "--attack", "deepfool", "--norm", "l2", "--eps", "0.1", "--eps", "1", *INTO)
    assert inside(*command, *GO_ON).code == 4
    result = read_run("run")
    assert [row.unreadable for row in result.table.itertuples()] == [1] * 5
    attack = next(c.name for c in result.conditions if c.kind == "attack")
    sizes = sorted(0.0 if v.broken is None else v.nearest for v in result.of(attack))
    assert result.table.set_index("condition").loc[attack, "median_distance"] == sizes[len(sizes) // 2]


def test_compare_and_gate_say_so(inside: Inside, pictures: Path, tmp_path: Path) -> None:
    assert inside(*RUN, "--out", "good").code == 0
    bad = pictures / "3" / "one.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:100] + b"\0" * (len(whole) - 100))  # of the same size: only reading tells
    assert inside(*RUN, *INTO, *GO_ON).code == 4
    compared = inside("compare", "good", "run")
    assert "1 images are undecided in B and count as not right, 1 of them because they could not be read." in " ".join(compared.out.split())
    (tmp_path / "robust-eval.toml").write_text(
        '[gate]\nmodel = "digits_cnn"\ndata = "imagefolder:pictures"\nrules = ["clean.accuracy >= 0.01"]\n'
    )
    gated = inside("gate")
    assert gated.code == 4
    assert "3/one.png" in gated.complaint
    assert "1 images of run are undecided" in inside("baseline", "write", "run").complaint


class Listed:
    """Images in memory that nobody has looked at."""

    def __init__(self, images: list[Tensor]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (torch.full((3, 8, 8), torch.nan), "holds NaN"),
        (torch.full((3, 8, 8), 2.0), "must be in [0, 1]"),
        (torch.zeros(3, 9, 8), "others are not"),
        (torch.zeros(8, 8), "has shape (8, 8)"),
    ],
)
def test_images_in_memory_that_are_none(net: Callable[[], torch.nn.Module], image: Tensor, reason: str) -> None:
    images = list(torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    images[7] = image
    data = LabelledImages(Listed(images), [0] * 12, [f"image {i}" for i in range(12)])
    order = next(seed for seed in range(99) if _late("image 7", data, seed))
    with pytest.raises(InvalidEvaluation, match="1 of 12 images cannot be used: image 7"):
        rb.evaluate(net(), "fgsm", data, eps=0.1, shuffle_seed=order)
    result = rb.evaluate(net(), "fgsm", data, eps=0.1, on_bad_image="quarantine", shuffle_seed=order)
    (found,) = quarantine(result)
    assert found == Quarantined("image 7", 2, found.reason)
    assert reason in found.reason
    assert list(result.table.unreadable) == [1, 1, 1]


def _late(key: str, data: LabelledImages, seed: int) -> bool:
    """Whether an image is not among the first, by whose size the others are judged."""
    from robustbench_lite.samples import drawn

    return sorted(data.ids, key=lambda each: drawn(seed, "order", each)).index(key) > 3
